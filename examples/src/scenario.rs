//! Rehearsals: a deployment is put under load, something happens to it, and a report says what became of the promises.
//!
//! Each scenario is a function from options to a [`Report`]. Tests run the short forms and assert that nothing was broken; the
//! `rehearse` binary runs the long forms, many times, and prints medians.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use shared::clock;

use crate::admin::{Failover, Service};
use crate::audit::{Books, Verdict, over_http_from};
use crate::compare::{Content, integrity};
use crate::ledger::{Kind, Ledger};
use crate::load::{Load, Plan};
use crate::stack::{Part, Side, Stack};
use crate::stats::Sample;
use crate::trouble::Trouble;

pub mod bad_input;
pub mod bad_state;
pub mod commands;
pub mod crash;
pub mod first_start;
pub mod hang;
pub mod reader;
pub mod rolling;
pub mod rounds;
pub mod switchover;

/// How long a fresh deployment may take before we call it broken; its own target is 5 s.
pub(crate) const UP_WITHIN: Duration = Duration::from_secs(30);
/// How long a deployment that was hit may take to be whole again.
pub(crate) const WHOLE_WITHIN: Duration = Duration::from_secs(60);

/// How long a commit may stay unseen by the primary's syncd at worst: it looks every 250 ms if nothing wakes it.
const UNSEEN_MOST: Duration = Duration::from_secs(2);

/// What a rehearsal showed.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What was rehearsed.
    pub scenario: String,
    /// What it was drawn from.
    pub seed: u64,
    /// What was measured, with the unit at the end of the name.
    pub facts: Vec<(&'static str, f64)>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// Promises that were not kept.
    pub broken: Vec<String>,
}

impl Report {
    /// Nothing is known yet.
    pub fn new(scenario: impl Into<String>, seed: u64) -> Self {
        Self {
            scenario: scenario.into(),
            seed,
            ..Self::default()
        }
    }

    /// Adds a measurement.
    pub fn fact(&mut self, name: &'static str, value: f64) {
        self.facts.push((name, value));
    }

    /// Adds a count.
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of a rehearsal are far below 2^52"
    )]
    pub fn count(&mut self, name: &'static str, value: usize) {
        self.fact(name, value as f64);
    }

    /// The measurement of that name; not a number if there is none.
    #[must_use]
    pub fn value(&self, name: &str) -> f64 {
        let fact = self.facts.iter().find(|(known, _)| *known == name);
        fact.map_or(f64::NAN, |(_, value)| *value)
    }

    /// Notes a broken promise unless `kept`.
    pub fn promise(&mut self, kept: bool, otherwise: impl FnOnce() -> String) {
        if !kept {
            self.broken.push(otherwise());
        }
    }

    /// Says which promises were broken, for a test to fail with.
    ///
    /// # Errors
    /// Any were.
    pub fn check(&self) -> Result<(), String> {
        if self.broken.is_empty() {
            return Ok(());
        }
        Err(self.to_string())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (seed {})", self.scenario, self.seed)?;
        for (name, value) in &self.facts {
            write!(f, "\n  {name:<28} {}", plain(*value))?;
        }
        for note in &self.notes {
            write!(f, "\n  {note}")?;
        }
        for broken in &self.broken {
            write!(f, "\n  BROKEN: {broken}")?;
        }
        Ok(())
    }
}

/// A number as a person would write it.
fn plain(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// What a fact's median over several runs must not exceed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The fact.
    pub fact: &'static str,
    /// Its limit.
    pub at_most: f64,
}

/// Sums several runs up: every fact's median with its spread, the targets that were missed, and everything broken.
#[must_use]
pub fn summary(reports: &[Report], targets: &[Target]) -> (String, bool) {
    let mut lines = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in reports.iter().flat_map(|report| &report.facts) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let mut good = true;
    for name in names {
        let values = reports.iter().map(|report| report.value(name));
        let sample: Sample = values.collect();
        let target = targets.iter().find(|target| target.fact == name);
        let verdict = target.map_or_else(String::new, |target| {
            let met = sample.median() <= target.at_most;
            good &= met;
            format!(
                "  target ≤ {}: {}",
                plain(target.at_most),
                if met { "met" } else { "MISSED" }
            )
        });
        lines.push(format!("  {name:<28} {sample:.1}{verdict}"));
    }
    let broken: BTreeSet<_> = reports.iter().flat_map(|report| &report.broken).collect();
    lines.extend(broken.iter().map(|broken| format!("  BROKEN: {broken}")));
    (lines.join("\n"), good && broken.is_empty())
}

