//! What the application notices of the replicator beside it: throughput against running alone, the longest wait of a statement,
//! the size of its write-ahead log.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use shared::clock;

use crate::bench::closed::orders_per_second;
use crate::bench::litestream::Litestream;
use crate::bench::{Options, skipped};
use crate::client::Client;
use crate::scenario::{Report, Target, UP_WITHIN};
use crate::stack::{Durability, Part, Shape, Side, Stack};
use crate::trouble::Trouble;

const LASTING: Duration = Duration::from_secs(5);
const MIB: f64 = 1_048_576.0;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        fact: "slower_with_syncd_percent",
        at_most: 5.0,
    },
    Target {
        fact: "waits_over_20ms",
        at_most: 0.0,
    },
    Target {
        fact: "wal_mib_beyond_allowance",
        at_most: 0.0,
    },
];

/// What one of them showed.
struct Seen {
    per_second: f64,
    wal_mib: f64,
}

/// Runs the application alone, with syncd and with Litestream; the order changes from run to run.
pub(crate) async fn run(options: Options, seed: u64) -> Result<Report, Trouble> {
    let mut report = Report::new("unnoticed", seed);
    let (by_itself, syncd) = if seed.is_multiple_of(2) {
        let by_itself = alone(options, false).await?;
        (by_itself, with_syncd(options, &mut report).await?)
    } else {
        let syncd = with_syncd(options, &mut report).await?;
        (alone(options, false).await?, syncd)
    };
    report.fact("orders_per_second_alone", by_itself.per_second);
    report.fact("orders_per_second_with_syncd", syncd.per_second);
    report.fact("wal_mib_alone", by_itself.wal_mib);
    report.fact("wal_mib_with_syncd", syncd.wal_mib);
    report.fact(
        "slower_with_syncd_percent",
        (1.0 - syncd.per_second / by_itself.per_second) * 100.0,
    );
    report.fact(
        "wal_mib_beyond_allowance",
        (syncd.wal_mib - 2.0 * by_itself.wal_mib - 16.0).max(0.0),
    );
    match alone(options, true).await {
        Ok(litestream) => {
            report.fact("orders_per_second_with_litestream", litestream.per_second);
            report.fact("wal_mib_with_litestream", litestream.wal_mib);
        }
        Err(trouble) => skipped(&mut report, &trouble),
    }
    Ok(report)
}

/// The application by itself, in the journal mode that it also has beside a replicator; or with Litestream.
async fn alone(options: Options, litestream: bool) -> Result<Seen, Trouble> {
    let stack = Stack::new(shape(options))?;
    stack.start(Part::App(Side::A))?;
    let shop = Client::new(stack.app(Side::A));
    stack
        .wait("the shop", UP_WITHIN, async || {
            let answer = shop.get("/healthz", Duration::from_secs(1)).await.ok()?;
            answer.status.is_success().then_some(())
        })
        .await?;
    let path = stack.database(Side::A);
    let convert = || Connection::open(&path)?.pragma_update(None, "journal_mode", "wal");
    convert().map_err(Trouble::database(&path))?;
    let replicator = litestream.then(|| Litestream::beside(&stack)).transpose()?;
    if let Some(replicator) = &replicator {
        stack
            .wait("Litestream's snapshot", UP_WITHIN, async || {
                (replicator.snapshots() > 0).then_some(())
            })
            .await?;
    }
    measure(&stack).await
}

async fn with_syncd(options: Options, report: &mut Report) -> Result<Seen, Trouble> {
    let stack = Stack::new(shape(options))?;
    stack.start_all()?;
    stack.until_safe(UP_WITHIN).await?;
    let before = waits(&stack).await?;
    let seen = measure(&stack).await?;
    let after = waits(&stack).await?;
    report.fact("waits_for_syncd", after.all - before.all);
    report.fact("waits_over_20ms", after.long - before.long);
    Ok(seen)
}

fn shape(options: Options) -> Shape {
    Shape {
        apart: options.apart,
        // The standby's syncs would compete with the application's on a disk that is not its own.
        in_memory: Some(Side::B),
        ..Shape::new(Durability::Async)
    }
}

async fn measure(stack: &Stack) -> Result<Seen, Trouble> {
    let wal = WalSize::watch(&stack.database(Side::A));
    let per_second = orders_per_second(stack.app(Side::A), LASTING).await?;
    Ok(Seen {
        per_second,
        wal_mib: wal.most_bytes() / MIB,
    })
}

/// How often syncd held the application up, as it counts itself.
struct Waits {
    all: f64,
    long: f64,
}

async fn waits(stack: &Stack) -> Result<Waits, Trouble> {
    let syncd = Client::new(stack.syncd_door(Side::A));
    let answer = syncd.get("/metrics", Duration::from_secs(2)).await;
    let answer = answer.map_err(|lost| Trouble::Nonsense(format!("read metrics: {lost}")))?;
    let text = String::from_utf8_lossy(&answer.body);
    let sum = |name: &str, label: &str| -> f64 {
        text.lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    let all = sum("syncd_app_blocked_seconds_count", "");
    let short = sum("syncd_app_blocked_seconds_bucket", "le=\"0.02\"");
    Ok(Waits {
        all,
        long: all - short,
    })
}

/// Watches how large a write-ahead log gets.
struct WalSize {
    most: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl WalSize {
    fn watch(database: &Path) -> Self {
        let (most, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        let (peak, end) = (Arc::clone(&most), Arc::clone(&over));
        tokio::spawn(async move {
            while !end.load(Ordering::Relaxed) {
                let size = std::fs::metadata(&wal).map_or(0, |data| data.len());
                peak.fetch_max(size, Ordering::Relaxed);
                clock::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { most, over }
    }

    #[expect(clippy::cast_precision_loss, reason = "a file's size, for people")]
    fn most_bytes(&self) -> f64 {
        self.most.load(Ordering::Relaxed) as f64
    }
}

impl Drop for WalSize {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
