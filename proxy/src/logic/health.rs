//! Whether a node is healthy, from the results of its probes.
//!
//! The first result decides at once, because nothing speaks against it; after that, a verdict is only overturned by `rise`
//! or `fall` results in a row, so that one slow garbage collection does not take a node out. An application that answers its
//! requests and is late with its health checks is overloaded, not gone: giving it up would lose what it is doing and load the
//! next one even more. Such results count for a quarter.

use std::time::Instant;

/// How many results in a row overturn a verdict. Both at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Passes that make a node that was down count as up.
    pub rise: u32,
    /// Failures that make a node that was up count as down.
    pub fall: u32,
}

/// The result of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It answered as it should.
    Passed,
    /// It did not.
    Failed,
    /// It did not answer in time, but it answered requests meanwhile.
    Late,
}

/// So many late answers weigh as much as a failed check.
const LATE_IN_A_FAILURE: u32 = 4;

/// One node's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    patience: Patience,
    verdict: Option<bool>,
    against: u32,
    since: Instant,
}

impl Health {
    /// Begins as unknown.
    #[must_use]
    pub const fn new(patience: Patience, now: Instant) -> Self {
        Self {
            patience,
            verdict: None,
            against: 0,
            since: now,
        }
    }

    /// Takes in a probe's result; returns the new verdict if it changed.
    pub fn observe(&mut self, now: Instant, check: Check) -> Option<bool> {
        let passed = check == Check::Passed;
        let needed = match self.verdict {
            None if check == Check::Late => return None,
            None => 1,
            Some(verdict) if verdict == passed => {
                self.against = 0;
                return None;
            }
            Some(true) => self.patience.fall,
            Some(false) => self.patience.rise,
        };
        let needed = needed.saturating_mul(LATE_IN_A_FAILURE);
        let weight = match check {
            Check::Passed | Check::Failed => LATE_IN_A_FAILURE,
            Check::Late => 1,
        };
        self.against = self.against.saturating_add(weight);
        if self.against < needed {
            return None;
        }
        self.verdict = Some(passed);
        self.against = 0;
        self.since = now;
        self.verdict
    }

    /// The verdict; `None` until the first result.
    #[must_use]
    pub const fn verdict(&self) -> Option<bool> {
        self.verdict
    }

    /// Whether it is known to be up.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self.verdict, Some(true))
    }

    /// When the verdict last changed.
    #[must_use]
    pub const fn since(&self) -> Instant {
        self.since
    }
}

/// Which statuses pass, as ranges: `200-399`, `200-299,404`. None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statuses(Vec<(u16, u16)>);

impl Statuses {
    /// Reads ranges separated by commas; `None` when one is not of the form, is empty, or leaves 100–599.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let range = |part: &str| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = (status(from)?, status(to)?);
            (from <= to).then_some((from, to))
        };
        text.split(',')
            .map(|part| range(part.trim()))
            .collect::<Option<_>>()
            .map(Self)
    }

    /// Whether `status` passes.
    #[must_use]
    pub fn contain(&self, status: u16) -> bool {
        self.0
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&status))
    }
}

fn status(text: &str) -> Option<u16> {
    let three_digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|_| three_digits)?;
    (100..=599).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Check::{Failed, Late, Passed};
    use std::time::Duration;

    #[test]
    fn the_first_result_decides_and_later_ones_need_a_row() {
        let start = shared::clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut health = Health::new(Patience { rise: 2, fall: 3 }, start);
        assert_eq!((health.verdict(), health.is_up()), (None, false));
        assert_eq!(health.observe(at(1), Passed), Some(true));
        assert_eq!(health.observe(at(2), Failed), None);
        assert_eq!(health.observe(at(3), Failed), None);
        assert_eq!(health.observe(at(4), Passed), None);
        for second in 5..7 {
            assert_eq!(health.observe(at(second), Failed), None);
        }
        assert_eq!(health.observe(at(7), Failed), Some(false));
        assert_eq!(health.since(), at(7));
        assert_eq!(health.observe(at(8), Passed), None);
        assert_eq!(health.observe(at(9), Passed), Some(true));
        assert!(health.is_up());
    }

    #[test]
    fn being_late_while_requests_are_answered_weighs_less_but_not_nothing() {
        let now = shared::clock::now();
        let mut health = Health::new(Patience { rise: 2, fall: 3 }, now);
        health.observe(now, Passed);
        assert!((0..11).all(|_| health.observe(now, Late).is_none()));
        assert_eq!(health.observe(now, Late), Some(false));

        let mut health = Health::new(Patience { rise: 2, fall: 3 }, now);
        health.observe(now, Passed);
        let verdicts = [Failed, Late, Failed, Late, Failed].map(|check| health.observe(now, check));
        assert_eq!(verdicts, [None, None, None, None, Some(false)]);
    }

    #[test]
    fn status_ranges_are_read_strictly() {
        let statuses = Statuses::parse("200-299, 404").unwrap();
        for (status, passes) in [(200, true), (299, true), (300, false), (404, true)] {
            assert_eq!(statuses.contain(status), passes, "{status}");
        }
        for text in [
            "", "2xx", "200-", "300-200", "99", "600", "0200", "+20", "200,,",
        ] {
            assert_eq!(Statuses::parse(text), None, "{text}");
        }
    }
}
