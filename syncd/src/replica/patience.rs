//! How long a source rests after a failure before all is tried anew. An attempt may read the whole database, beside an application that
//! needs the disk: what goes on failing is tried less and less often.

use std::time::{Duration, Instant};

/// After a first failure.
const REST_LEAST: Duration = Duration::from_millis(500);
/// And never longer, so that room on a disk is soon noticed.
const REST_MOST: Duration = Duration::from_secs(8);

/// Remembers failures.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Patience(Option<Failed>);

#[derive(Clone, Copy, Debug)]
struct Failed {
    rest: Duration,
    /// Whatever fails before this moment goes on failing.
    until: Instant,
}

impl Patience {
    /// Something failed at `now`; when it is to be tried again.
    pub(super) fn handle_failure(&mut self, now: Instant) -> Instant {
        let rest = match self.0 {
            Some(last) if now < last.until => (last.rest * 2).min(REST_MOST),
            Some(_) | None => REST_LEAST,
        };
        // The next attempt comes after the rest, and may take as long again.
        self.0 = Some(Failed {
            rest,
            until: now + 2 * rest + REST_LEAST,
        });
        now + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::clock;

    #[test]
    fn what_goes_on_failing_is_tried_less_often_but_never_given_up() {
        let (mut patience, mut now) = (Patience::default(), clock::now());
        let mut rests = Vec::new();
        for _ in 0..7 {
            let again = patience.handle_failure(now);
            rests.push(again.duration_since(now).as_millis());
            now = again + Duration::from_millis(100);
        }
        assert_eq!(rests, [500, 1000, 2000, 4000, 8000, 8000, 8000]);
    }

    #[test]
    fn a_failure_long_after_the_last_is_a_first_one() {
        let (mut patience, now) = (Patience::default(), clock::now());
        let again = patience.handle_failure(now);
        let again = patience.handle_failure(again);
        let later = again + Duration::from_secs(3);
        assert_eq!(patience.handle_failure(later), later + REST_LEAST);
    }
}
