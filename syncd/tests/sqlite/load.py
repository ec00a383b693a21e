# A steady application: one short transaction after another, at a rate or as fast as it can. Says how long each took, and when it ended.
import sqlite3, sys, time, json, random
db, secs, rate, seed, times = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "times"
R = random.Random(seed)
c = sqlite3.connect(db, timeout=10, isolation_level=None)
c.execute("pragma synchronous=%s" % (sys.argv[6] if len(sys.argv) > 6 else "NORMAL"))
took = []; ended = []; errs = {}; t0 = time.perf_counter(); n = 0
while True:
    now = time.perf_counter()
    if now - t0 >= secs: break
    if rate:
        wait = t0 + n / rate - now
        if wait > 0: time.sleep(wait)
    a, b, x = R.randint(0, 999), R.randint(0, 999), R.randint(0, 50)
    s = time.perf_counter()
    try:
        c.execute("begin immediate")
        c.execute("update accounts set balance=balance-? where id=?", (x, a)); c.execute("update accounts set balance=balance+? where id=?", (x, b))
        c.execute("insert into log(a,b,amt,payload) values(?,?,?,randomblob(200))", (a, b, x)); c.execute("commit")
    except sqlite3.Error as e:
        errs[str(e)] = errs.get(str(e), 0) + 1
        if c.in_transaction: c.execute("rollback")
        continue
    e = time.perf_counter(); took.append(e - s); n += 1
    if times: ended.append(time.time_ns())
took.sort()
q = lambda p: round(took[min(len(took) - 1, int(len(took) * p))] * 1e3, 3) if took else 0
print(json.dumps(dict(n=n, p50=q(.5), p99=q(.99), p999=q(.999), max=q(1), over20=sum(1 for t in took if t > .020), errs=errs, ended=ended)))
