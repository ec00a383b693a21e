//! What the writer of a log shares with its readers and syncers.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Point;
use super::segment::Segment;
use crate::wire::increment::Increment;

/// What the writer shares with readers and syncers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) folder: PathBuf,
    pub(super) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// In order, the first being the oldest; empty before there is a base.
    pub(super) segments: VecDeque<Segment>,
    /// Files of former segments that were not synced since they were written.
    pub(super) dirty: Vec<Arc<File>>,
    pub(super) ring: VecDeque<Increment>,
    pub(super) ring_bytes: usize,
    pub(super) mark: Option<Vec<u8>>,
    pub(super) pins: BTreeMap<u64, u64>,
    pub(super) next_pin: u64,
    pub(super) keep_after: Option<u64>,
    /// Grows whenever something that was readable is not any more, except at the old end.
    pub(super) turns: u64,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn start(&self) -> Option<Point> {
        self.segments.front().map(|segment| segment.base)
    }

    pub(super) fn end(&self) -> Option<Point> {
        self.segments.back().map(|segment| segment.end)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// What is after this seq is needed: here, or by somebody who reads it.
    pub(super) fn needed_after(&self) -> u64 {
        let pinned = self.pins.values().min().copied();
        pinned.unwrap_or(u64::MAX).min(self.kept_after())
    }

    /// What is after this seq is needed here, and nowhere else.
    pub(super) fn kept_after(&self) -> u64 {
        self.keep_after.unwrap_or(u64::MAX)
    }

    /// Whether the oldest segment is not the last, and holds nothing after `needed_after`.
    pub(super) fn is_droppable(&self, needed_after: u64) -> bool {
        let oldest = self.segments.front();
        self.segments.len() >= 2
            && oldest.is_some_and(|oldest| oldest.end.position.seq <= needed_after)
    }

    pub(super) fn clear_ring(&mut self) {
        self.ring.clear();
        self.ring_bytes = 0;
    }

    /// Keeps the newest increments in memory, up to `most` bytes of them.
    pub(super) fn keep_in_ring(&mut self, increment: &Increment, most: usize) {
        self.ring_bytes += increment.encoded_len();
        self.ring.push_back(increment.clone());
        while self.ring_bytes > most {
            let Some(oldest) = self.ring.pop_front() else {
                break;
            };
            self.ring_bytes -= oldest.encoded_len();
        }
    }
}
