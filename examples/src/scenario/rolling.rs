//! Applications are restarted one after the other under load, as for every new release, each drained before: nobody must
//! notice.

use std::time::Duration;

use shared::clock;

use crate::ledger::Kind;
use crate::load::Plan;
use crate::scenario::{Rehearsal, Report, WHOLE_WITHIN, millis};
use crate::stack::{Durability, Part, Shape, Side, Stack};
use crate::stats::Sample;
use crate::trouble::Trouble;

/// How to rehearse it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// When writes are answered.
    pub durability: Durability,
    /// Decides the load.
    pub seed: u64,
    /// How often an application is restarted; both in turn.
    pub times: u32,
}

/// Gunicorn lets requests under way finish within this.
const GRACE: Duration = Duration::from_secs(30);

/// Rehearses it.
///
/// # Errors
/// It could not be carried out.
pub async fn run(options: Options) -> Result<Report, Trouble> {
    let name = format!(
        "{} restarts of applications, {}",
        options.times,
        options.durability.as_str()
    );
    let stack = Stack::new(Shape::new(options.durability))?;
    let plan = Plan::standard("rolling", options.seed);
    let report = Report::new(name, options.seed);
    let mut rehearsal = Rehearsal::up(stack, report).await?;
    rehearsal.open(plan, Duration::from_secs(1)).await;

    let mut moments = Vec::new();
    for number in 0..options.times {
        rehearsal.stack.until_safe(WHOLE_WITHIN).await?;
        let side = if number % 2 == 0 { Side::A } else { Side::B };
        let part = Part::App(side);
        let from = clock::now();
        let stack = &rehearsal.stack;
        let drained = stack.hotwarm().drain(side.name(), GRACE).await;
        if let Err(error) = drained {
            let word = format!("drain {side}: {error}");
            rehearsal.report.broken.push(word);
            continue;
        }
        let good = tokio::task::block_in_place(|| stack.terminate(part, GRACE));
        if !good {
            let word = format!("restart {number}: {side}'s application did not end in good order");
            rehearsal.report.notes.push(word);
        }
        let stack = &rehearsal.stack;
        stack.start(part)?;
        if let Err(error) = stack.hotwarm().undrain(side.name()).await {
            let word = format!("undrain {side}: {error}");
            rehearsal.report.broken.push(word);
        }
        moments.push((from, clock::now()));
    }
    let ledger = rehearsal.close().await;
    let gaps: Sample = moments
        .iter()
        .map(|(from, to)| millis(ledger.longest_gap(*from, *to)))
        .collect();
    rehearsal.audit(&ledger, 0).await?;
    rehearsal.until_equal().await?;

    let failed = ledger.failed(Kind::Read) + ledger.failed(Kind::Write);
    let report = &mut rehearsal.report;
    report.count("restarts", moments.len());
    report.fact("client_gap_ms_p50", gaps.median());
    report.fact("client_gap_ms_max", gaps.max());
    report.promise(failed == 0, || {
        format!("{failed} requests failed: {:?}", ledger.failures())
    });
    Ok(rehearsal.report)
}
