//! What waiting for a standby's disk adds to a write: the same light load through the proxy, with and without the gate.

use std::time::Duration;

use shared::clock;

use crate::bench::Options;
use crate::ledger::Kind;
use crate::load::{Load, Plan};
use crate::scenario::{Report, Target, UP_WITHIN};
use crate::stack::{Durability, Shape, Stack};
use crate::stats::Sample;
use crate::trouble::Trouble;

const LASTING: Duration = Duration::from_secs(6);

pub(crate) const TARGETS: &[Target] = &[Target {
    fact: "gate_adds_ms_p50",
    at_most: 8.0,
}];

pub(crate) async fn run(options: Options, seed: u64) -> Result<Report, Trouble> {
    let mut report = Report::new("gate", seed);
    let (open, gated) = if seed.is_multiple_of(2) {
        let open = writes(options, Durability::Async, seed).await?;
        (open, writes(options, Durability::StandbyAck, seed).await?)
    } else {
        let gated = writes(options, Durability::StandbyAck, seed).await?;
        (writes(options, Durability::Async, seed).await?, gated)
    };
    report.fact("async_ms_p50", open.median());
    report.fact("async_ms_p99", open.quantile(0.99));
    report.fact("standby_ack_ms_p50", gated.median());
    report.fact("standby_ack_ms_p99", gated.quantile(0.99));
    report.fact("gate_adds_ms_p50", gated.median() - open.median());
    Ok(report)
}

/// How long orders took.
async fn writes(options: Options, durability: Durability, seed: u64) -> Result<Sample, Trouble> {
    let stack = Stack::new(Shape {
        apart: options.apart,
        ..Shape::new(durability)
    })?;
    stack.start_all()?;
    stack.until_safe(UP_WITHIN).await?;
    let plan = Plan {
        rate: 40.0,
        writes: 1.0,
        ..Plan::standard("gate", seed)
    };
    let load = Load::start(stack.front(), plan);
    let from = clock::now() + Duration::from_secs(1);
    clock::sleep(LASTING).await;
    Ok(load
        .finish()
        .await
        .latency_ms(Kind::Write, from, clock::now()))
}
