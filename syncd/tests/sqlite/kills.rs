//! kill -9 at any instant: what a standby holds is always a transaction of the primary's history and says which; what a primary's log
//! goes on from is proved, or said to be lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use shared::clock;
use shared::rng::Rng;
use syncd::log::{Limits, Log, Point};
use syncd::sqlite::{Apply, Tail};

use crate::process::Process;
use crate::rig::{Program, Tender, resync};
use crate::support::{
    Python, Scratch, assert_same, assert_sound, hashes, open, position, say, standby,
};

const LIMITS: Limits = Limits {
    segment_bytes: 4 << 20,
    ring_bytes: 0,
};

/// Records what an application does for `seconds`, beginning at a standby that has everything before. Returns the content at each seq.
fn record(scratch: &Scratch, page_size: u32, seconds: f64, seed: u64) -> BTreeMap<u64, u64> {
    let primary = scratch.options("primary.db");
    let path = primary.path.to_str().unwrap();
    Program::start(
        "init.py",
        &[path, &page_size.to_string(), "incremental", "wal"],
    )
    .finish();
    let mut database = open(&primary);
    let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
    tail.stand_at(position(0));
    let tender = Tender::start(&database);
    let (mut copy, mut apply) = standby(&scratch.options("standby.db"), page_size);
    resync(scratch, &mut database, &mut tail, &mut copy, &mut apply);
    let mut log = Log::open(&scratch.path("log"), LIMITS).unwrap();
    let base = Point {
        position: tail.position(),
        content: database.checksum().unwrap(),
    };
    log.reset(base).unwrap();
    let mut contents = BTreeMap::from([(base.position.seq, base.content)]);
    let mut app = Program::start(
        "chaos.py",
        &[path, &seconds.to_string(), &seed.to_string(), "0.5"],
    );
    loop {
        let running = app.is_running();
        while let Some(increment) = tail.poll(&mut database).unwrap() {
            log.append(&increment, None).unwrap();
            contents.insert(increment.position.seq, increment.post);
        }
        if !running {
            break;
        }
        tail.rest(&mut database, Duration::from_millis(20)).unwrap();
    }
    app.finish();
    tender.stop();
    log.sync().unwrap();
    contents
}

/// What the database says about itself to an older SQLite, and to us.
fn verify(path: &Path, contents: &BTreeMap<u64, u64>) -> u64 {
    let mut app = Python::connected(path);
    assert_eq!(app.sql("pragma integrity_check"), "[('ok',)]");
    assert_eq!(app.sql("select sum(balance) from accounts"), "[(1000000,)]");
    drop(app);
    let connection = crate::support::reader(path);
    let first: Vec<u8> = connection
        .query_row("SELECT data FROM sqlite_dbpage WHERE pgno = 1", [], |row| {
            row.get(0)
        })
        .unwrap();
    let seq = u64::from_le_bytes(first[80..88].try_into().unwrap());
    assert_eq!(
        contents.get(&seq),
        Some(&hashes(path).checksum()),
        "content of seq {seq}"
    );
    seq
}

fn kill_appliers(seed: u64, kills: u32, page_size: u32, recorded_seconds: f64) {
    let scratch = Scratch::new("kills");
    let contents = record(&scratch, page_size, recorded_seconds, seed);
    let last = *contents.last_key_value().unwrap().0;
    let fresh = scratch.path("fresh");
    std::fs::create_dir(&fresh).unwrap();
    copy_database(&scratch.path(""), "standby.db", &fresh);
    let mut rng = Rng::with_seed(seed);
    let path = scratch.path("standby.db");
    let mut reader: Option<Program> = None;
    let (mut done, mut rounds, mut stood) = (0, 0, 0);
    while done < kills {
        rounds += 1;
        let mut applier = Process::start("apply", &scratch.path(""));
        assert!(
            applier.hear(&["ready"]).is_some(),
            "seed {seed}, round {rounds}"
        );
        clock::pause_thread(Duration::from_micros(rng.u64(0..60_000)));
        applier.kill();
        let finished = applier.hear(&["done"]).is_some();
        done += u32::from(!finished);
        let seq = verify(&path, &contents);
        assert!(
            seq >= stood,
            "seed {seed}: it went back from {stood} to {seq}"
        );
        stood = seq;
        if seq == last {
            check_reader(reader.take());
            for file in ["standby.db", "standby.db-wal", "standby.db-shm"] {
                let _ = std::fs::remove_file(scratch.path(file));
            }
            copy_database(&fresh, "standby.db", &scratch.path(""));
            stood = 0;
        }
        // With a reader the log stays; without, the next process has to recover it.
        if rng.bool() {
            reader.get_or_insert_with(|| {
                Program::start("reader.py", &[path.to_str().unwrap(), "1000000"])
            });
        } else {
            check_reader(reader.take());
        }
    }
    check_reader(reader);
    say(&format!(
        "seed {seed}: {done} kills in {rounds} rounds over {last} transactions"
    ));
}

fn check_reader(reader: Option<Program>) {
    if let Some(reader) = reader {
        let said = reader.finish();
        assert!(said.contains("\"bads\": 0, \"errs\": {}"), "{said}");
    }
}

/// Copies a database that nobody has open, with its log.
fn copy_database(from: &Path, name: &str, to: &Path) {
    for suffix in ["", "-wal"] {
        let name = format!("{name}{suffix}");
        let source = from.join(&name);
        if source.exists() {
            std::fs::copy(source, to.join(&name)).unwrap();
        }
    }
}

