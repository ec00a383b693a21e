//! What a standby applies is proved, and what does not fit changes nothing.

use shared::model::Position;
use syncd::sqlite::{
    Apply, ApplyError, Continuity, Database, End, Rebuilt, Stage, StageBase, Tail, rebuild,
};
use syncd::wire::increment::Increment;

use crate::rig::{Program, Tender, resync, snapshot};
use crate::support::{
    Python, Scratch, assert_same, assert_sound, drain, hashes, open, position, standby,
};

/// A primary with an application, and a standby that has everything.
struct Pair {
    scratch: Scratch,
    app: Python,
    primary: Box<Database>,
    tail: Tail,
    standby: Box<Database>,
    apply: Apply,
}

impl Pair {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let options = scratch.options("a.db");
        let mut app = Python::connected(&options.path);
        app.sql("create table t(id integer primary key, v)");
        let mut primary = open(&options);
        let (mut tail, _) = Tail::attach(&mut primary, None).unwrap();
        tail.stand_at(position(0));
        let (standby, apply) =
            snapshot(&scratch, &mut primary, &mut tail, &scratch.options("b.db"));
        Self {
            scratch,
            app,
            primary,
            tail,
            standby,
            apply,
        }
    }

    fn write(&mut self, times: usize) -> Vec<Increment> {
        for _ in 0..times {
            self.app.sql("insert into t(v) values (randomblob(3000))");
        }
        drain(&mut self.tail, &mut self.primary)
    }

    fn apply(&mut self, increments: &[Increment]) -> Result<Option<Position>, ApplyError> {
        self.apply.apply(&mut self.standby, increments)
    }

    fn assert_same(&self) {
        assert_same(self.primary.path(), self.standby.path());
    }
}

#[test]
fn a_position_is_stored_with_the_content_and_believed_only_with_it() {
    let mut pair = Pair::new("position");
    let increments = pair.write(3);
    assert_eq!(pair.apply(&increments).unwrap(), Some(position(3)));
    pair.assert_same();
    let path = pair.standby.path().to_owned();
    pair.apply.release(&mut pair.standby);
    drop(pair.standby);

    let mut standby = open(&pair.scratch.options("b.db"));
    assert!(standby.try_fence().unwrap());
    assert_eq!(
        Apply::attach(&mut standby).unwrap().position(),
        Some(position(3))
    );
    drop(standby);
    Python::connected(&path).sql("insert into t(v) values ('mine')");
    let mut standby = open(&pair.scratch.options("b.db"));
    assert!(standby.try_fence().unwrap());
    assert_eq!(Apply::attach(&mut standby).unwrap().position(), None);
}

#[test]
fn applying_again_is_passed_over_and_a_gap_or_other_content_is_refused() {
    let mut pair = Pair::new("again");
    let all = pair.write(5);
    pair.apply(&all[..3]).unwrap();
    assert_eq!(pair.apply(&all[..2]).unwrap(), Some(position(3)));
    assert_eq!(pair.apply(&all[1..4]).unwrap(), Some(position(4)));
    let before = hashes(pair.standby.path()).checksum();

    let mut skipped = all[4].clone();
    skipped.position.seq += 1;
    assert!(matches!(
        pair.apply(&[skipped]),
        Err(ApplyError::Gap { .. })
    ));
    let mut other = all[4].clone();
    other.pre ^= 1;
    assert!(matches!(
        pair.apply(&[other]),
        Err(ApplyError::Before { .. })
    ));
    let mut other = all[4].clone();
    other.post ^= 1;
    assert!(matches!(
        pair.apply(&[other]),
        Err(ApplyError::After { .. })
    ));
    let mut fork = all[3].clone();
    fork.post ^= 1;
    assert!(matches!(pair.apply(&[fork]), Err(ApplyError::After { .. })));
    let mut larger = all[4].clone();
    larger.page_size = 8192;
    larger.body = Default::default();
    assert!(matches!(
        pair.apply(&[larger]),
        Err(ApplyError::PageSize { .. })
    ));
    let mut part = all[4].clone();
    part.part = 1;
    assert!(matches!(pair.apply(&[part]), Err(ApplyError::Part { .. })));

    assert_eq!(hashes(pair.standby.path()).checksum(), before);
    assert_eq!(pair.standby.checksum(), Some(before));
    assert_eq!(pair.apply(&all).unwrap(), Some(position(5)));
    pair.assert_same();
}

#[test]
fn a_batch_that_is_dropped_or_ends_elsewhere_changes_nothing() {
    let mut pair = Pair::new("dropped");
    let all = pair.write(4);
    let before = hashes(pair.standby.path()).checksum();
    let end = End::of(&all[3]);
    let mut batch = pair.apply.begin(&mut pair.standby, end).unwrap();
    batch.push(&all[0]).unwrap();
    drop(batch);
    let mut batch = pair.apply.begin(&mut pair.standby, end).unwrap();
    batch.push(&all[0]).unwrap();
    assert!(matches!(batch.commit(), Err(ApplyError::End { .. })));
    assert_eq!(hashes(pair.standby.path()).checksum(), before);
    assert_eq!(pair.standby.checksum(), Some(before));
    pair.apply(&all).unwrap();
    pair.assert_same();
}

