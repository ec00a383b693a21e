//! Handing over as planned, back and forth, under load: nobody must notice more than a short pause.

use std::time::Duration;

use shared::clock;

use crate::ledger::Kind;
use crate::load::Plan;
use crate::scenario::{Rehearsal, Report, Target, millis};
use crate::stack::{Durability, Shape, Stack};
use crate::stats::Sample;
use crate::trouble::Trouble;

/// How to rehearse it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// When writes are answered.
    pub durability: Durability,
    /// Decides the load.
    pub seed: u64,
    /// How often to hand over.
    pub times: u32,
    /// How long to serve between two of them.
    pub between: Duration,
}

/// What must not be exceeded.
pub const TARGETS: &[Target] = &[Target {
    fact: "pause_ms_p99",
    at_most: 100.0,
}];

/// Rehearses it.
///
/// # Errors
/// It could not be carried out.
pub async fn run(options: Options) -> Result<Report, Trouble> {
    let name = format!(
        "{} switchovers, {}",
        options.times,
        options.durability.as_str()
    );
    let stack = Stack::new(Shape::new(options.durability))?;
    let plan = Plan::standard("switch", options.seed);
    let report = Report::new(name, options.seed);
    let mut rehearsal = Rehearsal::up(stack, report).await?;
    rehearsal.open(plan, Duration::from_secs(1)).await;

    let mut moments = Vec::new();
    let mut pauses = Vec::new();
    for number in 1..=options.times {
        rehearsal.stack.until_safe(Duration::from_secs(20)).await?;
        let to = rehearsal.stack.primary().await?.other();
        let from = clock::now();
        let answer = rehearsal
            .stack
            .hotwarm()
            .switchover(to.name(), Duration::from_secs(30))
            .await;
        if let Err(error) = answer {
            rehearsal
                .report
                .broken
                .push(format!("switchover {number} to {to}: {error}"));
            continue;
        }
        let service = rehearsal.until_primary(to, Duration::from_secs(10)).await?;
        moments.push((from, clock::now()));
        pauses.extend(service.last_failover.map(|event| event.unavailable_ms));
        clock::sleep(options.between).await;
    }
    let ledger = rehearsal.close().await;
    let gaps: Sample = moments
        .iter()
        .map(|(from, to)| millis(ledger.longest_gap(*from, *to)))
        .collect();
    let pauses: Sample = pauses.into_iter().collect();
    rehearsal.audit(&ledger, 0).await?;
    rehearsal.until_equal().await?;

    let failed = ledger.failed(Kind::Read) + ledger.failed(Kind::Write);
    let report = &mut rehearsal.report;
    report.count("switchovers", moments.len());
    report.fact("pause_ms_p50", pauses.median());
    report.fact("pause_ms_p99", pauses.quantile(0.99));
    report.fact("client_gap_ms_p50", gaps.median());
    report.fact("client_gap_ms_max", gaps.max());
    report.promise(failed == 0, || format!("{failed} requests failed"));
    Ok(rehearsal.report)
}
