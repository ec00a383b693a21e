//! A node's circuit breaker: stops sending it requests when they fail, and lets a few try again after a while.
//!
//! Phases say what happens to the next request. Two things open it: failures in a row, and a share of failures among
//! enough requests within a window. Requests admitted freely are not tracked one by one: successes come in counts and
//! failures one at a time, so that the caller need not take a lock for each success. Only trials carry a [`Ticket`].

use std::time::{Duration, Instant};

use crate::logic::outcome::Outcome;

/// Into how many parts the window is divided; the oldest part is forgotten as a whole.
const PARTS: usize = 10;

/// When to open, for how long, and what it takes to close again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerLimits {
    /// Failures in a row that open it. At least 1.
    pub consecutive_failures: u32,
    /// Share of failures within the window that opens it, above 0 and at most 1.
    pub error_rate: f64,
    /// Requests within the window below which the share says nothing. At least 1.
    pub min_requests: u64,
    /// How far back the share looks.
    pub window: Duration,
    /// How long no request is let through after opening.
    pub open_for: Duration,
    /// How many trials must succeed, and how many may be under way at once. At least 1.
    pub half_open_probes: u32,
}

/// What happens to the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It goes through ("closed").
    Admit,
    /// It does not, until that moment ("open").
    Refuse(Instant),
    /// It goes through if few enough are trying ("half-open").
    Try,
}

impl Phase {
    /// The word that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admit => "closed",
            Self::Refuse(_) => "open",
            Self::Try => "half-open",
        }
    }
}

/// One trial's permission; settle it, or give it back.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Ticket(u64);

/// The answer to a request that wants to go through.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Go; report a failure with [`Breaker::handle_failure`] and a success in the next count.
    Free,
    /// Go, and settle the ticket.
    Trial(Ticket),
    /// Do not; ask again at this moment, if nothing is heard before.
    Refused(Instant),
}

/// What a result changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It no longer admits.
    Opened,
    /// It admits again.
    Closed,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    good: u64,
    bad: u64,
}

/// One node's breaker.
#[derive(Debug)]
pub struct Breaker {
    limits: BreakerLimits,
    phase: Phase,
    in_a_row: u32,
    parts: [Part; PARTS],
    part: u64,
    start: Instant,
    trials: Trials,
}

/// The trials of one half-open phase.
#[derive(Debug, Default)]
struct Trials {
    series: u64,
    under_way: u32,
    succeeded: u32,
    last: Option<Instant>,
}

impl Breaker {
    /// Begins by admitting.
    #[must_use]
    pub fn new(limits: BreakerLimits, now: Instant) -> Self {
        Self {
            limits,
            phase: Phase::Admit,
            in_a_row: 0,
            parts: [Part::default(); PARTS],
            part: 0,
            start: now,
            trials: Trials::default(),
        }
    }

    /// What happens to the next request.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the next request would be refused, as far as is known without looking at the time.
    #[must_use]
    pub const fn is_shut(&self) -> bool {
        match self.phase {
            Phase::Admit => false,
            Phase::Try => self.trials.under_way >= self.limits.half_open_probes,
            Phase::Refuse(_) => true,
        }
    }

    /// Whether all trials are under way and have been for so long that others may begin.
    #[must_use]
    pub fn are_trials_stuck(&self, now: Instant) -> bool {
        let long = |last: Instant| now >= last + self.limits.open_for;
        self.phase == Phase::Try && self.is_shut() && self.trials.last.is_some_and(long)
    }

    /// Decides about one request.
    pub fn admit(&mut self, now: Instant) -> Admission {
        match self.phase {
            Phase::Admit => Admission::Free,
            Phase::Refuse(until) if now < until => Admission::Refused(until),
            Phase::Refuse(_) => {
                self.begin_trials();
                self.try_one(now)
            }
            Phase::Try => self.try_one(now),
        }
    }

    /// Takes in successes of freely admitted requests since the last count.
    pub fn handle_successes(&mut self, now: Instant, count: u64) {
        if count > 0 && self.phase == Phase::Admit {
            self.in_a_row = 0;
            self.roll(now).good += count;
        }
    }

