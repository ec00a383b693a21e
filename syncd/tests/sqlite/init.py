# Creates the application's database as any program would: sizes and options from the command line, in the default journal mode.
import sqlite3, sys
db, page_size, auto_vacuum, journal = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
c = sqlite3.connect(db, isolation_level=None)
c.execute("pragma page_size=%d" % page_size)
c.execute("pragma auto_vacuum=%s" % auto_vacuum)
c.execute("pragma journal_mode=%s" % journal)
c.executescript("""
begin;
create table accounts(id integer primary key, balance integer not null);
create table log(id integer primary key, a, b, amt, payload);
create table junk(id integer primary key, v, w);
create table wr(k integer primary key, v) without rowid;
create table alt(a);
create virtual table ft using fts5(x);
with recursive s(i) as (select 0 union all select i+1 from s where i<999) insert into accounts select i, 1000 from s;
commit;
""")