#[test]
fn an_applier_that_is_killed_leaves_a_transaction_of_the_history_and_says_which() {
    kill_appliers(1, 10, 4096, 1.5);
}

#[test]
#[ignore = "takes minutes"]
fn many_appliers_are_killed() {
    for (seed, page_size) in [(11, 4096), (12, 512), (13, 65536), (14, 1024)] {
        kill_appliers(seed, 100, page_size, 6.0);
    }
}

fn kill_captures(seed: u64, kills: u32, page_size: u32) {
    let scratch = Scratch::new("kilcap");
    let primary = scratch.path("primary.db");
    let path = primary.to_str().unwrap();
    Program::start("init.py", &[path, &page_size.to_string(), "none", "wal"]).finish();
    let mut rng = Rng::with_seed(seed);
    let seconds = f64::from(kills) * 0.35 + 1.0;
    let mut app = Program::start(
        "chaos.py",
        &[path, &seconds.to_string(), &seed.to_string(), "0.3"],
    );
    let (mut kept, mut lost, mut done) = (0, 0, 0);
    while done < kills && app.is_running() {
        let mut process = Process::start("capture", &scratch.path(""));
        match process.hear(&["kept", "lost"]).as_deref() {
            Some("kept") => kept += 1,
            Some("lost") => lost += 1,
            other => panic!("seed {seed}: the process said {other:?}"),
        }
        clock::pause_thread(Duration::from_micros(rng.u64(0..300_000)));
        if !app.is_running() {
            // Its old SQLite may have left frames without checksums behind. If nobody has the database open any more, only a process
            // that is given the time to can make up for that.
            process.end();
            process.hear(&["done"]);
            break;
        }
        process.kill();
        done += 1;
    }
    let mut process = Process::start("capture", &scratch.path(""));
    assert!(process.hear(&["kept", "lost"]).is_some());
    while app.is_running() {
        clock::pause_thread(Duration::from_millis(5));
    }
    let said = app.finish();
    assert!(
        !said.contains("malformed") && !said.contains("locked"),
        "{said}"
    );
    process.end();
    assert!(process.hear(&["done"]).is_some());
    drop(process);

    // The log applied to the standby of its base gives the primary's pages.
    let log = Log::open(&scratch.path("log"), LIMITS).unwrap();
    let mut copy = open(&scratch.options("standby.db"));
    assert!(copy.try_fence().unwrap());
    let mut apply = Apply::attach(&mut copy).unwrap();
    let base = apply.position().unwrap();
    let mut reader = log.reader(base).unwrap();
    let increments: Vec<_> = std::iter::from_fn(|| reader.poll().unwrap()).collect();
    apply.apply(&mut copy, &increments).unwrap();
    say(&format!(
        "seed {seed}: {done} kills, {kept} kept, {lost} lost, {} increments since",
        increments.len()
    ));
    assert_same(&primary, copy.path());
    assert_sound(&primary);
}

#[test]
fn a_capture_that_is_killed_goes_on_where_it_was_or_says_that_it_cannot() {
    kill_captures(1, 10, 4096);
}

#[test]
#[ignore = "takes minutes"]
fn many_captures_are_killed() {
    for (seed, page_size) in [(21, 4096), (22, 512), (23, 65536)] {
        kill_captures(seed, 80, page_size);
    }
}

#[test]
fn what_a_loss_of_power_leaves_of_the_log_is_a_transaction_too() {
    let scratch = Scratch::new("power");
    let contents = record(&scratch, 4096, 1.5, 3);
    let mut rng = Rng::with_seed(3);
    let mut positions = std::collections::BTreeSet::new();
    let mut applier = Process::start("apply-slowly", &scratch.path(""));
    applier.hear(&["ready"]);
    let lost = scratch.path("lost");
    std::fs::create_dir(&lost).unwrap();
    while positions.len() < 12 {
        clock::pause_thread(Duration::from_millis(rng.u64(0..20)));
        let stopped = stop(&applier);
        copy_database(&scratch.path(""), "standby.db", &lost);
        // Everything up to what a checkpoint may have begun to copy was synced; any of the rest may be gone.
        let index = std::fs::read(scratch.path("standby.db-shm")).unwrap();
        drop(stopped);
        let word = |at: usize| u32::from_ne_bytes(index[at..at + 4].try_into().unwrap());
        let kept = 32 + u64::from(word(96).max(word(128))) * 4120;
        let log = lost.join("standby.db-wal");
        let length = std::fs::metadata(&log).unwrap().len();
        if kept < length {
            let file = std::fs::File::options().write(true).open(&log).unwrap();
            file.set_len(rng.u64(kept..=length)).unwrap();
        }
        let _ = std::fs::remove_file(lost.join("standby.db-shm"));
        let position = verify(&lost.join("standby.db"), &contents);
        positions.insert(position);
        if Some(&position) == contents.last_key_value().map(|(last, _)| last) {
            break;
        }
    }
    assert!(positions.len() > 1, "{positions:?}");
}

struct Stopped(String);

/// Stops a process until what is returned is dropped.
fn stop(process: &Process) -> Stopped {
    let id = process.id().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-STOP", &id])
            .status()
            .unwrap()
            .success()
    );
    Stopped(id)
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = std::process::Command::new("kill")
            .args(["-CONT", &self.0])
            .status();
    }
}
