//! Copying the log into the database, off everybody's path, and making sure that the log begins anew before it grows too long.
//!
//! Copying itself ([`passive`](Checkpointer::pass)) waits for nobody and makes nobody wait. But the log can only begin anew at a moment
//! at which all of it is copied, and under constant writes there is none. So when the log is long, the last small remainder is copied
//! while the application cannot write: measured, bounded to 7 ms whatever the disk does, and given up rather than
//! prolonged. A writer with SQLite's own busy handler tries again after 1, 3, 8 and 18 ms, so while the lock is held for less than 8 ms it
//! waits for 8 ms at most, and for 18 ms should this process be kept from running just then.

mod duty;
mod hold;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::clock;

use self::duty::{Duty, REMAINDER, RESET_AT, Situation, TRIM_AT};
use self::hold::{Held, Hold, Stopped, copy};
use super::database::{Database, at, read_index, take_guard};
use super::door::{Handle, Lent, Lock};
use super::failure::Failure;
use super::ground::log_path;
use super::leash::{At, Leash};
use super::open::{open_quietly, read_once};
use super::wal::{Committed, Index, log_length};

/// So many times it is left to the application's own pauses before they are made.
const SOFT_TRIES: u32 = 3;
/// Give back at most this much at once, so that it takes a moment only.
const TRIM_STEP: u64 = 4 << 20;
/// When the log is longer than this, because the disk does not keep up with the application, the lock is taken several times in a row,
/// with pauses: that slows the application down to what the disk can do, as its own checkpoints would.
const PULSE_AT: u64 = 3 * RESET_AT;
/// How many times.
const PULSES: u32 = 12;
/// How long whoever reads the log may take to catch up.
const SOFT_WAIT: Duration = Duration::from_millis(2);
/// After a reset that failed, the next attempt waits this long, doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(2));
/// The application counts as idle when nothing was committed for this long.
const IDLE: Duration = Duration::from_millis(500);
/// What was applied on a standby is on disk after this long.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Runs the checkpoints of one database, in a thread of its own: call [`Checkpointer::tend`] again and again.
#[derive(Debug)]
pub struct Checkpointer {
    path: PathBuf,
    page_size: u32,
    copier: Handle,
    /// By which the copier knows that the write lock is held for it.
    held: Arc<Lent>,
    guard: Handle,
    guarded: Option<u8>,
    log: File,
    leash: Arc<Leash>,
    seen: Option<At>,
    changed_at: Instant,
    retry_at: Instant,
    retry_after: Duration,
    prepared: Option<At>,
    soft_tries: u32,
    synced_at: Instant,
}

/// What [`Checkpointer::tend`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tended {
    /// How many frames were copied into the database.
    pub copied: u32,
    /// The longest span for which the application could not write because of it.
    pub held: Option<Duration>,
    /// How many such spans there were.
    pub holds: u32,
    /// Whether the next commit will begin the log anew.
    pub reset: bool,
    /// How many bytes of the log file were given back.
    pub trimmed: u64,
    /// Length of the log in use, in bytes.
    pub log_bytes: u64,
    /// Call again after this long.
    pub again_after: Duration,
}

