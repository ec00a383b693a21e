//! Opening a database that an application is using: what is waited for, what is refused, and putting it into write-ahead mode.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use thiserror::Error;

use super::database::{Database, Held};
use super::door::Handle;
use super::failure::{Failure, code, is_busy};
use super::ground::{Claim, log_path, remote_file_system};
use super::wake::Kick;
use crate::wire::checksum::is_page_size;

/// Which database, and how to treat it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database file.
    pub path: PathBuf,
    /// A file of syncd's own, beside its state, that only one process may lock at a time.
    pub lock_path: PathBuf,
    /// What to do about a database in rollback-journal mode.
    pub journal: Journal,
}

/// What to do about a database in rollback-journal mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Journal {
    /// Convert it to write-ahead logging, which is persistent.
    #[default]
    Convert,
    /// Refuse it.
    RequireWal,
}

/// What came of opening a database.
#[derive(Debug)]
pub enum Opened {
    /// It is there, in write-ahead mode, and held open.
    Ready(Box<Database>),
    /// Nothing is wrong; try again a little later.
    NotYet(NotYet),
}

/// Why a database cannot be opened yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotYet {
    /// There is no file.
    #[error("the database does not exist yet")]
    Absent,
    /// The file has no content.
    #[error("the database is still empty")]
    Empty,
    /// Somebody else has it locked.
    #[error(
        "the database is locked by another process; if this lasts, the application uses `locking_mode = EXCLUSIVE` or the `unix-excl` \
         VFS, which cannot be replicated: switch that off"
    )]
    Locked,
    /// It is in rollback-journal mode and in use just now.
    #[error(
        "the database is in use and could not be converted to write-ahead logging yet; that needs a moment without a transaction"
    )]
    Converting,
}

/// Why a database cannot be worked with.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The SQLite in this program is too old or built without what is needed.
    #[error("the SQLite in this program cannot be used: {0}")]
    Library(String),
    /// The file is something else.
    #[error("{} is not a SQLite database, or it is encrypted", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// It lies where locks and shared memory do not reach everybody.
    #[error("{} is on {kind}, where SQLite's locks and shared memory cannot be trusted; put it on a local file system", path.display())]
    NetworkFileSystem {
        /// The file.
        path: PathBuf,
        /// Which file system.
        kind: &'static str,
    },
    /// Another process has the lock file.
    #[error("{} is replicated by another syncd already: it holds {}", path.display(), lock_path.display())]
    OtherSyncd {
        /// The database.
        path: PathBuf,
        /// The lock file.
        lock_path: PathBuf,
    },
    /// Somebody else replicates it.
    #[error(
        "{} is replicated by another program, which left the table {table}; two replicators corrupt each other: stop it and drop its tables",
        path.display()
    )]
    OtherReplicator {
        /// The database.
        path: PathBuf,
        /// The table that gives it away.
        table: String,
    },
    /// It is not in write-ahead mode and must not be converted.
    #[error(
        "{} is in journal mode {mode}, and `journal = \"require-wal\"` forbids to convert it; run `PRAGMA journal_mode = WAL` on it, or \
         set `journal = \"convert\"`",
        path.display()
    )]
    RollbackJournal {
        /// The database.
        path: PathBuf,
        /// Its mode.
        mode: String,
    },
    /// It stayed in rollback mode.
    #[error("{} cannot be put into write-ahead mode (it stayed in {mode}): its file system has no shared memory", path.display())]
    NoSharedMemory {
        /// The database.
        path: PathBuf,
        /// Its mode.
        mode: String,
    },
    /// This process may not write it.
    #[error("{} cannot be written by this user, which syncd needs for its locks even on a primary; give it the application's group", path.display())]
    ReadOnly {
        /// The database.
        path: PathBuf,
    },
    /// Something else failed.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl Database {
    /// Opens the database, converting it to write-ahead mode if need be and allowed. Never waits for the application.
    ///
    /// # Errors
    /// It cannot be worked with; the message says what to do.
    pub fn open(options: &Options) -> Result<Opened, OpenError> {
        super::check_library()?;
        let Some(found) = look(&options.path)? else {
            return Ok(Opened::NotYet(NotYet::Absent));
        };
        if found.length == 0 {
            return Ok(Opened::NotYet(NotYet::Empty));
        }
        let claim = Claim::take(&options.lock_path)
            .map_err(Failure::io("lock", &options.lock_path))?
            .ok_or_else(|| OpenError::OtherSyncd {
                path: options.path.clone(),
                lock_path: options.lock_path.clone(),
            })?;
        match open_pin(&found.path, options.journal)? {
            Pinned::Not(reason) => Ok(Opened::NotYet(reason)),
            Pinned::Yes { pin, converted } => Self::hold(options, &found, pin, converted, claim)
                .map(|database| match database {
                    Some(database) => Opened::Ready(Box::new(database)),
                    None => Opened::NotYet(NotYet::Absent),
                }),
        }
    }

    fn hold(
        options: &Options,
        found: &Found,
        pin: Handle,
        converted: bool,
        claim: Claim,
    ) -> Result<Option<Self>, OpenError> {
        let path = &found.path;
        if pin.connection().is_readonly("main").unwrap_or(true) {
            return Err(OpenError::ReadOnly { path: path.clone() });
        }
        if let Some(table) =
            other_replicator(pin.connection()).map_err(Failure::sqlite("read the schema", path))?
        {
            return Err(OpenError::OtherReplicator {
                path: path.clone(),
                table,
            });
        }
        let page_size: u32 = pin
            .connection()
            .pragma_query_value(None, "page_size", |row| row.get(0))
            .map_err(Failure::sqlite("read the page size", path))?;
        if !is_page_size(page_size) {
            return Err(OpenError::NotADatabase { path: path.clone() });
        }
        // Between looking at the file and opening it another may have been put in its place.
        match look(&options.path)? {
            Some(now) if now.identity == found.identity => (),
            _ => return Ok(None),
        }
        let log_path = log_path(path);
        let log = File::open(&log_path).map_err(Failure::io("open", &log_path))?;
        let kick = Kick::new().map_err(Failure::io("make an event for", path))?;
        Ok(Some(Self::of(Held {
            options: options.clone(),
            path: path.clone(),
            log,
            identity: found.identity,
            page_size,
            converted,
            pin,
            kick,
            claim,
        })))
    }
}

