//! Commits of an application are captured one by one, and go on from a mark or say that they do not.

use std::time::Duration;

use syncd::sqlite::{CaptureError, Continuity, Lost, Mark, Tail};
use syncd::wire::increment::PART_LIMIT;

use crate::rig::{Program, Tender, snapshot};
use crate::support::{Python, Scratch, assert_same, assert_sound, drain, hashes, open, position};

#[test]
fn every_commit_is_one_increment_that_continues_the_one_before() {
    let scratch = Scratch::new("capture");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("create table t(id integer primary key, v)");
    let mut database = open(&options);
    assert!(database.was_converted());
    let (mut tail, continuity) = Tail::attach(&mut database, None).unwrap();
    assert_eq!(continuity, Continuity::Begun);
    tail.stand_at(position(7));
    assert!(tail.poll(&mut database).unwrap().is_none());

    app.sql("insert into t(v) values ('one')");
    app.sql("insert into t(v) values ('two')");
    app.sql("begin immediate");
    app.sql("insert into t(v) values ('never')");
    app.sql("rollback");
    let increments = drain(&mut tail, &mut database);
    assert_eq!(increments.len(), 2);
    assert_eq!(increments[0].position, position(8));
    assert_eq!(increments[1].position, position(9));
    assert_eq!(increments[1].pre, increments[0].post);
    assert_eq!(Some(increments[1].post), database.checksum());
    assert!(
        increments
            .iter()
            .all(|increment| increment.last && increment.part == 0)
    );
}

#[test]
fn a_sample_is_reached_when_what_was_committed_then_is_captured() {
    let scratch = Scratch::new("sample");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("create table t(id integer primary key, v)");
    let mut database = open(&options);
    let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
    let before = tail.sample(&database).unwrap().unwrap();
    assert!(tail.has_reached(&before));
    app.sql("insert into t(v) values ('one')");
    let sample = tail.sample(&database).unwrap().unwrap();
    assert!(!tail.has_reached(&sample));
    assert_eq!(drain(&mut tail, &mut database).len(), 1);
    assert!(tail.has_reached(&sample));
}

#[test]
fn a_transaction_larger_than_memory_comes_in_parts() {
    let scratch = Scratch::new("parts");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("create table t(id integer primary key, v)");
    let mut database = open(&options);
    let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
    tail.stand_at(position(0));
    let (mut copy, mut apply) =
        snapshot(&scratch, &mut database, &mut tail, &scratch.options("b.db"));
    app.sql("insert into t(v) with recursive s(i) as (select 1 union all select i+1 from s where i<3000) select randomblob(4000) from s");
    app.sql("delete from t where id % 2");
    app.sql("vacuum");
    let parts = drain(&mut tail, &mut database);
    assert!(parts.len() > 10);
    assert!(
        parts
            .iter()
            .all(|part| part.body.len() <= PART_LIMIT + PART_LIMIT / 512 * 4)
    );
    assert_eq!(parts.iter().filter(|part| part.last).count(), 3);
    assert_eq!(tail.position(), position(3));
    apply.apply(&mut copy, &parts).unwrap();
    assert_same(database.path(), copy.path());
    assert_sound(copy.path());
}

/// What the application does while nobody captures, and what can be proved then.
fn resumed(name: &str, meanwhile: &[&str]) -> (Continuity, usize, bool) {
    let scratch = Scratch::new(name);
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("pragma journal_mode=wal");
    app.sql("pragma wal_autocheckpoint=0");
    app.sql("create table t(id integer primary key, v)");
    let mut database = open(&options);
    let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
    tail.stand_at(position(0));
    let (mut copy, mut apply) =
        snapshot(&scratch, &mut database, &mut tail, &scratch.options("b.db"));
    for _ in 0..5 {
        app.sql("insert into t(v) values (randomblob(2000))");
    }
    apply
        .apply(&mut copy, &drain(&mut tail, &mut database))
        .unwrap();
    let mark = tail.mark(&database).unwrap();
    let mark = Mark::from_bytes(&mark.to_bytes()).unwrap();
    let stood = tail.position();
    // As if the process had died: nothing is told to anybody.
    drop(tail);
    drop(database);
    for sql in meanwhile {
        app.sql(sql);
    }
    let mut database = open(&options);
    let (mut tail, continuity) = Tail::attach(&mut database, Some(&mark)).unwrap();
    tail.stand_at(stood);
    let gap = drain(&mut tail, &mut database);
    let mut same = false;
    if continuity == Continuity::Kept {
        app.sql("insert into t(v) values ('afterwards')");
        let after = drain(&mut tail, &mut database);
        assert_eq!(after.len(), 1);
        apply.apply(&mut copy, &gap).unwrap();
        apply.apply(&mut copy, &after).unwrap();
        assert_same(database.path(), copy.path());
        assert_sound(copy.path());
        same = true;
    }
    (continuity, gap.len(), same)
}

const WRITE: &str = "insert into t(v) values (randomblob(2000))";

