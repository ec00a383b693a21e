//! How things stand, shown to people.

use std::sync::Arc;

use shared::model::{Lag, Role};

use super::super::view::{NodeView, ServiceView};
use super::Driver;
use crate::logic::NodeId;
use crate::logic::breaker::Phase as BreakerPhase;
use crate::logic::failover::App;

impl Driver {
    pub(super) fn show(&self) {
        let record = self.machine.record();
        let steer = self.steer.as_ref();
        let view = ServiceView {
            name: self.service.name.to_string(),
            mode: "hot-warm",
            phase: steer.map_or("starting", |steer| steer.phase),
            why: steer.and_then(|steer| steer.why.clone()),
            epoch: record.epoch.0,
            primary: record.primary.map(|node| self.name(node)),
            durability: if self.service.is_gated() {
                "standby-ack"
            } else {
                "async"
            },
            in_sync: record.in_sync.iter().map(|node| self.name(*node)).collect(),
            held_requests: self.steering.held(),
            nodes: self
                .service
                .nodes
                .iter()
                .map(|node| self.node_view(node.id))
                .collect(),
            last_failover: self.last_failover.clone(),
        };
        self.show_numbers(&view);
        self.shown.send_if_modified(|shown| {
            let changed = **shown != view;
            if changed {
                *shown = Arc::new(view);
            }
            changed
        });
    }

    fn node_view(&self, node: NodeId) -> NodeView {
        let driver = &self.nodes[node.index()];
        let is_primary = self.machine.record().primary == Some(node);
        let replicated = driver.peer.is_some();
        let role = match &driver.report {
            Some(report) => report.role,
            None if replicated => Role::None,
            None if is_primary => Role::Primary,
            None => Role::Standby,
        };
        let (app, refusing) = self.machine.app(node);
        let health = match app {
            _ if self.machine.is_draining(node) => "draining",
            App::Up if !refusing => "up",
            App::Unknown => "unknown",
            App::Up | App::Down => "down",
        };
        let down = health == "down";
        let breaker = match self.handle.breaker(node) {
            BreakerPhase::Admit => "closed",
            BreakerPhase::Try => "half-open",
            BreakerPhase::Refuse(_) => "open",
        };
        let because = self.machine.not_promotable(node).filter(|_| !is_primary);
        let (safe, writes) = if is_primary {
            self.steering.in_flight()
        } else {
            (0, 0)
        };
        NodeView {
            name: self.name(node),
            role: role.as_str(),
            health,
            health_why: down.then(|| {
                if driver.health_why.is_empty() {
                    "connections refused".to_owned()
                } else {
                    driver.health_why.clone()
                }
            }),
            breaker,
            in_flight: safe + writes,
            syncd: match (replicated, &driver.report) {
                (false, _) => "none",
                (true, Some(_)) => "heard",
                (true, None) => "silent",
            },
            lag: self.lag(node),
            position: driver
                .report
                .as_ref()
                .map(|report| report.tip.0.clone())
                .unwrap_or_default(),
            promotable: because.is_none() && !is_primary,
            not_promotable_because: because,
        }
    }

    /// How far a node is behind: by the primary's word if that is heard, which knows best, else by its own.
    fn lag(&self, node: NodeId) -> Lag {
        let primary = self.machine.record().primary;
        if primary == Some(node) || self.nodes[node.index()].peer.is_none() {
            return Lag {
                seconds: Some(0.0),
                bytes: Some(0),
                transactions: Some(0),
            };
        }
        let told = primary.and_then(|primary| self.nodes[primary.index()].report.as_ref());
        let told = told
            .and_then(|report| report.peers.get(&*self.service.nodes[node.index()].name))
            .filter(|peer| peer.connected);
        let own = || {
            self.nodes[node.index()]
                .report
                .as_ref()
                .map(|report| report.lag)
                .unwrap_or_default()
        };
        told.map_or_else(own, |peer| peer.lag)
    }

    pub(super) fn show_numbers(&self, view: &ServiceView) {
        let service = &*self.service.name;
        self.metrics
            .epoch
            .with_label_values(&[service])
            .set(i64::try_from(view.epoch).unwrap_or(i64::MAX));
        self.metrics
            .held_requests
            .with_label_values(&[service])
            .set(i64::try_from(view.held_requests).unwrap_or(i64::MAX));
        for node in &view.nodes {
            let labels = [service, node.name.as_str()];
            let is_primary = view.primary.as_ref() == Some(&node.name);
            self.metrics
                .node_primary
                .with_label_values(&labels)
                .set(i64::from(is_primary));
            self.metrics
                .node_up
                .with_label_values(&labels)
                .set(i64::from(matches!(node.health, "up" | "draining")));
            self.metrics
                .replication_lag_seconds
                .with_label_values(&labels)
                .set(node.lag.seconds.unwrap_or(f64::NAN));
            let bytes = node.lag.bytes.and_then(|bytes| i64::try_from(bytes).ok());
            self.metrics
                .replication_lag_bytes
                .with_label_values(&labels)
                .set(bytes.unwrap_or(-1));
        }
    }
}
