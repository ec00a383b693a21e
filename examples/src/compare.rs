//! Whether two copies of a database are the same, page for page.
//!
//! Some bytes of page 1 are each copy's own affair and are masked: the file format numbers (18–19, they say whether a
//! write-ahead log is in use), the change counter (24–27), the reserved bytes in which a standby keeps its position (72–91),
//! and the version-valid-for number and library version (92–99). See the database file format, §1.3.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use xxhash_rust::xxh3::xxh3_128;

use crate::trouble::Trouble;

const MASKED: [std::ops::Range<usize>; 3] = [18..20, 24..28, 72..100];

/// A database's content: one number a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    page_size: u32,
    pages: Vec<u128>,
}

/// How two contents differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Page sizes, if they differ.
    pub page_sizes: Option<(u32, u32)>,
    /// Numbers of pages, if they differ.
    pub lengths: Option<(usize, usize)>,
    /// The pages that both have and that differ, from 1.
    pub pages: Vec<usize>,
}

impl Content {
    /// Reads one transaction's view of a database that may be in use.
    ///
    /// # Errors
    /// SQLite cannot read it, or was built without the `sqlite_dbpage` table.
    pub fn read(path: &Path) -> Result<Self, Trouble> {
        Self::read_inner(path).map_err(Trouble::database(path))
    }

    fn read_inner(path: &Path) -> rusqlite::Result<Self> {
        let mut db = open(path)?;
        let snapshot = db.transaction()?;
        let page_size = snapshot.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let mut pages = Vec::new();
        let mut query = snapshot.prepare("SELECT pgno, data FROM sqlite_dbpage ORDER BY pgno")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let number: u32 = row.get(0)?;
            let mut page: Vec<u8> = row.get(1)?;
            if number == 1 {
                MASKED
                    .into_iter()
                    .filter_map(|range| page.get_mut(range).map(|bytes| bytes.fill(0)))
                    .for_each(drop);
            }
            pages.push(xxh3_128(&page));
        }
        drop(rows);
        drop(query);
        Ok(Self { page_size, pages })
    }

    /// How many pages there are.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.pages.len()
    }

    /// How `other` differs from this; `None` when they are equal.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        let differs = |a, b| (a != b).then_some((a, b));
        let both = self.pages.iter().zip(&other.pages);
        let difference = Difference {
            page_sizes: differs(self.page_size, other.page_size),
            lengths: match (self.pages(), other.pages()) {
                (ours, theirs) if ours == theirs => None,
                lengths => Some(lengths),
            },
            pages: (1..)
                .zip(both)
                .filter_map(|(number, (ours, theirs))| (ours != theirs).then_some(number))
                .collect(),
        };
        (difference != Difference::default()).then_some(difference)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((a, b)) = self.page_sizes {
            write!(f, "page sizes {a} and {b}; ")?;
        }
        if let Some((a, b)) = self.lengths {
            write!(f, "{a} and {b} pages; ")?;
        }
        let shown = &self.pages[..self.pages.len().min(10)];
        write!(f, "{} pages differ: {shown:?}", self.pages.len())
    }
}

/// What `PRAGMA integrity_check` says: `ok`, or what is wrong.
///
/// # Errors
/// SQLite cannot read the file at all.
pub fn integrity(path: &Path) -> Result<String, Trouble> {
    let check = || open(path)?.query_row("PRAGMA integrity_check", [], |row| row.get(0));
    check().map_err(Trouble::database(path))
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    db.busy_timeout(Duration::from_secs(5))?;
    Ok(db)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn filled(path: &Path, rows: u32) -> Connection {
        let db = Connection::open(path).unwrap();
        db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
            .unwrap();
        for row in 0..rows {
            db.execute("INSERT INTO t VALUES (?1, zeroblob(900))", [row])
                .unwrap();
        }
        db
    }

    #[test]
    fn a_copy_is_equal_also_when_only_its_header_counters_differ() {
        let scratch = Scratch::new("compare").unwrap();
        let (a, b) = (scratch.path().join("a.db"), scratch.path().join("b.db"));
        drop(filled(&a, 50));
        std::fs::copy(&a, &b).unwrap();
        let other = Connection::open(&b).unwrap();
        other
            .execute_batch("PRAGMA journal_mode = WAL; UPDATE t SET b = zeroblob(900) WHERE a = 1")
            .unwrap();
        let (one, two) = (Content::read(&a).unwrap(), Content::read(&b).unwrap());
        assert!(one.pages() > 10);
        assert_eq!(one.difference(&two), None);
        assert_eq!(integrity(&b).unwrap(), "ok");
    }

    #[test]
    fn one_changed_byte_and_one_more_page_are_seen() {
        let scratch = Scratch::new("compare").unwrap();
        let (a, b) = (scratch.path().join("a.db"), scratch.path().join("b.db"));
        drop(filled(&a, 50));
        let other = filled(&b, 50);
        let one = Content::read(&a).unwrap();
        assert_eq!(one.difference(&Content::read(&b).unwrap()), None);
        other
            .execute("UPDATE t SET b = 'x' WHERE a = 25", [])
            .unwrap();
        let difference = one.difference(&Content::read(&b).unwrap()).unwrap();
        assert_eq!(
            (difference.lengths, difference.pages.is_empty()),
            (None, false)
        );
        other.execute_batch("CREATE TABLE more(a)").unwrap();
        let difference = one.difference(&Content::read(&b).unwrap()).unwrap();
        assert!(difference.lengths.is_some() && difference.pages.contains(&1));
    }
}
