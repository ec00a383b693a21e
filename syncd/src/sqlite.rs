//! One SQLite database: captured from its log on a primary, written page by page on a standby, fenced, checkpointed and checked.
//!
//! Everything blocks and has one owner; the shell gives it a thread. Nothing of SQLite leaves this room but [`Increment`]s, marks
//! (opaque bytes) and numbers.
//!
//! - [`Database`] holds the connections and the locks. [`Tail`] reads commits from the log, [`Apply`] writes increments; a database has
//!   one of them at a time, and goes from one to the other without reading its content again.
//! - [`Checkpointer`] runs in a thread of its own beside either. Nobody else checkpoints while it does: that is what makes the log
//!   safe to read.
//! - [`PageReader`] and [`Stage`] are the two ends of a resync.
//!
//! [`Increment`]: crate::wire::increment::Increment

mod apply;
mod checkpoint;
mod content;
mod create;
mod database;
mod door;
mod failure;
mod ground;
mod heal;
mod leash;
mod mark;
mod open;
mod pages;
mod position;
pub mod preserve;
mod rebuild;
mod scan;
mod stage;
mod tail;
mod wake;
mod wal;

pub use apply::{Apply, ApplyError, Batch, End};
pub use checkpoint::{Checkpointer, Tended};
pub use content::content;
pub use database::{Database, PageHashes};
pub use door::DoorError;
pub use failure::Failure;
pub use mark::Mark;
pub use open::{Journal, NotYet, OpenError, Opened, Options};
pub use pages::PageReader;
pub use rebuild::{RebuildError, Rebuilt, is_unused, rebuild};
pub use stage::{Stage, StageBase};
pub use tail::{CaptureError, Continuity, Lost, Sample, Tail};
pub use wake::Kick;

/// Checks that the SQLite in this program can do what is needed.
///
/// # Errors
/// It is too old, or was built without the page table.
pub fn check_library() -> Result<(), OpenError> {
    let inspected = ground::fault_of_library();
    let fault = inspected.map_err(|error| OpenError::Library(error.to_string()))?;
    fault.map_or(Ok(()), |fault| Err(OpenError::Library(fault)))
}
