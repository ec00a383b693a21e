//! Copying the last remainder of the log while nobody can write, in spans that are short whatever the disk does.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rusqlite::wal::CheckpointMode;
use shared::clock;

use crate::sqlite::database::{at, read_index};
use crate::sqlite::door::{Handle, Lent, Lock};
use crate::sqlite::failure::{Failure, is_busy};
use crate::sqlite::leash::{At, Leash, Writing};
use crate::sqlite::wal::Index;

/// The application's write lock is never held longer than this.
const HOLD_AT_MOST: Duration = Duration::from_millis(7);
/// Where only we write, and readers go on, there is more time.
const HOLD_FENCED_AT_MOST: Duration = Duration::from_millis(40);
/// Between two spans the application has at least this long: enough for a writer that waits to try again.
const PAUSE: Duration = Duration::from_millis(4);
/// How long to try for the application's write lock. Trying costs it nothing.
const TRY_LOCK_FOR: Duration = Duration::from_millis(30);

/// What holding came to.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Whether the next commit will begin the log anew.
    pub(super) reached: bool,
    /// Whether the log has begun anew already.
    pub(super) emptied: bool,
    /// Whether it was a reader that was in the way, and not the disk.
    pub(super) blocked: bool,
    /// The longest span.
    pub(super) longest: Option<Duration>,
    /// How many spans.
    pub(super) times: u32,
}

/// What is needed to copy the remainder.
#[derive(Debug)]
pub(super) struct Hold<'a> {
    pub(super) leash: &'a Arc<Leash>,
    pub(super) guard: &'a Handle,
    pub(super) guarded: &'a mut Option<u8>,
    pub(super) path: &'a Path,
    /// By which the copier knows that the write lock is held for it.
    pub(super) held: &'a Lent,
}

/// What the thread beside does.
#[derive(Clone, Copy, Debug)]
enum Errand {
    /// Copies what can be copied.
    Copy,
    /// Empties the log. Everything is copied, and nobody reads or writes.
    Empty,
}

impl Hold<'_> {
    /// Copies the remainder in at most `spans` spans. A span that is not enough loses nothing but itself. If `and_empty`, the log does not
    /// wait for the next commit to begin anew.
    pub(super) fn copy_remainder(
        &mut self,
        copier: &mut Handle,
        spans: u32,
        and_empty: bool,
    ) -> Result<Held, Failure> {
        let (ask, asked) = sync_channel::<Errand>(1);
        let (report, reported) = sync_channel(1);
        std::thread::scope(|scope| {
            // A sync of the disk cannot be broken off, but the lock can be given back while it lasts: so it runs beside.
            scope.spawn(move || {
                while let Ok(errand) = asked.recv() {
                    if report.send(run(copier, errand)).is_err() {
                        break;
                    }
                }
            });
            let mut copying = Copying {
                ask,
                reported,
                is_under_way: false,
            };
            let mut held = Held::default();
            for span in 0..spans {
                if span > 0 {
                    clock::pause_thread(PAUSE);
                }
                let held_once = self.hold_once(&mut copying, and_empty, &mut held)?;
                if !held_once || held.reached || held.blocked {
                    break;
                }
            }
            Ok(held)
        })
    }

    /// One span; false if the lock was not to be had.
    fn hold_once(
        &mut self,
        copying: &mut Copying,
        and_empty: bool,
        held: &mut Held,
    ) -> Result<bool, Failure> {
        let Some(stopped) = Stopped::writers(self.leash, self.guard, self.path)? else {
            return Ok(false);
        };
        let began = clock::now();
        let deadline = began
            + match stopped {
                Stopped::Lock(_) => HOLD_AT_MOST,
                Stopped::Fence(_) => HOLD_FENCED_AT_MOST,
            };
        let reached = match self.finish_copying(copying, deadline) {
            Ok(true) => {
                let free = self.wait_for_readers(deadline);
                held.blocked = matches!(free, Ok(false));
                free
            }
            other => other,
        };
        if and_empty && matches!((&stopped, &reached), (Stopped::Lock(_), Ok(true))) {
            self.held.add(Lock::Write);
            held.emptied = copying.empty();
            if held.emptied {
                // Before anybody can commit such frames again.
                self.leash.want_reset(false);
            }
            self.held.remove(Lock::Write);
        }
        drop(stopped);
        held.times += 1;
        held.longest = held.longest.max(Some(clock::now() - began));
        held.reached = reached?;
        Ok(true)
    }

    /// Nobody writes. Copies everything, and waits until it has been read by whoever captures it.
    fn finish_copying(
        &mut self,
        copying: &mut Copying,
        deadline: Instant,
    ) -> Result<bool, Failure> {
        let Some(committed) = self.index()?.committed else {
            return Ok(false);
        };
        let all = at(&committed);
        self.leash.kick.kick();
        let copied = copying.copy_up_to(all, deadline);
        if !copied.map_err(Failure::sqlite("checkpoint", self.path))? {
            return Ok(false);
        }
        self.leash.set_backfilled(all);
        if !self.leash.wait_captured(all, deadline) {
            return Ok(false);
        }
        if let Some(slot) = self.guarded.take() {
            self.guard.give_back(Lock::Reader(slot));
        }
        Ok(true)
    }

    /// Readers that begin now read the database file alone, so it is enough to wait for those that are there.
    fn wait_for_readers(&self, deadline: Instant) -> Result<bool, Failure> {
        loop {
            if self
                .guard
                .take(Lock::Readers)
                .map_err(Failure::door(self.path))?
            {
                self.guard.give_back(Lock::Readers);
                return Ok(true);
            }
            if clock::now() >= deadline {
                return Ok(false);
            }
            clock::pause_thread(Duration::from_micros(50));
        }
    }

    fn index(&self) -> Result<Index, Failure> {
        read_index(self.guard).map_err(Failure::door(self.path))
    }
}

