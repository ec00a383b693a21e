//! What the client was told: every request, and the fate of every order as far as its customer knows it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::stats::Sample;

/// What a customer knows about an order that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was accepted, under this number. It must be there, once, for ever.
    Accepted(i64),
    /// It was refused, for this reason. It must not be there.
    Refused(String),
    /// Nobody can say; it may be there once, or not at all.
    Unknown(String),
}

/// What a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only looked.
    Read,
    /// It placed an order.
    Write,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With what was asked for.
    Served,
    /// With an answer that says that it was not carried out.
    Refused(String),
    /// In such a way that it may have been carried out.
    Unknown(String),
    /// It asked for an order that had been accepted, and was told that there is no such order.
    NotFound,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it was.
    pub kind: Kind,
    /// When it was due, and sent: the load does not wait for answers.
    pub sent: Instant,
    /// When its answer was complete, or it was given up.
    pub done: Instant,
    /// How it ended.
    pub outcome: Outcome,
}

impl Entry {
    /// Whether it was sent before `during` ended, and not answered before it began.
    fn was_under_way(&self, during: &RangeInclusive<Instant>) -> bool {
        self.sent <= *during.end() && self.done >= *during.start()
    }
}

/// Everything that happened under one load.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// All requests, in the order in which they ended.
    pub entries: Vec<Entry>,
    /// All orders by their customer's reference.
    pub orders: BTreeMap<String, Fate>,
    /// Requests that were due but not sent, because too many were under way.
    pub overdue: u64,
}

impl Ledger {
    /// Accepted orders.
    #[must_use]
    pub fn accepted(&self) -> usize {
        let accepted = |fate: &&Fate| matches!(fate, Fate::Accepted(_));
        self.orders.values().filter(accepted).count()
    }

    /// Requests of a kind that did not end as they should.
    #[must_use]
    pub fn failed(&self, kind: Kind) -> usize {
        let failed = |entry: &&Entry| entry.kind == kind && entry.outcome != Outcome::Served;
        self.entries.iter().filter(failed).count()
    }

    /// How often an accepted order was looked up and not found.
    #[must_use]
    pub fn not_found(&self) -> usize {
        let not_found = |entry: &&Entry| entry.outcome == Outcome::NotFound;
        self.entries.iter().filter(not_found).count()
    }

    /// How often each way of failing occurred, in words.
    #[must_use]
    pub fn failures(&self) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for entry in &self.entries {
            let how = match &entry.outcome {
                Outcome::Served => continue,
                Outcome::Refused(why) => format!("{:?} refused: {why}", entry.kind),
                Outcome::Unknown(why) => format!("{:?} unknown: {why}", entry.kind),
                Outcome::NotFound => "accepted order not found".to_owned(),
            };
            *count.entry(how).or_insert(0) += 1;
        }
        count
    }

    /// Requests of a kind that were under way at some instant of `during`.
    #[must_use]
    pub fn under_way(&self, kind: Kind, during: &RangeInclusive<Instant>) -> usize {
        let under_way = |entry: &&Entry| entry.kind == kind && entry.was_under_way(during);
        self.entries.iter().filter(under_way).count()
    }

    /// Requests of a kind that did not end as they should although they were at no instant of `during` under way.
    #[must_use]
    pub fn failed_apart_from(&self, kind: Kind, during: &RangeInclusive<Instant>) -> usize {
        let apart = |entry: &&Entry| {
            entry.kind == kind && entry.outcome != Outcome::Served && !entry.was_under_way(during)
        };
        self.entries.iter().filter(apart).count()
    }

    /// The longest stretch without any success between the two moments: what a user would call the outage.
    #[must_use]
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let mut successes: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| entry.outcome == Outcome::Served)
            .map(|entry| entry.done.clamp(from, to))
            .collect();
        successes.extend([from, to]);
        successes.sort_unstable();
        let gaps = successes.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }

    /// How long the served requests of a kind that were sent between the two moments took, in milliseconds from when they were due.
    #[must_use]
    pub fn latency_ms(&self, kind: Kind, from: Instant, to: Instant) -> Sample {
        let within = |entry: &&Entry| {
            entry.kind == kind
                && entry.outcome == Outcome::Served
                && (from..to).contains(&entry.sent)
        };
        let served = self.entries.iter().filter(within);
        served
            .map(|entry| (entry.done - entry.sent).as_secs_f64() * 1e3)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(start: Instant, sent: u64, done: u64, outcome: Outcome) -> Entry {
        Entry {
            kind: Kind::Read,
            sent: start + Duration::from_millis(sent),
            done: start + Duration::from_millis(done),
            outcome,
        }
    }

    #[test]
    fn a_gap_counts_from_success_to_success_and_failures_do_not_end_it() {
        let start = shared::clock::now();
        let at = |ms| start + Duration::from_millis(ms);
        let ledger = Ledger {
            entries: vec![
                entry(start, 0, 10, Outcome::Served),
                entry(start, 20, 100, Outcome::Unknown("502".to_owned())),
                entry(start, 30, 310, Outcome::Served),
                entry(start, 900, 900, Outcome::Served),
            ],
            ..Ledger::default()
        };
        assert_eq!(
            ledger.longest_gap(at(0), at(400)),
            Duration::from_millis(300)
        );
        assert_eq!(
            ledger.longest_gap(at(0), at(2000)),
            Duration::from_millis(1100)
        );
        assert_eq!(ledger.under_way(Kind::Read, &(at(50)..=at(50))), 2);
        assert_eq!(ledger.failed(Kind::Read), 1);
        assert_eq!(ledger.failures().len(), 1);
    }

    #[test]
    fn what_was_sent_while_a_process_group_died_was_under_way() {
        let start = shared::clock::now();
        let at = |ms| start + Duration::from_millis(ms);
        let lost = || Outcome::Unknown("502".to_owned());
        let ledger = Ledger {
            entries: vec![
                // Answered before the kill began.
                entry(start, 0, 99, lost()),
                // Sent before, inside at the kill.
                entry(start, 90, 105, lost()),
                // Sent to a worker that the signal had not reached yet.
                entry(start, 104, 105, lost()),
                // Sent when the last of the group had been waited for.
                entry(start, 111, 120, lost()),
            ],
            ..Ledger::default()
        };
        let killing = at(100)..=at(110);
        assert_eq!(ledger.under_way(Kind::Read, &killing), 2);
        assert_eq!(ledger.failed_apart_from(Kind::Read, &killing), 2);
        assert_eq!(ledger.failed_apart_from(Kind::Write, &killing), 0);
    }
}