    /// Takes in one failure of a freely admitted request. Late ones, after it opened, say nothing new.
    pub fn handle_failure(&mut self, now: Instant) -> Option<Change> {
        if self.phase != Phase::Admit {
            return None;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.roll(now).bad += 1;
        self.has_had_enough().then(|| self.open(now))
    }

    /// Takes in a trial's result.
    pub fn settle(&mut self, now: Instant, ticket: Ticket, outcome: Outcome) -> Option<Change> {
        if !self.give_back(ticket) {
            return None;
        }
        match outcome {
            Outcome::Bad => Some(self.open(now)),
            Outcome::Good => {
                self.trials.succeeded += 1;
                (self.trials.succeeded >= self.limits.half_open_probes).then(|| self.close())
            }
        }
    }

    /// Takes back a trial that ended without saying anything about the node. Returns whether it still counted.
    pub fn give_back(&mut self, ticket: Ticket) -> bool {
        let counts = self.phase == Phase::Try && ticket.0 == self.trials.series;
        if counts {
            self.trials.under_way = self.trials.under_way.saturating_sub(1);
        }
        counts
    }

    /// Somebody has reason to believe that the node is worth trying: ends an open phase early.
    pub fn handle_hope(&mut self) {
        if matches!(self.phase, Phase::Refuse(_)) {
            self.begin_trials();
        }
    }

    fn has_had_enough(&self) -> bool {
        if self.in_a_row >= self.limits.consecutive_failures {
            return true;
        }
        let (good, bad) = self.parts.iter().fold((0, 0), |(good, bad), part| {
            (good + part.good, bad + part.bad)
        });
        let all = good + bad;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a share needs no more than 52 bits"
        )]
        let share = bad as f64 / all.max(1) as f64;
        all >= self.limits.min_requests && share >= self.limits.error_rate
    }

    fn open(&mut self, now: Instant) -> Change {
        self.phase = Phase::Refuse(now + self.limits.open_for);
        Change::Opened
    }

    fn close(&mut self) -> Change {
        self.phase = Phase::Admit;
        self.in_a_row = 0;
        self.parts = [Part::default(); PARTS];
        Change::Closed
    }

    fn begin_trials(&mut self) {
        self.phase = Phase::Try;
        self.trials = Trials {
            series: self.trials.series + 1,
            ..Trials::default()
        };
    }

    fn try_one(&mut self, now: Instant) -> Admission {
        let wait = self.limits.open_for;
        let full = self.trials.under_way >= self.limits.half_open_probes;
        match self.trials.last {
            Some(last) if full && now < last + wait => return Admission::Refused(last + wait),
            // Trials that take this long say nothing in time; others may try beside them.
            Some(_) if full => self.begin_trials(),
            _ => (),
        }
        self.trials.under_way += 1;
        self.trials.last = Some(now);
        Admission::Trial(Ticket(self.trials.series))
    }

    /// Forgets what is older than the window; returns the part for `now`.
    fn roll(&mut self, now: Instant) -> &mut Part {
        let length = (self.limits.window / 10).max(Duration::from_millis(1));
        let since = now.saturating_duration_since(self.start);
        let part = u64::try_from(since.as_millis() / length.as_millis().max(1)).unwrap_or(u64::MAX);
        let passed = part.saturating_sub(self.part).min(10);
        for step in 1..=passed {
            self.parts[slot(self.part + step)] = Part::default();
        }
        self.part = self.part.max(part);
        if passed == 10 {
            self.parts = [Part::default(); PARTS];
        }
        &mut self.parts[slot(self.part)]
    }
}

