//! Reading pages of a database that an application is writing, for a standby that fetches what differs.
//!
//! Every call is one short read transaction, so the log can begin anew between calls. Pages of two calls are of two moments; whoever
//! puts them together needs every increment from before the first call until after the last.

use std::path::PathBuf;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use shared::clock;

use super::database::{Database, PageHashes};
use super::door::Handle;
use super::failure::Failure;
use super::open::{open_quietly, read_once};

/// No read transaction lasts much longer.
const READ_FOR: Duration = Duration::from_millis(50);

/// Reads pages, in a thread of its own.
#[derive(Debug)]
pub struct PageReader {
    path: PathBuf,
    handle: Handle,
    hashes: PageHashes,
    page_size: usize,
}

impl PageReader {
    /// Prepares to read pages of `database`.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn open(database: &Database) -> Result<Self, Failure> {
        let path = database.path().to_owned();
        let failed = |source| Failure::sqlite("open", database.path())(source);
        let handle = open_quietly(&path).map_err(failed)?;
        handle
            .connection()
            .busy_timeout(Duration::from_millis(250))
            .map_err(failed)?;
        read_once(handle.connection()).map_err(failed)?;
        Ok(Self {
            path,
            handle,
            hashes: database.hashes(),
            page_size: database.page_size() as usize,
        })
    }

    /// Reads the pages with these numbers, as many of them as go into one short read transaction but at least one. Numbers past the end of
    /// the database are passed over. Returns the pages, and how many of the numbers are dealt with.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn read(&mut self, numbers: &[u32]) -> Result<(Vec<(u32, Bytes)>, usize), Failure> {
        self.try_read(numbers)
            .map_err(Failure::sqlite("read pages", &self.path))
    }

    fn try_read(&self, numbers: &[u32]) -> rusqlite::Result<(Vec<(u32, Bytes)>, usize)> {
        let transaction = self.handle.connection().unchecked_transaction()?;
        let mut select =
            transaction.prepare_cached("SELECT data FROM sqlite_dbpage WHERE pgno = ?1")?;
        let until = clock::now() + READ_FOR;
        let mut pages = Vec::new();
        let mut done = 0;
        for number in numbers {
            if done > 0 && clock::now() >= until {
                break;
            }
            done += 1;
            let mut rows = select.query([number])?;
            let Some(row) = rows.next()? else {
                continue;
            };
            let page = row.get_ref(0)?.as_blob()?;
            pages.push((*number, self.as_hashed(*number, page)));
        }
        drop(select);
        transaction.commit()?;
        Ok((pages, done))
    }

    /// A page that was cut off, added again and never written may still have its old content in the file. Nobody ever reads that; in the
    /// hashes it is zeroes, and so it is on every standby.
    fn as_hashed(&self, number: u32, page: &[u8]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.page_size);
        if self.hashes.is_zero(number) {
            bytes.put_bytes(0, self.page_size);
        } else {
            bytes.put_slice(page);
        }
        bytes.freeze()
    }
}
