//! What is refused and what is waited for when a database is opened.

use std::process::{Command, Stdio};

use syncd::sqlite::{Database, Journal, NotYet, OpenError, Opened, Options};

use crate::support::{Python, Scratch, open};

fn not_yet(options: &Options) -> NotYet {
    match Database::open(options).unwrap() {
        Opened::NotYet(reason) => reason,
        Opened::Ready(_) => panic!("it is ready"),
    }
}

#[test]
fn a_database_that_is_not_there_yet_is_waited_for() {
    let scratch = Scratch::new("absent");
    let options = scratch.options("a.db");
    assert_eq!(not_yet(&options), NotYet::Absent);
    let mut app = Python::connected(&options.path);
    app.sql("select 1");
    std::fs::write(&options.path, b"").unwrap();
    assert_eq!(not_yet(&options), NotYet::Empty);
    app.sql("create table t(a)");
    assert_eq!(open(&options).page_size(), 4096);
}

#[test]
fn what_is_no_database_is_refused() {
    let scratch = Scratch::new("nodb");
    let options = scratch.options("a.db");
    std::fs::write(&options.path, vec![b'x'; 10_000]).unwrap();
    assert!(matches!(
        Database::open(&options),
        Err(OpenError::NotADatabase { .. })
    ));
    std::fs::remove_file(&options.path).unwrap();
    std::fs::create_dir(&options.path).unwrap();
    assert!(matches!(
        Database::open(&options),
        Err(OpenError::NotADatabase { .. })
    ));
}

#[test]
fn conversion_waits_for_a_transaction_and_needs_no_restart_of_the_application() {
    let scratch = Scratch::new("convert");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("create table t(a)");
    app.sql("begin");
    app.sql("select * from t");
    app.sql("insert into t values (1)");
    assert!(matches!(
        not_yet(&options),
        NotYet::Converting | NotYet::Locked
    ));
    app.sql("commit");
    let database = open(&options);
    assert!(database.was_converted());
    assert_eq!(app.sql("insert into t values (2)"), "[]");
    assert_eq!(app.sql("pragma journal_mode"), "[('wal',)]");
    assert_eq!(
        app.ask("c.execute('pragma journal_mode=delete').fetchall()"),
        "error: database is locked"
    );
}

#[test]
fn a_rollback_journal_can_be_refused() {
    let scratch = Scratch::new("require");
    let options = Options {
        journal: Journal::RequireWal,
        ..scratch.options("a.db")
    };
    let mut app = Python::connected(&options.path);
    app.sql("create table t(a)");
    assert!(
        matches!(Database::open(&options), Err(OpenError::RollbackJournal { mode, .. }) if mode == "delete")
    );
    app.sql("pragma journal_mode=wal");
    assert!(!open(&options).was_converted());
}

#[test]
fn an_exclusive_application_is_named_as_the_likely_reason() {
    let scratch = Scratch::new("exclusive");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("pragma journal_mode=wal");
    app.sql("pragma locking_mode=exclusive");
    app.sql("create table t(a)");
    let reason = not_yet(&options);
    assert_eq!(reason, NotYet::Locked);
    assert!(reason.to_string().contains("locking_mode"));
}

#[test]
fn another_replicator_is_refused() {
    let scratch = Scratch::new("litestream");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("create table _litestream_seq(id integer primary key, seq)");
    assert!(
        matches!(Database::open(&options), Err(OpenError::OtherReplicator { table, .. }) if table == "_litestream_seq")
    );
}

#[test]
fn a_database_belongs_to_one_syncd() {
    let scratch = Scratch::new("claim");
    let options = scratch.options("a.db");
    Python::connected(&options.path).sql("create table t(a)");
    let mut other = Command::new("flock")
        .arg(&options.lock_path)
        .args(["-c", "echo locked; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(other.stdout.take().unwrap()),
        &mut said,
    )
    .unwrap();
    assert!(matches!(
        Database::open(&options),
        Err(OpenError::OtherSyncd { .. })
    ));
    drop(other.stdin.take());
    other.wait().unwrap();
    open(&options);
}

#[test]
fn a_standby_may_make_its_database() {
    let scratch = Scratch::new("create");
    let options = scratch.options("a.db");
    let Opened::Ready(database) = Database::create(&options, 8192).unwrap() else {
        panic!("it is not ready");
    };
    assert_eq!(database.page_size(), 8192);
    let mut app = Python::connected(&options.path);
    assert_eq!(app.sql("pragma journal_mode"), "[('wal',)]");
    drop(database);
    let Opened::Ready(database) = Database::create(&options, 4096).unwrap() else {
        panic!("it is not ready");
    };
    assert_eq!(database.page_size(), 8192, "what is there stays");
}
