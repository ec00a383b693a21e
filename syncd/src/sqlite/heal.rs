//! A writer that was killed while it replaced the header of the wal-index leaves it torn, and nobody can repair it while syncd holds the
//! checkpoint lock: recovery needs that lock too, and the application would wait until its timeout. So whoever finds it torn steps aside.

use std::sync::Arc;
use std::time::Duration;

use super::database::Database;
use super::door::Lock;
use super::failure::{Failure, is_busy};
use super::leash::Turn;
use super::open::{open_quietly, read_once};

/// How long to wait for the checkpoint lock after stepping aside.
const TAKE_BACK_WITHIN: Duration = Duration::from_secs(2);

/// What came of looking after a header that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Healing {
    /// Somebody is writing it at this moment.
    InUse,
    /// It can be read again.
    Healed,
    /// The application took the checkpoint lock meanwhile and keeps it.
    LockLost,
}

impl Database {
    /// Repairs the header of the wal-index if nobody is writing it. No checkpoint of ours is under way.
    pub(super) fn heal(&mut self, _turn: &Turn<'_>) -> Result<Healing, Failure> {
        let fenced = self.is_fenced();
        if !fenced
            && !self
                .pin
                .take(Lock::Write)
                .map_err(Failure::door(self.path()))?
        {
            return Ok(Healing::InUse);
        }
        let readable = self.index().map(|index| index.committed.is_some());
        if !fenced {
            self.pin.give_back(Lock::Write);
        }
        if readable? {
            return Ok(Healing::Healed);
        }
        self.step_aside(fenced)
    }

    fn step_aside(&mut self, fenced: bool) -> Result<Healing, Failure> {
        // Recovery leaves a busy read slot alone, and while it is busy nobody can begin the log anew behind our back.
        let guard = (2..=4).find(|slot| matches!(self.pin.take(Lock::Reader(*slot)), Ok(true)));
        let held = self.leash.lent.has(Lock::Checkpoint);
        if held {
            self.leash.lent.remove(Lock::Checkpoint);
            self.pin.give_back(Lock::Checkpoint);
        }
        let recovered = self.recover(fenced);
        let kept = if held {
            self.hold_checkpoints(TAKE_BACK_WITHIN)
        } else {
            Ok(true)
        };
        if let Some(slot) = guard {
            self.pin.give_back(Lock::Reader(slot));
        }
        let recovered = recovered?;
        match (kept?, recovered) {
            (false, _) => Ok(Healing::LockLost),
            (true, true) => Ok(Healing::Healed),
            (true, false) => Ok(Healing::InUse),
        }
    }

    /// Reads with a fresh connection, which recovers the wal-index on the way. False while somebody else is at it.
    fn recover(&self, fenced: bool) -> Result<bool, Failure> {
        let attempt = open_quietly(self.path()).and_then(|mut helper| {
            if fenced {
                helper.borrow(Lock::Write, Arc::clone(&self.leash.lent));
            }
            helper
                .connection()
                .busy_timeout(Duration::from_millis(200))?;
            read_once(helper.connection())
        });
        match attempt {
            Ok(()) => Ok(true),
            Err(error) if is_busy(&error) => Ok(false),
            Err(error) => Err(Failure::sqlite("recover the log", self.path())(error)),
        }
    }
}