/// A deployment under load with a moment at which something happens to it.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    pub(crate) stack: Stack,
    pub(crate) report: Report,
    load: Option<Load>,
    began: Instant,
    /// From when the blow began until the last process that it was meant for had felt it: killing a group takes a while.
    pub(crate) struck: RangeInclusive<Instant>,
}

impl Rehearsal {
    /// Brings the deployment up and waits until it is safe.
    pub(crate) async fn up(stack: Stack, report: Report) -> Result<Self, Trouble> {
        stack.start_all()?;
        stack.until_safe(UP_WITHIN).await?;
        Ok(Self {
            stack,
            report,
            load: None,
            began: clock::now(),
            struck: at(clock::now()),
        })
    }

    /// Lets the customers in and serves them for `lasting`.
    pub(crate) async fn open(&mut self, plan: Plan, lasting: Duration) {
        self.began = clock::now();
        self.load = Some(Load::start(self.stack.front(), plan));
        clock::sleep(lasting).await;
    }

    /// Kills these parts in the same instant, for good.
    pub(crate) fn strike(&mut self, parts: &[Part]) {
        let begun = clock::now();
        self.stack.kill_for_good(parts);
        self.struck = begun..=clock::now();
    }

    /// Freezes these parts.
    pub(crate) fn freeze(&mut self, parts: &[Part]) {
        let begun = clock::now();
        self.stack.freeze(parts);
        self.struck = begun..=clock::now();
    }

    /// Waits until `side` serves.
    pub(crate) async fn until_primary(
        &self,
        side: Side,
        within: Duration,
    ) -> Result<Service, Trouble> {
        let serves = |service: &Service| {
            service.phase == "serving" && service.primary.as_deref() == Some(side.name())
        };
        self.stack
            .wait(&format!("{side} serving"), within, async || {
                self.stack.service().await.ok().filter(serves)
            })
            .await
    }

    /// Sends the customers home and enters what they saw.
    pub(crate) async fn close(&mut self) -> Ledger {
        let Some(load) = self.load.take() else {
            return Ledger::default();
        };
        let ledger = load.finish().await;
        let report = &mut self.report;
        let under_way = ledger.under_way(Kind::Write, &self.struck);
        let gap = ledger.longest_gap(*self.struck.start(), clock::now());
        report.count("requests", ledger.entries.len());
        report.fact("gap_ms", millis(gap));
        report.count("failed_reads", ledger.failed(Kind::Read));
        report.count("failed_writes", ledger.failed(Kind::Write));
        report.count("writes_under_way", under_way);
        let before = ledger.latency_ms(Kind::Write, self.began, *self.struck.start());
        report.fact("write_ms_p50_before", before.median());
        for (how, count) in ledger.failures() {
            report.notes.push(format!("{count} × {how}"));
        }
        report.promise(ledger.overdue == 0, || {
            format!(
                "{} requests could not even be sent: too many were waiting",
                ledger.overdue
            )
        });
        ledger
    }

    /// All that may fail in a crash are orders that were inside the application while it died, and they fail honestly.
    pub(crate) fn only_writes_under_way_failed(&mut self, ledger: &Ledger) {
        let reads = ledger.failed(Kind::Read);
        let others = ledger.failed_apart_from(Kind::Write, &self.struck);
        self.report
            .promise(reads == 0, || format!("{reads} look-ups failed"));
        self.report.promise(others == 0, || {
            format!("{others} orders failed that were not under way while the crash happened")
        });
    }

    /// Enters the proxy's own account of the change of primary.
    pub(crate) fn enter_event(&mut self, event: Option<&Failover>) {
        let report = &mut self.report;
        let Some(event) = event else {
            report.broken.push(
                "the change of primary is nowhere on record (last_failover is null)".to_owned(),
            );
            return;
        };
        report.fact("event_unavailable_ms", event.unavailable_ms);
        report.notes.push(format!(
            "{} ({}), held {}, loss {} ({:?} transactions)",
            event.kind, event.reason, event.held, event.loss, event.lost_transactions
        ));
    }

