//! Making the database where there is none yet: only ever on a standby.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use rusqlite::OpenFlags;
use shared::durable;

use super::database::Database;
use super::door::Handle;
use super::failure::Failure;
use super::open::{OpenError, Opened, Options, look, open_quietly};

impl Database {
    /// Opens the database; if there is none, or an empty file, makes one without content first. `page_size` in bytes.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn create(options: &Options, page_size: u32) -> Result<Opened, OpenError> {
        let is_there = look(&options.path)?.is_some_and(|found| found.length > 0);
        if !is_there {
            let path = &options.path;
            make(path, page_size).map_err(Failure::sqlite("create", path))?;
            if let Some(folder) = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
            {
                adopt_owner(path, folder).map_err(Failure::io("hand over", path))?;
                durable::sync_folder(folder).map_err(Failure::io("sync", folder))?;
            }
        }
        Self::open(options)
    }
}

fn make(path: &Path, page_size: u32) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let made = Handle::open(path, flags)?;
    made.connection()
        .pragma_update(None, "page_size", page_size)?;
    made.connection()
        .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    drop(made);
    // A second look as every later connection will see it.
    open_quietly(path).map(drop)
}

/// A file made by root belongs to whom its folder belongs, or the application could not open it.
fn adopt_owner(path: &Path, folder: &Path) -> std::io::Result<()> {
    let folder = fs::metadata(folder)?;
    let made = fs::metadata(path)?;
    if made.uid() == 0 && folder.uid() != 0 {
        chown(path, Some(folder.uid()), Some(folder.gid()))?;
    }
    Ok(())
}
