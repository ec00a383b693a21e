//! A folder of one's own that is gone afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::trouble::Trouble;

/// A fresh folder under the system's temporary one; removed with everything in it when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    kept: bool,
}

impl Scratch {
    /// Makes `hotwarm-NAME-…`, empty.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn new(name: &str) -> Result<Self, Trouble> {
        Self::under(&std::env::temp_dir(), name)
    }

    /// One that takes up no disk, where the system has such a place.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn in_memory() -> Result<Self, Trouble> {
        let shm = Path::new("/dev/shm");
        let temporary = std::env::temp_dir();
        Self::under(if shm.is_dir() { shm } else { &temporary }, "memory")
    }

    fn under(place: &Path, name: &str) -> Result<Self, Trouble> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = place.join(format!(
            "hotwarm-{name}-{}-{:x}-{count}",
            std::process::id(),
            shared::clock::unix_nanos()
        ));
        fs::create_dir_all(&path).map_err(Trouble::system(format!(
            "make the folder {}",
            path.display()
        )))?;
        Ok(Self { path, kept: false })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder where it is, for somebody to look at.
    pub const fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now is removed by the guard, or by the next reboot.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
