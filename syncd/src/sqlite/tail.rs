//! Reading commits out of the log of a database that an application is writing.
//!
//! The header of the wal-index is the only truth about what is committed. Frames up to its last one never change until the log begins
//! anew; that needs everything to be in the database file already; only we put it there, and only what has been read. So no frame can be
//! lost, without a table of ours, a long read transaction or a blocking checkpoint.

mod attach;
mod frames;
mod large;
mod lost;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use shared::clock;
use shared::model::Position;

use self::frames::{Chain, Stretch};
use self::large::Large;
pub use self::lost::{CaptureError, Lost};
use super::database::{Database, at};
use super::ground::log_path;
use super::heal::Healing;
use super::leash::At;
use super::mark::Mark;
use super::wake::{Watch, Woken};
use super::wal::{FRAME_HEADER, Frame, Salts};
use crate::wire::checksum::{lock_page, page_hash};
use crate::wire::increment::{Increment, PART_LIMIT};

/// While commits come, the wal-index is looked at this often: at most so many batches a second, however many commits.
const BUSY_EVERY: Duration = Duration::from_millis(5);
/// After a commit, more are expected for this long.
const BUSY_FOR: Duration = Duration::from_millis(30);
/// Between a commit's frames and the header that makes them count lies, with `synchronous=FULL`, a sync to disk, and the header
/// is written without a sign. So long is it expected after frames were seen to be written.
const COMMIT_WITHIN: Duration = Duration::from_secs(1);
/// A write to the log is noticed before its commit is published; until then, look this often.
const EAGER_EVERY: Duration = Duration::from_micros(50);
const EAGER_FOR: Duration = Duration::from_millis(2);
/// Memory for bodies that is kept, in bytes.
const BODIES: usize = 256 << 10;
/// How often the log is looked at when the system does not let it be watched.
const UNWATCHED_EVERY: Duration = Duration::from_millis(5);
/// How often it is checked that the file at the path is still this one.
const REPLACED_EVERY: Duration = Duration::from_millis(100);
/// A header that cannot be read for this long may be torn for good.
const TORN_AFTER: Duration = Duration::from_millis(2);
/// How many bytes of the log are read at once, at first.
const CHUNK: usize = 256 << 10;
/// How many former generations are known by their salts.
const PAST: usize = 256;

/// Reads the commits of a [`Database`].
#[derive(Debug)]
pub struct Tail {
    position: Position,
    salts: Salts,
    frame: u32,
    limit: u32,
    chain: Chain,
    past: VecDeque<Salts>,
    stretch: Stretch,
    large: Option<Large>,
    unsealed: u64,
    /// Where bodies are put together, one after another in the same memory when nobody keeps them.
    bodies: BytesMut,
    watch: Watch,
    busy_until: Instant,
    eager_until: Instant,
    replaced_at: Instant,
    unreadable_since: Option<Instant>,
}

/// What was committed when it was taken. Small, and comparable with nothing but a [`Tail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample(At);

/// Whether what is captured goes on from a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// There was no mark.
    Begun,
    /// It does, without a gap: what was committed since comes next.
    Kept,
    /// It cannot be proved. The content now is where a new gen begins.
    Lost(Lost),
}

impl Tail {
    /// Where the history stands after the last increment that was handed out.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// From now on increments follow `position`: after attaching, and when the epoch changes.
    pub const fn stand_at(&mut self, position: Position) {
        self.position = position;
    }

    /// How many frames without checksum were read: a bug of SQLite up to 3.50.1 in the application, which risks its data at a crash.
    #[must_use]
    pub const fn unsealed_frames(&self) -> u64 {
        self.unsealed
    }

    /// What proves the last increment's place in the log; `None` when nothing could, or in the middle of a transaction.
    #[must_use]
    pub fn mark(&self, database: &Database) -> Option<Mark> {
        if self.large.is_some() {
            return None;
        }
        Some(Mark {
            salts: self.salts,
            frame: self.frame,
            checksum: self.chain.checksum()?,
            page_size: database.page_size(),
            content: database.sums().checksum(),
        })
    }

    /// The next committed transaction, or the next part of one; `None` when there is nothing new.
    ///
    /// Asking for more says that everything handed out before is in the caller's hands: from then on the log may begin anew over it.
    ///
    /// # Errors
    /// After any error but a [`CaptureError::Failure`] this tail is of no use any more.
    pub fn poll(&mut self, database: &mut Database) -> Result<Option<Increment>, CaptureError> {
        if self.large.is_some() {
            return self.next_part(database).map(Some);
        }
        self.settle(database)?;
        if self.frame >= self.limit && !self.look(database)? {
            return Ok(None);
        }
        self.busy_until = clock::now() + BUSY_FOR;
        self.next(database).map(Some)
    }

