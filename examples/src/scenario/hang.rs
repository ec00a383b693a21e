//! The hot application hangs, with a transaction half done: it must be given up, and what it does when it wakes must not count.

use std::net::SocketAddr;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use shared::clock;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::diverged;
use crate::ledger::{Fate, Kind};
use crate::load::{self, Plan};
use crate::scenario::{Rehearsal, Report, WHOLE_WITHIN, millis, wrong_at_rest};
use crate::stack::{Durability, Part, Shape, Stack};
use crate::trouble::Trouble;

/// How to rehearse it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// When writes are answered.
    pub durability: Durability,
    /// Decides the load.
    pub seed: u64,
    /// How long the load runs before the hang, and after the promotion.
    pub around: Duration,
    /// How long the application may take to be well again after its hang; nobody waits for that if absent.
    pub well_within: Option<Duration>,
}

/// The reference of the order that the hanging node completes after it has been given up.
const LATE: &str = "placed-too-late";
/// Orders that are handed to the hung application past the proxy, and that it begins when it wakes. First in its queue, so that
/// each of its two workers answers within a few of SQLite's waits of 5 s.
const QUEUED: u32 = 4;
/// How long their customers wait.
const QUEUED_WAIT: Duration = Duration::from_secs(90);

/// Rehearses it.
///
/// # Errors
/// It could not be carried out.
pub async fn run(options: Options) -> Result<Report, Trouble> {
    let name = format!("application hangs, {}", options.durability.as_str());
    let stack = Stack::new(Shape::new(options.durability))?;
    let plan = Plan::standard("hang", options.seed);
    let report = Report::new(name, options.seed);
    let mut rehearsal = Rehearsal::up(stack, report).await?;
    rehearsal.open(plan, options.around).await;

    let hot = rehearsal.stack.primary().await?;
    let path = rehearsal.stack.database(hot);
    let job = half_done(&path).map_err(Trouble::database(&path))?;
    rehearsal.freeze(&[Part::App(hot)]);
    let queued = queue(rehearsal.stack.app(hot));
    let service = rehearsal
        .until_primary(hot.other(), Duration::from_secs(60))
        .await?;
    // The part of the hung application that this process plays goes on where it was: it may succeed or be refused.
    let late = job.execute_batch("COMMIT");
    drop(job);
    clock::sleep(options.around).await;
    rehearsal.stack.thaw(&[Part::App(hot)]);
    let thawed = clock::now();
    rehearsal.stack.until_followed(WHOLE_WITHIN).await?;
    let followed = clock::now() - thawed;
    clock::sleep(Duration::from_secs(1)).await;
    let mut ledger = rehearsal.close().await;
    rehearsal.enter_event(service.last_failover.as_ref());

    let under_way = ledger.under_way(Kind::Write, &rehearsal.struck);
    let (reads, writes) = (ledger.failed(Kind::Read), ledger.failed(Kind::Write));
    let report = &mut rehearsal.report;
    report.fact("in_sync_again_ms", millis(followed));
    report.promise(reads == 0, || format!("{reads} look-ups failed"));
    // Until the hang is noticed, the proxy keeps sending: those orders' outcome is unknown as well.
    report.count(
        "writes_unknown_beyond_under_way",
        writes.saturating_sub(under_way),
    );
    report.count("late_commit_went_through", usize::from(late.is_ok()));
    for (reference, answer) in queued {
        let fate = answer.await.unwrap_or_else(|error| {
            Fate::Unknown(format!("nobody heard what became of it: {error}"))
        });
        report.notes.push(format!("{reference}: {fate:?}"));
        report.promise(!matches!(fate, Fate::Accepted(_)), || {
            format!("{reference} was told to have succeeded by a node that had been given up")
        });
        ledger.orders.insert(reference, fate);
    }

    rehearsal.audit(&ledger, 0).await?;
    let (broken, _) = wrong_at_rest(&rehearsal.stack).await?;
    rehearsal.report.broken.extend(broken);
    if late.is_ok() {
        let missing = diverged::missing(&rehearsal.stack, hot, &[LATE.to_owned()])?;
        rehearsal.report.promise(missing.is_empty(), || {
            "what the hung node wrote after it was given up is not kept as diverged".to_owned()
        });
    }
    if let Some(within) = options.well_within {
        rehearsal.stack.until_safe(within).await?;
        let well = millis(clock::now() - thawed);
        rehearsal.report.fact("well_again_ms", well);
    }
    Ok(rehearsal.report)
}

/// Orders that wait in the queue of an application.
fn queue(app: SocketAddr) -> Vec<(String, JoinHandle<Fate>)> {
    let place = |number| {
        let reference = format!("queued-{number}");
        let named = reference.clone();
        let answer = tokio::spawn(async move {
            load::order(&Client::new(app), &named, "tea", QUEUED_WAIT).await
        });
        (reference, answer)
    };
    (0..QUEUED).map(place).collect()
}

/// A transaction of the application that has begun and not ended.
fn half_done(path: &std::path::Path) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    db.busy_timeout(Duration::from_secs(10))?;
    db.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         INSERT INTO orders (ref, product_id, quantity, total_cents, created_at)
         VALUES ('{LATE}', 1, 1, 450, '2026-01-01 00:00:00.000000');
         UPDATE product SET sold = sold + 1 WHERE id = 1"
    ))?;
    Ok(db)
}
