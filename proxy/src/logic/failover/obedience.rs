//! Nodes are told what they should be doing and, by their own report, are not; and what they answer.

use std::time::Instant;

use shared::api::Version;
use shared::model::{Epoch, Role};

use super::facts::{Asked, Standing};
use super::{Effect, Event, Failover, FollowOrder, LeadOrder, Obeyed, Phase, Then, Timer};
use crate::logic::NodeId;

impl Failover {
    pub(super) fn handle_report(&mut self, now: Instant, node: NodeId, standing: Standing) {
        if self.is_foreign(&standing) {
            // A node of another cluster is as good as silent: nothing it says may be believed or acted on.
            let facts = self.facts(node);
            facts.last = Some(standing);
            facts.standing = None;
            return;
        }
        if standing.cluster.is_some() {
            self.newest = self.newest.max(standing.epoch);
        }
        if let Phase::Round(round) = &mut self.phase {
            round.handle_report(node, &standing);
        }
        let facts = self.facts(node);
        facts.heard_at = Some(now);
        facts.last = Some(standing.clone());
        facts.standing = Some(standing);
        facts.resting = false;
    }

    pub(super) fn is_foreign(&self, standing: &Standing) -> bool {
        self.record.cluster.is_some()
            && standing.cluster.is_some()
            && standing.cluster != self.record.cluster
    }

    /// Tells every node what it should be doing and is not, by its own report.
    pub(super) fn order_nodes(&mut self, now: Instant) {
        let settled = matches!(
            self.phase,
            Phase::Serving | Phase::Suspect { .. } | Phase::Draining { .. }
        );
        let leading = matches!(&self.phase, Phase::Round(round) if round.is_leading());
        if !self.rules.replicated
            || !(settled || leading)
            || matches!(self.writing, Some((_, Then::Begin)))
        {
            return;
        }
        let Some(primary) = self.record.primary else {
            return;
        };
        for node in self.ids() {
            if node == primary {
                self.order_primary(now, node);
            } else if settled {
                self.order_standby(now, node, primary);
            }
        }
    }

    fn order_primary(&mut self, now: Instant, node: NodeId) {
        let (epoch, version, required) = (self.record.epoch, self.version(), self.required());
        let at_least = self.fork_of_round().unwrap_or_default();
        let facts = self.facts(node);
        let Some(standing) = facts.free_to_be_asked() else {
            return;
        };
        let gate = standing.gate.map(|(version, _)| version);
        if standing.epoch > epoch
            || (standing.role == Role::Primary && standing.epoch == epoch && gate >= Some(version))
        {
            return;
        }
        facts.asked = Some(Asked::Lead(epoch, version));
        self.effects.push_back(Effect::Lead(
            node,
            LeadOrder {
                epoch,
                version,
                required,
                at_least,
            },
        ));
        self.arm(now, Timer::Lead, self.rules.lead_within);
    }

    fn order_standby(&mut self, now: Instant, node: NodeId, primary: NodeId) {
        let epoch = self.record.epoch;
        let overwrite = self.overwrite.contains(&node);
        let facts = self.facts(node);
        let Some(standing) = facts.free_to_be_asked() else {
            return;
        };
        let follows = matches!(standing.role, Role::Standby | Role::Rejoining)
            && standing.primary == Some(primary);
        if standing.epoch > epoch || (follows && standing.epoch == epoch) {
            return;
        }
        facts.asked = Some(Asked::Follow(epoch));
        self.effects.push_back(Effect::Follow(
            node,
            FollowOrder {
                epoch,
                primary,
                overwrite,
            },
        ));
        self.arm(now, Timer::Lead, self.rules.lead_within);
    }

    pub(super) fn handle_led(
        &mut self,
        now: Instant,
        node: NodeId,
        epoch: Epoch,
        version: Version,
        answer: Obeyed,
    ) {
        if self.facts(node).asked == Some(Asked::Lead(epoch, version)) {
            self.facts(node).asked = None;
        }
        if epoch != self.record.epoch || self.record.primary != Some(node) {
            return;
        }
        match answer {
            Obeyed::Done(_) => {
                if let Some(standing) = &mut self.facts(node).standing {
                    standing.role = Role::Primary;
                    standing.epoch = epoch;
                    standing.fenced = false;
                    let gate = standing.gate.get_or_insert((version, false));
                    if gate.0 < version {
                        *gate = (version, false);
                    }
                }
                self.overwrite.remove(&node);
                self.finish_round(node);
            }
            Obeyed::Refused(why, newest) => self.disobeyed(now, node, newest, format!("{why:?}")),
            Obeyed::Failed(why) => self.disobeyed(now, node, Epoch(0), why),
        }
    }

    pub(super) fn handle_followed(
        &mut self,
        now: Instant,
        node: NodeId,
        epoch: Epoch,
        answer: Obeyed,
    ) {
        if self.facts(node).asked == Some(Asked::Follow(epoch)) {
            self.facts(node).asked = None;
        }
        let primary = self.record.primary;
        match answer {
            Obeyed::Done(_) => {
                let current = epoch == self.record.epoch;
                if let Some(standing) = self.facts(node).standing.as_mut().filter(|_| current) {
                    standing.epoch = epoch;
                    standing.primary = primary;
                    if standing.role != Role::Standby {
                        standing.role = Role::Rejoining;
                    }
                }
            }
            Obeyed::Refused(why, newest) => self.disobeyed(now, node, newest, format!("{why:?}")),
            Obeyed::Failed(why) => self.disobeyed(now, node, Epoch(0), why),
        }
    }

    fn disobeyed(&mut self, now: Instant, node: NodeId, newest: Epoch, why: String) {
        self.newest = self.newest.max(newest);
        self.facts(node).resting = true;
        self.arm(now, Timer::Rest, self.rules.rest);
        self.effects
            .push_back(Effect::Tell(Event::Disobeyed(node, why)));
    }

    /// An order was not answered in time: forget that it was asked, so that the next look asks again.
    pub(super) fn lead_again(&mut self, now: Instant) {
        if self.give_up_leader(now) {
            return;
        }
        let mut forgot = false;
        for facts in &mut self.nodes {
            forgot |= facts.asked.take().is_some();
        }
        if forgot {
            self.arm(now, Timer::Lead, self.rules.lead_within);
        }
    }
}