#[test]
fn after_a_restart_every_commit_of_the_meantime_comes_if_the_log_still_has_it() {
    assert_eq!(resumed("nothing", &[]), (Continuity::Kept, 0, true));
    assert_eq!(
        resumed("writes", &[WRITE, WRITE, WRITE]),
        (Continuity::Kept, 3, true)
    );
}

#[test]
fn after_a_checkpoint_in_the_meantime_the_gap_comes_as_one_increment() {
    let passive = "pragma wal_checkpoint(passive)";
    assert_eq!(
        resumed("copied", &[WRITE, WRITE, passive, WRITE]).0,
        Continuity::Lost(Lost::Generation)
    );
    // The log did not begin anew: the checkpoint came after the last write.
    assert_eq!(
        resumed("gap", &[WRITE, WRITE, passive]),
        (Continuity::Kept, 1, true)
    );
    let cut = [
        "delete from t",
        "pragma incremental_vacuum",
        "vacuum",
        WRITE,
        WRITE,
        passive,
    ];
    assert_eq!(resumed("cut", &cut), (Continuity::Kept, 1, true));
}

#[test]
fn after_the_log_began_anew_the_content_decides() {
    let truncate = "pragma wal_checkpoint(truncate)";
    assert_eq!(resumed("same", &[truncate]), (Continuity::Kept, 0, true));
    // Begun anew exactly where the capture stood: everything in it is what followed.
    assert_eq!(
        resumed("anew", &[truncate, WRITE, WRITE]),
        (Continuity::Kept, 2, true)
    );
    let lost = (Continuity::Lost(Lost::Generation), 0, false);
    assert_eq!(resumed("lost", &[WRITE, truncate, WRITE]), lost);
    assert_eq!(resumed("empty", &[WRITE, truncate]), lost);
}

#[test]
fn a_replaced_database_is_noticed() {
    let scratch = Scratch::new("replaced");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("create table t(id integer primary key, v)");
    let mut database = open(&options);
    let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
    std::fs::write(scratch.path("other"), b"").unwrap();
    std::fs::rename(scratch.path("other"), &options.path).unwrap();
    assert!(database.is_replaced());
    let until = shared::clock::now() + Duration::from_secs(2);
    loop {
        match tail.poll(&mut database) {
            Err(CaptureError::Replaced) => break,
            other => assert!(other.unwrap().is_none() && shared::clock::now() < until),
        }
        tail.rest(&mut database, Duration::from_millis(5)).unwrap();
    }
}

#[test]
fn a_torn_header_is_healed_and_the_application_goes_on() {
    let scratch = Scratch::new("torn");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("create table t(id integer primary key, v)");
    let mut database = open(&options);
    let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
    tail.stand_at(position(0));
    let (mut copy, mut apply) =
        snapshot(&scratch, &mut database, &mut tail, &scratch.options("b.db"));
    let tender = Tender::start(&database);
    app.sql("insert into t(v) values ('before')");
    // Another process dies while it writes the header: one copy is new, the other old.
    let mut vandal = Python::start();
    vandal.run(&format!(
        "f = open('{}-shm', 'r+b'); f.seek(52); f.write(b'torn'); f.close()",
        options.path.display()
    ));
    app.say("c.execute(\"insert into t(v) values ('after')\").fetchall()");
    let mut increments = Vec::new();
    let until = shared::clock::now() + Duration::from_secs(4);
    while increments.len() < 2 && shared::clock::now() < until {
        increments.extend(drain(&mut tail, &mut database));
        tail.rest(&mut database, Duration::from_millis(5)).unwrap();
    }
    assert_eq!(app.hear(), "[]");
    assert_eq!(increments.len(), 2, "the commits before and after");
    apply.apply(&mut copy, &increments).unwrap();
    assert_same(database.path(), copy.path());
    tender.stop();
}

#[test]
fn committed_frames_without_a_checksum_are_captured_and_made_safe_at_once() {
    let scratch = Scratch::new("unsealed");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    if app.ask("sqlite3.sqlite_version_info >= (3, 50, 2)") == "True" {
        return;
    }
    app.sql("pragma journal_mode=wal");
    app.sql("pragma cache_size=20");
    app.sql("create table t(id integer primary key, v blob)");
    app.sql("insert into t(v) with recursive s(i) as (select 1 union all select i+1 from s where i<400) select randomblob(900) from s");
    let mut database = open(&options);
    let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
    tail.stand_at(position(0));
    let (mut copy, mut apply) =
        snapshot(&scratch, &mut database, &mut tail, &scratch.options("b.db"));
    for sql in [
        "begin immediate",
        "savepoint a",
        "update t set v=randomblob(900) where id<=100",
        "update t set v=randomblob(900) where id>200",
        "update t set v=randomblob(900) where id>200",
        "rollback to a",
        "insert into t(v) values('committed')",
        "commit",
        "insert into t(v) values('next')",
    ] {
        app.sql(sql);
    }
    let increments = drain(&mut tail, &mut database);
    assert_eq!(increments.len(), 2);
    assert!(
        tail.unsealed_frames() > 0,
        "the application's SQLite has the bug"
    );
    apply.apply(&mut copy, &increments).unwrap();
    assert_same(database.path(), copy.path());

    // As it is, a crash would lose both commits, or worse.
    assert!(database.is_log_at_risk());
    assert_ne!(committed_after_a_crash(&scratch), "[(2,)]");
    let tender = Tender::start(&database);
    let until = shared::clock::now() + Duration::from_secs(5);
    while database.is_log_at_risk() && shared::clock::now() < until {
        drain(&mut tail, &mut database);
        tail.rest(&mut database, Duration::from_millis(1)).unwrap();
    }
    assert!(!database.is_log_at_risk());
    assert_eq!(committed_after_a_crash(&scratch), "[(2,)]");
    app.sql("insert into t(v) values('more')");
    let increments = drain(&mut tail, &mut database);
    assert_eq!(increments.len(), 1);
    apply.apply(&mut copy, &increments).unwrap();
    tender.stop();
    assert_same(database.path(), copy.path());
}

