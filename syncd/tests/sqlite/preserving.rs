//! What is about to be overwritten is kept whole, and its difference is SQL that gives the same content.

use std::path::{Path, PathBuf};

use syncd::sqlite::{content, preserve};

use crate::support::{Python, Scratch, assert_sound, open};

/// Every row of every ordinary table, as text.
fn dump(path: &Path) -> String {
    let mut app = Python::connected(path);
    app.run(
        "def dump():\n  out = []\n  for (name, sql) in c.execute(\"select name, sql from sqlite_schema where type='table' and name not like 'sqlite_%' and name not like 'ft%' order by name\").fetchall():\n    out.append((name, sql, sorted(repr([(v, type(v).__name__) for v in row]) for row in c.execute('select * from \"%s\"' % name.replace('\"', '\"\"')))))\n  out.append(c.execute(\"select type, name, sql from sqlite_schema where type <> 'table' order by name\").fetchall())\n  return out",
    );
    app.ask("dump()")
}

const SCHEMA: &str = "
create table people(id integer primary key, name text, score real, photo blob);
create table words(word text primary key collate nocase, meaning);
create table pairs(a, b, v, primary key(a, b)) without rowid;
create table loose(x, y);
create table keyless(k text primary key, v);
create table made(a integer primary key, b, c generated always as (a * 2) stored, d generated always as (b || '!') virtual);
create table doomed(a);
create table \"quo\"\"ted\"(\"co\"\"l\" integer primary key, \"or der\" text);
create virtual table ft using fts5(body);
create index by_name on people(name);
create view scores as select score from people;
insert into people values (1, 'Ada', 1.5, x'00ff'), (2, 'Bob', 2, null), (3, 'it''s', null, 'text'), (4, 'gone', 4, null);
insert into words values ('Apple', 1), ('pear', 2);
insert into pairs values (1, 'x', 'one'), (2, 'y', 'two'), (3, 'z', 'three');
insert into loose values (1, 1), (1, 1), (2, 2);
insert into keyless values (null, 1), (null, 2), ('k', 3);
insert into made(a, b) values (1, 'one'), (2, 'two');
insert into doomed values (1);
insert into \"quo\"\"ted\" values (1, 'one');
insert into ft values ('hello world');
";

const CHANGES: &str = "
update people set score = 2.0, photo = x'deadbeef' where id = 2;
update people set name = 'O''Brien' || char(10) || 'ü' where id = 3;
delete from people where id = 4;
insert into people values (9223372036854775807, 'max', 9e999, zeroblob(3)), (-5, cast(x'410042' as text), -9e999, x'');
insert into people values (10, null, 1e-300, 0.1), (11, '', 123456789012345678, 1e16);
update words set word = 'APPLE' where word = 'apple';
insert into words values ('plum', null);
update pairs set v = 'zwei' where a = 2;
delete from pairs where a = 3;
insert into pairs values (4, x'01', null);
delete from loose where rowid = 1;
update loose set y = '2' where rowid = 3;
insert into keyless values (null, 4);
update keyless set v = 5 where rowid = 1;
update made set b = 'zwei' where a = 2;
insert into made(a, b) values (3, null);
drop table doomed;
create table fresh(a integer primary key, b default 7);
insert into fresh values (1, 'new');
update \"quo\"\"ted\" set \"or der\" = 'two; -- no comment';
drop index by_name;
create index by_score on people(score);
create trigger watch after insert on fresh begin select 1; end;
insert into ft values ('only in the copy of the file');
";

fn diverged(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let (from, to) = (scratch.path("from.db"), scratch.path("to.db"));
    let mut app = Python::connected(&from);
    app.script(SCHEMA);
    drop(app);
    std::fs::copy(&from, &to).unwrap();
    let mut app = Python::connected(&to);
    app.script(CHANGES);
    (from, to)
}