#[test]
fn the_application_of_a_standby_reads_but_cannot_write() {
    let mut pair = Pair::new("fence");
    let mut warm = Python::connected(pair.standby.path());
    warm.sql("pragma busy_timeout=50");
    for _ in 0..20 {
        let increments = pair.write(1);
        pair.apply(&increments).unwrap();
        let refused = warm.ask("c.execute(\"insert into t(v) values ('mine')\")");
        assert_eq!(refused, "error: database is locked");
    }
    assert_eq!(warm.sql("select count(*) from t"), "[(20,)]");
    assert_eq!(
        warm.sql("create table if not exists t(id integer primary key, v)"),
        "[]"
    );
    assert_eq!(warm.sql("pragma journal_mode=wal"), "[('wal',)]");
    pair.assert_same();
}

#[test]
fn a_fence_waits_for_a_transaction_and_never_for_longer() {
    let scratch = Scratch::new("tryfence");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("create table t(a)");
    let mut database = open(&options);
    app.sql("begin immediate");
    assert!(!database.try_fence().unwrap());
    app.sql("insert into t values (1)");
    app.sql("commit");
    assert!(database.try_fence().unwrap());
    app.sql("pragma busy_timeout=20");
    assert_eq!(
        app.ask("c.execute('insert into t values (2)')"),
        "error: database is locked"
    );
    database.lift_fence();
    assert_eq!(app.sql("insert into t values (2)"), "[]");
}

#[test]
fn what_somebody_else_wrote_is_noticed_before_anything_is_applied() {
    let mut pair = Pair::new("foreign");
    let all = pair.write(2);
    pair.apply(&all[..1]).unwrap();
    pair.standby.lift_fence();
    Python::connected(pair.standby.path()).sql("insert into t(v) values ('mine')");
    assert!(matches!(pair.apply(&all[1..]), Err(ApplyError::NotFenced)));
    assert!(pair.standby.try_fence().unwrap());
    assert!(matches!(pair.apply(&all[1..]), Err(ApplyError::Foreign)));
    assert_eq!(pair.apply.position(), None);

    // What differs is fetched, and no more.
    let Pair {
        scratch,
        mut primary,
        mut tail,
        mut standby,
        apply,
        ..
    } = pair;
    apply.detach(&mut standby);
    let mut apply = Apply::attach(&mut standby).unwrap();
    let staged = resync(&scratch, &mut primary, &mut tail, &mut standby, &mut apply);
    assert!(staged <= 4, "{staged} pages were fetched");
    assert_same(primary.path(), standby.path());
}

#[test]
fn roles_change_without_a_gap_and_without_reading_everything_again() {
    let mut pair = Pair::new("roles");
    let all = pair.write(3);
    pair.apply(&all).unwrap();
    let Pair {
        mut app,
        primary: mut old,
        tail: mut old_tail,
        standby: mut new,
        apply,
        ..
    } = pair;
    // Switchover: the old primary is fenced and drained, the standby leads.
    assert!(old.try_fence().unwrap());
    assert!(drain(&mut old_tail, &mut old).is_empty());
    old_tail.detach(&mut old);
    apply.detach(&mut new);
    let (mut tail, continuity) = Tail::attach(&mut new, None).unwrap();
    assert_eq!(continuity, Continuity::Begun);
    tail.stand_at(position(3));
    new.lift_fence();
    let mut warm = Python::connected(new.path());
    warm.sql("insert into t(v) values ('on the new primary')");
    let increments = drain(&mut tail, &mut new);
    assert_eq!(increments.len(), 1);

    // The old one follows: its content is the one at the fork, so it only has to be told the position.
    let mut apply = Apply::attach(&mut old).unwrap();
    assert_eq!(apply.position(), None);
    apply.adopt(&mut old, position(3)).unwrap();
    assert_eq!(apply.position(), Some(position(3)));
    apply.apply(&mut old, &increments).unwrap();
    assert_same(old.path(), new.path());
    assert_eq!(app.sql("select count(*) from t"), "[(4,)]");
}

#[test]
fn the_log_of_a_standby_stays_short_with_readers_that_never_pause() {
    let mut pair = Pair::new("busyreaders");
    pair.app
        .sql("create table accounts(id integer primary key, balance)");
    pair.app.sql("create table log(id integer primary key)");
    pair.app.sql("insert into accounts values (1, 10)");
    let increments = pair.write(1);
    pair.apply(&increments).unwrap();
    let readers: Vec<_> = (0..2)
        .map(|_| Program::start("reader.py", &[pair.standby.path().to_str().unwrap(), "10"]))
        .collect();
    let tender = Tender::start(&pair.standby);
    let primary_tender = Tender::start(&pair.primary);
    let mut longest = 0;
    for _ in 0..60 {
        let increments = pair.write(100);
        for few in increments.chunks(10) {
            pair.apply(few).unwrap();
        }
        longest = longest.max(pair.standby.log_bytes().unwrap());
    }
    for reader in readers {
        let said = reader.finish();
        assert!(said.contains("\"bads\": 0, \"errs\": {}"), "{said}");
    }
    let tale = tender.stop();
    primary_tender.stop();
    assert!(longest < 24 << 20, "{longest} bytes, {tale:?}");
    pair.assert_same();
}