/// What recovery makes of the database and its log as they are on disk now.
fn committed_after_a_crash(scratch: &Scratch) -> String {
    let crashed = scratch.path("crashed.db");
    for suffix in ["", "-wal"] {
        // Not with the file functions of this process, which would drop the locks that it has on the database.
        let from = scratch.path(&format!("a.db{suffix}"));
        let to = scratch.path(&format!("crashed.db{suffix}"));
        assert!(
            std::process::Command::new("cp")
                .args([from, to])
                .status()
                .unwrap()
                .success()
        );
    }
    let _ = std::fs::remove_file(scratch.path("crashed.db-shm"));
    Python::connected(&crashed).sql("select count(*) from t where v in ('committed', 'next')")
}

#[test]
fn whoever_lets_go_leaves_the_application_to_checkpoint_by_itself() {
    let scratch = Scratch::new("release");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("create table t(id integer primary key, v)");
    let mut database = open(&options);
    let (tail, _) = Tail::attach(&mut database, None).unwrap();
    app.sql("insert into t(v) values ('one')");
    assert_eq!(app.sql("pragma wal_checkpoint(passive)"), "[(1, -1, -1)]");
    tail.release(&mut database);
    let checkpointed = app.sql("pragma wal_checkpoint(truncate)");
    assert_eq!(checkpointed, "[(0, 0, 0)]");
    assert_eq!(database.checksum(), None);
}

#[test]
fn under_constant_writes_the_log_begins_anew_again_and_again() {
    let scratch = Scratch::new("constant");
    let options = scratch.options("a.db");
    let path = options.path.to_str().unwrap();
    Program::start("init.py", &[path, "4096", "none", "wal"]).finish();
    let mut app = Program::start("load.py", &[path, "3", "0", "1", "no"]);
    let mut database = open(&options);
    let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
    let tender = Tender::start(&database);
    let mut captured = 0;
    while app.is_running() {
        captured += drain(&mut tail, &mut database)
            .iter()
            .map(|increment| increment.body.len())
            .sum::<usize>();
        tail.rest(&mut database, Duration::from_millis(20)).unwrap();
    }
    let said = app.finish();
    let tale = tender.stop();
    let log = usize::try_from(database.log_bytes().unwrap()).unwrap();
    assert!(said.contains("\"errs\": {}"), "{said}");
    // How far a log grows in between depends on who else wants the processors.
    assert!(
        tale.resets >= 3 && captured > log,
        "{captured} bytes came through a log of {log}: {tale:?}, {said}"
    );
}

#[test]
fn attaching_again_and_again_beside_a_checkpointer_finds_the_content_as_it_is() {
    let scratch = Scratch::new("attach");
    let options = scratch.options("a.db");
    let path = options.path.to_str().unwrap();
    Program::start("init.py", &[path, "4096", "none", "wal"]).finish();
    let mut app = Program::start("load.py", &[path, "4", "0", "1", "no"]);
    let mut database = open(&options);
    let tender = Tender::start(&database);
    let mut rounds = 0;
    while app.is_running() {
        let mut tail = loop {
            match Tail::attach(&mut database, None) {
                Err(CaptureError::CheckpointLock | CaptureError::Unreadable) => {
                    std::thread::yield_now();
                }
                attached => break attached.unwrap().0,
            }
        };
        let until = shared::clock::now() + Duration::from_millis(rounds * 7 % 60);
        while shared::clock::now() < until {
            drain(&mut tail, &mut database);
        }
        while !database.try_fence().unwrap() {
            drain(&mut tail, &mut database);
        }
        drain(&mut tail, &mut database);
        assert_eq!(
            database.checksum(),
            Some(hashes(&options.path).checksum()),
            "round {rounds}"
        );
        if rounds % 2 == 0 {
            tail.release(&mut database);
        } else {
            tail.detach(&mut database);
        }
        database.lift_fence();
        rounds += 1;
    }
    tender.stop();
    assert!(app.finish().contains("\"errs\": {}"));
    assert_sound(&options.path);
}
