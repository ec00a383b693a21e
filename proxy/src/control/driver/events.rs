//! What happened, told to people: in the log, the chronicle and the metrics.

use std::sync::Arc;

use shared::clock;

use super::super::view::LastFailover;
use super::Driver;
use crate::logic::NodeId;
use crate::logic::failover::{Event, Loss};

impl Driver {
    pub(super) fn name(&self, node: NodeId) -> String {
        self.service.nodes[node.index()].name.to_string()
    }

    pub(super) fn tell(&self, kind: &'static str, node: Option<NodeId>, message: String) {
        let node = node.map(|node| self.name(node));
        self.chronicle.tell(
            &self.service.name,
            kind,
            node,
            self.machine.record().epoch.0,
            message,
        );
    }

    pub(super) fn tell_event(&mut self, event: Event) {
        let service = Arc::clone(&self.service);
        let service = &*service.name;
        match event {
            Event::Suspected(node, trouble, why) => {
                tracing::warn!(
                    service,
                    node = self.name(node),
                    trouble = trouble.as_str(),
                    why,
                    "primary is suspect; requests are held"
                );
                self.tell(
                    "suspected",
                    Some(node),
                    format!("{}: {why}; requests are held", trouble.as_str()),
                );
            }
            Event::Draining(node, on) => {
                tracing::info!(service, node = self.name(node), on, "draining");
                let (kind, message) = if on {
                    ("draining", "draining: gets no requests and is not promoted")
                } else {
                    ("undrained", "may be promoted again")
                };
                self.tell(kind, Some(node), message.to_owned());
            }
            Event::Cleared(node) => {
                tracing::info!(
                    service,
                    node = self.name(node),
                    "primary answers again; nothing was changed"
                );
                self.tell(
                    "cleared",
                    Some(node),
                    "answers again; nothing was changed".to_owned(),
                );
            }
            Event::Began(epoch, cause) => {
                tracing::info!(
                    service,
                    epoch = epoch.0,
                    cause = cause.as_str(),
                    "a change of primary begins"
                );
                self.tell(
                    "began",
                    None,
                    format!(
                        "a change of primary begins, epoch {epoch} ({})",
                        cause.as_str()
                    ),
                );
            }
            Event::Refused(epoch, label, why) => {
                tracing::error!(
                    service,
                    epoch = epoch.0,
                    reason = label,
                    why,
                    "nobody can be promoted"
                );
                self.metrics
                    .promotions_refused
                    .with_label_values(&[service, label])
                    .inc();
                self.tell(
                    "refused",
                    None,
                    format!("nobody can be promoted ({label}): {why}"),
                );
            }
            Event::Promoted(promotion) => self.pending_promotion = Some(promotion),
            Event::Kept(epoch, node, why) => {
                tracing::info!(
                    service,
                    node = self.name(node),
                    epoch = epoch.0,
                    why,
                    "the primary remains"
                );
                self.tell(
                    "kept",
                    Some(node),
                    format!("remains the primary in epoch {epoch} ({why})"),
                );
            }
            Event::Met(node, why) => {
                tracing::info!(
                    service,
                    node = self.name(node),
                    why,
                    "first meeting decided"
                );
                self.tell(
                    "met",
                    Some(node),
                    format!("its data is the cluster's: {why}"),
                );
            }
            Event::InSync(set) => {
                let names: Vec<_> = set.iter().map(|node| self.name(*node)).collect();
                tracing::info!(service, standbys = names.join(","), "in sync, on record");
                self.tell("in-sync", None, format!("in sync: {}", names.join(", ")));
            }
            Event::Degraded(set, why) => {
                let left: Vec<_> = set.iter().map(|node| self.name(*node)).collect();
                let left = if left.is_empty() {
                    "nobody".to_owned()
                } else {
                    left.join(", ")
                };
                tracing::warn!(service, why, left, "out of sync, on record");
                self.tell("degraded", None, format!("{why}; still in sync: {left}"));
            }
            Event::Disobeyed(node, why) => {
                tracing::warn!(
                    service,
                    node = self.name(node),
                    why,
                    "a node did not obey; it will be asked again"
                );
                self.tell("disobeyed", Some(node), why);
            }
            Event::NotPersisted(why) => {
                tracing::error!(
                    service,
                    why,
                    "the record cannot be written; nothing is decided until it can"
                );
                self.tell("not-persisted", None, why);
            }
            Event::Aborted(why) => {
                tracing::warn!(service, why, "a switchover was given up");
                self.tell("aborted", None, why);
            }
        }
    }

    /// A promotion is told when requests are taken again, because only then its duration is known.
    pub(super) fn finish_promotion(&mut self) {
        let Some(promotion) = self.pending_promotion.take() else {
            return;
        };
        let outage = self.last_outage.unwrap_or_default();
        let unreported = if !self.service.is_gated() {
            self.unreported()
        } else {
            0
        };
        let (loss, lost) = match promotion.loss {
            Loss::None => ("none", Some(0)),
            Loss::Bounded(count) => ("bounded", Some(count + unreported)),
            Loss::Unknown => ("unknown", None),
        };
        self.released.clear();
        let kind = promotion.cause.as_str();
        let last = LastFailover {
            epoch: promotion.epoch.0,
            from: promotion.from.map(|node| self.name(node)),
            to: self.name(promotion.to),
            kind,
            reason: promotion.reason,
            at: clock::rfc3339(),
            unavailable_ms: (outage.as_secs_f64() * 10_000.0).round() / 10.0,
            held: self.steering.held(),
            lost_transactions: lost,
            loss,
        };
        let service = &*self.service.name;
        tracing::info!(
            service,
            epoch = last.epoch,
            from = last.from,
            to = last.to,
            kind,
            reason = last.reason,
            loss,
            lost_transactions = last.lost_transactions,
            unavailable_ms = last.unavailable_ms,
            held = last.held,
            "promoted"
        );
        self.metrics
            .failovers
            .with_label_values(&[service, kind])
            .inc();
        self.metrics
            .failover_unavailable_seconds
            .with_label_values(&[service])
            .observe(outage.as_secs_f64());
        let lost = last.lost_transactions.map_or_else(
            || "an unknown number".to_owned(),
            |lost| format!("at most {lost}"),
        );
        let lost = if loss == "none" {
            "nothing".to_owned()
        } else {
            lost
        };
        let message = format!(
            "took over from {} ({kind}: {}); unavailable for {} ms, {} requests held, {lost} lost",
            last.from.as_deref().unwrap_or("nobody"),
            last.reason,
            last.unavailable_ms,
            last.held
        );
        self.tell("promoted", Some(promotion.to), message);
        self.last_failover = Some(last);
    }
}
