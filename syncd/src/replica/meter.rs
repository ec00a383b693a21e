//! When each increment was captured and how large it was, so that a follower's lag can be told in seconds and bytes by the
//! primary's own clock. Bounded: what is older than the ring is told as "at least".

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use shared::model::{Lag, Position};

/// How many increments are remembered one by one.
const REMEMBERED: usize = 65_536;

/// Measures lag.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    captured: VecDeque<Captured>,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Captured {
    position: Position,
    /// All bytes up to and with it.
    bytes: u64,
    at: Instant,
}

impl Meter {
    /// An increment of `bytes`, or a part of one, was captured.
    pub fn capture(&self, position: Position, bytes: u64, now: Instant, is_last: bool) {
        let mut ring = self.ring();
        ring.bytes += bytes;
        let bytes = ring.bytes;
        if !is_last {
            return;
        }
        if ring.captured.len() == REMEMBERED {
            ring.captured.pop_front();
        }
        ring.captured.push_back(Captured {
            position,
            bytes,
            at: now,
        });
    }

    /// Forgets everything: a new stretch of history has begun.
    pub fn reset(&self) {
        self.ring().captured.clear();
    }

    /// How far a follower at `position` is behind `tip`.
    #[must_use]
    pub fn lag(&self, position: Position, tip: Position, now: Instant) -> Lag {
        if position == tip {
            return Lag {
                seconds: Some(0.0),
                bytes: Some(0),
                transactions: Some(0),
            };
        }
        let transactions = tip.seq.checked_sub(position.seq);
        if position.generation != tip.generation {
            return Lag {
                seconds: None,
                bytes: None,
                transactions,
            };
        }
        let ring = self.ring();
        let first = ring
            .captured
            .partition_point(|captured| captured.position.seq <= position.seq);
        let (Some(missing), Some(last)) = (ring.captured.get(first), ring.captured.back()) else {
            return Lag {
                seconds: None,
                bytes: None,
                transactions,
            };
        };
        let before = first
            .checked_sub(1)
            .and_then(|at| ring.captured.get(at))
            .map_or(0, |captured| captured.bytes);
        let seconds = now.saturating_duration_since(missing.at).as_secs_f64();
        Lag {
            seconds: Some(seconds),
            bytes: Some(last.bytes - before),
            transactions,
        }
    }

    /// How long ago the increment at `position` was captured, if it is remembered.
    #[must_use]
    pub fn age(&self, position: Position, now: Instant) -> Option<std::time::Duration> {
        let ring = self.ring();
        let at = ring
            .captured
            .binary_search_by_key(&position.seq, |captured| captured.position.seq)
            .ok()?;
        Some(now.saturating_duration_since(ring.captured[at].at))
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::model::Epoch;
    use std::time::Duration;

    fn at(generation: u32, seq: u64) -> Position {
        Position {
            epoch: Epoch(1),
            generation,
            seq,
        }
    }

    #[test]
    fn lag_is_the_age_and_size_of_what_is_missing() {
        let meter = Meter::default();
        let start = shared::clock::now();
        for seq in 1..=3 {
            meter.capture(
                at(0, seq),
                100 * seq,
                start + Duration::from_secs(seq),
                true,
            );
        }
        let now = start + Duration::from_secs(4);
        let lag = meter.lag(at(0, 1), at(0, 3), now);
        assert_eq!(
            lag,
            Lag {
                seconds: Some(2.0),
                bytes: Some(500),
                transactions: Some(2)
            }
        );
        assert_eq!(meter.lag(at(0, 3), at(0, 3), now).transactions, Some(0));
        assert_eq!(meter.age(at(0, 2), now), Some(Duration::from_secs(2)));
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let meter = Meter::default();
        let now = shared::clock::now();
        assert_eq!(
            meter.lag(at(0, 1), at(0, 3), now),
            Lag {
                seconds: None,
                bytes: None,
                transactions: Some(2)
            }
        );
        meter.capture(at(1, 9), 1, now, true);
        assert_eq!(meter.lag(at(0, 8), at(1, 9), now).bytes, None);
    }
}
