"""A bank in one SQLite file: a writer that moves money at a fixed rate, and a reader that checks that none was made or lost.

    bank.py create DATABASE
    bank.py write DATABASE RATE [--vacuum SECONDS]    until standard input ends
    bank.py read DATABASE                             until standard input ends

Each prints one line of JSON at the end. The standard library's sqlite3 is used, as an application would.
"""

import argparse
import json
import random
import select
import sqlite3
import sys
import time

ACCOUNTS, EACH = 200, 1000
TOTAL = ACCOUNTS * EACH


def over():
    return bool(select.select([sys.stdin], [], [], 0)[0])


def create(path):
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(
        f"""BEGIN;
        CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, note TEXT NOT NULL);
        CREATE TABLE log (id INTEGER PRIMARY KEY AUTOINCREMENT, amount INTEGER NOT NULL, note TEXT);
        CREATE INDEX log_amount ON log (amount);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
        INSERT INTO accounts SELECT i, {EACH}, hex(randomblob(20)) FROM n;
        COMMIT;"""
    )
    return {}


def write(path, rate, vacuum_every):
    db = sqlite3.connect(path, isolation_level=None, timeout=10)
    db.execute("PRAGMA synchronous = NORMAL")
    rng, waits, errors, done, vacuums = random.Random(1), [], {}, 0, 0
    begin = time.monotonic()
    next_vacuum = begin + vacuum_every if vacuum_every else float("inf")
    while not over():
        due = begin + done / rate
        now = time.monotonic()
        if now < due:
            time.sleep(due - now)
        source, target = rng.sample(range(1, ACCOUNTS + 1), 2)
        amount, start = rng.randint(1, 9), time.perf_counter()
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE accounts SET balance = balance - ? WHERE id = ?", (amount, source))
            db.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, target))
            db.execute("INSERT INTO log (amount, note) VALUES (?, ?)", (amount, "x" * rng.randint(0, 400)))
            db.execute("COMMIT")
        except sqlite3.Error as error:
            errors[str(error)] = errors.get(str(error), 0) + 1
            if db.in_transaction:
                db.execute("ROLLBACK")
        waits.append(time.perf_counter() - start)
        done += 1
        if time.monotonic() > next_vacuum:
            db.execute("VACUUM")
            vacuums += 1
            next_vacuum = time.monotonic() + vacuum_every
    seconds = time.monotonic() - begin
    waits.sort()
    return {
        "transactions": done,
        "per_second": done / seconds,
        "vacuums": vacuums,
        "wait_ms_p50": waits[len(waits) // 2] * 1e3 if waits else None,
        "wait_ms_p99": waits[len(waits) * 99 // 100] * 1e3 if waits else None,
        "wait_ms_max": waits[-1] * 1e3 if waits else None,
        "errors": errors,
    }


def read(path):
    connections = [sqlite3.connect(path, isolation_level=None, timeout=5) for _ in range(2)]
    reads, broken, errors, newest, longest = 0, [], {}, 0, 0.0
    while not over():
        for db in connections:
            start = time.perf_counter()
            try:
                db.execute("BEGIN")
                (first,) = db.execute("SELECT sum(balance) FROM accounts").fetchone()
                last, count = db.execute("SELECT coalesce(max(id), 0), count(*) FROM log").fetchone()
                (again,) = db.execute("SELECT sum(balance) FROM accounts").fetchone()
                db.execute("COMMIT")
                if not first == again == TOTAL or last != count or last < newest:
                    broken.append([first, again, last, count, newest])
                newest = max(newest, last)
                if reads % 200 == 0:
                    (said,) = db.execute("PRAGMA integrity_check").fetchone()
                    if said != "ok":
                        broken.append(said)
            except sqlite3.Error as error:
                errors[str(error)] = errors.get(str(error), 0) + 1
                if db.in_transaction:
                    db.execute("ROLLBACK")
                time.sleep(0.01)
            longest = max(longest, time.perf_counter() - start)
            reads += 1
        time.sleep(0.001)
    return {
        "reads": reads,
        "broken": len(broken),
        "examples": broken[:5],
        "errors": errors,
        "newest": newest,
        "longest_ms": longest * 1e3,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["create", "write", "read"])
    parser.add_argument("database")
    parser.add_argument("rate", nargs="?", type=float, default=500.0)
    parser.add_argument("--vacuum", type=float, default=0.0)
    args = parser.parse_args()
    if args.what == "create":
        found = create(args.database)
    elif args.what == "write":
        found = write(args.database, args.rate, args.vacuum)
    else:
        found = read(args.database)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