/// Opens a connection of ours: it never waits, never checkpoints on its own, and reads schemas that this build cannot parse.
pub(super) fn open_quietly(path: &Path) -> rusqlite::Result<Handle> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let handle = Handle::open(path, flags)?;
    let connection = handle.connection();
    connection.busy_timeout(Duration::ZERO)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(handle)
}

/// Reads something, so that the connection has the log and its index open and holds its shared lock for good.
pub(super) fn read_once(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
        row.get::<_, i64>(0)
    })?;
    Ok(())
}

enum Pinned {
    Yes { pin: Handle, converted: bool },
    Not(NotYet),
}

fn open_pin(path: &Path, journal: Journal) -> Result<Pinned, OpenError> {
    let attempt = open_quietly(path).and_then(|pin| {
        let mode: String = pin
            .connection()
            .pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        Ok((pin, mode))
    });
    let (pin, mode) = match attempt {
        Ok(opened) => opened,
        Err(error) => return refused(path, error, NotYet::Locked),
    };
    let mut converted = false;
    if mode != "wal" {
        if journal == Journal::RequireWal {
            return Err(OpenError::RollbackJournal {
                path: path.into(),
                mode,
            });
        }
        let set = pin
            .connection()
            .query_row("PRAGMA journal_mode = WAL", [], |row| {
                row.get::<_, String>(0)
            });
        match set {
            Ok(now) if now == "wal" => converted = true,
            Ok(mode) => {
                return Err(OpenError::NoSharedMemory {
                    path: path.into(),
                    mode,
                });
            }
            Err(error) => return refused(path, error, NotYet::Converting),
        }
    }
    match read_once(pin.connection()) {
        Ok(()) => Ok(Pinned::Yes { pin, converted }),
        Err(error) => refused(path, error, NotYet::Locked),
    }
}

fn refused(path: &Path, error: rusqlite::Error, while_busy: NotYet) -> Result<Pinned, OpenError> {
    if is_busy(&error) {
        return Ok(Pinned::Not(while_busy));
    }
    Err(match code(&error) {
        Some(ErrorCode::NotADatabase) => OpenError::NotADatabase { path: path.into() },
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            OpenError::ReadOnly { path: path.into() }
        }
        _ => Failure::sqlite("open", path)(error).into(),
    })
}

fn other_replicator(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let found = connection.query_row(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB '_litestream_*' LIMIT 1",
        [],
        |row| row.get(0),
    );
    match found {
        Ok(table) => Ok(Some(table)),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What stands at a path.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) length: u64,
    identity: (u64, u64),
}

/// Looks at the file at `path` without opening it.
pub(super) fn look(path: &Path) -> Result<Option<Found>, OpenError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::io("look at", path)(error).into()),
    };
    if !metadata.is_file() {
        return Err(OpenError::NotADatabase { path: path.into() });
    }
    if let Some(kind) =
        remote_file_system(path).map_err(Failure::io("find the file system of", path))?
    {
        return Err(OpenError::NetworkFileSystem {
            path: path.into(),
            kind,
        });
    }
    let resolved = fs::canonicalize(path).map_err(Failure::io("resolve", path))?;
    Ok(Some(Found {
        path: resolved,
        length: metadata.len(),
        identity: identity(&metadata),
    }))
}

pub(super) fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
