//! What replication costs and how fast it is, side by side with Litestream. Medians and spreads of interleaved runs.

use clap::ValueEnum;

use crate::scenario::{Report, Target, summary};
use crate::trouble::Trouble;

mod closed;
mod gate;
mod lag;
mod litestream;
mod snapshot;
mod unnoticed;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// What the application notices: throughput, waits, size of its write-ahead log.
    Unnoticed,
    /// From a commit on the primary to its visibility on the standby.
    Lag,
    /// What waiting for a standby's disk adds to a write.
    Gate,
    /// The first snapshot of a large database.
    Snapshot,
}

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often.
    pub runs: u32,
    /// Whether the primary's node has CPU 0 to itself and everything else runs on the others, as if on another machine.
    pub apart: bool,
    /// The size of the large database, in MiB.
    pub size_mib: u32,
}

/// Measures it as often as asked. Whether every target was met.
///
/// # Errors
/// A run could not be carried out.
pub async fn run(
    bench: Bench,
    options: Options,
    mut say: impl FnMut(&str),
) -> Result<bool, Trouble> {
    let mut reports = Vec::new();
    for number in 1..=options.runs {
        let seed = u64::from(number);
        let report = match bench {
            Bench::Unnoticed => unnoticed::run(options, seed).await?,
            Bench::Lag => lag::run(options, seed).await?,
            Bench::Gate => gate::run(options, seed).await?,
            Bench::Snapshot => snapshot::run(options, seed).await?,
        };
        say(&format!("run {number} of {}: {report}", options.runs));
        reports.push(report);
    }
    let (text, good) = summary(&reports, targets(bench));
    say(&format!(
        "\n{bench:?}: median (least–most) of {} runs:\n{text}\n",
        options.runs
    ));
    Ok(good)
}

const fn targets(bench: Bench) -> &'static [Target] {
    match bench {
        Bench::Unnoticed => unnoticed::TARGETS,
        Bench::Lag => lag::TARGETS,
        Bench::Gate => gate::TARGETS,
        Bench::Snapshot => snapshot::TARGETS,
    }
}

/// Notes aloud that a part of a measurement was left out.
fn skipped(report: &mut Report, trouble: &Trouble) {
    report.notes.push(format!("skipped: {trouble}"));
}
