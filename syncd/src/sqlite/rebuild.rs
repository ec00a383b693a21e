//! Giving a standby's database another page size. SQLite cannot do that in write-ahead mode, so for this one step nobody else may have
//! the database open; it goes through the backup API, as one transaction in rollback mode.
//!
//! The content is prepared beside: a database of the right page size, made by an ordinary resync.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use thiserror::Error;

use super::apply::{Apply, ApplyError, End};
use super::database::Database;
use super::failure::{Failure, is_busy};
use super::ground::Claim;
use super::open::{OpenError, Opened, Options, read_once};
use super::position::Stored;
use super::preserve::step_through;

/// What came of it.
#[derive(Debug)]
pub enum Rebuilt {
    /// The database has the content and the position of the one beside it, and is fenced.
    Done(Box<Database>, Apply),
    /// The database has the other page size, but somebody wrote to it in the moment before it could be fenced. It needs a resync.
    Disturbed(Box<Database>, Apply),
    /// Somebody else has it open.
    InUse,
}

/// Why it failed.
#[derive(Debug, Error)]
pub enum RebuildError {
    /// The database cannot be worked with.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Page 1 could not be set right.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// SQLite or the system refused.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// What the prepared database holds.
struct Prepared {
    first_page: Vec<u8>,
    stored: Option<Stored>,
}

/// Whether nobody else has the database at `path` open, so that [`rebuild`] would succeed now. This process must not have it open.
///
/// # Errors
/// SQLite refuses.
pub fn is_unused(path: &Path) -> Result<bool, Failure> {
    let alone = || -> rusqlite::Result<()> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let probe = Connection::open_with_flags(path, flags)?;
        probe.busy_timeout(Duration::ZERO)?;
        // In this mode the first look needs a lock that goes with no other connection's.
        probe.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
        read_once(&probe)
    };
    match alone() {
        Ok(()) => Ok(true),
        Err(error) if is_busy(&error) => Ok(false),
        Err(error) => Err(Failure::sqlite("look at the users", path)(error)),
    }
}

/// Gives the database of `options`, which this process must not have open, the content of the one at `prepared`, which was filled by
/// [`Apply`] and let go.
///
/// # Errors
/// The database is as it was, or as the prepared one.
pub fn rebuild(options: &Options, prepared: &Path) -> Result<Rebuilt, RebuildError> {
    let claim = Claim::take(&options.lock_path)
        .map_err(Failure::io("lock", &options.lock_path))?
        .ok_or_else(|| OpenError::OtherSyncd {
            path: options.path.clone(),
            lock_path: options.lock_path.clone(),
        })?;
    let overwritten = overwrite(&options.path, prepared);
    drop(claim);
    let prepared = match overwritten {
        Ok(prepared) => prepared,
        Err(error) if is_busy(&error) => return Ok(Rebuilt::InUse),
        Err(error) => return Err(Failure::sqlite("rebuild", &options.path)(error).into()),
    };
    let Opened::Ready(mut database) = Database::open(options)? else {
        return Ok(Rebuilt::InUse);
    };
    if !database.try_fence()? {
        return Ok(Rebuilt::InUse);
    }
    let mut apply = Apply::attach(&mut database)?;
    match set_right(&mut database, &mut apply, &prepared) {
        Ok(true) => Ok(Rebuilt::Done(database, apply)),
        Ok(false) | Err(ApplyError::After { .. }) => Ok(Rebuilt::Disturbed(database, apply)),
        Err(error) => Err(error.into()),
    }
}

fn overwrite(path: &Path, prepared: &Path) -> rusqlite::Result<Prepared> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(prepared, flags)?;
    let first_page: Vec<u8> =
        source.query_row("SELECT data FROM sqlite_dbpage WHERE pgno = 1", [], |row| {
            row.get(0)
        })?;
    let mut target = Connection::open_with_flags(path, flags)?;
    target.busy_timeout(Duration::ZERO)?;
    target.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
    target.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    step_through(&source, &mut target)?;
    Ok(Prepared {
        stored: Stored::read(&first_page),
        first_page,
    })
}

/// A backup changes the schema cookie in page 1; nothing else differs, if nobody wrote meanwhile.
fn set_right(
    database: &mut Database,
    apply: &mut Apply,
    prepared: &Prepared,
) -> Result<bool, ApplyError> {
    let content = database.content_with_first_page(&prepared.first_page);
    let position = prepared.stored.and_then(|stored| stored.confirm(content));
    let Some(position) = position else {
        return Ok(false);
    };
    let end = End {
        position,
        pages: database.hashes().pages(),
        content,
    };
    apply.put_first_page(database, &prepared.first_page, end)?;
    Ok(true)
}
