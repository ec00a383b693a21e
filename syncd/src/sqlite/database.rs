//! A database held open while an application uses it: the locks that syncd has on it, and the fence against the application's writes.
//!
//! The *pin* connection reads once and never again: from then on it holds the shared lock that keeps the log from being deleted and the
//! journal mode from being changed. The wal-index locks that syncd holds for long (checkpoint, write) are its, and other connections of
//! this process borrow them; so they can come and go without a moment in which nobody holds the lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::clock;

use super::door::{DoorError, Handle, Lock};
use super::failure::Failure;
use super::ground::Claim;
use super::leash::{At, Leash, Turn};
use super::open::{Options, identity};
use super::wake::Kick;
use super::wal::{Committed, Index};
use crate::wire::checksum::{Sums, page_hash};

/// How often the header of the wal-index is read before it counts as unreadable for now. A writer needs microseconds to replace it.
const HEADER_READS: u32 = 64;

/// A database held open. See the module's notes on what it holds.
#[derive(Debug)]
pub struct Database {
    options: Options,
    path: PathBuf,
    log: File,
    identity: (u64, u64),
    page_size: u32,
    converted: bool,
    pub(super) pin: Handle,
    pub(super) leash: Arc<Leash>,
    sums: Arc<Mutex<Sums>>,
    sums_at: Option<At>,
    guard: Option<u8>,
    _claim: Claim,
}

/// What opening a database gives.
pub(super) struct Held {
    pub(super) options: Options,
    pub(super) path: PathBuf,
    pub(super) log: File,
    pub(super) identity: (u64, u64),
    pub(super) page_size: u32,
    pub(super) converted: bool,
    pub(super) pin: Handle,
    pub(super) kick: Kick,
    pub(super) claim: Claim,
}

impl Database {
    pub(super) fn of(held: Held) -> Self {
        Self {
            options: held.options,
            path: held.path,
            log: held.log,
            identity: held.identity,
            page_size: held.page_size,
            converted: held.converted,
            pin: held.pin,
            leash: Arc::new(Leash::new(held.kick)),
            sums: Arc::new(Mutex::new(Sums::new(held.page_size))),
            sums_at: None,
            guard: None,
            _claim: held.claim,
        }
    }

    /// The file, with symbolic links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// In bytes.
    #[must_use]
    pub const fn page_size(&self) -> u32 {
        self.page_size
    }

    /// Whether opening it has put it into write-ahead mode, which the operator wants to know.
    #[must_use]
    pub const fn was_converted(&self) -> bool {
        self.converted
    }

    /// Wakes the thread that waits in [`Tail::rest`](super::Tail::rest).
    #[must_use]
    pub fn kick(&self) -> Kick {
        self.leash.kick.clone()
    }

