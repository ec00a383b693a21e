//! The long forms of the scenarios: many runs, medians at the end.

use std::time::Duration;

use clap::ValueEnum;
use shared::clock;

use crate::scenario::{
    Report, Target, bad_input, bad_state, commands, crash, first_start, hang, reader, rolling,
    rounds, summary, switchover,
};
use crate::stack::{Durability, Side};
use crate::trouble::Trouble;

/// How long an application that hung may take to be well again: what was queued at it fails at the fence one by one, each after
/// SQLite's own wait of 5 s.
const WELL_WITHIN: Duration = Duration::from_secs(480);

/// What can be rehearsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// The hot application is killed.
    Crash,
    /// The hot application and its syncd are killed in the same instant.
    HostLoss,
    /// The hot application hangs and wakes up later.
    Hang,
    /// Anything is killed or frozen at any time.
    Rounds,
    /// Handing over as planned, back and forth.
    Switchover,
    /// Applications are restarted in good order, one after the other.
    Rolling,
    /// A reader on the standby while its applier is killed.
    Reader,
    /// Fresh nodes are started in any order.
    FirstStart,
    /// An empty node joins one with data.
    Joining,
    /// Two nodes with unrelated data meet.
    Strangers,
    /// Configurations that are wrong.
    BadInput,
    /// What an operator and a client see.
    Commands,
    /// Older epochs, damaged state files and streams, files that are no databases, full disks.
    BadState,
}

/// How to rehearse.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// When writes are answered.
    pub durability: Durability,
    /// What random choices are drawn from; each run counts on from it. The time if absent.
    pub seed: Option<u64>,
    /// How often.
    pub runs: u32,
    /// How many rounds, switchovers or orders of starting in each run.
    pub rounds: Option<u32>,
    /// The first random round.
    pub first: u32,
    /// How long, where a scenario lasts.
    pub lasting: Option<Duration>,
    /// Whether to leave the folder of a broken run behind.
    pub keep: bool,
}

/// Rehearses it as often as asked. Whether every promise was kept and every target met.
///
/// # Errors
/// A run could not be carried out.
pub async fn run(
    scenario: Scenario,
    options: Options,
    mut say: impl FnMut(&str),
) -> Result<bool, Trouble> {
    let seed = options.seed.unwrap_or_else(|| clock::unix_nanos() / 1_000);
    let mut reports = Vec::new();
    for number in 0..options.runs {
        let seed = seed.wrapping_add(u64::from(number));
        say(&format!(
            "run {} of {}, seed {seed}",
            number + 1,
            options.runs
        ));
        for report in once(scenario, options, seed, &mut say).await? {
            say(&report.to_string());
            reports.push(report);
        }
    }
    let (text, good) = summary(&reports, targets(scenario));
    say(&format!(
        "\nmedian (least–most) of {} runs:\n{text}",
        reports.len()
    ));
    say(if good {
        "every promise was kept"
    } else {
        "NOT every promise was kept"
    });
    Ok(good)
}

async fn once(
    scenario: Scenario,
    options: Options,
    seed: u64,
    say: &mut impl FnMut(&str),
) -> Result<Vec<Report>, Trouble> {
    let durability = options.durability;
    let around = options.lasting.unwrap_or(Duration::from_secs(4));
    let crash = |victim| crash::Options {
        victim,
        durability,
        seed,
        around,
        base_port: None,
    };
    let one = match scenario {
        Scenario::Crash => crash::run(crash(crash::Victim::Application), say).await?,
        Scenario::HostLoss => crash::run(crash(crash::Victim::Host), say).await?,
        Scenario::Hang => {
            let options = hang::Options {
                durability,
                seed,
                around,
                well_within: Some(WELL_WITHIN),
            };
            hang::run(options).await?
        }
        Scenario::Rounds => {
            let options = rounds::Options {
                durability,
                seed,
                first: options.first,
                rounds: options.rounds.unwrap_or(200),
                rate: 60.0,
                keep: options.keep,
            };
            rounds::run(options, say).await?
        }
        Scenario::Switchover => {
            let options = switchover::Options {
                durability,
                seed,
                times: options.rounds.unwrap_or(20),
                between: Duration::from_secs(1),
            };
            switchover::run(options).await?
        }
        Scenario::Rolling => {
            let options = rolling::Options {
                durability,
                seed,
                times: options.rounds.unwrap_or(20),
            };
            rolling::run(options).await?
        }
        Scenario::Reader => {
            let options = reader::Options {
                seed,
                rate: 500,
                lasting: options.lasting.unwrap_or(Duration::from_secs(60)),
            };
            reader::run(options).await?
        }
        Scenario::FirstStart => return first_starts(durability, options.rounds).await,
        Scenario::Joining => first_start::joining(durability).await?,
        Scenario::Strangers => first_start::strangers().await?,
        Scenario::BadInput => bad_input::run(say)?,
        Scenario::Commands => commands::run().await?,
        Scenario::BadState => {
            return Ok(vec![
                bad_state::stale_orders().await?,
                bad_state::damaged_state().await?,
                bad_state::bad_wire(seed, options.lasting.unwrap_or(Duration::from_secs(30)))
                    .await?,
                bad_state::no_database().await?,
                bad_state::full_disk(Side::A).await?,
                bad_state::full_disk(Side::B).await?,
            ]);
        }
    };
    Ok(vec![one])
}

/// As many orders of starting as asked for, spread over all of them.
async fn first_starts(durability: Durability, count: Option<u32>) -> Result<Vec<Report>, Trouble> {
    let count = count
        .unwrap_or(first_start::ORDERS)
        .clamp(1, first_start::ORDERS);
    let mut reports = Vec::new();
    for number in 0..count {
        let order = number * first_start::ORDERS / count;
        reports.push(first_start::fresh(durability, order).await?);
    }
    Ok(reports)
}

const fn targets(scenario: Scenario) -> &'static [Target] {
    match scenario {
        Scenario::Crash => crash::TARGETS,
        Scenario::Switchover => switchover::TARGETS,
        Scenario::FirstStart => first_start::TARGETS,
        Scenario::HostLoss
        | Scenario::Hang
        | Scenario::Rounds
        | Scenario::Rolling
        | Scenario::Reader
        | Scenario::Joining
        | Scenario::Strangers
        | Scenario::BadInput
        | Scenario::Commands
        | Scenario::BadState => &[],
    }
}
