//! Whether a node that has requests has stopped answering any of them.
//!
//! Health checks need several intervals to tell a hang. The requests themselves tell it sooner: when many wait and nothing at
//! all comes back, sending more would only lengthen the queue inside an application that may never get to it. A false alarm
//! (an application that is merely slow) makes the next alarm wait twice as long.

use std::time::{Duration, Instant};

/// What the data plane has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Requests that were sent and have no response yet.
    pub waiting: u64,
    /// Responses that have begun, since the start.
    pub answered: u64,
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Requests wait, and nothing has come back for too long.
    Stalled,
    /// A response has come.
    Answers,
}

/// No alarm waits longer than this, however often it was false.
const PATIENCE_MOST: Duration = Duration::from_secs(8);
/// After this long without an alarm, the false ones before it are forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Watches the pulse of one service's present primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    least: Duration,
    patience: Duration,
    answered: u64,
    quiet_since: Option<Instant>,
    alarmed_at: Option<Instant>,
    alarmed: bool,
}

impl Stall {
    /// Alarms after `patience` without any response while requests wait.
    #[must_use]
    pub const fn new(patience: Duration) -> Self {
        Self {
            least: patience,
            patience,
            answered: 0,
            quiet_since: None,
            alarmed_at: None,
            alarmed: false,
        }
    }

    /// Takes in what has been counted by `now`; returns what has changed.
    pub fn observe(&mut self, now: Instant, pulse: Pulse) -> Option<Change> {
        let answers = pulse.answered != self.answered;
        self.answered = pulse.answered;
        if answers || pulse.waiting == 0 {
            self.quiet_since = None;
        }
        if answers && self.alarmed {
            self.relent();
            return Some(Change::Answers);
        }
        if answers || pulse.waiting == 0 || self.alarmed {
            return None;
        }
        let since = *self.quiet_since.get_or_insert(now);
        if self
            .alarmed_at
            .is_none_or(|at| now.saturating_duration_since(at) >= FORGET_AFTER)
        {
            self.patience = self.least;
        }
        if now.saturating_duration_since(since) < self.patience {
            return None;
        }
        self.alarmed = true;
        self.alarmed_at = Some(now);
        Some(Change::Stalled)
    }

    /// The alarm was false: the node answers after all.
    pub fn relent(&mut self) {
        if self.alarmed {
            self.alarmed = false;
            self.quiet_since = None;
            self.patience = (self.patience * 2).min(PATIENCE_MOST);
        }
    }

    /// Somebody else takes the requests now.
    pub const fn reset(&mut self) {
        self.alarmed = false;
        self.quiet_since = None;
        self.patience = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(250);

    fn pulse(waiting: u64, answered: u64) -> Pulse {
        Pulse { waiting, answered }
    }

    #[test]
    fn silence_counts_only_while_requests_wait_and_ends_with_the_first_response() {
        let start = shared::clock::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut stall = Stall::new(PATIENCE);
        assert_eq!(
            stall.observe(at(0), pulse(3, 10)),
            None,
            "it has just answered"
        );
        assert_eq!(stall.observe(at(50), pulse(3, 10)), None);
        assert_eq!(
            stall.observe(at(290), pulse(3, 11)),
            None,
            "slow, but alive"
        );
        assert_eq!(stall.observe(at(340), pulse(0, 11)), None);
        assert_eq!(
            stall.observe(at(5000), pulse(1, 11)),
            None,
            "nothing waited before"
        );
        assert_eq!(stall.observe(at(5249), pulse(9, 11)), None);
        assert_eq!(stall.observe(at(5250), pulse(9, 11)), Some(Change::Stalled));
        assert_eq!(stall.observe(at(5300), pulse(9, 11)), None, "said once");
        assert_eq!(stall.observe(at(5350), pulse(8, 12)), Some(Change::Answers));
    }

    #[test]
    fn each_false_alarm_makes_the_next_one_slower_until_it_is_forgotten() {
        let start = shared::clock::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut stall = Stall::new(PATIENCE);
        stall.observe(at(0), pulse(1, 0));
        assert_eq!(stall.observe(at(250), pulse(1, 0)), Some(Change::Stalled));
        stall.relent();
        stall.observe(at(300), pulse(1, 0));
        assert_eq!(stall.observe(at(799), pulse(1, 0)), None);
        assert_eq!(stall.observe(at(800), pulse(1, 0)), Some(Change::Stalled));
        stall.relent();
        stall.observe(at(70_000), pulse(1, 0));
        assert_eq!(
            stall.observe(at(70_250), pulse(1, 0)),
            Some(Change::Stalled)
        );
    }
}
