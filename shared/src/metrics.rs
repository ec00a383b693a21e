//! The registry of numbers and its text form. Families are registered once, by the binary that owns them, and handed down.

use prometheus::core::Collector;
pub use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use prometheus::{Encoder, TextEncoder};

/// The media type of [`render`]'s answer.
pub const TEXT: &str = prometheus::TEXT_FORMAT;

/// Buckets for request durations, in seconds: 0.5 ms to 60 s.
pub const REQUEST_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// Buckets for what should be short, in seconds: 50 µs to 5 s.
pub const SHORT_SECONDS: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0,
];

/// Adds `family` to `registry` and hands it back.
///
/// # Panics
/// When the same name is registered twice or is not a valid name: both are faults of the program, seen by its first test.
pub fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    family: Result<C, prometheus::Error>,
) -> C {
    let family = family.expect("metric names and labels are constants of this program");
    registry
        .register(Box::new(family.clone()))
        .expect("each metric family is registered once");
    family
}

/// Everything in `registry` in the Prometheus text format, version 0.0.4.
#[must_use]
pub fn render(registry: &Registry) -> Vec<u8> {
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&registry.gather(), &mut text) {
        tracing::error!(%error, "encode metrics");
    }
    text
}