    /// Whether another file stands at the path now, or none: this one must be let go and the path opened anew.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        !matches!(fs::metadata(&self.options.path), Ok(now) if identity(&now) == self.identity)
    }

    /// Size of the log file in bytes.
    ///
    /// # Errors
    /// The system refuses.
    pub fn log_bytes(&self) -> Result<u64, Failure> {
        let metadata = self.log.metadata();
        Ok(metadata
            .map_err(Failure::io("measure the log of", &self.path))?
            .len())
    }

    /// Whether the log holds committed frames that recovery after a crash would not see, because of a bug of SQLite up to 3.50.1 in the
    /// application. The checkpointer mends that as soon as it can.
    #[must_use]
    pub fn is_log_at_risk(&self) -> bool {
        self.leash.is_reset_wanted()
    }

    /// Makes everything that is committed survive a loss of power, whatever the application's `synchronous` says.
    ///
    /// # Errors
    /// The system refuses; then nothing can be said about what is on disk.
    pub fn sync_log(&self) -> Result<(), Failure> {
        self.log
            .sync_data()
            .map_err(Failure::io("sync the log of", &self.path))
    }

    /// Tries to keep the application from writing, without waiting. False while it is in a write transaction; ask again.
    ///
    /// Once true, it stays so until [`Database::lift_fence`], across everything that [`Apply`](super::Apply) writes.
    ///
    /// # Errors
    /// SQLite refuses for another reason than the application's lock.
    pub fn try_fence(&mut self) -> Result<bool, Failure> {
        if self.is_fenced() {
            return Ok(true);
        }
        let taken = self
            .pin
            .take(Lock::Write)
            .map_err(Failure::door(&self.path))?;
        if taken {
            self.leash.lent.add(Lock::Write);
        }
        Ok(taken)
    }

    /// Whether the application cannot write.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.leash.lent.has(Lock::Write)
    }

    /// Lets the application write again.
    pub fn lift_fence(&mut self) {
        if self.is_fenced() {
            let leash = Arc::clone(&self.leash);
            let writing = leash.writing();
            self.leash.lent.remove(Lock::Write);
            self.pin.give_back(Lock::Write);
            drop(writing);
        }
    }

    /// The checksum of the content, as of the last commit that was captured or applied; `None` before anything was.
    #[must_use]
    pub fn checksum(&self) -> Option<u64> {
        self.sums_at.map(|_| self.sums().checksum())
    }

    /// The page hashes, for reading from another thread while commits go on.
    #[must_use]
    pub fn hashes(&self) -> PageHashes {
        PageHashes(Arc::clone(&self.sums))
    }

    /// Lets the application checkpoint by itself again. Whatever was captured so far, continuity from here on is lost.
    pub(super) fn let_checkpoints_go(&mut self, _turn: &Turn<'_>) {
        if self.leash.lent.has(Lock::Checkpoint) {
            self.leash.lent.remove(Lock::Checkpoint);
            self.pin.give_back(Lock::Checkpoint);
        }
        self.sums_at = None;
    }

    /// Becomes the only checkpointer. Waits for a checkpoint of the application's, but not longer than `most`.
    pub(super) fn hold_checkpoints(&mut self, most: Duration) -> Result<bool, Failure> {
        if self.leash.lent.has(Lock::Checkpoint) {
            return Ok(true);
        }
        let until = clock::now() + most;
        loop {
            if self
                .pin
                .take(Lock::Checkpoint)
                .map_err(Failure::door(&self.path))?
            {
                self.leash.lent.add(Lock::Checkpoint);
                return Ok(true);
            }
            if clock::now() >= until {
                return Ok(false);
            }
            clock::pause_thread(Duration::from_micros(500));
        }
    }

    /// Keeps the log from beginning anew, without limiting what can be copied into the database. False while no read slot is free.
    pub(super) fn guard_log(&mut self) -> Result<bool, Failure> {
        if self.guard.is_none() {
            self.guard = take_guard(&self.pin).map_err(Failure::door(&self.path))?;
        }
        Ok(self.guard.is_some())
    }

    /// Lets the log begin anew when it is time.
    pub(super) fn unguard_log(&mut self) {
        if let Some(slot) = self.guard.take() {
            self.pin.give_back(Lock::Reader(slot));
        }
    }

    pub(super) const fn is_log_guarded(&self) -> bool {
        self.guard.is_some()
    }

    /// Reads the wal-index.
    pub(super) fn index(&self) -> Result<Index, Failure> {
        read_index(&self.pin).map_err(Failure::door(&self.path))
    }

    pub(super) const fn log(&self) -> &File {
        &self.log
    }

    pub(super) fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many pages there are, and the checksum of the content.
    pub(super) fn summary(&self) -> (u32, u64) {
        let sums = self.sums();
        (sums.pages(), sums.checksum())
    }

    /// The checksum that the content would have with this page 1.
    pub(super) fn content_with_first_page(&self, page: &[u8]) -> u64 {
        let mut sums = self.sums();
        sums.begin();
        sums.set(1, page_hash(1, page));
        let content = sums.checksum();
        sums.undo();
        content
    }

    /// At which frame the page hashes are those of the content, if they are of any.
    pub(super) const fn sums_at(&self) -> Option<At> {
        self.sums_at
    }

    pub(super) const fn set_sums_at(&mut self, at: Option<At>) {
        self.sums_at = at;
    }
}

/// The page hashes of a database, for reading from any thread.
#[derive(Clone, Debug)]
pub struct PageHashes(Arc<Mutex<Sums>>);

impl PageHashes {
    /// How many pages the database has.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.sums().pages()
    }

    /// The hashes of at most `count` pages from page `first` (from 1). What is returned is of one moment; two calls are of two.
    #[must_use]
    pub fn range(&self, first: u32, count: usize) -> Vec<u64> {
        self.sums().range(first, count).to_vec()
    }

    /// Whether page `number` counts as all zeroes.
    #[must_use]
    pub fn is_zero(&self, number: u32) -> bool {
        let sums = self.sums();
        sums.hash(number) == Some(sums.zero_hash(number))
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the wal-index, again while its header is being replaced.
pub(super) fn read_index(handle: &Handle) -> Result<Index, DoorError> {
    let mut index = Index::parse(&handle.index()?);
    for _ in 1..HEADER_READS {
        if index.committed.is_some() {
            break;
        }
        std::hint::spin_loop();
        index = Index::parse(&handle.index()?);
    }
    Ok(index)
}

/// Takes a read slot that nobody uses. While it is taken the log cannot begin anew; because its mark limits nothing, checkpoints go on.
pub(super) fn take_guard(handle: &Handle) -> Result<Option<u8>, DoorError> {
    // A reader that needs a slot of its own takes the first that is free, so the last are the least wanted.
    for slot in (1..=4).rev() {
        if Index::parse(&handle.index()?).is_unused(slot) && handle.take(Lock::Reader(slot))? {
            if Index::parse(&handle.index()?).is_unused(slot) {
                return Ok(Some(slot));
            }
            handle.give_back(Lock::Reader(slot));
        }
    }
    // All have been used and none was tidied up yet: any one that nobody is changing. The next checkpoint tidies the others.
    for slot in (2..=4).rev() {
        if handle.take(Lock::Reader(slot))? {
            return Ok(Some(slot));
        }
    }
    Ok(None)
}

/// The frame that `committed` stands at.
pub(super) const fn at(committed: &Committed) -> At {
    At {
        salts: committed.salts,
        frame: committed.frame,
    }
}
