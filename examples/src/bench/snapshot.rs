//! The first snapshot of a large database while it is being written to: how fast, how long a writer waits, and what a cut in the
//! middle costs. And how fast Litestream takes its own.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use shared::clock;

use crate::bench::litestream::Litestream;
use crate::bench::{Options, skipped};
use crate::scenario::reader::{Written, prepared};
use crate::scenario::{Report, Target, UP_WITHIN, wrong};
use crate::stack::{Durability, Part, Shape, Side, Stack};
use crate::trouble::Trouble;
use crate::workload::Workload;

/// A snapshot that takes longer than this has failed.
const WITHIN: Duration = Duration::from_secs(300);

pub(crate) const TARGETS: &[Target] = &[
    Target {
        fact: "seconds_per_60_mb",
        at_most: 1.0,
    },
    Target {
        fact: "longest_write_ms",
        at_most: 50.0,
    },
];

pub(crate) async fn run(options: Options, seed: u64) -> Result<Report, Trouble> {
    let mut report = Report::new(format!("first snapshot of {} MiB", options.size_mib), seed);
    let megabytes = f64::from(options.size_mib) * 1.048_576;
    let whole = snapshot(options, &mut report, false).await?;
    report.fact("megabytes_per_second", megabytes / whole.as_secs_f64());
    report.fact("seconds_per_60_mb", whole.as_secs_f64() / megabytes * 60.0);
    let cut = snapshot(options, &mut report, true).await?;
    report.fact("seconds_whole", whole.as_secs_f64());
    report.fact("seconds_with_a_cut", cut.as_secs_f64());
    match litestream(options).await {
        Ok(seconds) => report.fact("litestream_megabytes_per_second", megabytes / seconds),
        Err(trouble) => skipped(&mut report, &trouble),
    }
    Ok(report)
}

/// How long until the standby has everything, with a writer at work.
async fn snapshot(options: Options, report: &mut Report, cut: bool) -> Result<Duration, Trouble> {
    let shape = Shape {
        apart: options.apart,
        ..Shape::new(Durability::Async)
    };
    let stack = large(shape, options.size_mib).await?;
    let begin = clock::now();
    let path = stack.database(Side::A).display().to_string();
    let args = ["write", &path, "100"];
    let writer = Workload::start(stack.programs(), stack.mark(), "bank.py", &args)?;
    if cut {
        let done = half_way(&stack).await?;
        stack.kill(&[Part::Syncd(Side::B)]);
        let resumed = resumed_at(&stack).await?;
        report.fact("done_before_cut_percent", done * 100.0);
        report.fact("done_after_cut_percent", resumed * 100.0);
    }
    stack.until_safe(WITHIN).await?;
    let took = clock::now() - begin;
    let written: Written = writer.finish()?;
    report.promise(written.errors.is_empty(), || {
        format!("the writer was refused: {:?}", written.errors)
    });
    if !cut {
        report.fact("longest_write_ms", written.wait_ms_max.unwrap_or(f64::NAN));
    }
    stack.until_level(WITHIN).await?;
    report.broken.extend(wrong(&stack)?);
    Ok(took)
}

/// A deployment whose node A has a large database, at the moment at which it begins to serve; node B has nothing.
async fn large(shape: Shape, size_mib: u32) -> Result<Stack, Trouble> {
    let stack = prepared(shape)?;
    grow(&stack.database(Side::A), size_mib)?;
    stack.start_all()?;
    stack
        .wait("a serving", UP_WITHIN, async || {
            let service = stack.service().await.ok()?;
            let serves = service.phase == "serving" && service.primary.as_deref() == Some("a");
            serves.then_some(())
        })
        .await?;
    Ok(stack)
}

fn grow(path: &Path, size_mib: u32) -> Result<(), Trouble> {
    let grow = || {
        let mut db = Connection::open(path)?;
        let all = db.transaction()?;
        all.execute_batch("CREATE TABLE ballast (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL)")?;
        for _ in 0..size_mib {
            all.execute(
                "INSERT INTO ballast (bytes) VALUES (randomblob(1 << 20))",
                [],
            )?;
        }
        all.commit()
    };
    grow().map_err(Trouble::database(path))
}

/// Waits until more than half is done; how much that is, 0 to 1.
async fn half_way(stack: &Stack) -> Result<f64, Trouble> {
    stack
        .wait("half of the snapshot", WITHIN, async || {
            progress(stack).await.filter(|done| *done > 0.5)
        })
        .await
}

/// How much counts as done when the restarted syncd first says so.
async fn resumed_at(stack: &Stack) -> Result<f64, Trouble> {
    stack
        .wait("the resumed snapshot", WITHIN, async || {
            let safe = stack.service().await.is_ok_and(|service| service.is_safe());
            if safe {
                Some(1.0)
            } else {
                progress(stack).await
            }
        })
        .await
}

#[expect(clippy::cast_precision_loss, reason = "a share, for people")]
async fn progress(stack: &Stack) -> Option<f64> {
    let status = stack.status(Side::B).await.ok()?;
    let (done, all) = status.sources.first()?.progress?;
    (all > 0).then(|| done as f64 / all as f64)
}

/// Seconds until Litestream has its snapshot.
async fn litestream(options: Options) -> Result<f64, Trouble> {
    let stack = Stack::new(Shape {
        apart: options.apart,
        ..Shape::new(Durability::Async)
    })?;
    let path = stack.database(Side::A);
    grow(&path, options.size_mib)?;
    let convert = || Connection::open(&path)?.pragma_update(None, "journal_mode", "wal");
    convert().map_err(Trouble::database(&path))?;
    let begin = clock::now();
    let replicator = Litestream::beside(&stack)?;
    stack
        .wait("Litestream's snapshot", WITHIN, async || {
            (replicator.snapshots() > 0).then_some(())
        })
        .await?;
    Ok((clock::now() - begin).as_secs_f64())
}