fn slot(part: u64) -> usize {
    usize::try_from(part % 10).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BreakerLimits = BreakerLimits {
        consecutive_failures: 5,
        error_rate: 0.5,
        min_requests: 20,
        window: Duration::from_secs(10),
        open_for: Duration::from_secs(2),
        half_open_probes: 3,
    };

    struct Bench(Breaker, Instant);

    impl Bench {
        fn new() -> Self {
            let start = shared::clock::now();
            Self(Breaker::new(LIMITS, start), start)
        }

        fn at(&self, millis: u64) -> Instant {
            self.1 + Duration::from_millis(millis)
        }

        fn fail(&mut self, millis: u64) -> Option<Change> {
            self.0.handle_failure(self.at(millis))
        }

        fn opened() -> Self {
            let mut bench = Self::new();
            for _ in 0..4 {
                assert_eq!(bench.fail(0), None);
            }
            assert_eq!(bench.fail(0), Some(Change::Opened));
            bench
        }

        fn trial(&mut self, millis: u64) -> Ticket {
            match self.0.admit(self.at(millis)) {
                Admission::Trial(ticket) => ticket,
                other @ (Admission::Free | Admission::Refused(_)) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not_let_them() {
        let mut bench = Bench::new();
        for _ in 0..4 {
            assert_eq!(bench.fail(0), None);
        }
        bench.0.handle_successes(bench.at(0), 1);
        for _ in 0..4 {
            assert_eq!(bench.fail(0), None);
        }
        assert_eq!(bench.0.phase(), Phase::Admit);
        assert_eq!(bench.fail(0), Some(Change::Opened));
        let until = bench.at(2000);
        assert_eq!(bench.0.admit(bench.at(1999)), Admission::Refused(until));
        assert_eq!(bench.fail(1), None, "late failures change nothing");
    }

    #[test]
    fn a_share_of_failures_opens_it_once_there_are_enough_requests() {
        let mut bench = Bench::new();
        for n in 0..9 {
            assert_eq!(bench.fail(n * 100), None);
            bench.0.handle_successes(bench.at(n * 100), 1);
        }
        assert_eq!(bench.fail(950), None, "nineteen are too few");
        assert_eq!(bench.fail(960), Some(Change::Opened));
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut bench = Bench::new();
        for n in 0..9 {
            assert_eq!(bench.fail(n), None);
            bench.0.handle_successes(bench.at(n), 1);
        }
        for _ in 0..3 {
            assert_eq!(bench.fail(10_500), None);
        }
        bench.0.handle_successes(bench.at(99_000), 100);
        assert_eq!(bench.fail(99_000), None);
        assert_eq!(bench.0.phase(), Phase::Admit);
    }

    #[test]
    fn trials_close_it_when_enough_succeed_and_no_more_go_at_once_than_allowed() {
        let mut bench = Bench::opened();
        let tickets: Vec<_> = (0..3).map(|_| bench.trial(2000)).collect();
        assert!(matches!(
            bench.0.admit(bench.at(2001)),
            Admission::Refused(_)
        ));
        let now = bench.at(2010);
        let changes: Vec<_> = tickets
            .into_iter()
            .map(|ticket| bench.0.settle(now, ticket, Outcome::Good))
            .collect();
        assert_eq!(changes, [None, None, Some(Change::Closed)]);
        assert_eq!(bench.0.admit(now), Admission::Free);
    }

    #[test]
    fn one_failed_trial_opens_it_again_and_the_others_no_longer_count() {
        let mut bench = Bench::opened();
        let (first, second) = (bench.trial(2000), bench.trial(2000));
        let now = bench.at(2100);
        let change = bench.0.settle(now, first, Outcome::Bad);
        assert_eq!(change, Some(Change::Opened));
        assert_eq!(bench.0.phase(), Phase::Refuse(now + LIMITS.open_for));
        assert_eq!(bench.0.settle(now, second, Outcome::Good), None);
    }

    #[test]
    fn a_trial_that_is_given_back_or_never_ends_does_not_lock_it() {
        let mut bench = Bench::opened();
        for _ in 0..5 {
            let ticket = bench.trial(2000);
            assert!(bench.0.give_back(ticket));
        }
        assert!(!bench.0.is_shut());
        let stuck: Vec<_> = (0..3).map(|_| bench.trial(2000)).collect();
        let again = bench.at(4000);
        assert!(bench.0.is_shut() && !bench.0.are_trials_stuck(bench.at(3999)));
        assert!(bench.0.are_trials_stuck(again));
        assert_eq!(bench.0.admit(bench.at(2500)), Admission::Refused(again));
        assert!(matches!(bench.0.admit(again), Admission::Trial(_)));
        for ticket in stuck {
            assert!(!bench.0.give_back(ticket));
        }
    }

    #[test]
    fn hope_ends_an_open_phase_early() {
        let mut bench = Bench::opened();
        bench.0.handle_hope();
        assert_eq!(bench.0.phase(), Phase::Try);
        let ticket = bench.trial(1);
        assert!(bench.0.give_back(ticket));
    }
}
