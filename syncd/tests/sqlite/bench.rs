//! Numbers, on demand: `cargo test --release -p syncd --test sqlite -- --ignored --nocapture --test-threads 1 bench`.

use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use serde_json::Value;
use shared::clock;
use syncd::sqlite::{Database, Tail};
use syncd::wire::increment::Increment;

use crate::rig::{Program, Tender, resync, snapshot};
use crate::support::{Scratch, drain, open, position, say, standby};

fn init(path: &Path) {
    Program::start("init.py", &[path.to_str().unwrap(), "4096", "none", "wal"]).finish();
}

fn load(path: &Path, seconds: u32, rate: u32, seed: u32, times: &str) -> Program {
    let (seconds, rate, seed) = (seconds.to_string(), rate.to_string(), seed.to_string());
    Program::start(
        "load.py",
        &[path.to_str().unwrap(), &seconds, &rate, &seed, times],
    )
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank"
    )]
    let rank = (sorted.len() as f64 * share) as usize;
    sorted
        .get(rank.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

#[test]
#[ignore = "a benchmark"]
fn bench_commit_to_applied() {
    for rate in [10, 200, 1000] {
        let scratch = Scratch::new("latency");
        let options = scratch.options("a.db");
        init(&options.path);
        let mut database = open(&options);
        let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
        tail.stand_at(position(0));
        let (mut copy, mut apply) =
            snapshot(&scratch, &mut database, &mut tail, &scratch.options("b.db"));
        let tenders = (Tender::start(&database), Tender::start(&copy));
        let (to, from) = sync_channel::<Increment>(10_000);
        let applying = std::thread::spawn(move || {
            let mut applied = Vec::new();
            while let Ok(first) = from.recv() {
                let mut batch = vec![first];
                batch.extend(from.try_iter());
                apply.apply(&mut copy, &batch).unwrap();
                let now = clock::unix_nanos();
                applied.extend(batch.iter().map(|increment| (now, increment.committed_at)));
            }
            applied
        });
        let mut app = load(&options.path, 8, rate, 1, "times");
        while app.is_running() {
            while let Some(increment) = tail.poll(&mut database).unwrap() {
                to.send(increment).unwrap();
            }
            tail.rest(&mut database, Duration::from_millis(100))
                .unwrap();
        }
        drain(&mut tail, &mut database)
            .into_iter()
            .for_each(|increment| to.send(increment).unwrap());
        drop(to);
        let applied = applying.join().unwrap();
        let said: Value = serde_json::from_str(&app.finish()).unwrap();
        let ended: Vec<u64> = said["ended"]
            .as_array()
            .unwrap()
            .iter()
            .map(|at| at.as_u64().unwrap())
            .collect();
        assert_eq!(ended.len(), applied.len());
        let since = |pick: fn(&(u64, u64)) -> u64| {
            let mut spans: Vec<f64> = ended
                .iter()
                .zip(&applied)
                .map(|(ended, applied)| {
                    Duration::from_nanos(pick(applied).saturating_sub(*ended)).as_secs_f64() * 1e3
                })
                .collect();
            spans.sort_by(f64::total_cmp);
            spans
        };
        let (noticed, done) = (since(|applied| applied.1), since(|applied| applied.0));
        say(&format!(
            "{rate}/s: commit to captured p50 {:.3} p99 {:.3} ms; to applied p50 {:.3} p99 {:.3} max {:.3} ms; application p50 {} p99 {} max {} ms",
            quantile(&noticed, 0.5),
            quantile(&noticed, 0.99),
            quantile(&done, 0.5),
            quantile(&done, 0.99),
            quantile(&done, 1.0),
            said["p50"],
            said["p99"],
            said["max"]
        ));
        tenders.0.stop();
        tenders.1.stop();
    }
}

/// Runs writers as fast as they can; returns commits, the slowest statements and the largest log.
fn saturate(writers: u32, captured: bool) {
    let scratch = Scratch::new("saturate");
    let options = scratch.options("a.db");
    init(&options.path);
    let log = scratch.path("a.db-wal");
    let mut apps: Vec<_> = (0..writers)
        .map(|seed| load(&options.path, 8, 0, seed, "no"))
        .collect();
    let mut largest = 0;
    let mut measure =
        || largest = largest.max(std::fs::metadata(&log).map_or(0, |metadata| metadata.len()));
    let mut tale = None;
    if captured {
        let mut database = open(&options);
        let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
        let tender = Tender::start(&database);
        while apps.iter_mut().any(Program::is_running) {
            while tail.poll(&mut database).unwrap().is_some() {}
            measure();
            tail.rest(&mut database, Duration::from_millis(20)).unwrap();
        }
        tale = Some(tender.stop());
    } else {
        while apps.iter_mut().any(Program::is_running) {
            measure();
            clock::pause_thread(Duration::from_millis(1));
        }
    }
    let said: Vec<Value> = apps
        .into_iter()
        .map(|app| serde_json::from_str(&app.finish()).unwrap())
        .collect();
    let total: u64 = said.iter().map(|said| said["n"].as_u64().unwrap()).sum();
    let worst = |key: &str| {
        said.iter()
            .map(|said| said[key].as_f64().unwrap())
            .fold(0.0, f64::max)
    };
    let over: u64 = said
        .iter()
        .map(|said| said["over20"].as_u64().unwrap())
        .sum();
    say(&format!(
        "{writers} writers, {}: {total} commits, p50 {} p99 {} p99.9 {} max {} ms, {over} over 20 ms, log at most {:.1} MiB {}",
        if captured { "captured" } else { "alone" },
        worst("p50"),
        worst("p99"),
        worst("p999"),
        worst("max"),
        Duration::from_micros(largest).as_secs_f64() / 1.048_576,
        tale.map_or(String::new(), |tale| format!("{tale:?}"))
    ));
}

#[test]
#[ignore = "a benchmark"]
fn bench_saturated_writers() {
    for writers in [1, 2, 4] {
        for _ in 0..2 {
            saturate(writers, false);
            saturate(writers, true);
        }
    }
}

#[test]
#[ignore = "a benchmark"]
fn bench_first_copy_of_a_gigabyte() {
    let scratch = Scratch::new("gigabyte");
    let options = scratch.options("a.db");
    init(&options.path);
    let connection = crate::support::reader(&options.path);
    connection
        .execute_batch("insert into junk(v) with recursive s(i) as (select 1 union all select i+1 from s where i<262144) select randomblob(3900) from s; pragma wal_checkpoint(truncate)")
        .unwrap();
    drop(connection);
    let began = clock::now();
    let mut database = open(&options);
    let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
    let scanned = clock::now() - began;
    let bytes = database.hashes().pages() * 4;
    tail.stand_at(position(0));
    let tender = Tender::start(&database);
    let (mut copy, mut apply) = standby(&scratch.options("b.db"), 4096);
    let app = load(&options.path, 20, 200, 1, "no");
    let began = clock::now();
    resync(&scratch, &mut database, &mut tail, &mut copy, &mut apply);
    let copied = clock::now() - began;
    let said: Value = serde_json::from_str(&app.finish()).unwrap();
    let began = clock::now();
    drop((apply, copy));
    let mut copy = open(&scratch.options("b.db"));
    assert!(copy.try_fence().unwrap());
    syncd::sqlite::Apply::attach(&mut copy).unwrap();
    say(&format!(
        "{} MiB: hashed in {:?}, copied in {:?} ({:.0} MiB/s) under 200 commits/s that took at most {} ms, reopened in {:?}; {:?}",
        bytes / 1024,
        scanned,
        copied,
        f64::from(bytes) / 1024.0 / copied.as_secs_f64(),
        said["max"],
        since(began),
        tender.stop()
    ));
    drain(&mut tail, &mut database);
}

fn since(began: Instant) -> Duration {
    clock::now() - began
}

#[test]
#[ignore = "a benchmark"]
fn bench_idle_cost() {
    let scratch = Scratch::new("idle");
    let options = scratch.options("a.db");
    init(&options.path);
    let mut database: Box<Database> = open(&options);
    let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
    let until = clock::now() + Duration::from_secs(5);
    let mut polls = 0;
    while clock::now() < until {
        assert!(tail.poll(&mut database).unwrap().is_none());
        tail.rest(&mut database, Duration::from_secs(1)).unwrap();
        polls += 1;
    }
    say(&format!("idle: {polls} wake-ups in 5 s"));
}
