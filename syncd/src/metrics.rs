//! Every family that syncd counts in, registered once.

use std::time::Duration;

use shared::metrics::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, SHORT_SECONDS, register,
};
use shared::model::{Lag, Role};

use crate::wire::message::Reason;

/// The families.
#[derive(Clone, Debug)]
pub struct Metrics {
    role: IntGaugeVec,
    epoch: IntGauge,
    position: IntGaugeVec,
    lag_seconds: GaugeVec,
    lag_bytes: GaugeVec,
    sent: IntCounterVec,
    applied: IntCounterVec,
    commit_to_ack: HistogramVec,
    resyncs: IntCounterVec,
    diverged: IntCounterVec,
    blocked: HistogramVec,
}

/// The numbers of one source.
#[derive(Clone, Debug)]
pub struct SourceMetrics {
    position: IntGauge,
    lag_seconds: Gauge,
    lag_bytes: Gauge,
    sent: IntCounter,
    applied: IntCounter,
    commit_to_ack: Histogram,
    resyncs: IntCounterVec,
    diverged: IntCounter,
    blocked: Histogram,
    source: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::register(&Registry::new())
    }
}

impl Metrics {
    /// Adds every family to `registry`.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let real = |name: &str, help: &str| {
            register(registry, GaugeVec::new(Opts::new(name, help), &["source"]))
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let timing = |name: &str, help: &str| {
            let opts = HistogramOpts::new(name, help).buckets(SHORT_SECONDS.to_vec());
            register(registry, HistogramVec::new(opts, &["source"]))
        };
        Self {
            role: gauge(
                "syncd_role",
                "1 for the role this node has, 0 for the others",
                &["role"],
            ),
            epoch: register(
                registry,
                IntGauge::new("syncd_epoch", "The newest epoch this node has seen"),
            ),
            position: gauge(
                "syncd_position_seq",
                "Sequence number of the newest increment captured or applied",
                &["source"],
            ),
            lag_seconds: real(
                "syncd_lag_seconds",
                "Age of the oldest commit not applied here; NaN if unknown, 0 on a primary",
            ),
            lag_bytes: real(
                "syncd_lag_bytes",
                "Bytes not applied here; NaN if unknown, 0 on a primary",
            ),
            sent: counter(
                "syncd_sent_bytes_total",
                "Bytes sent to standbys",
                &["source"],
            ),
            applied: counter(
                "syncd_applied_bytes_total",
                "Bytes of increments applied",
                &["source"],
            ),
            commit_to_ack: timing(
                "syncd_commit_to_ack_seconds",
                "From the capture of a commit to a standby's word that it is on disk",
            ),
            resyncs: counter(
                "syncd_resyncs_total",
                "Resyncs begun, by reason",
                &["source", "reason"],
            ),
            diverged: counter(
                "syncd_diverged_total",
                "Times that diverged writes were kept aside",
                &["source"],
            ),
            blocked: timing(
                "syncd_app_blocked_seconds",
                "Spans in which the application could not write because of a checkpoint",
            ),
        }
    }

    /// The numbers of `source`.
    #[must_use]
    pub fn source(&self, source: &str) -> SourceMetrics {
        let of = [source];
        SourceMetrics {
            position: self.position.with_label_values(&of),
            lag_seconds: self.lag_seconds.with_label_values(&of),
            lag_bytes: self.lag_bytes.with_label_values(&of),
            sent: self.sent.with_label_values(&of),
            applied: self.applied.with_label_values(&of),
            commit_to_ack: self.commit_to_ack.with_label_values(&of),
            resyncs: self.resyncs.clone(),
            diverged: self.diverged.with_label_values(&of),
            blocked: self.blocked.with_label_values(&of),
            source: source.to_owned(),
        }
    }

    /// Shows role and epoch.
    pub fn stand(&self, role: Role, epoch: u64) {
        for each in Role::ALL {
            self.role
                .with_label_values(&[each.as_str()])
                .set(i64::from(each == role));
        }
        self.epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
    }
}

impl SourceMetrics {
    /// Shows where the source stands.
    pub fn stand(&self, seq: u64, lag: Lag) {
        self.position.set(i64::try_from(seq).unwrap_or(i64::MAX));
        self.lag_seconds.set(lag.seconds.unwrap_or(f64::NAN));
        #[expect(clippy::cast_precision_loss, reason = "a gauge has no more")]
        self.lag_bytes
            .set(lag.bytes.map_or(f64::NAN, |bytes| bytes as f64));
    }

    /// Bytes went out to a standby.
    pub fn sent(&self, bytes: u64) {
        self.sent.inc_by(bytes);
    }

    /// Bytes of increments were applied.
    pub fn applied(&self, bytes: u64) {
        self.applied.inc_by(bytes);
    }

    /// A commit of this age was acknowledged.
    pub fn acknowledged(&self, age: Duration) {
        self.commit_to_ack.observe(age.as_secs_f64());
    }

    /// A resync begins.
    pub fn resync(&self, reason: Reason) {
        self.resyncs
            .with_label_values(&[self.source.as_str(), reason.as_str()])
            .inc();
    }

    /// Diverged writes were kept aside.
    pub fn diverged(&self) {
        self.diverged.inc();
    }

    /// A checkpoint kept the application from writing: `count` times, the longest for `longest`.
    pub fn app_blocked(&self, longest: Duration, count: u32) {
        for _ in 0..count.max(1) {
            self.blocked.observe(longest.as_secs_f64());
        }
    }
}
