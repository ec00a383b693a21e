# A warm application on the standby: two persistent connections that check the books in a loop, until a line comes in.
import sqlite3, sys, threading, json, time
db, total = sys.argv[1], int(sys.argv[2])
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
cs = [sqlite3.connect(db, timeout=5, isolation_level=None) for _ in range(2)]
n = ic = last = 0; bad = []; errs = {}
while not stop.is_set():
    for c in cs:
        try:
            c.execute("begin")
            s1 = c.execute("select sum(balance) from accounts").fetchone()[0]
            m = c.execute("select max(id),count(*) from log").fetchone()
            s2 = c.execute("select sum(balance) from accounts").fetchone()[0]
            c.execute("commit")
            if s1 != total or s2 != total or (m[0] or 0) != m[1]: bad.append((n, s1, s2, m))
            if (m[0] or 0) < last: bad.append(("backwards", last, m[0]))
            last = m[0] or 0
            if n % 200 == 0:
                r = c.execute("pragma integrity_check").fetchone()[0]; ic += 1
                if r != "ok": bad.append(r)
        except sqlite3.Error as e:
            errs[str(e)] = errs.get(str(e), 0) + 1
            try: c.execute("rollback")
            except sqlite3.Error: pass
            time.sleep(0.005)
        n += 1
print(json.dumps(dict(reads=n, checks=ic, bad=bad[:5], bads=len(bad), errs=errs, last=last)))
