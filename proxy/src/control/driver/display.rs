//! How things stand, shown to people.

use std::sync::Arc;

use shared::model::{Lag, Role};

use super::super::view::{NodeView, ServiceView};
use super::Driver;
use crate::logic::NodeId;
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
        view.count(&self.metrics);
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
            breaker: self.handle.breaker(node).as_str(),
            in_flight: safe + writes,
            tunnels: self.tunnels(node),
            queued: self.handle.queued(node),
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
            promotable: Some(because.is_none() && !is_primary),
            not_promotable_because: because,
        }
    }

    fn tunnels(&self, node: NodeId) -> u64 {
        let labels = [&*self.service.name, &*self.service.nodes[node.index()].name];
        let open = self.metrics.tunnels.with_label_values(&labels).get();
        u64::try_from(open).unwrap_or(0)
    }

    /// How far a node is behind: by the primary's word if that is heard, which knows best, else by its own.
    pub(super) fn lag(&self, node: NodeId) -> Lag {
        let primary = self.machine.record().primary;
        if primary == Some(node) || self.nodes[node.index()].peer.is_none() {
            return NodeView::NO_LAG;
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
}
