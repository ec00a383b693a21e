//! A service as the API shows it. The names are a contract (`GET /api/v1/services`).

use std::collections::BTreeMap;

use serde::Serialize;
use shared::model::{Lag, Position};

use crate::metrics::Metrics;

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// `hot-warm` or `hot-hot`.
    pub mode: &'static str,
    /// `starting serving suspect promoting switching-over read-only unavailable`.
    pub phase: &'static str,
    /// Why it is not serving.
    pub why: Option<String>,
    /// The term in force.
    pub epoch: u64,
    /// Who takes writes.
    pub primary: Option<String>,
    /// `async` or `standby-ack`; `none` where nothing is replicated by design (`hot-hot`).
    pub durability: &'static str,
    /// Standbys that have every acknowledged write, on record (`standby-ack`).
    pub in_sync: Vec<String>,
    /// Requests that wait.
    pub held_requests: u64,
    /// Its nodes, in the order of the configuration.
    pub nodes: Vec<NodeView>,
    /// The last change of primary.
    pub last_failover: Option<LastFailover>,
}

impl ServiceView {
    /// Shows the same in numbers.
    pub(super) fn count(&self, metrics: &Metrics) {
        let service = self.name.as_str();
        let most = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        metrics
            .epoch
            .with_label_values(&[service])
            .set(most(self.epoch));
        metrics
            .held_requests
            .with_label_values(&[service])
            .set(most(self.held_requests));
        for node in &self.nodes {
            let labels = [service, node.name.as_str()];
            let is_primary = self.primary.as_ref() == Some(&node.name);
            metrics
                .node_primary
                .with_label_values(&labels)
                .set(i64::from(is_primary));
            metrics
                .node_up
                .with_label_values(&labels)
                .set(i64::from(matches!(node.health, "up" | "draining")));
            metrics
                .replication_lag_seconds
                .with_label_values(&labels)
                .set(node.lag.seconds.unwrap_or(f64::NAN));
            let bytes = node.lag.bytes.and_then(|bytes| i64::try_from(bytes).ok());
            metrics
                .replication_lag_bytes
                .with_label_values(&labels)
                .set(bytes.unwrap_or(-1));
        }
    }
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// `primary standby fenced rejoining none`.
    pub role: &'static str,
    /// `up down unknown draining`.
    pub health: &'static str,
    /// Why it is down.
    pub health_why: Option<String>,
    /// `closed half-open open`.
    pub breaker: &'static str,
    /// Requests under way there.
    pub in_flight: u64,
    /// Tunnels open there (WebSocket and other upgrades).
    pub tunnels: u64,
    /// Requests that wait for one of its connections.
    pub queued: usize,
    /// Whether its syncd is heard; always without one.
    pub syncd: &'static str,
    /// How far behind.
    pub lag: Lag,
    /// Where its sources stand.
    pub position: BTreeMap<String, Position>,
    /// Whether it could be promoted at this moment; `null` where there is no primary to become.
    pub promotable: Option<bool>,
    /// If not, why.
    pub not_promotable_because: Option<String>,
}

impl NodeView {
    /// The lag of a node that follows nobody.
    pub(super) const NO_LAG: Lag = Lag {
        seconds: Some(0.0),
        bytes: Some(0),
        transactions: Some(0),
    };
}

/// A change of primary.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LastFailover {
    /// The term it began.
    pub epoch: u64,
    /// Who led before.
    pub from: Option<String>,
    /// Who leads since.
    pub to: String,
    /// `crash hang breaker switchover failback promote restart`.
    pub kind: &'static str,
    /// In words.
    pub reason: String,
    /// When, RFC 3339.
    pub at: String,
    /// For how long nobody took requests.
    pub unavailable_ms: f64,
    /// How many requests waited at its end.
    pub held: u64,
    /// At most so many acknowledged transactions were lost; `null` if unknown.
    pub lost_transactions: Option<u64>,
    /// `none` (proved), `bounded`, `unknown`.
    pub loss: &'static str,
}
