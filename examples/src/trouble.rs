//! Why a rehearsal could not be carried out. What it *found* is in its report, never here.

use std::io;
use std::path::PathBuf;

use shared::call::CallError;
use thiserror::Error;

/// Why a rehearsal could not be carried out.
#[derive(Debug, Error)]
pub enum Trouble {
    /// Something that is needed is not on this machine.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What.
        what: String,
        /// The command that brings it.
        remedy: &'static str,
    },
    /// The system refused something.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something did not come about in time.
    #[error("{what} did not come about within {seconds} s; last seen: {seen}")]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: f64,
        /// How things stood then, and the end of the logs.
        seen: String,
    },
    /// One of the programs did not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A database could not be read.
    #[error("read {path}: {source}")]
    Database {
        /// Which.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A program answered something that cannot be.
    #[error("{0}")]
    Nonsense(String),
}

impl Trouble {
    /// For `map_err` on whatever the system does.
    pub fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::System { doing, source }
    }

    /// For `map_err` on reading a database.
    pub fn database(path: impl Into<PathBuf>) -> impl FnOnce(rusqlite::Error) -> Self {
        let path = path.into();
        move |source| Self::Database { path, source }
    }
}
