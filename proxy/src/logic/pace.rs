//! How fast requests that were held are let go.
//!
//! Hundreds of them sent at once would stand in a queue inside an application that has just taken over: its health checks
//! would come last, and if it failed too, nobody could tell what became of any of them. So a few go, and each response lets
//! two more go. Time alone lets them go as well, slowly, because not every request is answered soon.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::stall::Pulse;

/// So many of one worker's requests may wait for a response before the first has come.
const FIRST: u64 = 8;
/// One more for each of these spans.
const ONE_MORE_EVERY: Duration = Duration::from_millis(5);

/// One worker's pace of letting go.
#[derive(Debug, Default)]
pub struct Pace(Cell<Option<Opened>>);

/// When requests began to be let go, and how many responses there had been by then.
#[derive(Clone, Copy, Debug)]
struct Opened {
    turn: u64,
    at: Instant,
    answered: u64,
}

impl Pace {
    /// Whether one more request that was held may go in the view `turn`, where `pulse` is the worker's.
    pub fn admits(&self, turn: u64, pulse: Pulse, now: Instant) -> bool {
        let opened = self.0.get().filter(|opened| opened.turn == turn);
        let opened = opened.unwrap_or(Opened {
            turn,
            at: now,
            answered: pulse.answered,
        });
        self.0.set(Some(opened));
        let waited =
            now.saturating_duration_since(opened.at).as_micros() / ONE_MORE_EVERY.as_micros();
        let by_time = u64::try_from(waited).unwrap_or(u64::MAX);
        let by_answers = pulse.answered.saturating_sub(opened.answered);
        pulse.waiting < FIRST.saturating_add(by_answers).saturating_add(by_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_response_lets_two_go_and_time_lets_all_go() {
        let start = shared::clock::now();
        let pace = Pace::default();
        let admits = |waiting, answered, millis| {
            let now = start + Duration::from_millis(millis);
            pace.admits(1, Pulse { waiting, answered }, now)
        };
        assert!(admits(7, 100, 0));
        assert!(!admits(8, 100, 0));
        assert!(admits(7, 101, 1) && admits(8, 101, 1) && !admits(9, 101, 1));
        assert!(!admits(100, 101, 400), "80 more by time");
        assert!(admits(100, 101, 465));
        let again = start + Duration::from_secs(1);
        assert!(
            !pace.admits(
                2,
                Pulse {
                    waiting: 8,
                    answered: 500
                },
                again
            ),
            "another view begins anew"
        );
    }
}
