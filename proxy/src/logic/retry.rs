//! Whether a failed attempt may be made again.
//!
//! A request is repeated only if it was provably not processed, or if its method is idempotent (RFC 9110 §9.2.2) and
//! configured. For the rest there is one way left: proof that the node committed nothing since before it was sent.

use std::time::{Duration, Instant};

/// What is known about a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Not a byte of it reached the node.
    NeverSent,
    /// It reached the node, and is known to have changed nothing.
    KnownUnprocessed,
    /// It may have been carried out.
    MaybeProcessed,
}

impl Class {
    /// The word in the access log and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NeverSent => "never-sent",
            Self::KnownUnprocessed => "known-unprocessed",
            Self::MaybeProcessed => "maybe-processed",
        }
    }
}

/// What the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Its method is idempotent and configured to be repeated.
    pub repeatable: bool,
    /// Its body is still whole here, or it has none.
    pub replayable: bool,
    /// Attempts made in this epoch whose outcome is unknown, this one included.
    pub tries: u32,
    /// How many are allowed.
    pub most: u32,
}

/// What to do about a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Make it again; it costs nothing, because it never counted.
    Again,
    /// Make it again if the budget has room.
    Spend,
    /// Make it again only with proof that the former node committed nothing since.
    Prove,
    /// Tell the client.
    GiveUp,
}

/// Decides about one failed attempt.
#[must_use]
pub const fn decide(class: Class, facts: Facts) -> Next {
    if !facts.replayable {
        return Next::GiveUp;
    }
    match class {
        Class::NeverSent | Class::KnownUnprocessed => Next::Again,
        Class::MaybeProcessed if !facts.repeatable => Next::Prove,
        Class::MaybeProcessed if facts.tries < facts.most => Next::Spend,
        Class::MaybeProcessed => Next::GiveUp,
    }
}

/// Slots of the budget's window, of one second each.
const SLOTS: usize = 10;

/// How many retries are allowed whatever the traffic, within one window: a quiet service may retry too.
const FLOOR: f64 = 10.0;

/// Limits retries to a share of the requests of the last ten seconds, so that a failing node is not hit harder than a
/// sound one.
#[derive(Debug)]
pub struct Budget {
    share: f64,
    start: Instant,
    second: u64,
    requests: [u32; SLOTS],
    retries: [u32; SLOTS],
}

impl Budget {
    /// Allows `share` (0 to 1) of the requests to be retries, and [`FLOOR`] more.
    #[must_use]
    pub const fn new(share: f64, now: Instant) -> Self {
        Self {
            share,
            start: now,
            second: 0,
            requests: [0; SLOTS],
            retries: [0; SLOTS],
        }
    }

    /// Counts a request.
    pub fn deposit(&mut self, now: Instant) {
        let slot = self.roll(now);
        self.requests[slot] = self.requests[slot].saturating_add(1);
    }

    /// Counts a retry if there is room for it; returns whether there was.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        let slot = self.roll(now);
        let sum = |counts: &[u32; SLOTS]| counts.iter().map(|n| f64::from(*n)).sum::<f64>();
        let allowed = if self.share > 0.0 {
            FLOOR + self.share * sum(&self.requests)
        } else {
            0.0
        };
        let room = sum(&self.retries) + 1.0 <= allowed;
        if room {
            self.retries[slot] += 1;
        }
        room
    }

    fn roll(&mut self, now: Instant) -> usize {
        let second = now.saturating_duration_since(self.start).as_secs();
        let passed = second.saturating_sub(self.second).min(10);
        for step in 1..=passed {
            let slot = slot(self.second + step);
            (self.requests[slot], self.retries[slot]) = (0, 0);
        }
        if passed == 10 {
            (self.requests, self.retries) = ([0; SLOTS], [0; SLOTS]);
        }
        self.second = self.second.max(second);
        slot(self.second)
    }
}

fn slot(second: u64) -> usize {
    usize::try_from(second % 10).unwrap_or(0)
}

/// How long to wait before a node that refused is tried again when nothing else is heard: short at first, because a
/// restarting process is back in a moment, and never so short that a dead port is hammered.
#[must_use]
pub fn pause(attempt: u32) -> Duration {
    Duration::from_millis(25 << attempt.min(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        repeatable: true,
        replayable: true,
        tries: 1,
        most: 2,
    };

    #[test]
    fn what_was_never_sent_may_always_be_made_again() {
        for repeatable in [true, false] {
            let facts = Facts {
                repeatable,
                tries: 9,
                ..FACTS
            };
            assert_eq!(decide(Class::NeverSent, facts), Next::Again);
            assert_eq!(decide(Class::KnownUnprocessed, facts), Next::Again);
        }
    }

    #[test]
    fn what_may_have_been_processed_is_repeated_only_if_idempotent_and_within_the_attempts() {
        assert_eq!(decide(Class::MaybeProcessed, FACTS), Next::Spend);
        let spent = Facts { tries: 2, ..FACTS };
        assert_eq!(decide(Class::MaybeProcessed, spent), Next::GiveUp);
        let unsafe_one = Facts {
            repeatable: false,
            ..FACTS
        };
        assert_eq!(decide(Class::MaybeProcessed, unsafe_one), Next::Prove);
    }

    #[test]
    fn nothing_is_repeated_without_its_body() {
        let gone = Facts {
            replayable: false,
            ..FACTS
        };
        for class in [Class::NeverSent, Class::MaybeProcessed] {
            assert_eq!(decide(class, gone), Next::GiveUp);
        }
    }

    #[test]
    fn the_budget_is_a_share_of_recent_requests() {
        let start = shared::clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut budget = Budget::new(0.2, start);
        for _ in 0..100 {
            budget.deposit(at(0));
        }
        let granted = (0..100).filter(|_| budget.withdraw(at(5))).count();
        assert_eq!(granted, 30);
        assert!(!budget.withdraw(at(9)));
        // The requests are forgotten first, the retries five seconds later.
        assert!(!budget.withdraw(at(10)));
        let granted = (0..100).filter(|_| budget.withdraw(at(15))).count();
        assert_eq!(granted, 10);
    }

    #[test]
    fn a_budget_of_nothing_allows_nothing() {
        let start = shared::clock::now();
        assert!(!Budget::new(0.0, start).withdraw(start));
    }
}
