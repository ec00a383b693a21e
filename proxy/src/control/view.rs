//! A service as the API shows it. The names are a contract (`GET /api/v1/services`).

use std::collections::BTreeMap;

use serde::Serialize;
use shared::model::{Lag, Position};

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
    /// `async` or `standby-ack`.
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
    /// Whether its syncd is heard; always without one.
    pub syncd: &'static str,
    /// How far behind.
    pub lag: Lag,
    /// Where its sources stand.
    pub position: BTreeMap<String, Position>,
    /// Whether it could be promoted at this moment.
    pub promotable: bool,
    /// If not, why.
    pub not_promotable_because: Option<String>,
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
