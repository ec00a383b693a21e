//! Making a log durable beside whoever writes it, so that several commits share a sync.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use shared::durable::sync_folder;

use super::segment::encode_seal;
use super::{LogError, Point, Shared};

/// Makes a log's increments durable, from any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Syncer(pub(super) Arc<Shared>);

impl Syncer {
    /// As [`Log::sync`](super::Log::sync).
    ///
    /// # Errors
    /// The system refuses; nothing can be said about what is on disk then.
    pub fn sync(&self) -> Result<Option<Point>, LogError> {
        let (former, last, end) = {
            let state = self.0.state();
            let last = state
                .segments
                .back()
                .map(|segment| Arc::clone(&segment.file));
            (state.dirty.clone(), last, state.end())
        };
        let failed = || LogError::io("sync", &self.0.folder);
        for file in former.iter().chain(&last) {
            file.sync_data().map_err(failed())?;
        }
        if !former.is_empty() {
            sync_folder(&self.0.folder).map_err(failed())?;
            self.seal(&former);
        }
        Ok(end)
    }

    /// These files were complete before they were synced: says so at their ends, which spares checking them when opening. On a full disk
    /// there is no place for that, and nothing is lost.
    fn seal(&self, synced: &[Arc<File>]) {
        let is_synced = |file: &Arc<File>| synced.iter().any(|synced| Arc::ptr_eq(synced, file));
        let mut state = self.0.state();
        state.dirty.retain(|file| !is_synced(file));
        let last = state.segments.len().saturating_sub(1);
        for segment in state.segments.iter_mut().take(last) {
            if !segment.is_sealed && is_synced(&segment.file) {
                let seal = encode_seal(segment.end.position.seq);
                segment.is_sealed = segment.file.write_all_at(&seal, segment.length).is_ok();
            }
        }
    }
}