    /// Sleeps until there may be something new: briefly while commits come, else until a write to the log, a kick, or for `most`.
    ///
    /// # Errors
    /// As [`Tail::poll`].
    pub fn rest(&mut self, database: &mut Database, most: Duration) -> Result<(), CaptureError> {
        let now = clock::now();
        let kick = database.kick();
        if now < self.eager_until {
            self.watch.sleep(&kick, EAGER_EVERY.min(most));
            return Ok(());
        }
        if now < self.busy_until || self.unreadable_since.is_some() {
            self.watch.sleep(&kick, BUSY_EVERY.min(most));
            return Ok(());
        }
        self.settle(database)?;
        // Without a watch, of which a system has only so many, it is looked at now and then.
        let most = if self.watch.arm(&log_path(database.path())) {
            most
        } else {
            UNWATCHED_EVERY.min(most)
        };
        if self.is_behind(database)? {
            return Ok(());
        }
        // A commit whose frames were written just before the watch was armed is still being synced: the shorter the quiet, the
        // sooner it is looked at again.
        let most = most.min(BUSY_EVERY + now.saturating_duration_since(self.busy_until));
        if self.watch.sleep(&kick, most) == Woken::Written {
            let now = clock::now();
            self.eager_until = now + EAGER_FOR;
            self.busy_until = now + COMMIT_WITHIN;
        }
        Ok(())
    }