    /// Reads the books on the primary, both ways, and enters what became of the orders. Returns the verdict.
    pub(crate) async fn audit(
        &mut self,
        ledger: &Ledger,
        may_lose: usize,
    ) -> Result<Verdict, Trouble> {
        let (verdict, broken) = audit(&self.stack, ledger, may_lose).await?;
        let report = &mut self.report;
        report.count("accepted", verdict.accepted);
        report.count("lost", verdict.lost.len());
        report.count("doubled", verdict.doubled.len());
        report.notes.push(verdict.to_string());
        report.broken.extend(broken);
        Ok(verdict)
    }

    /// Waits until the deployment is whole again, then compares the two databases.
    pub(crate) async fn until_equal(&mut self) -> Result<(), Trouble> {
        let since = clock::now();
        self.stack.until_level(WHOLE_WITHIN).await?;
        self.report
            .fact("whole_again_ms", millis(clock::now() - since));
        let (broken, _) = wrong_at_rest(&self.stack).await?;
        self.report.broken.extend(broken);
        Ok(())
    }
}

/// Reads the books on the primary, over HTTP and from the file. The verdict, and what is wrong in words.
pub(crate) async fn audit(
    stack: &Stack,
    ledger: &Ledger,
    may_lose: usize,
) -> Result<(Verdict, Vec<String>), Trouble> {
    audit_from(0, stack, ledger, may_lose).await
}

/// As [`audit`], but of what the shop shows only the orders from place `from` on are read.
pub(crate) async fn audit_from(
    from: usize,
    stack: &Stack,
    ledger: &Ledger,
    may_lose: usize,
) -> Result<(Verdict, Vec<String>), Trouble> {
    let primary = stack.primary().await?;
    let books = Books::read(&stack.database(primary))?;
    let from = from.min(books.orders.len().saturating_sub(1));
    let (left_out, told) = over_http_from(from, &stack.client()).await?;
    let verdict = Verdict::of(ledger, &books.orders);
    let mut broken = verdict.broken(may_lose);
    let kept = &books.orders[left_out..];
    if told != kept {
        let (told, kept) = (told.len(), kept.len());
        broken.push(format!(
            "from order {left_out} on the shop shows {told} orders and its database has {kept}"
        ));
    }
    let ordered: i64 = books.orders.iter().map(|order| order.quantity).sum();
    if ordered != books.sold {
        let sold = books.sold;
        broken.push(format!(
            "{ordered} ordered and {sold} sold: a transaction was torn"
        ));
    }
    Ok((verdict, broken))
}

/// What is wrong with a deployment at rest: programs that panicked, databases that are damaged or differ.
pub(crate) fn wrong(stack: &Stack) -> Result<Vec<String>, Trouble> {
    let mut broken = damage(stack)?;
    broken.extend(difference(stack)?);
    Ok(broken)
}

/// As [`wrong`], once the standby has everything. Both may say for a moment that they are level while the primary's syncd has not
/// seen the last commit yet; the second value is for how long they did, from the moment when that was found out.
pub(crate) async fn wrong_at_rest(stack: &Stack) -> Result<(Vec<String>, Duration), Trouble> {
    let mut found_out = None;
    loop {
        stack.until_even(WHOLE_WITHIN).await?;
        let differ = difference(stack)?;
        let now = clock::now();
        let too_soon = found_out.map_or(Duration::ZERO, |since| now - since);
        if differ.is_none() || too_soon > UNSEEN_MOST {
            let mut broken = damage(stack)?;
            broken.extend(differ);
            return Ok((broken, too_soon));
        }
        found_out.get_or_insert(now);
        clock::sleep(Duration::from_millis(10)).await;
    }
}

/// Programs that panicked, and databases that SQLite finds damaged.
fn damage(stack: &Stack) -> Result<Vec<String>, Trouble> {
    let mut broken = stack.panics();
    for side in Side::BOTH {
        let said = integrity(&stack.database(side))?;
        if said != "ok" {
            broken.push(format!("integrity_check on {side}: {said}"));
        }
    }
    Ok(broken)
}

/// How the two databases differ, if they do.
fn difference(stack: &Stack) -> Result<Option<String>, Trouble> {
    let [a, b] = Side::BOTH.map(|side| Content::read(&stack.database(side)));
    let difference = a?.difference(&b?);
    Ok(difference.map(|difference| format!("the databases differ: {difference}")))
}

/// That instant, as a span.
const fn at(moment: Instant) -> RangeInclusive<Instant> {
    moment..=moment
}

/// A duration as a number of milliseconds.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
