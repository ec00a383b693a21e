//! One transaction of increments.

use rusqlite::CachedStatement;
use shared::model::Position;

use super::{Apply, ApplyError, COOKIE, End, read_first_page};
use crate::sqlite::database::{Database, at};
use crate::sqlite::door::Handle;
use crate::sqlite::failure::Failure;
use crate::sqlite::leash::Writing;
use crate::sqlite::position;
use crate::sqlite::stage::Stage;
use crate::sqlite::wal::word;
use crate::wire::checksum::{lock_page, page_hash};
use crate::wire::increment::Increment;

static ZERO_PAGE: [u8; 65536] = [0; 65536];

/// A transaction under way. Dropped, it is rolled back.
#[derive(Debug)]
pub struct Batch<'a> {
    apply: &'a mut Apply,
    database: &'a mut Database,
    writing: Option<Writing>,
    end: End,
    proof: Proof,
    pages_before: u32,
    first_page: Vec<u8>,
    at: Option<Position>,
    open: Option<Open>,
    committed: bool,
}

/// What can be checked on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// Every increment, before and after.
    EveryStep,
    /// Only the end: the staged pages are from many moments.
    TheEnd,
}

/// An increment of which not all parts were pushed yet.
#[derive(Clone, Copy, Debug)]
struct Open {
    position: Position,
    part: u32,
    /// Whether it is applied already and passed over.
    passed: bool,
    /// The size before, as far as it matters: pages beyond it that no part brings are zeroes.
    filled: u32,
}

impl<'a> Batch<'a> {
    pub(super) fn begin(
        apply: &'a mut Apply,
        database: &'a mut Database,
        end: End,
    ) -> Result<Self, ApplyError> {
        if u32::try_from(end.position.epoch.0).is_err() {
            return Err(ApplyError::Epoch(end.position));
        }
        if !database.is_fenced() {
            return Err(ApplyError::NotFenced);
        }
        let writing = database.leash.writing();
        let pages_before = database.sums().pages();
        let mut batch = Self {
            at: apply.position,
            pages_before,
            apply,
            database,
            writing: Some(writing),
            end,
            proof: Proof::EveryStep,
            first_page: Vec::new(),
            open: None,
            committed: false,
        };
        let begun = begin(batch.apply.writer(batch.database)?);
        batch.first_page = begun.map_err(Failure::sqlite(
            "begin a transaction on",
            batch.database.path(),
        ))?;
        batch.database.sums().begin();
        // The transaction has the write lock, so what is checked now stays true until its end.
        if batch.database.index()?.committed != Some(batch.apply.left)
            || batch.database.is_replaced()
        {
            batch.apply.position = None;
            return Err(ApplyError::Foreign);
        }
        Ok(batch)
    }

    pub(super) fn begin_with(
        apply: &'a mut Apply,
        database: &'a mut Database,
        stage: &Stage,
        end: End,
    ) -> Result<Self, ApplyError> {
        let base = *stage.base();
        if base.page_size != database.page_size() {
            return Err(ApplyError::PageSize {
                theirs: base.page_size,
                ours: database.page_size(),
            });
        }
        let mut batch = Self::begin(apply, database, end)?;
        batch.proof = Proof::TheEnd;
        batch.at = Some(base.position);
        let mut filled = batch.pages_before.min(base.pages);
        batch.database.sums().resize(base.pages);
        let mut page = vec![0; base.page_size as usize];
        for number in stage.numbers().take_while(|number| *number <= base.pages) {
            batch.fill_up_to(&mut filled, number)?;
            let hash = stage.read(number, &mut page)?;
            batch.set(number, hash, &page)?;
        }
        batch.fill_up_to(&mut filled, base.pages + 1)?;
        Ok(batch)
    }

