//! The application of a node: an SQLite database with rows that come, change and go, and what can be said of its content.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use shared::rng::Rng;
use syncd::wire::checksum::page_hash;
use xxhash_rust::xxh3::Xxh3;

/// Rows that are kept; the rest is deleted, so that pages become free and are used again.
const ROWS_MOST: u32 = 400;

/// Creates the database with its schema.
pub(crate) fn create(path: &Path, page_size: u32) {
    let app = Connection::open(path).unwrap();
    app.pragma_update(None, "page_size", page_size).unwrap();
    app.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE t (n INTEGER PRIMARY KEY, v BLOB NOT NULL, w INTEGER NOT NULL);
         CREATE INDEX t_w ON t (w);",
    )
    .unwrap();
}

/// Opens it as an application does.
pub(crate) fn open(path: &Path) -> Connection {
    let app = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    app.busy_timeout(Duration::from_secs(10)).unwrap();
    app.pragma_update(None, "synchronous", "NORMAL").unwrap();
    app
}

/// One transaction with row `n`, which nobody has used before. Large ones do not fit into one part of an increment.
pub(crate) fn commit(app: &Connection, n: u32, is_large: bool, rng: &mut Rng) {
    let rows = if is_large { 300 } else { rng.i64(1..4) };
    let most = if is_large { 9000 } else { 3000 };
    app.execute_batch("BEGIN IMMEDIATE").unwrap();
    for row in 0..rows {
        let length = rng.i64(10..most);
        app.execute(
            "INSERT INTO t VALUES (?1, randomblob(?2), ?3)",
            (i64::from(n) * 1000 + row, length, rng.i64(0..50)),
        )
        .unwrap();
    }
    app.execute("UPDATE t SET w = w + 1 WHERE w = ?1", [rng.i64(0..50)])
        .unwrap();
    app.execute(
        "DELETE FROM t WHERE n <= (SELECT n FROM t ORDER BY n DESC LIMIT 1 OFFSET ?1)",
        [ROWS_MOST],
    )
    .unwrap();
    app.execute_batch("COMMIT").unwrap();
}

/// What the rows come to, whatever pages they are on.
pub(crate) fn rows(path: &Path) -> u64 {
    let app = open(path);
    let mut rows = app.prepare("SELECT n, v, w FROM t ORDER BY n").unwrap();
    let mut rows = rows.query([]).unwrap();
    let mut sum = Xxh3::new();
    while let Some(row) = rows.next().unwrap() {
        sum.update(&row.get::<_, i64>(0).unwrap().to_le_bytes());
        sum.update(row.get_ref(1).unwrap().as_blob().unwrap());
        sum.update(&row.get::<_, i64>(2).unwrap().to_le_bytes());
    }
    sum.digest()
}

/// The hash of every page, without what differs between copies of the same content.
pub(crate) fn pages(path: &Path) -> Vec<u64> {
    let app = open(path);
    let mut pages = app
        .prepare("SELECT pgno, data FROM sqlite_dbpage ORDER BY pgno")
        .unwrap();
    let hash = |row: &rusqlite::Row<'_>| {
        let page = row.get_ref(1)?.as_blob()?;
        Ok(page_hash(row.get(0)?, page))
    };
    let hashes = pages.query_map([], hash).unwrap();
    hashes.map(Result::unwrap).collect()
}

/// What SQLite itself finds wrong.
pub(crate) fn integrity(path: &Path) -> String {
    open(path)
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap()
}
