//! The thread that runs a database's checkpoints, beside whatever else is done with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use shared::clock;

use super::Shared;
use crate::sqlite::{Checkpointer, Database};

/// A failed checkpoint is tried again after this long; a full disk is the usual reason.
const FAILED_REST: Duration = Duration::from_millis(500);
/// The thread looks this often whether it should end.
const NAP_MOST: Duration = Duration::from_millis(20);

/// Runs until it is dropped.
#[derive(Debug)]
pub(super) struct Tender {
    stop: Arc<AtomicBool>,
    wal_bytes: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Tender {
    pub(super) fn start(database: &Database, shared: &Arc<Shared>) -> Result<Self, String> {
        let mut checkpointer = Checkpointer::open(database).map_err(|error| error.to_string())?;
        let stop = Arc::new(AtomicBool::new(false));
        let wal_bytes = Arc::new(AtomicU64::new(0));
        let (stopped, bytes, of_source) = (
            Arc::clone(&stop),
            Arc::clone(&wal_bytes),
            Arc::clone(shared),
        );
        let thread = std::thread::Builder::new().name(format!("checkpoint {}", shared.name));
        let thread = thread.spawn(move || {
            let mut failing = false;
            while !stopped.load(Relaxed) {
                let nap = tend(&mut checkpointer, &of_source, &bytes, &mut failing);
                rest(&stopped, nap);
            }
        });
        let thread = thread.map_err(|error| format!("start a thread: {error}"))?;
        Ok(Self {
            stop,
            wal_bytes,
            thread: Some(thread),
        })
    }

    /// Length of the write-ahead log in use, in bytes.
    pub(super) fn wal_bytes(&self) -> u64 {
        self.wal_bytes.load(Relaxed)
    }
}

impl Drop for Tender {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tend(
    checkpointer: &mut Checkpointer,
    shared: &Shared,
    bytes: &AtomicU64,
    failing: &mut bool,
) -> Duration {
    match checkpointer.tend() {
        Ok(done) => {
            *failing = false;
            bytes.store(done.log_bytes, Relaxed);
            if let Some(held) = done.held {
                shared.metrics.app_blocked(held, done.holds);
            }
            done.again_after
        }
        Err(error) => {
            if !std::mem::replace(failing, true) {
                tracing::warn!(source = shared.name, %error, "checkpoint failed; it will be tried again");
            }
            FAILED_REST
        }
    }
}

fn rest(stop: &AtomicBool, span: Duration) {
    let until = clock::now() + span;
    while !stop.load(Relaxed) {
        let left = until.saturating_duration_since(clock::now());
        if left.is_zero() {
            return;
        }
        clock::pause_thread(left.min(NAP_MOST));
    }
}
