//! Scratch folders, and increments that continue each other.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::{BufMut, BytesMut};
use shared::model::{Epoch, Position};
use shared::rng::Rng;
use syncd::log::{Limits, Log, Point};
use syncd::wire::increment::Increment;

/// A folder that is gone afterwards.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("syncd-log-{name}-{}-{unique}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) const SMALL: Limits = Limits {
    segment_bytes: 8192,
    ring_bytes: 4096,
};

pub(crate) fn base() -> Point {
    Point {
        position: Position {
            epoch: Epoch(1),
            generation: 2,
            seq: 10,
        },
        content: 77,
    }
}

/// A log that begins at [`base`].
pub(crate) fn begun(folder: &Path, limits: Limits) -> Log {
    let mut log = Log::open(folder, limits).unwrap();
    log.reset(base()).unwrap();
    log
}

/// The parts of a transaction that continues `end`.
pub(crate) fn next(end: Point, rng: &mut Rng) -> Vec<Increment> {
    let parts = if rng.u32(0..5) == 0 { rng.u32(2..5) } else { 1 };
    let post = rng.u64(..);
    let mut number = 0;
    let position = Position {
        epoch: Epoch(end.position.epoch.0 + u64::from(rng.u32(0..20) == 0)),
        seq: end.position.seq + 1,
        ..end.position
    };
    (0..parts)
        .map(|part| {
            let mut body = BytesMut::new();
            for _ in 0..rng.u32(0..4) {
                number += 1;
                body.put_u32_le(number);
                body.extend((0..512).map(|_| rng.u8(..)));
            }
            Increment {
                position,
                pre: end.content,
                post,
                page_size: 512,
                pages: 1000,
                committed_at: rng.u64(..),
                part,
                last: part + 1 == parts,
                body: body.freeze(),
            }
        })
        .collect()
}

pub(crate) fn point(increment: &Increment) -> Point {
    Point {
        position: increment.position,
        content: increment.post,
    }
}

/// Everything after `position`.
pub(crate) fn read_all(log: &Log, after: Position) -> Vec<Increment> {
    let mut reader = log.reader(after).unwrap();
    std::iter::from_fn(|| reader.poll().unwrap()).collect()
}
