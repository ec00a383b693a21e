//! Writing increments into the database of a standby that an application is reading.
//!
//! Every batch is one real SQLite transaction through the `sqlite_dbpage` table, so readers keep their snapshots and a crash rolls back.
//! Page 1 comes last and carries the position. The write lock is the fence's and is only borrowed: it is never let go between batches.
//! The page hashes prove every step, before it and after it; what does not fit is rolled back and named.

mod batch;

use std::sync::Arc;
use std::time::Duration;

use shared::clock;
use shared::model::Position;
use thiserror::Error;

pub use self::batch::Batch;
use super::database::{Database, at};
use super::door::{Handle, Lock};
use super::failure::Failure;
use super::heal::Healing;
use super::leash::{At, Turn};
use super::open::open_quietly;
use super::position::Stored;
use super::stage::Stage;
use super::wal::{Committed, word};
use crate::wire::increment::{Head, Increment};

/// How long to wait for a checkpoint of the application's, and for a header that is being written.
const ATTACH_WITHIN: Duration = Duration::from_millis(100);
/// Where the schema cookie is in page 1.
const COOKIE: usize = 40;
/// Pages kept in memory during a batch; the rest spills into the log, uncommitted. In KiB, negative as SQLite wants it.
const CACHE: i64 = -16_384;

/// Applies increments to a fenced [`Database`].
#[derive(Debug)]
pub struct Apply {
    writer: Option<Handle>,
    position: Option<Position>,
    left: Committed,
    cookie: u32,
}

/// Where a batch ends. Known before it begins, so that nothing is written that it would cut off again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The position after the batch.
    pub position: Position,
    /// Size of the database after it, in pages.
    pub pages: u32,
    /// Checksum of the content after it.
    pub content: u64,
}

impl End {
    /// The end of a batch whose last increment this is.
    #[must_use]
    pub const fn of(last: &Increment) -> Self {
        Self {
            position: last.position,
            pages: last.pages,
            content: last.post,
        }
    }
}

impl From<&Head> for End {
    fn from(last: &Head) -> Self {
        Self {
            position: last.position,
            pages: last.pages,
            content: last.post,
        }
    }
}