#[test]
fn a_difference_makes_the_one_into_the_other() {
    let scratch = Scratch::new("difference");
    let (from, to) = diverged(&scratch);
    let mut sql = Vec::new();
    let found = preserve::difference(&from, &to, &mut sql).unwrap();
    let sql = String::from_utf8(sql).unwrap();
    assert_eq!(found.skipped, ["ft"], "{sql}");
    assert!(
        !found.is_empty() && found.deleted == 3 && found.updated == 8,
        "{found:?}\n{sql}"
    );
    assert!(
        sql.contains("UPDATE \"people\" SET \"photo\" = x'deadbeef' WHERE \"id\" = 2;"),
        "{sql}"
    );
    assert!(sql.contains("-- \"ft\" was not compared"), "{sql}");
    assert_ne!(dump(&from), dump(&to));
    let mut app = Python::connected(&from);
    app.script(&sql);
    drop(app);
    assert_eq!(dump(&from), dump(&to), "{sql}");
    assert_sound(&from);
    let nothing = preserve::difference(&from, &to, &mut Vec::new()).unwrap();
    assert!(nothing.is_empty(), "{nothing:?}");
}

#[test]
fn other_columns_and_unknown_collations_are_named_and_the_rest_is_compared() {
    let scratch = Scratch::new("columns");
    let (from, to) = (scratch.path("from.db"), scratch.path("to.db"));
    for (path, sql) in [
        (&from, "create table t(a integer primary key, b)"),
        (&to, "create table t(a integer primary key, b, c)"),
    ] {
        let mut app = Python::connected(path);
        app.run("c.create_collation('odd', lambda x, y: (x > y) - (x < y))");
        app.sql(sql);
        app.sql("insert into t(a, b) values (1, 1)");
        app.sql("create table odd(k text primary key collate odd, v) without rowid");
        app.sql("insert into odd values ('a', 1)");
    }
    Python::connected(&to).sql("update t set b = 2");
    let mut sql = Vec::new();
    let found = preserve::difference(&from, &to, &mut sql).unwrap();
    let sql = String::from_utf8(sql).unwrap();
    assert_eq!((found.updated, found.definitions), (1, 1), "{sql}");
    assert_eq!(found.skipped, ["odd"], "{sql}");
    assert!(
        sql.contains("-- The definition of \"t\" changed from"),
        "{sql}"
    );
}

#[test]
fn a_copy_is_whole_while_the_application_writes() {
    let scratch = Scratch::new("copy");
    let path = scratch.path("a.db");
    let mut app = Python::connected(&path);
    app.sql("pragma journal_mode=wal");
    app.sql("create table t(id integer primary key, a, b)");
    app.sql("insert into t(a, b) with recursive s(i) as (select 1 union all select i+1 from s where i<20000) select 5, randomblob(1000) from s");
    app.say(
        "[c.execute('update t set a = a + 1 where id in (1, 20000)') for _ in range(300)] and None",
    );
    let copy = preserve::copy(&path, &scratch.path("diverged")).unwrap();
    assert_eq!(app.hear(), "None");
    assert_eq!(copy, scratch.path("diverged").join("a.db"));
    let names: Vec<_> = std::fs::read_dir(scratch.path("diverged"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["a.db"]);
    assert_sound(&copy);
    let mut kept = Python::connected(&copy);
    assert_eq!(kept.sql("pragma journal_mode"), "[('delete',)]");
    assert_eq!(kept.sql("select count(*), count(distinct a) <= 2, (select a from t where id = 1) = (select a from t where id = 20000) from t"), "[(20000, 1, 1)]");
}

#[test]
fn content_is_counted_up_to_a_limit_and_without_what_belongs_to_virtual_tables() {
    let scratch = Scratch::new("content");
    let options = scratch.options("a.db");
    let mut app = Python::connected(&options.path);
    app.sql("create table few(a)");
    app.sql("insert into few values (1), (2)");
    app.sql("create virtual table ft using fts5(body)");
    app.sql("insert into ft values ('x'), ('y')");
    let database = open(&options);
    let few = content(&database).unwrap();
    assert_eq!(few.rows, 2);
    assert!(few.is_fresh() && few.bytes > 0);
    app.sql("create table many(a)");
    app.sql("insert into many with recursive s(i) as (select 1 union all select i+1 from s where i<30000) select i from s");
    assert_eq!(content(&database).unwrap().rows, 10_002);
}