/// Copying that goes on beside.
#[derive(Debug)]
struct Copying {
    ask: SyncSender<Errand>,
    reported: Receiver<rusqlite::Result<Option<At>>>,
    is_under_way: bool,
}

impl Copying {
    /// Copies until everything up to `all` is in the database; false if that is not so at `deadline`.
    fn copy_up_to(&mut self, all: At, deadline: Instant) -> rusqlite::Result<bool> {
        loop {
            if !self.is_under_way {
                self.is_under_way = self.ask.try_send(Errand::Copy).is_ok();
            }
            let left = deadline.saturating_duration_since(clock::now());
            match self.reported.recv_timeout(left) {
                Err(_) => return Ok(false),
                Ok(done) => {
                    self.is_under_way = false;
                    if done? == Some(all) {
                        return Ok(true);
                    }
                }
            }
            // Somebody who began to read just then may have been in the way, or it was what an earlier span had asked for.
            if left <= Duration::from_micros(50) {
                return Ok(false);
            }
            clock::pause_thread(Duration::from_micros(50));
        }
    }
}

impl Copying {
    /// Empties the log; false if that did not happen after all.
    fn empty(&mut self) -> bool {
        self.ask.send(Errand::Empty).is_ok()
            && matches!(self.reported.recv(), Ok(Ok(Some(At { frame: 0, .. }))))
    }
}

/// Does an errand, and says how far everything is copied then.
fn run(copier: &Handle, errand: Errand) -> rusqlite::Result<Option<At>> {
    match errand {
        Errand::Copy => copy(copier)?,
        Errand::Empty => checkpoint(copier, CheckpointMode::TRUNCATE)?,
    };
    let index = read_index(copier).ok();
    Ok(index.and_then(|index| {
        index.committed.map(|committed| At {
            salts: committed.salts,
            frame: index.backfilled,
        })
    }))
}

/// Copies what can be copied; false when something was in the way.
pub(super) fn copy(copier: &Handle) -> rusqlite::Result<bool> {
    checkpoint(copier, CheckpointMode::PASSIVE)
}

fn checkpoint(copier: &Handle, mode: CheckpointMode) -> rusqlite::Result<bool> {
    match copier.connection().wal_checkpoint_v2(Some("main"), mode) {
        Ok(_) => Ok(true),
        Err(error) if is_busy(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// While it lives, nobody writes to the database.
pub(super) enum Stopped<'a> {
    /// The application's write lock is ours.
    Lock(&'a Handle),
    /// The application is fenced, and so only we could write.
    Fence(#[expect(dead_code, reason = "held for its drop")] Writing),
}

impl<'a> Stopped<'a> {
    /// Stops the writers, if that succeeds within [`TRY_LOCK_FOR`].
    pub(super) fn writers(
        leash: &Arc<Leash>,
        guard: &'a Handle,
        path: &Path,
    ) -> Result<Option<Self>, Failure> {
        let until = clock::now() + TRY_LOCK_FOR;
        loop {
            if leash.lent.has(Lock::Write) {
                return Ok(leash.writing_before(until).map(Self::Fence));
            }
            if guard.take(Lock::Write).map_err(Failure::door(path))? {
                return Ok(Some(Self::Lock(guard)));
            }
            if clock::now() >= until {
                return Ok(None);
            }
            clock::pause_thread(Duration::from_micros(100));
        }
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        match self {
            Self::Lock(guard) => guard.give_back(Lock::Write),
            Self::Fence(_) => (),
        }
    }
}
