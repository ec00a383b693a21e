# One worker of an application that does everything an application may do. Says what it did and every error it saw.
import sqlite3, sys, time, random, json
db, secs, seed, vacuum = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
R = random.Random(seed)
def conn():
    c = sqlite3.connect(db, timeout=20, isolation_level=None)
    if R.random() < .3: c.execute("pragma cache_size=20")   # makes transactions spill into the log
    c.execute("pragma synchronous=%s" % R.choice(["NORMAL", "FULL", "OFF"]))
    return c
c = conn(); t0 = time.time(); ops = {}; errs = {}; alters = 0
WEIGHTS = dict(xfer=40, bulk=6, delete=6, ddl=3, vacuum=vacuum, incvac=2, rollback=5, savept=5, blob=6, fts=8, reconn=2, ckpt=1, idx=2, alter=1, wr=3)
def op():
    global c, alters
    k = R.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    if k == "xfer":
        c.execute("begin immediate"); a, b, x = R.randint(0, 999), R.randint(0, 999), R.randint(0, 50)
        c.execute("update accounts set balance=balance-? where id=?", (x, a)); c.execute("update accounts set balance=balance+? where id=?", (x, b))
        c.execute("insert into log(a,b,amt,payload) values(?,?,?,randomblob(?))", (a, b, x, R.randint(0, 300))); c.execute("commit")
    elif k == "bulk":
        c.execute("insert into junk(v,w) with recursive s(i) as (select 1 union all select i+1 from s where i<?) select randomblob(abs(random())%2000),hex(randomblob(8)) from s", (R.randint(10, 400),))
    elif k == "delete": c.execute("delete from junk where id%?=0", (R.randint(2, 6),))
    elif k == "ddl":
        n = R.randint(0, 9)
        c.execute("create table if not exists t%d(a,b,c)" % n); c.execute("insert into t%d values(1,randomblob(5000),3)" % n)
        if R.random() < .5: c.execute("drop table t%d" % n)
    elif k == "vacuum": c.execute("vacuum")
    elif k == "incvac": c.execute("pragma incremental_vacuum(20)").fetchall()
    elif k == "rollback":
        c.execute("begin immediate"); c.execute("update accounts set balance=balance-7"); c.execute("insert into junk(v,w) select randomblob(3000),'x' from accounts"); c.execute("rollback")
    elif k == "savept":
        c.execute("begin immediate"); c.execute("savepoint a"); c.execute("update accounts set balance=0"); c.execute("insert into junk(v,w) select randomblob(1000),'y' from accounts"); c.execute("rollback to a"); c.execute("insert into junk(v,w) values(randomblob(100),'z')"); c.execute("commit")
    elif k == "blob": c.execute("insert into junk(v,w) values(randomblob(?),'b')", (R.randint(100000, 2000000),))
    elif k == "fts": c.execute("insert into ft(x) values(?)", (" ".join(R.choice("alpha beta gamma delta eps".split()) for _ in range(30)),))
    elif k == "reconn": c.close(); c = conn()
    elif k == "ckpt": c.execute("pragma wal_checkpoint(%s)" % R.choice(["PASSIVE", "TRUNCATE", "RESTART", "FULL"])).fetchall()
    elif k == "idx":
        c.execute("drop index if exists jx"); c.execute("create index jx on junk(w)")
    elif k == "alter":
        alters += 1
        if alters < 50: c.execute("alter table alt add column c%d_%d" % (seed, alters))
    elif k == "wr": c.execute("insert or replace into wr values(?,randomblob(50))", (R.randint(0, 5000),))
    return k
while time.time() - t0 < secs:
    try:
        k = op(); ops[k] = ops.get(k, 0) + 1
    except sqlite3.Error as e:
        errs[str(e)] = errs.get(str(e), 0) + 1
        try: c.execute("rollback")
        except sqlite3.Error: pass
print(json.dumps(dict(seed=seed, ops=ops, errs=errs)))