    /// Adds the next increment, or the next part of one.
    ///
    /// # Errors
    /// It does not fit. Drop the batch: everything is as before it.
    pub fn push(&mut self, increment: &Increment) -> Result<(), ApplyError> {
        let open = self.open(increment)?;
        if open.passed {
            self.open = (!increment.last).then_some(open);
            return Ok(());
        }
        let mut filled = open.filled;
        for (number, page) in increment.images() {
            self.fill_up_to(&mut filled, number)?;
            self.set(number, page_hash(number, page), page)?;
        }
        if !increment.last {
            self.open = Some(Open { filled, ..open });
            return Ok(());
        }
        self.fill_up_to(&mut filled, increment.pages + 1)?;
        let found = self.database.sums().checksum();
        if self.proof == Proof::EveryStep && found != increment.post {
            return Err(ApplyError::After {
                position: increment.position,
                expected: increment.post,
                found,
            });
        }
        self.open = None;
        self.at = Some(increment.position);
        Ok(())
    }

    /// Ends the transaction; from now on readers see its end. Returns the position reached.
    ///
    /// # Errors
    /// It did not end where it should, or SQLite refuses. Everything is as before the batch.
    pub fn commit(mut self) -> Result<Position, ApplyError> {
        let End {
            position,
            pages,
            content,
        } = self.end;
        if self.open.is_some() {
            return Err(ApplyError::End {
                want: position,
                got: self.at,
            });
        }
        if let (Proof::EveryStep, Some(at)) = (self.proof, self.at)
            && self.apply.position == Some(at)
            && at.seq >= position.seq
        {
            // All of it was there already.
            return Ok(at);
        }
        if self.at != Some(position) {
            return Err(ApplyError::End {
                want: position,
                got: self.at,
            });
        }
        let found = self.database.summary();
        if found != (pages, content) {
            return Err(ApplyError::After {
                position,
                expected: content,
                found: found.1,
            });
        }
        self.seal()?;
        if self.proof == Proof::TheEnd {
            self.apply.sync(self.database)?;
        }
        Ok(position)
    }

    /// Sets page 1, which brings the database to the end of the batch.
    pub(super) fn put_first_page(&mut self, page: &[u8]) -> Result<(), ApplyError> {
        self.proof = Proof::TheEnd;
        self.at = Some(self.end.position);
        self.set(1, page_hash(1, page), page)
    }

    /// Ends a transaction that changes nothing but the position.
    pub(super) fn adopt(mut self) -> Result<(), ApplyError> {
        self.seal()
    }

    /// Writes page 1 with the position, and commits.
    fn seal(&mut self) -> Result<(), ApplyError> {
        let mut page = std::mem::take(&mut self.first_page);
        // Whatever the primary's page says: this one is read through a log.
        page[18..20].fill(2);
        if !position::write(&mut page, self.end.position, self.end.content) {
            return Err(ApplyError::Epoch(self.end.position));
        }
        let cuts = self.end.pages < self.pages_before.max(self.apply.left.pages);
        let (cookie, cookie_before) = (word(&page, COOKIE), self.apply.cookie);
        let finished = finish(
            self.apply.writer(self.database)?,
            &mut page,
            cuts.then_some(self.end.pages),
            cookie_before,
        );
        finished.map_err(Failure::sqlite("commit to", self.database.path()))?;
        self.committed = true;
        self.database.sums().keep();
        if cookie != cookie_before {
            self.apply.cookie = cookie;
            self.apply.writer = None;
        }
        match self.database.index()?.committed {
            Some(left) if left.pages == self.end.pages => {
                self.apply.left = left;
                self.apply.position = Some(self.end.position);
                self.database.set_sums_at(Some(at(&left)));
                self.database.leash.set_applied(self.apply.position);
                Ok(())
            }
            _ => {
                // Not what was written: somebody is at work here who should not be.
                self.apply.position = None;
                self.database.set_sums_at(None);
                self.database.leash.set_applied(None);
                Err(ApplyError::Foreign)
            }
        }
    }

