//! What SQLite or the system may answer to anything, with what was being done and to which file.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use thiserror::Error;

use super::door::DoorError;

/// SQLite or the system refused.
#[derive(Debug, Error)]
pub enum Failure {
    /// SQLite refused a statement.
    #[error("{doing} of {}: {source}", path.display())]
    Sqlite {
        /// What was being done, as a verb with its object.
        doing: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// SQLite's file methods refused.
    #[error("{}: {source}", path.display())]
    Door {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: DoorError,
    },
    /// The system refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb with its object.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Failure {
    pub(super) fn sqlite(doing: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Sqlite {
            doing,
            path: path.into(),
            source,
        }
    }

    pub(super) fn door(path: &Path) -> impl FnOnce(DoorError) -> Self {
        move |source| Self::Door {
            path: path.into(),
            source,
        }
    }

    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            doing,
            path: path.into(),
            source,
        }
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => code(source) == Some(ErrorCode::DiskFull),
            Self::Door { .. } => false,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
        }
    }

    /// Whether the same may succeed a moment later, because somebody else has a lock.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Sqlite { source, .. } if is_busy(source))
    }
}

/// Whether somebody else has a lock that was needed.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        code(error),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

/// SQLite's primary result code.
pub(super) fn code(error: &rusqlite::Error) -> Option<ErrorCode> {
    error.sqlite_error_code()
}
