//! Connections that came to nothing, on their way to the log and the numbers: anybody can cause any number of them.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use shared::clock;
use shared::metrics::IntCounterVec;

use crate::metrics::Metrics;

/// One failure is told in this time; the others are counted.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What one listener of one worker counts.
pub struct Failures {
    listener: Box<str>,
    refused: IntCounterVec,
    handshakes: IntCounterVec,
    told: Cell<Option<Instant>>,
    untold: Cell<u64>,
}

impl fmt::Debug for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Failures").field(&self.listener).finish()
    }
}

impl Failures {
    /// Of `listener`, which is its address.
    #[must_use]
    pub fn new(listener: &str, metrics: &Metrics) -> Self {
        Self {
            listener: listener.into(),
            refused: metrics.client_connections_refused.clone(),
            handshakes: metrics.tls_handshakes_failed.clone(),
            told: Cell::new(None),
            untold: Cell::new(0),
        }
    }

    /// A connection is not served; `reason` is one of a few words.
    pub(super) fn refused(&self, peer: SocketAddr, reason: &'static str, why: &str) {
        let labels = [&*self.listener, reason];
        self.refused.with_label_values(&labels).inc();
        if let Some(untold) = self.handle_failure(clock::now()) {
            tracing::info!(%peer, why, untold, "a connection is refused");
        }
    }

    /// There are as many connections as there may be.
    pub(super) fn too_many(&self, reason: &'static str) {
        let labels = [&*self.listener, reason];
        self.refused.with_label_values(&labels).inc();
    }

    /// A handshake failed; `reason` is one of a few words.
    pub(super) fn handshake(&self, peer: SocketAddr, reason: &'static str, why: &str) {
        let labels = [&*self.listener, reason];
        self.handshakes.with_label_values(&labels).inc();
        if let Some(untold) = self.handle_failure(clock::now()) {
            tracing::info!(%peer, why, untold, "a TLS handshake failed");
        }
    }

    /// Whether to tell this one, and how many were not told since the last one that was.
    fn handle_failure(&self, now: Instant) -> Option<u64> {
        let told = self.told.get();
        if told.is_some_and(|told| now.duration_since(told) < TELL_EVERY) {
            self.untold.set(self.untold.get().saturating_add(1));
            return None;
        }
        self.told.set(Some(now));
        Some(self.untold.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_once_a_second_and_none_is_left_uncounted() {
        let failures = Failures::new("a", &Metrics::default());
        let began = clock::now();
        let at = |millis| failures.handle_failure(began + Duration::from_millis(millis));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(10), at(999)), (None, None));
        assert_eq!(at(1000), Some(2));
        assert_eq!(at(2500), Some(0));
    }
}
