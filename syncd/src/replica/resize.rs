//! A standby's database with another page size than its primary's: a node that was created on its own, or an application that rebuilt
//! its database. SQLite can change that only while nobody else has the file open, so it takes a moment without the application.
//!
//! A copy is kept first. Then the database becomes one without content and with the right pages, and the resync that is about to
//! begin fills it.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use shared::clock;

use super::follow::failed;
use super::keeper::{Doing, Keeper};
use super::patience::Patience;
use super::{ReplicaError, Resync, Work};
use crate::diverged::Keepsake;
use crate::sqlite::{Apply, Database, Options, Rebuilt, is_unused, rebuild};

/// When it may be tried again: each attempt lets the database go for a moment and reads all of it afterwards.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attempts {
    patience: Patience,
    again_at: Option<Instant>,
}

impl Keeper {
    /// Gives the database pages of the primary's size, and keeps what it had.
    pub(super) fn resize(&mut self, order: &Resync) -> Result<Keepsake, ReplicaError> {
        let (theirs, ours) = (order.base.page_size, self.page_size());
        let in_use = || {
            ReplicaError::Failed(format!(
                "the primary's pages have {theirs} bytes, those of {} have {ours}, which can only be changed while nobody has it open: \
                 stop the application of this node until this message is gone; syncd keeps a copy of the database and does the rest",
                self.options.path.display()
            ))
        };
        let now = clock::now();
        if self.resizes.again_at.is_some_and(|at| now < at) {
            return Err(in_use());
        }
        let in_use = in_use();
        self.resizes.again_at = Some(self.resizes.patience.handle_failure(now));
        let position = self.apply().and_then(Apply::position);
        self.let_go("its page size is to be changed");
        if !is_unused(&self.options.path).map_err(failed)? {
            return Err(in_use);
        }
        let kept = self.preserve(order, position)?;
        let blank = self.make_blank(theirs)?;
        let rebuilt = rebuild(&self.options, &blank.path);
        blank.remove();
        match rebuilt.map_err(failed)? {
            Rebuilt::InUse => Err(in_use),
            // Whatever an application may have written in between is overwritten, as anything is that it writes on a standby.
            Rebuilt::Done(database, apply) | Rebuilt::Disturbed(database, apply) => {
                tracing::info!(
                    source = self.shared.name,
                    from = ours,
                    to = theirs,
                    "changed the page size of the database"
                );
                self.hold(*database).map_err(ReplicaError::Failed)?;
                if let Some(open) = &mut self.open {
                    open.work = Doing::Apply(Box::new(apply));
                }
                self.resizes = Attempts::default();
                self.board.work = Work::Apply;
                self.board.is_fenced = true;
                Ok(kept)
            }
        }
    }

    fn page_size(&self) -> u32 {
        self.open
            .as_ref()
            .map_or(0, |open| open.database.page_size())
    }

    /// A database without content.
    fn make_blank(&self, page_size: u32) -> Result<Blank, ReplicaError> {
        let folder = self.shared.store.source(&self.shared.name);
        let blank = Blank {
            path: folder.join("blank.db"),
            lock_path: folder.join("blank.lock"),
        };
        blank.remove();
        let options = Options {
            path: blank.path.clone(),
            lock_path: blank.lock_path.clone(),
            journal: self.options.journal,
        };
        Database::create(&options, page_size)
            .map(|_| blank)
            .map_err(failed)
    }
}

/// Where the database without content is.
struct Blank {
    path: PathBuf,
    lock_path: PathBuf,
}

impl Blank {
    /// Nobody has it open. What is left is removed the next time.
    fn remove(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            let _ = fs::remove_file(path);
        }
        let _ = fs::remove_file(&self.lock_path);
    }
}
