//! From a commit on the primary to its visibility on the standby, at 200 transactions a second; and from a commit to Litestream's
//! replica, one at a time, which is the best case for it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use shared::clock;
use shared::rng::Rng;

use crate::bench::litestream::Litestream;
use crate::bench::{Options, skipped};
use crate::scenario::reader::bank;
use crate::scenario::{Report, Target, UP_WITHIN, millis};
use crate::stack::{Durability, Shape, Side, Stack};
use crate::stats::Sample;
use crate::trouble::Trouble;

const LASTING: Duration = Duration::from_secs(8);
const EVERY: Duration = Duration::from_millis(5);
const LITESTREAM_COMMITS: u32 = 12;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        fact: "lag_ms_p50",
        at_most: 10.0,
    },
    Target {
        fact: "lag_ms_p99",
        at_most: 50.0,
    },
];

pub(crate) async fn run(options: Options, seed: u64) -> Result<Report, Trouble> {
    let mut report = Report::new("lag", seed);
    let lags = syncd(options).await?;
    report.count("commits", lags.len());
    report.fact("lag_ms_p50", lags.median());
    report.fact("lag_ms_p99", lags.quantile(0.99));
    report.fact("lag_ms_max", lags.max());
    match litestream(options, seed).await {
        Ok(lags) => {
            report.fact("litestream_lag_ms_p50", lags.median());
            report.fact("litestream_lag_ms_p99", lags.quantile(0.99));
        }
        Err(trouble) => skipped(&mut report, &trouble),
    }
    Ok(report)
}

fn shape(options: Options) -> Shape {
    Shape {
        apart: options.apart,
        ..Shape::new(Durability::Async)
    }
}

async fn syncd(options: Options) -> Result<Sample, Trouble> {
    let (stack, ()) = bank(shape(options), async |_| Ok(())).await?;
    let [ours, theirs] = Side::BOTH.map(|side| stack.database(side));
    let writer = open(&ours)?;
    let table = "CREATE TABLE beat (id INTEGER PRIMARY KEY, note TEXT NOT NULL)";
    writer
        .execute_batch(table)
        .map_err(Trouble::database(&ours))?;
    stack.until_level(UP_WITHIN).await?;
    let watcher = Watcher::start(theirs);
    let mut due = clock::now();
    let until = due + LASTING;
    while due < until {
        writer
            .execute("INSERT INTO beat (note) VALUES (hex(randomblob(100)))", [])
            .map_err(Trouble::database(&ours))?;
        watcher.committed();
        due += EVERY;
        clock::sleep_until(due).await;
    }
    stack.until_level(UP_WITHIN).await?;
    watcher.finish()
}

async fn litestream(options: Options, seed: u64) -> Result<Sample, Trouble> {
    let stack = Stack::new(shape(options))?;
    let path = stack.database(Side::A);
    let writer = Connection::open(&path).map_err(Trouble::database(&path))?;
    writer
        .execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE beat (id INTEGER PRIMARY KEY, note TEXT)",
        )
        .map_err(Trouble::database(&path))?;
    let replicator = Litestream::beside(&stack)?;
    stack
        .wait("Litestream's snapshot", UP_WITHIN, async || {
            (replicator.snapshots() > 0).then_some(())
        })
        .await?;
    let mut rng = Rng::with_seed(seed);
    let mut lags = Vec::new();
    for _ in 0..LITESTREAM_COMMITS {
        clock::sleep(Duration::from_millis(rng.u64(1_500..2_500))).await;
        let before = replicator.changes();
        writer
            .execute("INSERT INTO beat (note) VALUES ('x')", [])
            .map_err(Trouble::database(&path))?;
        let committed = clock::now();
        stack
            .wait("a change in Litestream's replica", UP_WITHIN, async || {
                (replicator.changes() > before).then_some(())
            })
            .await?;
        lags.push(millis(clock::now() - committed));
    }
    Ok(lags.into_iter().collect())
}

fn open(path: &Path) -> Result<Connection, Trouble> {
    let open = || {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.pragma_update(None, "synchronous", "normal")?;
        Ok(db)
    };
    open().map_err(Trouble::database(path))
}

/// Somebody who looks at the standby all the time and notes when each commit can be seen there.
struct Watcher {
    commits: Arc<Mutex<Vec<Instant>>>,
    over: Arc<AtomicBool>,
    looking: JoinHandle<Result<Vec<Instant>, Trouble>>,
}

impl Watcher {
    fn start(path: PathBuf) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&over);
        Self {
            commits: Arc::default(),
            over,
            looking: std::thread::spawn(move || look(&path, &end)),
        }
    }

    /// Notes that a commit has just returned.
    fn committed(&self) {
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        commits.push(clock::now());
    }

    fn finish(self) -> Result<Sample, Trouble> {
        self.over.store(true, Ordering::Relaxed);
        let seen = self.looking.join();
        let seen = seen.map_err(|_| Trouble::Nonsense("the watcher panicked".to_owned()))??;
        let commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() != commits.len() {
            let (seen, all) = (seen.len(), commits.len());
            return Err(Trouble::Nonsense(format!(
                "{seen} of {all} commits arrived"
            )));
        }
        let lags = commits.iter().zip(&seen);
        Ok(lags
            .map(|(committed, seen)| millis(seen.saturating_duration_since(*committed)))
            .collect())
    }
}

/// When each row, in the order of their numbers, could first be seen.
fn look(path: &Path, end: &AtomicBool) -> Result<Vec<Instant>, Trouble> {
    let db = open(path)?;
    let mut query = db
        .prepare("SELECT coalesce(max(id), 0) FROM beat")
        .map_err(Trouble::database(path))?;
    let mut seen = Vec::new();
    loop {
        // Asked before looking, so that the last look comes after the end.
        let last = end.load(Ordering::Relaxed);
        let newest: u32 = query
            .query_row([], |row| row.get(0))
            .map_err(Trouble::database(path))?;
        let newest = usize::try_from(newest).unwrap_or(usize::MAX);
        if newest > seen.len() {
            seen.resize(newest, clock::now());
        }
        if last {
            return Ok(seen);
        }
        clock::pause_thread(Duration::from_micros(300));
    }
}