    /// What is committed now; `None` while the header of the wal-index is being replaced.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn sample(&self, database: &Database) -> Result<Option<Sample>, CaptureError> {
        Ok(database
            .index()?
            .committed
            .map(|committed| Sample(at(&committed))))
    }

    /// Whether everything that was committed when `sample` was taken has been handed out.
    #[must_use]
    pub fn has_reached(&self, sample: &Sample) -> bool {
        let At { salts, frame } = sample.0;
        if frame == 0 {
            // The log was just about to begin anew, for which everything before must have been read.
            return true;
        }
        if salts == self.salts {
            return self.frame >= frame && self.large.is_none();
        }
        self.past.contains(&salts)
    }

    /// Gives the capture up: the application checkpoints by itself again, and what it commits from now on is not seen.
    pub fn release(self, database: &mut Database) {
        self.detach(database);
        let leash = Arc::clone(&database.leash);
        database.let_checkpoints_go(&leash.turn());
    }

    /// Ends the capture but keeps the checkpoint lock, to go over to [`Apply`](super::Apply).
    pub fn detach(self, database: &mut Database) {
        database.unguard_log();
        if self.large.is_some() {
            database.set_sums_at(None);
        }
        database.leash.set_captured(None);
    }

    const fn here(&self) -> At {
        At {
            salts: self.salts,
            frame: self.frame,
        }
    }

    /// What was handed out before is settled: says so to the checkpointer.
    fn settle(&mut self, database: &mut Database) -> Result<(), CaptureError> {
        database.leash.set_captured(Some(self.here()));
        if database.is_log_guarded()
            && database
                .leash
                .backfilled()
                .is_none_or(|done| self.frame >= done.frame)
        {
            database.unguard_log();
        }
        let now = clock::now();
        if now >= self.replaced_at + REPLACED_EVERY {
            self.replaced_at = now;
            if database.is_replaced() {
                return Err(CaptureError::Replaced);
            }
        }
        Ok(())
    }

    fn is_behind(&self, database: &Database) -> Result<bool, CaptureError> {
        Ok(match database.index()?.committed {
            Some(now) => now.frame != 0 && at(&now) != self.here(),
            None => true,
        })
    }

    /// Looks how far the log reaches now; true if there is something new.
    fn look(&mut self, database: &mut Database) -> Result<bool, CaptureError> {
        let index = database.index()?;
        let Some(committed) = index.committed else {
            self.handle_unreadable(database)?;
            return Ok(false);
        };
        self.unreadable_since = None;
        if committed.salts != self.salts {
            if committed.frame == 0 {
                return Ok(false);
            }
            self.turn_over(database, committed.salts)?;
        }
        if committed.frame < self.frame {
            return Err(Lost::Shorter {
                frame: committed.frame,
                read: self.frame,
            }
            .into());
        }
        if committed.frame == self.frame {
            return Ok(false);
        }
        if committed.page_size != database.page_size() {
            return Err(Lost::PageSize.into());
        }
        if self.frame == 0 {
            self.chain = Chain::begin(database, self.salts)?;
        }
        self.limit = committed.frame;
        self.chain.expect_at(committed.frame, committed.checksum);
        Ok(true)
    }

    /// The log has begun anew.
    fn turn_over(&mut self, database: &mut Database, salts: Salts) -> Result<(), CaptureError> {
        let done = database.leash.backfilled();
        if done != Some(self.here()) {
            return Err(Lost::Unread {
                frame: done.map_or(0, |done| done.frame),
                read: self.frame,
            }
            .into());
        }
        if self.past.len() == PAST {
            self.past.pop_front();
        }
        self.past.push_back(self.salts);
        self.salts = salts;
        self.frame = 0;
        self.limit = 0;
        self.stretch.clear();
        database.leash.want_reset(false);
        database.leash.set_backfilled(self.here());
        database.leash.set_captured(Some(self.here()));
        database.set_sums_at(Some(self.here()));
        Ok(())
    }

    fn handle_unreadable(&mut self, database: &mut Database) -> Result<(), CaptureError> {
        let now = clock::now();
        let since = *self.unreadable_since.get_or_insert(now);
        if now < since + TORN_AFTER {
            return Ok(());
        }
        let leash = Arc::clone(&database.leash);
        match database.heal(&leash.turn())? {
            Healing::InUse => Ok(()),
            Healing::LockLost => Err(Lost::CheckpointLock.into()),
            Healing::Healed => {
                self.unreadable_since = None;
                let index = database.index()?;
                if index.committed.is_some_and(|now| now.salts == self.salts) {
                    database.leash.set_backfilled(At {
                        salts: self.salts,
                        frame: index.backfilled,
                    });
                }
                Ok(())
            }
        }
    }

    /// Hands out the transaction that begins after `self.frame`, or the first part of it.
    fn next(&mut self, database: &mut Database) -> Result<Increment, CaptureError> {
        let frame_size = database.page_size() as usize + FRAME_HEADER;
        let first = self.frame + 1;
        let mut at_once = CHUNK;
        loop {
            let count = u32::try_from((at_once / frame_size).max(1)).unwrap_or(u32::MAX);
            let until = self.limit.min(self.frame.saturating_add(count));
            self.stretch.cover(database, first, until)?;
            if let Some(last) = self.stretch.find_commit(first) {
                return self.small(database, last);
            }
            if self.stretch.last() >= self.limit {
                return Err(Lost::Frame {
                    frame: self.limit,
                    what: "no commit, although the index of the log says so",
                }
                .into());
            }
            if at_once >= PART_LIMIT {
                self.large = Some(Large::read(
                    database,
                    &mut self.stretch,
                    &mut self.chain,
                    first,
                    self.limit,
                )?);
                return self.next_part(database);
            }
            at_once *= 4;
        }
    }

    /// Hands out the transaction from the frame after `self.frame` to `last`, all of which has been read.
    fn small(&mut self, database: &mut Database, last: u32) -> Result<Increment, CaptureError> {
        let mut newest = Vec::with_capacity((last - self.frame) as usize);
        let mut pages = 0;
        for number in self.frame + 1..=last {
            let bytes = self
                .stretch
                .frame(number)
                .ok_or(Lost::Truncated { frame: number })?;
            self.chain.follow(number, bytes)?;
            let frame = Frame::parse(bytes);
            newest.push((frame.page, number));
            pages = frame.commit;
        }
        newest.sort_unstable();
        let unsealed = self.chain.end_commit(last)?;
        let mut body = std::mem::take(&mut self.bodies);
        body.reserve(newest.len() * (database.page_size() as usize + 4));
        let mut sums = database.sums();
        let lock = lock_page(sums.page_size());
        let pre = sums.checksum();
        sums.resize(pages);
        for (at, (page, number)) in newest.iter().enumerate() {
            let superseded = newest.get(at + 1).is_some_and(|next| next.0 == *page);
            if superseded || *page == 0 || *page > pages || *page == lock {
                continue;
            }
            let Some(image) = self
                .stretch
                .frame(*number)
                .map(|bytes| &bytes[FRAME_HEADER..])
            else {
                continue;
            };
            sums.set(*page, page_hash(*page, image));
            body.put_u32_le(*page);
            body.put_slice(image);
        }
        let post = sums.checksum();
        drop(sums);
        self.finish(database, last, unsealed);
        let whole = body.split().freeze();
        if body.capacity() <= BODIES {
            self.bodies = body;
        }
        Ok(self.increment(database, pages, (pre, post), whole))
    }

    fn next_part(&mut self, database: &mut Database) -> Result<Increment, CaptureError> {
        let Some(large) = &mut self.large else {
            return Err(Lost::Content.into());
        };
        let (part, body) = large.next_body(database)?;
        let done = large.is_done();
        let (last, pages, sums, unsealed, committed_at) = (
            large.last,
            large.pages,
            large.sums,
            large.unsealed,
            large.committed_at,
        );
        if done {
            self.large = None;
            self.finish(database, last, unsealed);
        }
        let mut increment = self.increment(database, pages, sums, body);
        increment.part = part;
        increment.last = done;
        increment.committed_at = committed_at;
        if !done {
            increment.position.seq += 1;
        }
        Ok(increment)
    }

    /// The transaction that ends with frame `last` is handed out.
    fn finish(&mut self, database: &mut Database, last: u32, unsealed: u64) {
        self.frame = last;
        self.position.seq += 1;
        self.unsealed += unsealed;
        database.set_sums_at(Some(self.here()));
        if unsealed > 0 {
            database.leash.want_reset(true);
        }
    }

    fn increment(
        &self,
        database: &Database,
        pages: u32,
        (pre, post): (u64, u64),
        body: Bytes,
    ) -> Increment {
        Increment {
            position: self.position,
            pre,
            post,
            page_size: database.page_size(),
            pages,
            committed_at: clock::unix_nanos(),
            part: 0,
            last: true,
            body,
        }
    }
}
