//! What can go wrong in capturing, and what it means.

use thiserror::Error;

use crate::sqlite::failure::Failure;

/// Why nobody can say any more what was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Lost {
    /// The log began anew while nobody read it, and the content is another.
    #[error("the log began anew while nobody was reading it")]
    Generation,
    /// The log began anew before everything in it was read.
    #[error(
        "the log began anew at frame {frame}, of which only {read} had been read; somebody else checkpoints this database"
    )]
    Unread {
        /// Where the log ended.
        frame: u32,
        /// What had been read.
        read: u32,
    },
    /// The log is shorter than it was.
    #[error(
        "the log ends at frame {frame}, but {read} had been read; transactions were lost in a crash or the file was replaced"
    )]
    Shorter {
        /// Where it ends now.
        frame: u32,
        /// What had been read.
        read: u32,
    },
    /// A frame is not what it was or should be.
    #[error("frame {frame} of the log has {what}")]
    Frame {
        /// Which.
        frame: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The file holds less than the wal-index says.
    #[error("the log file ends within frame {frame}")]
    Truncated {
        /// Which frame could not be read.
        frame: u32,
    },
    /// The frames fit, the content does not.
    #[error("the content differs from what was captured last")]
    Content,
    /// The page size is another.
    #[error("the page size changed")]
    PageSize,
    /// Another process has taken the checkpoint lock and keeps it.
    #[error("another process holds the checkpoint lock")]
    CheckpointLock,
}

/// Why a commit could not be captured.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// Continuity is lost; attach anew, and begin a new gen.
    #[error("lost the continuity of the capture: {0}")]
    Lost(#[from] Lost),
    /// Another file stands at the path, or none; open it anew.
    #[error("the database file was replaced or removed")]
    Replaced,
    /// Another process checkpoints. Try again a little later; if it lasts, another replicator is at work.
    #[error(
        "another process holds the checkpoint lock of the database; if this lasts, another replicator is at work on it"
    )]
    CheckpointLock,
    /// The header of the wal-index is being written. Try again a little later.
    #[error("the index of the log cannot be read at the moment")]
    Unreadable,
    /// SQLite or the system refused.
    #[error(transparent)]
    Failure(#[from] Failure),
}
