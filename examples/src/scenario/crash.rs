//! Something of the hot node dies under load: its application, or the whole host.

use std::time::Duration;

use crate::diverged;
use crate::load::Plan;
use crate::scenario::{Rehearsal, Report, Target};
use crate::stack::{Durability, Part, Shape, Side, Stack};
use crate::trouble::Trouble;

/// What dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The application; its syncd lives on and ships the tail.
    Application,
    /// Application and syncd in the same instant.
    Host,
}

/// How to rehearse it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What dies.
    pub victim: Victim,
    /// When writes are answered.
    pub durability: Durability,
    /// Decides the load.
    pub seed: u64,
    /// How long the load runs before the blow, and after the promotion.
    pub around: Duration,
    /// The first port; any free ones if absent.
    pub base_port: Option<u16>,
}

/// What the medians of several application crashes must not exceed, with default settings.
pub const TARGETS: &[Target] = &[
    Target {
        fact: "gap_ms",
        at_most: 600.0,
    },
    Target {
        fact: "after_crash_after_ms",
        at_most: 150.0,
    },
];

/// The default of `crash_after`: how long a node refuses connections before it counts as crashed.
const CRASH_AFTER_MS: f64 = 250.0;

/// Rehearses it. `tell` hears of every step as it is taken.
///
/// # Errors
/// It could not be carried out.
pub async fn run(options: Options, mut tell: impl FnMut(&str)) -> Result<Report, Trouble> {
    let Options {
        victim, durability, ..
    } = options;
    let name = format!("{victim:?} crash, {}", durability.as_str());
    let stack = Stack::new(Shape {
        base_port: options.base_port,
        ..Shape::new(durability)
    })?;
    let plan = Plan::standard("crash", options.seed);
    let report = Report::new(name, options.seed);
    tell("starting two nodes, their syncd, and the proxy");
    let mut rehearsal = Rehearsal::up(stack, report).await?;
    let hot = rehearsal.stack.primary().await?;
    let warm = hot.other();
    tell(&format!(
        "serving: {hot} is hot, {warm} is warm and in sync"
    ));
    tell(&format!(
        "load: {:.0} requests/s, {:.0} % of them orders",
        plan.rate,
        plan.writes * 100.0
    ));
    rehearsal.open(plan, options.around).await;

    let parts = victim.parts(hot);
    rehearsal.strike(&parts);
    tell(&format!("kill -9 of {}", victim.in_words(hot)));
    let service = rehearsal
        .until_primary(warm, Duration::from_secs(30))
        .await?;
    tell(&format!("{warm} is hot, epoch {}", service.epoch));
    shared::clock::sleep(options.around).await;
    let ledger = rehearsal.close().await;
    tell("load ends; reading the books");
    rehearsal.enter_event(service.last_failover.as_ref());

    let may_lose = match (victim, durability) {
        (Victim::Host, Durability::Async) => service.admitted_loss(),
        (Victim::Application, _) | (Victim::Host, Durability::StandbyAck) => 0,
    };
    let verdict = rehearsal.audit(&ledger, may_lose).await?;
    rehearsal.only_writes_under_way_failed(&ledger);
    let report = &mut rehearsal.report;
    let after = (report.value("gap_ms") - CRASH_AFTER_MS).max(0.0);
    report.fact("after_crash_after_ms", after);

    for part in parts {
        rehearsal.stack.start(part)?;
    }
    tell(&format!("{hot} is started again"));
    rehearsal.until_equal().await?;
    tell(&format!("{hot} follows {warm} and is in sync"));
    if !verdict.lost.is_empty() {
        let missing = diverged::missing(&rehearsal.stack, hot, &verdict.lost)?;
        rehearsal.report.promise(missing.is_empty(), || {
            format!("lost and not kept as diverged either: {missing:?}")
        });
    }
    Ok(rehearsal.report)
}

impl Victim {
    fn parts(self, side: Side) -> Vec<Part> {
        match self {
            Self::Application => vec![Part::App(side)],
            Self::Host => vec![Part::App(side), Part::Syncd(side)],
        }
    }

    fn in_words(self, side: Side) -> String {
        match self {
            Self::Application => {
                format!("{side}'s application: the whole process group, gunicorn and its workers")
            }
            Self::Host => format!("all of {side}: application and syncd in the same instant"),
        }
    }
}