/// Why something could not be applied. The database is as it was before.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The application could write meanwhile.
    #[error("the database is not fenced, so the application could write to it meanwhile")]
    NotFenced,
    /// Another process checkpoints. Try again a little later; if it lasts, another replicator is at work.
    #[error(
        "another process holds the checkpoint lock of the database; if this lasts, another replicator is at work on it"
    )]
    CheckpointLock,
    /// The header of the wal-index cannot be read. Try again a little later.
    #[error("the index of the log cannot be read at the moment")]
    Unreadable,
    /// Somebody wrote to the database in spite of the fence, or another file stands at its path.
    #[error(
        "somebody else wrote to the standby's database, or replaced it; its content is not that of any position"
    )]
    Foreign,
    /// The content is not that of a known position.
    #[error("the database is at no known position, so nothing can follow; it needs a resync")]
    NoPosition,
    /// The increment does not follow what is there.
    #[error("increment {got} does not follow {at}")]
    Gap {
        /// Where the database stands.
        at: Position,
        /// What was to be applied.
        got: Position,
    },
    /// The parts of a transaction are not in order, or the last is missing.
    #[error(
        "part {part} of increment {position} is out of order, or the one before it is not complete"
    )]
    Part {
        /// The increment.
        position: Position,
        /// The part.
        part: u32,
    },
    /// The content is not what the increment was made from.
    #[error(
        "increment {position} applies to content {expected:016x}, but the database holds {found:016x}"
    )]
    Before {
        /// The increment.
        position: Position,
        /// What it applies to.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The content would not be what the primary has.
    #[error(
        "after {position} the content would be {found:016x}, but the primary has {expected:016x}"
    )]
    After {
        /// The increment.
        position: Position,
        /// What the primary has.
        expected: u64,
        /// What it would be here.
        found: u64,
    },
    /// The batch ends elsewhere than announced.
    #[error("the batch ends at {got:?} instead of {want}")]
    End {
        /// Where it was to end.
        want: Position,
        /// Where it ended.
        got: Option<Position>,
    },
    /// The page sizes differ; the database has to be made anew.
    #[error(
        "the primary's pages have {theirs} bytes, this database's {ours}; it has to be rebuilt"
    )]
    PageSize {
        /// Of the increment.
        theirs: u32,
        /// Of this database.
        ours: u32,
    },
    /// An epoch beyond what fits into page 1.
    #[error("epoch of position {0} does not fit into the database's header")]
    Epoch(Position),
    /// SQLite or the system refused.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl Apply {
    /// Begins to apply to a fenced database. Unless the page hashes are known already, the whole content is read once, at about 2 GB a
    /// second, and with it is decided whether the position that it tells is true.
    ///
    /// # Errors
    /// [`ApplyError::CheckpointLock`] and [`ApplyError::Unreadable`] may pass.
    pub fn attach(database: &mut Database) -> Result<Self, ApplyError> {
        if !database.is_fenced() {
            return Err(ApplyError::NotFenced);
        }
        let leash = Arc::clone(&database.leash);
        let turn = leash.turn();
        if !database.hold_checkpoints(ATTACH_WITHIN)? {
            return Err(ApplyError::CheckpointLock);
        }
        database.unguard_log();
        leash.set_captured(None);
        let left = readable(database, &turn)?;
        if database.sums_at() != Some(at(&left)) {
            let mut sums = database.scan_file()?;
            match left.frame {
                0 if left.pages > 0 => sums.resize(left.pages),
                0 => sums.resize(database.pages_in_file()?),
                last => {
                    database.scan_log(&mut sums, last)?;
                }
            }
            *database.sums() = sums;
            database.set_sums_at(Some(at(&left)));
        }
        let mut apply = Self {
            writer: None,
            position: None,
            left,
            cookie: 0,
        };
        let page = apply.first_page(database)?;
        apply.cookie = word(&page, COOKIE);
        let content = database.sums().checksum();
        apply.position = Stored::read(&page).and_then(|stored| stored.confirm(content));
        database.leash.set_backfilled(At {
            salts: left.salts,
            frame: database.index()?.backfilled,
        });
        database.leash.set_applied(apply.position);
        database.leash.set_synced(None);
        Ok(apply)
    }

    /// Where the database stands; `None` when its content is not that of a position that it tells.
    #[must_use]
    pub const fn position(&self) -> Option<Position> {
        self.position
    }

    /// Up to where the database itself would survive a loss of power, as far as is known; what came before is not needed in a log any more.
    #[must_use]
    pub fn synced(&self, database: &Database) -> Option<Position> {
        database.leash.applied().1
    }

    /// Makes everything that was applied survive a loss of power.
    ///
    /// # Errors
    /// The system refuses.
    pub fn sync(&self, database: &Database) -> Result<Option<Position>, Failure> {
        database.sync_log()?;
        database.leash.set_synced(self.position);
        Ok(self.position)
    }

    /// Applies `increments` as one transaction. Those that are applied already are passed over.
    ///
    /// # Errors
    /// The database is as it was before.
    pub fn apply(
        &mut self,
        database: &mut Database,
        increments: &[Increment],
    ) -> Result<Option<Position>, ApplyError> {
        let Some(last) = increments.last() else {
            return Ok(self.position);
        };
        let mut batch = self.begin(database, End::of(last))?;
        for increment in increments {
            batch.push(increment)?;
        }
        batch.commit().map(Some)
    }

    /// Begins a transaction of any number of increments, of which the last ends at `end`.
    ///
    /// # Errors
    /// Nothing can be written.
    pub fn begin<'a>(
        &'a mut self,
        database: &'a mut Database,
        end: End,
    ) -> Result<Batch<'a>, ApplyError> {
        Batch::begin(self, database, end)
    }

    /// Begins a transaction with the pages of `stage` over what is there; the increments after the stage's base complete it up to `end`.
    /// What is there may be anything.
    ///
    /// # Errors
    /// Nothing can be written.
    pub fn resync<'a>(
        &'a mut self,
        database: &'a mut Database,
        stage: &Stage,
        end: End,
    ) -> Result<Batch<'a>, ApplyError> {
        Batch::begin_with(self, database, stage, end)
    }

    /// Notes that the content, whose checksum the caller found in a history, is that of `position`.
    ///
    /// # Errors
    /// Nothing can be written.
    pub fn adopt(&mut self, database: &mut Database, position: Position) -> Result<(), ApplyError> {
        let (pages, content) = database.summary();
        let end = End {
            position,
            pages,
            content,
        };
        self.position = None;
        Batch::begin(self, database, end)?.adopt()
    }

    /// Sets page 1, and nothing else, with which the content is that of `end`.
    pub(super) fn put_first_page(
        &mut self,
        database: &mut Database,
        page: &[u8],
        end: End,
    ) -> Result<(), ApplyError> {
        let mut batch = Batch::begin(self, database, end)?;
        batch.put_first_page(page)?;
        batch.commit().map(drop)
    }

    /// Ends applying; the fence stays, and so does the checkpoint lock.
    pub fn detach(self, database: &mut Database) {
        database.leash.set_applied(None);
        database.leash.set_synced(None);
    }

    /// Gives applying up: the checkpoint lock is the application's again.
    pub fn release(self, database: &mut Database) {
        self.detach(database);
        let leash = Arc::clone(&database.leash);
        database.let_checkpoints_go(&leash.turn());
    }

    /// Page 1 as it is committed.
    fn first_page(&mut self, database: &Database) -> Result<Vec<u8>, ApplyError> {
        let path = database.path().to_owned();
        let writer = self.writer(database)?;
        read_first_page(writer)
            .map_err(|source| Failure::sqlite("read page 1", &path)(source).into())
    }

    /// The connection that writes. Made anew when the schema changed: what it had read of the old one would be wrong.
    fn writer(&mut self, database: &Database) -> Result<&Handle, ApplyError> {
        if self.writer.is_none() {
            let path = database.path();
            let failed = |source| Failure::sqlite("open", path)(source);
            let mut writer = open_quietly(path).map_err(failed)?;
            writer.borrow(Lock::Write, Arc::clone(&database.leash.lent));
            writer.never_autovacuum().map_err(Failure::door(path))?;
            writer
                .connection()
                .pragma_update(None, "cache_size", CACHE)
                .map_err(failed)?;
            self.writer = Some(writer);
        }
        self.writer.as_ref().ok_or(ApplyError::Unreadable)
    }
}

fn read_first_page(writer: &Handle) -> rusqlite::Result<Vec<u8>> {
    writer
        .connection()
        .prepare_cached("SELECT data FROM sqlite_dbpage WHERE pgno = 1")?
        .query_row([], |row| row.get(0))
}

fn readable(database: &mut Database, turn: &Turn<'_>) -> Result<Committed, ApplyError> {
    let until = clock::now() + ATTACH_WITHIN;
    loop {
        if let Some(committed) = database.index()?.committed {
            return Ok(committed);
        }
        if database.heal(turn)? == Healing::LockLost {
            return Err(ApplyError::CheckpointLock);
        }
        if clock::now() >= until {
            return Err(ApplyError::Unreadable);
        }
        clock::pause_thread(Duration::from_micros(200));
    }
}
