//! What operators ask for, and changes that are planned.

use std::time::Instant;

use super::{Cause, Effect, Event, Failover, Order, OrderId, Phase, Timer, choose};
use crate::logic::NodeId;
use shared::model::Role;

/// A standby further behind than this would make a switchover's pause long; it is asked to catch up first.
const SWITCHOVER_BEHIND_MOST: u64 = 1000;

impl Failover {
    pub(super) fn handle_order(&mut self, now: Instant, id: OrderId, order: Order) {
        let begun = match order {
            Order::Switchover(to) => self.order_switchover(now, id, to),
            Order::Promote { to, accept_loss } => self.order_promote(now, id, to, accept_loss),
            Order::Drain(node) => self.order_drain(now, id, node),
            Order::Undrain(node) => {
                self.undrain(node);
                let done = format!("{} may be promoted again", self.name(node));
                self.effects.push_back(Effect::Answer(id, Ok(done)));
                Ok(())
            }
            Order::Rejoin(node) => self.order_rejoin(id, node),
        };
        if let Err(why) = begun {
            self.effects.push_back(Effect::Answer(id, Err(why)));
        }
    }

    fn order_switchover(
        &mut self,
        now: Instant,
        id: OrderId,
        to: Option<NodeId>,
    ) -> Result<(), String> {
        let Some(primary) = self.record.primary.filter(|_| self.phase == Phase::Serving) else {
            return Err(format!(
                "the service is {}, not serving; a switchover needs a working primary",
                self.phase_word()
            ));
        };
        let to = match to {
            Some(to) if to == primary => {
                return Err(format!("{} is the primary already", self.name(to)));
            }
            Some(to) => to,
            None => self.best_standby(primary)?,
        };
        self.ready_for_switchover(primary, to)?;
        self.begin_drain(now, Cause::Switchover, to, Some(id));
        Ok(())
    }

    /// Nothing is on record of this: it ends with `undrain`, when the node is promoted after all, or when the proxy restarts.
    fn order_drain(&mut self, now: Instant, id: OrderId, node: NodeId) -> Result<(), String> {
        if self.record.primary == Some(node) {
            self.order_switchover(now, id, None)?;
        } else {
            let done = format!("{} gets no requests and is not promoted", self.name(node));
            self.effects.push_back(Effect::Answer(id, Ok(done)));
        }
        let facts = self.facts(node);
        if !std::mem::replace(&mut facts.draining, true) {
            self.effects
                .push_back(Effect::Tell(Event::Draining(node, true)));
        }
        Ok(())
    }

    pub(super) fn undrain(&mut self, node: NodeId) {
        if std::mem::take(&mut self.facts(node).draining) {
            self.effects
                .push_back(Effect::Tell(Event::Draining(node, false)));
        }
    }

    fn best_standby(&self, primary: NodeId) -> Result<NodeId, String> {
        let all = self.ids().filter(|node| *node != primary);
        let ready = all.filter(|node| self.ready_for_switchover(primary, *node).is_ok());
        ready
            .min_by_key(|node| (self.rules.members[node.index()].priority, *node))
            .ok_or_else(|| {
                "no standby is ready for a switchover; `hotwarm status` says why".to_owned()
            })
    }

    pub(super) fn ready_for_switchover(&self, primary: NodeId, to: NodeId) -> Result<(), String> {
        if let Some(why) = choose::unfit(self, to) {
            return Err(format!("{} cannot take over: {why}", self.name(to)));
        }
        if !self.rules.replicated {
            return Ok(());
        }
        let lead = self.nodes[primary.index()].standing.as_ref();
        let lead =
            lead.ok_or_else(|| format!("the syncd of {} cannot be heard", self.name(primary)))?;
        let peer = lead.peers.get(&to).filter(|peer| peer.connected);
        let peer = peer.ok_or_else(|| {
            format!(
                "{} is not connected to {}",
                self.name(to),
                self.name(primary)
            )
        })?;
        let same_history = lead.tip.0.iter().all(|(source, tip)| {
            peer.durable
                .0
                .get(source)
                .is_some_and(|at| (at.epoch, at.generation) == (tip.epoch, tip.generation))
        });
        let missing = peer.durable.behind(&lead.tip);
        if !same_history && missing > 0 || missing > SWITCHOVER_BEHIND_MOST {
            return Err(format!(
                "{} is {missing} transactions behind; wait until it has caught up",
                self.name(to)
            ));
        }
        Ok(())
    }

    pub(super) fn begin_drain(
        &mut self,
        now: Instant,
        cause: Cause,
        to: NodeId,
        order: Option<OrderId>,
    ) {
        self.drop_entrance();
        self.phase = Phase::Draining { cause, to, order };
        self.steer();
        self.effects.push_back(Effect::AwaitDrain);
        self.arm(now, Timer::Drain, self.rules.drain_within);
    }

    pub(super) fn handle_drained(&mut self, now: Instant) {
        if let Phase::Draining { to, cause, order } = self.phase {
            self.timers.remove(&Timer::Drain);
            self.begin_round(now, cause, Some(to), false, order);
        }
    }

    pub(super) fn abort_drain(&mut self) {
        if let Phase::Draining { order, .. } = self.phase {
            let within = self.rules.drain_within;
            let why =
                format!("requests were still under way after {within:?}; nothing was changed");
            self.effects
                .push_back(Effect::Tell(Event::Aborted(why.clone())));
            self.effects
                .extend(order.map(|id| Effect::Answer(id, Err(why))));
            self.serve();
        }
    }

    fn order_promote(
        &mut self,
        now: Instant,
        id: OrderId,
        to: NodeId,
        accept_loss: bool,
    ) -> Result<(), String> {
        if matches!(self.phase, Phase::Round(_) | Phase::Draining { .. }) {
            return Err("a change of primary is under way; ask again when it has ended".to_owned());
        }
        if self.record.primary.is_none() {
            return self.order_meeting(id, to, accept_loss);
        }
        if self.record.primary == Some(to) && self.phase == Phase::Serving {
            return Err(format!("{} is the primary already", self.name(to)));
        }
        if let Some(why) = choose::unfit(self, to).filter(|_| !accept_loss) {
            return Err(format!("{} cannot be promoted: {why}", self.name(to)));
        }
        if !accept_loss && self.record.primary != Some(to) {
            choose::would_lose(self, to).map_or(Ok(()), Err)?;
        }
        self.begin_round(now, Cause::Promote, Some(to), accept_loss, Some(id));
        Ok(())
    }

    fn order_rejoin(&mut self, id: OrderId, node: NodeId) -> Result<(), String> {
        if self.record.primary == Some(node) {
            return Err(format!(
                "{} is the primary; it does not rejoin",
                self.name(node)
            ));
        }
        self.overwrite.insert(node);
        self.facts(node).asked = None;
        self.facts(node).resting = false;
        if let Some(standing) = &mut self.facts(node).standing {
            // Makes the next look send the order again, now with the permission.
            standing.role = Role::Fenced;
        }
        self.effects.push_back(Effect::Answer(
            id,
            Ok(format!("{} may give up its own data", self.name(node))),
        ));
        Ok(())
    }
}