impl Checkpointer {
    /// Prepares to run the checkpoints of `database`.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn open(database: &Database) -> Result<Self, Failure> {
        let path = database.path().to_owned();
        let failed = || Failure::sqlite("open", &path);
        let mut copier = open_quietly(&path).map_err(failed())?;
        read_once(copier.connection()).map_err(failed())?;
        let guard = open_quietly(&path).map_err(failed())?;
        read_once(guard.connection()).map_err(failed())?;
        let held = Arc::<Lent>::default();
        copier.borrow(Lock::Checkpoint, Arc::clone(&database.leash.lent));
        copier.borrow(Lock::Write, Arc::clone(&held));
        copier.empty_by_erasing().map_err(failed())?;
        let log_path = log_path(&path);
        let log = File::options()
            .read(true)
            .write(true)
            .open(&log_path)
            .map_err(Failure::io("open", &log_path))?;
        let now = clock::now();
        Ok(Self {
            page_size: database.page_size(),
            copier,
            held,
            guard,
            guarded: None,
            log,
            leash: Arc::clone(&database.leash),
            seen: None,
            changed_at: now,
            retry_at: now,
            retry_after: RETRY.0,
            prepared: None,
            soft_tries: 0,
            synced_at: now,
            path,
        })
    }

    /// Does what is due. Blocks for as long as the disk needs; the application never waits for it longer than is reported.
    ///
    /// # Errors
    /// SQLite or the system refuses; a full disk shows here first. Trying again is fine.
    pub fn tend(&mut self) -> Result<Tended, Failure> {
        let leash = Arc::clone(&self.leash);
        let turn = leash.turn();
        if !leash.lent.has(Lock::Checkpoint) {
            self.unguard();
            return Ok(rest(Duration::from_millis(100)));
        }
        let now = clock::now();
        self.sync_applied(now)?;
        let index = self.index()?;
        let Some(committed) = index.committed else {
            return Ok(rest(Duration::from_millis(1)));
        };
        self.release_guard(&index, &committed);
        if self.seen.is_none_or(|seen| seen.salts != committed.salts) {
            self.soft_tries = 0;
        }
        if self.seen != Some(at(&committed)) {
            self.seen = Some(at(&committed));
            self.changed_at = now;
        }
        let situation = self.situation(&index, &committed, now)?;
        let mut done = Tended {
            log_bytes: situation.log_bytes,
            ..rest(Duration::from_millis(5))
        };
        // Whoever reads the log has not noticed yet that it began anew: what it has not seen must not be copied.
        if leash
            .captured()
            .is_some_and(|captured| captured.salts != committed.salts)
            && committed.frame > 0
        {
            leash.kick.kick();
            done.again_after = Duration::from_millis(1);
            return Ok(done);
        }
        match situation.duty() {
            Duty::Rest => (),
            Duty::Pass => done.copied = self.pass_until_small()?,
            Duty::Reset => self.reset(&mut done)?,
            Duty::Trim => self.trim(&mut done)?,
        }
        drop(turn);
        if situation.is_idle && situation.duty() == Duty::Rest {
            done.again_after = Duration::from_millis(50);
        }
        Ok(done)
    }

    fn situation(
        &self,
        index: &Index,
        committed: &Committed,
        now: Instant,
    ) -> Result<Situation, Failure> {
        let file_bytes = self
            .log
            .metadata()
            .map_err(self.io("measure the log of"))?
            .len();
        let is_urgent = self.leash.is_reset_wanted();
        Ok(Situation {
            frames: committed.frame,
            left: committed.frame.saturating_sub(index.backfilled),
            log_bytes: log_length(committed.frame, self.page_size),
            file_bytes,
            is_idle: now >= self.changed_at + IDLE,
            may_reset: now >= self.retry_at && (is_urgent || self.prepared != Some(at(committed))),
            is_urgent,
        })
    }

    /// Copies what is committed, again while that leaves less and less.
    fn pass_until_small(&mut self) -> Result<u32, Failure> {
        let mut copied = 0;
        let mut left_before = u32::MAX;
        for _ in 0..5 {
            let Some((frames, done)) = self.pass()? else {
                break;
            };
            copied += frames;
            let index = self.index()?;
            let left = index
                .committed
                .map_or(0, |now| now.frame.saturating_sub(done.frame));
            if left < REMAINDER || left >= left_before {
                break;
            }
            left_before = left;
        }
        if let Some(committed) = self.index()?.committed {
            let index = self.index()?;
            self.release_guard(&index, &committed);
        }
        Ok(copied)
    }

    /// Copies what is committed. Returns how many frames, and how far the log is copied now; `None` if there was no way to.
    fn pass(&mut self) -> Result<Option<(u32, At)>, Failure> {
        if !self.take_guard()? {
            return Ok(None);
        }
        let before = self.index()?;
        if !copy(&self.copier).map_err(Failure::sqlite("checkpoint", &self.path))? {
            return Ok(None);
        }
        let after = self.index()?;
        let Some(committed) = after.committed else {
            return Ok(None);
        };
        let done = At {
            salts: committed.salts,
            frame: after.backfilled,
        };
        self.leash.set_backfilled(done);
        Ok(Some((
            after.backfilled.saturating_sub(before.backfilled),
            done,
        )))
    }

    /// Makes the log begin anew with the next commit.
    fn reset(&mut self, done: &mut Tended) -> Result<(), Failure> {
        done.again_after = Duration::from_millis(1);
        // When the disk does not keep up with the application, whatever is done without the lock only makes the log longer.
        if done.log_bytes <= PULSE_AT || self.leash.captured().is_none() {
            done.copied = self.pass_until_small()?;
            let can_wait = done.log_bytes <= PULSE_AT && !self.leash.is_reset_wanted();
            if can_wait && self.soft_tries < SOFT_TRIES {
                self.soft_tries += 1;
                return self.prepare_softly();
            }
            // The copies wrote to the database without syncing it; what that costs is better paid before the application waits for it.
            self.copier.sync().map_err(Failure::door(&self.path))?;
            done.copied += self.pass_until_small()?;
        }
        if !self.take_guard()? || !self.is_nearly_read()? {
            self.leash.kick.kick();
            return Ok(());
        }
        let held = self.hold(done)?;
        if held.emptied {
            // Until this is on disk too, a loss of power could bring the old frames back.
            self.log.sync_data().map_err(self.io("sync the log of"))?;
        }
        if held.reached {
            done.reset = true;
            self.retry_after = RETRY.0;
            return self.note_prepared();
        }
        if held.times == 0 {
            // Somebody writes for long. What is committed can be copied meanwhile.
            done.copied += self.pass_until_small()?;
        }
        // A reader may stay for long, and then trying again is of no use; a disk that is late will have caught up a little.
        self.retry_after = if held.blocked {
            (self.retry_after * 2).min(RETRY.1)
        } else {
            RETRY.0
        };
        self.retry_at = clock::now() + self.retry_after;
        Ok(())
    }

    /// If everything is copied just now, and read, the next commit begins the log anew by itself.
    fn prepare_softly(&mut self) -> Result<(), Failure> {
        let index = self.index()?;
        let Some(committed) = index.committed.filter(|now| now.frame == index.backfilled) else {
            return Ok(());
        };
        self.leash.kick.kick();
        if self
            .leash
            .wait_captured(at(&committed), clock::now() + SOFT_WAIT)
        {
            self.release_guard(&index, &committed);
            self.note_prepared()?;
        }
        Ok(())
    }

    /// With the next commit the log begins anew; until then there is nothing to do.
    fn note_prepared(&mut self) -> Result<(), Failure> {
        self.prepared = self.index()?.committed.map(|committed| at(&committed));
        if self.leash.captured().is_none() {
            self.leash.want_reset(false);
        }
        Ok(())
    }

    /// Copies the remainder while nobody can write, and notes what that took.
    fn hold(&mut self, done: &mut Tended) -> Result<Held, Failure> {
        let pulses = if done.log_bytes > PULSE_AT { PULSES } else { 1 };
        let mut hold = Hold {
            leash: &self.leash,
            guard: &self.guard,
            guarded: &mut self.guarded,
            path: &self.path,
            held: &self.held,
        };
        let held = hold.copy_remainder(&mut self.copier, pulses, self.leash.is_reset_wanted())?;
        done.held = held.longest;
        done.holds = held.times;
        self.note_late_copy()?;
        Ok(held)
    }

    /// A copy that outlasted the hold may have gone further than was known then.
    fn note_late_copy(&self) -> Result<(), Failure> {
        let index = self.index()?;
        let Some(committed) = index.committed else {
            return Ok(());
        };
        let is_known = |captured: At| captured.salts == committed.salts;
        if self.leash.captured().is_none_or(is_known) {
            self.leash.set_backfilled(At {
                salts: committed.salts,
                frame: index.backfilled,
            });
        }
        Ok(())
    }

    /// Whether whoever reads the log is so near its end that it can catch up within a moment.
    fn is_nearly_read(&self) -> Result<bool, Failure> {
        let committed = self.index()?.committed;
        Ok(match (self.leash.captured(), committed) {
            (Some(captured), Some(now)) => {
                captured.salts == now.salts
                    && now.frame.saturating_sub(captured.frame) <= REMAINDER * 4
            }
            _ => false,
        })
    }

    /// Gives back the end of the log file, as SQLite's own `journal_size_limit` does: under the write lock, beyond the last frame.
    fn trim(&mut self, done: &mut Tended) -> Result<(), Failure> {
        let Some(stopped) = Stopped::writers(&self.leash, &self.guard, &self.path)? else {
            return Ok(());
        };
        done.holds = 1;
        let began = clock::now();
        let Some(committed) = self.index()?.committed else {
            return Ok(());
        };
        let length = self
            .log
            .metadata()
            .map_err(self.io("measure the log of"))?
            .len();
        let keep = log_length(committed.frame, self.page_size).max(TRIM_AT / 4);
        let target = length.saturating_sub(TRIM_STEP).max(keep);
        if target < length {
            self.log
                .set_len(target)
                .map_err(self.io("shorten the log of"))?;
            done.trimmed = length - target;
        }
        drop(stopped);
        done.held = Some(clock::now() - began);
        done.again_after = Duration::from_millis(10);
        Ok(())
    }

    /// On a standby: makes what was applied survive a loss of power now and then.
    fn sync_applied(&mut self, now: Instant) -> Result<(), Failure> {
        let (applied, synced) = self.leash.applied();
        if applied != synced && now >= self.synced_at + SYNC_EVERY {
            self.synced_at = now;
            self.log.sync_data().map_err(self.io("sync the log of"))?;
            self.leash.set_synced(applied);
        }
        Ok(())
    }

    /// Keeps the log from beginning anew before what is copied now has been read. False if there is no way to, or if it has begun anew
    /// already and whoever reads it does not know yet: then nothing of it must be copied.
    fn take_guard(&mut self) -> Result<bool, Failure> {
        if self.leash.captured().is_none() {
            return Ok(true);
        }
        if self.guarded.is_none() {
            self.guarded = take_guard(&self.guard).map_err(Failure::door(&self.path))?;
        }
        if self.guarded.is_none() {
            return Ok(false);
        }
        let now = self.index()?.committed;
        let is_known = match (self.leash.captured(), now) {
            (Some(captured), Some(now)) => captured.salts == now.salts,
            (None, _) => true,
            (Some(_), None) => false,
        };
        if !is_known {
            self.unguard();
            self.leash.kick.kick();
        }
        Ok(is_known)
    }

    /// Everything that is copied has been read, so the log may begin anew.
    fn release_guard(&mut self, index: &Index, committed: &Committed) {
        let is_read = match self.leash.captured() {
            None => true,
            Some(captured) => {
                captured.salts == committed.salts && captured.frame >= index.backfilled
            }
        };
        if is_read {
            self.unguard();
        }
    }

    fn unguard(&mut self) {
        if let Some(slot) = self.guarded.take() {
            self.guard.give_back(Lock::Reader(slot));
        }
    }

    fn index(&self) -> Result<Index, Failure> {
        read_index(&self.guard).map_err(Failure::door(&self.path))
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(std::io::Error) -> Failure {
        Failure::io(doing, &self.path)
    }
}

fn rest(again_after: Duration) -> Tended {
    Tended {
        again_after,
        ..Tended::default()
    }
}
