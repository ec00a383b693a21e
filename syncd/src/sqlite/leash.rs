//! What the threads that work on one database agree on: which locks the process holds, how far the log has been read, whose turn it is.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shared::model::Position;

use super::door::Lent;
use super::wake::Kick;
use super::wal::Salts;

/// A frame of one generation of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    /// The generation.
    pub(super) salts: Salts,
    /// The frame; 0 is before the first.
    pub(super) frame: u32,
}

/// Shared by the owner of a database and its checkpointer.
#[derive(Debug)]
pub(super) struct Leash {
    /// The locks that the pin connection holds for the others.
    pub(super) lent: Arc<Lent>,
    /// Wakes whoever waits for commits.
    pub(super) kick: Kick,
    turn: Mutex<()>,
    writing: Mutex<Turns>,
    freed: Condvar,
    view: Mutex<View>,
    advanced: Condvar,
}

/// Who may write to a fenced database.
#[derive(Debug, Default)]
struct Turns {
    is_taken: bool,
    is_wanted: bool,
}

#[derive(Debug, Default)]
struct View {
    captured: Option<At>,
    /// Somebody waits for more to be captured. Waking nobody is a system call, too.
    is_awaited: bool,
    backfilled: Option<At>,
    reset_wanted: bool,
    applied: Option<Position>,
    synced: Option<Position>,
}

impl Leash {
    pub(super) fn new(kick: Kick) -> Self {
        Self {
            lent: Arc::default(),
            kick,
            turn: Mutex::default(),
            writing: Mutex::default(),
            freed: Condvar::new(),
            view: Mutex::default(),
            advanced: Condvar::new(),
        }
    }

    /// Held during a checkpoint, and by whoever must not be disturbed by one: reading the database file, or giving the checkpoint lock away.
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn(self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// For whoever applies: waits until nobody else of this process keeps others from writing, or wants to.
    pub(super) fn writing(self: &Arc<Self>) -> Writing {
        let mut turns = self.turns();
        while turns.is_taken || turns.is_wanted {
            turns = self
                .freed
                .wait(turns)
                .unwrap_or_else(PoisonError::into_inner);
        }
        turns.is_taken = true;
        Writing(Arc::clone(self))
    }

    /// For the checkpointer: goes before whoever applies next, if the turn comes before `deadline`.
    pub(super) fn writing_before(self: &Arc<Self>, deadline: Instant) -> Option<Writing> {
        let mut turns = self.turns();
        turns.is_wanted = true;
        while turns.is_taken {
            let left = deadline.saturating_duration_since(shared::clock::now());
            if left == Duration::ZERO {
                break;
            }
            let waited = self.freed.wait_timeout(turns, left);
            turns = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        turns.is_wanted = false;
        let is_free = !turns.is_taken;
        turns.is_taken = true;
        if is_free {
            return Some(Writing(Arc::clone(self)));
        }
        self.freed.notify_all();
        None
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything up to here has been read from the log and handed on; `None` while nobody reads it.
    pub(super) fn captured(&self) -> Option<At> {
        self.view().captured
    }

    /// Notes how far the log has been read.
    pub(super) fn set_captured(&self, at: Option<At>) {
        let mut view = self.view();
        if view.captured != at {
            view.captured = at;
            if std::mem::take(&mut view.is_awaited) {
                self.advanced.notify_all();
            }
        }
    }

    /// Waits until everything up to `at` has been read; false when that did not happen before `deadline`.
    pub(super) fn wait_captured(&self, at: At, deadline: Instant) -> bool {
        let mut view = self.view();
        loop {
            match view.captured {
                Some(captured) if captured.salts == at.salts && captured.frame >= at.frame => {
                    return true;
                }
                None => return true,
                Some(_) => (),
            }
            let left = deadline.saturating_duration_since(shared::clock::now());
            if left == Duration::ZERO {
                return false;
            }
            view.is_awaited = true;
            view = self
                .advanced
                .wait_timeout(view, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// How far the log has been copied into the database, as far as this process saw. Nobody else copies.
    pub(super) fn backfilled(&self) -> Option<At> {
        self.view().backfilled
    }

    /// Notes how far the log has been copied into the database.
    pub(super) fn set_backfilled(&self, at: At) {
        self.view().backfilled = Some(at);
    }

    /// Whether the log should begin anew as soon as can be: it holds frames that recovery after a crash would not see.
    pub(super) fn is_reset_wanted(&self) -> bool {
        self.view().reset_wanted
    }

    /// Asks for the log to begin anew, or notes that it did.
    pub(super) fn want_reset(&self, wanted: bool) {
        self.view().reset_wanted = wanted;
    }

    /// What our own writes have reached, and up to where that would survive a loss of power.
    pub(super) fn applied(&self) -> (Option<Position>, Option<Position>) {
        let view = self.view();
        (view.applied, view.synced)
    }

    /// Notes that the database holds `position`.
    pub(super) fn set_applied(&self, position: Option<Position>) {
        self.view().applied = position;
    }

    /// Notes that the database would still hold `position` after a loss of power.
    pub(super) fn set_synced(&self, position: Option<Position>) {
        self.view().synced = position;
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, nobody of this process runs a checkpoint but its holder.
#[derive(Debug)]
#[must_use]
pub(super) struct Turn<'a>(#[expect(dead_code, reason = "held for its drop")] MutexGuard<'a, ()>);

/// While it lives, nobody else of this process writes to a fenced database.
#[derive(Debug)]
#[must_use]
pub(super) struct Writing(Arc<Leash>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.turns().is_taken = false;
        self.0.freed.notify_all();
    }
}