#[test]
fn what_is_synced_is_known_so_that_a_log_can_be_trimmed() {
    let mut pair = Pair::new("synced");
    let all = pair.write(4);
    pair.apply(&all[..2]).unwrap();
    assert_ne!(pair.apply.synced(&pair.standby), Some(position(2)));
    assert_eq!(pair.apply.sync(&pair.standby).unwrap(), Some(position(2)));
    pair.apply(&all[2..]).unwrap();
    assert_eq!(pair.apply.synced(&pair.standby), Some(position(2)));
    let tender = Tender::start(&pair.standby);
    let until = shared::clock::now() + std::time::Duration::from_secs(5);
    while pair.apply.synced(&pair.standby) != Some(position(4)) && shared::clock::now() < until {
        std::thread::yield_now();
    }
    tender.stop();
    assert_eq!(pair.apply.synced(&pair.standby), Some(position(4)));
}

#[test]
fn a_database_of_another_page_size_is_rebuilt_when_nobody_has_it_open() {
    let mut pair = Pair::new("rebuild");
    pair.write(20);
    let options = scratch_with_other_pages(&pair.scratch);
    let mut app = Python::connected(&options.path);
    app.sql("select count(*) from old");

    // What the standby should have is prepared beside it.
    let beside = pair.scratch.options("beside.db");
    let (prepared, apply) = snapshot(&pair.scratch, &mut pair.primary, &mut pair.tail, &beside);
    let stands = apply.position();
    drop((prepared, apply));
    assert!(matches!(
        rebuild(&options, &beside.path).unwrap(),
        Rebuilt::InUse
    ));
    assert_eq!(app.sql("select count(*) from old"), "[(50,)]");
    drop(app);
    let Rebuilt::Done(mut standby, mut apply) = rebuild(&options, &beside.path).unwrap() else {
        panic!("it was not rebuilt");
    };
    assert_eq!(standby.page_size(), 4096);
    assert_eq!(apply.position(), stands);
    assert_same(pair.primary.path(), standby.path());
    let increments = pair.write(2);
    apply.apply(&mut standby, &increments).unwrap();
    assert_same(pair.primary.path(), standby.path());
    assert_sound(standby.path());
}

fn scratch_with_other_pages(scratch: &Scratch) -> syncd::sqlite::Options {
    let options = scratch.options("c.db");
    let mut app = Python::connected(&options.path);
    app.sql("pragma page_size=1024");
    app.sql("pragma journal_mode=wal");
    app.sql("create table old(a)");
    app.sql("insert into old with recursive s(i) as (select 1 union all select i+1 from s where i<50) select randomblob(700) from s");
    options
}

#[test]
fn a_resync_of_other_pages_is_refused_by_name() {
    let scratch = Scratch::new("othersize");
    let (mut database, mut apply) = standby(&scratch.options("a.db"), 1024);
    let base = StageBase {
        lineage: 1,
        position: position(1),
        content: 1,
        pages: 1,
        page_size: 4096,
    };
    let stage = Stage::open(&scratch.path("stage"), base).unwrap();
    let end = End {
        position: position(1),
        pages: 1,
        content: 1,
    };
    assert!(matches!(
        apply.resync(&mut database, &stage, end),
        Err(ApplyError::PageSize {
            theirs: 4096,
            ours: 1024
        })
    ));
}

/// The size in the last committed frame of a log, which is what SQLite goes by.
fn size_in_log(path: &std::path::Path) -> u32 {
    let log = std::fs::read(format!("{}-wal", path.display())).unwrap();
    let word = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let salts = &log[16..24];
    (32..log.len() - 24)
        .step_by(24 + 4096)
        .take_while(|at| &log[at + 8..at + 16] == salts)
        .map(|at| word(at + 4))
        .filter(|size| *size > 0)
        .last()
        .unwrap()
}

#[test]
fn a_standby_is_cut_to_the_size_of_the_primary_also_when_the_schema_changes_in_the_same_batch() {
    let mut pair = Pair::new("cut");
    let all = pair.write(50);
    pair.apply(&all).unwrap();
    for sql in [
        "delete from t where id > 5",
        "create table u(a)",
        "vacuum",
        "insert into u values (1)",
    ] {
        pair.app.sql(sql);
    }
    let all = drain(&mut pair.tail, &mut pair.primary);
    let pages = all.last().unwrap().pages;
    assert!(pages < 20);
    pair.apply(&all).unwrap();
    assert_eq!(size_in_log(pair.standby.path()), pages);
    for sql in ["drop table u", "vacuum"] {
        pair.app.sql(sql);
        let all = drain(&mut pair.tail, &mut pair.primary);
        pair.apply(&all).unwrap();
        assert_eq!(size_in_log(pair.standby.path()), all.last().unwrap().pages);
    }
    pair.assert_same();
    assert_sound(pair.standby.path());
}
