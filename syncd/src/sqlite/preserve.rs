//! Keeping what is about to be overwritten: a whole copy of a database, and a difference that a person can read.

mod difference;
mod literal;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use shared::clock;
use shared::durable::sync_folder;

pub use self::difference::{Difference, difference};
use super::failure::Failure;
use super::open::{open_quietly, read_once};

const PAGES_AT_ONCE: i32 = 4096;

/// Copies the database at `path`, as it is committed now, into `folder` under its own name, and makes the copy durable. The copy needs
/// no other file. What was there under that name before is replaced only once the copy is whole.
///
/// # Errors
/// SQLite or the system refuses; then there is no copy, and what is to be preserved must not be touched.
pub fn copy(path: &Path, folder: &Path) -> Result<PathBuf, Failure> {
    fs::create_dir_all(folder).map_err(Failure::io("make", folder))?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    let target = folder.join(name);
    let mut partial = name.to_owned();
    partial.push(".partial");
    let partial = folder.join(partial);
    remove_if_there(&partial)?;
    back_up(path, &partial).map_err(Failure::sqlite("copy", path))?;
    let synced = File::open(&partial).and_then(|copy| copy.sync_all());
    synced.map_err(Failure::io("sync", &partial))?;
    fs::rename(&partial, &target).map_err(Failure::io("rename", &partial))?;
    sync_folder(folder).map_err(Failure::io("sync", folder))?;
    Ok(target)
}

fn back_up(path: &Path, target: &Path) -> rusqlite::Result<()> {
    let source = open_quietly(path)?;
    source.connection().busy_timeout(Duration::from_secs(5))?;
    // One read transaction over all steps: writers go on, and the copy does not begin again with each of their commits.
    let snapshot = source.connection().unchecked_transaction()?;
    read_once(&snapshot)?;
    let mut copy = Connection::open(target)?;
    copy.pragma_update(None, "synchronous", "OFF")?;
    step_through(&snapshot, &mut copy)?;
    copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    Ok(())
}

/// Backs up `source` into `target`, whatever that held.
pub(super) fn step_through(source: &Connection, target: &mut Connection) -> rusqlite::Result<()> {
    let backup = Backup::new(source, target)?;
    let until = clock::now() + Duration::from_secs(5);
    loop {
        match backup.step(PAGES_AT_ONCE)? {
            StepResult::Done => return Ok(()),
            StepResult::More => (),
            // A lock of somebody else's. Bounded: nobody else has the target open, and the source is read within one transaction.
            _ if clock::now() < until => clock::pause_thread(Duration::from_millis(5)),
            StepResult::Busy | StepResult::Locked | _ => {
                let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
                return Err(rusqlite::Error::SqliteFailure(busy, None));
            }
        }
    }
}

fn remove_if_there(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