    /// Finds out how `increment` goes on from what was pushed before, and checks that it does.
    fn open(&self, increment: &Increment) -> Result<Open, ApplyError> {
        let (got, part) = (increment.position, increment.part);
        if increment.page_size != self.database.page_size() {
            return Err(ApplyError::PageSize {
                theirs: increment.page_size,
                ours: self.database.page_size(),
            });
        }
        if let Some(open) = self.open {
            if open.position != got || open.part + 1 != part {
                return Err(ApplyError::Part {
                    position: got,
                    part,
                });
            }
            return Ok(Open { part, ..open });
        }
        if part != 0 {
            return Err(ApplyError::Part {
                position: got,
                part,
            });
        }
        let at = self.at.ok_or(ApplyError::NoPosition)?;
        let found = self.database.sums().checksum();
        if got.seq <= at.seq && self.proof == Proof::EveryStep {
            if got.seq == at.seq && increment.post != found {
                return Err(ApplyError::After {
                    position: got,
                    expected: increment.post,
                    found,
                });
            }
            return Ok(Open {
                position: got,
                part,
                passed: true,
                filled: 0,
            });
        }
        if got.seq != at.seq + 1 || got.generation != at.generation || got.epoch < at.epoch {
            return Err(ApplyError::Gap { at, got });
        }
        if self.proof == Proof::EveryStep && found != increment.pre {
            return Err(ApplyError::Before {
                position: got,
                expected: increment.pre,
                found,
            });
        }
        let filled = self.database.sums().pages().min(increment.pages);
        self.database.sums().resize(increment.pages);
        Ok(Open {
            position: got,
            part,
            passed: false,
            filled,
        })
    }

    /// Pages that were added without ever being written are zeroes. What lay there before would be wrong.
    fn fill_up_to(&mut self, filled: &mut u32, number: u32) -> Result<(), ApplyError> {
        let size = self.database.page_size() as usize;
        while *filled + 1 < number {
            *filled += 1;
            self.write(*filled, &ZERO_PAGE[..size])?;
        }
        *filled = (*filled).max(number.min(self.database.sums().pages()));
        Ok(())
    }

    fn set(&mut self, number: u32, hash: u64, page: &[u8]) -> Result<(), ApplyError> {
        self.database.sums().set(number, hash);
        self.write(number, page)
    }

    fn write(&mut self, number: u32, page: &[u8]) -> Result<(), ApplyError> {
        if number == 1 {
            self.first_page.clear();
            self.first_page.extend_from_slice(page);
            return Ok(());
        }
        if number > self.end.pages || number == lock_page(self.database.page_size()) {
            return Ok(());
        }
        let writer = self.apply.writer(self.database)?;
        let written = insert(writer).and_then(|mut insert| insert.execute((number, page)));
        match written {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::sqlite("write to", self.database.path())(error).into()),
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.committed {
            self.database.sums().undo();
            if let Some(writer) = &self.apply.writer
                && !writer.connection().is_autocommit()
                && writer.connection().execute_batch("ROLLBACK").is_err()
            {
                // Closing it rolls back too.
                self.apply.writer = None;
            }
        }
        self.writing = None;
    }
}

fn begin(writer: &Handle) -> rusqlite::Result<Vec<u8>> {
    writer
        .connection()
        .prepare_cached("BEGIN IMMEDIATE")?
        .execute([])?;
    read_first_page(writer)
}

fn insert(writer: &Handle) -> rusqlite::Result<CachedStatement<'_>> {
    writer
        .connection()
        .prepare_cached("INSERT INTO sqlite_dbpage(pgno, data) VALUES (?1, ?2)")
}

/// Writes page 1, cuts off what is past `cut_at`, and commits.
///
/// The cut is taken back by any page that is written after it, so page 1 comes first. But a statement after a page 1 with another schema
/// cookie would find its schema changed, and read the new one through a layer that knows nothing of the new pages: so the cookie comes
/// last, in a way that writes no page. And it must be statements of their own: at the end of one with several rows SQLite takes the
/// size of the database from page 1, and then sees nothing to cut.
fn finish(
    writer: &Handle,
    page: &mut [u8],
    cut_at: Option<u32>,
    cookie_before: u32,
) -> rusqlite::Result<()> {
    let connection = writer.connection();
    if let Some(pages) = cut_at {
        let cookie = word(page, COOKIE);
        page[COOKIE..COOKIE + 4].copy_from_slice(&cookie_before.to_be_bytes());
        insert(writer)?.execute((1, &*page))?;
        connection
            .prepare_cached("INSERT INTO sqlite_dbpage(pgno, data) VALUES (?1, NULL)")?
            .execute([i64::from(pages) + 1])?;
        if cookie != cookie_before {
            let signed = i32::from_be_bytes(cookie.to_be_bytes());
            connection.pragma_update(None, "schema_version", signed)?;
        }
    } else {
        insert(writer)?.execute((1, &*page))?;
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}
