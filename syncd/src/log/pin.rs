//! Keeping a part of a log while somebody needs it.

use std::sync::Arc;

use super::Shared;

/// Keeps a part of a log from being dropped.
#[derive(Debug)]
#[must_use]
pub struct Pin {
    pub(super) shared: Arc<Shared>,
    pub(super) id: u64,
}

impl Pin {
    /// From now on only what comes after `seq` is needed.
    pub fn advance(&self, after_seq: u64) {
        if let Some(pinned) = self.shared.state().pins.get_mut(&self.id) {
            *pinned = (*pinned).max(after_seq);
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.shared.state().pins.remove(&self.id);
    }
}
