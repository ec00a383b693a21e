//! A node's side of orders: decide, persist, act, answer.

use std::collections::BTreeSet;

use proxy::logic::NodeId;
use proxy::logic::failover::{Durability, Input, Obeyed, SealAnswer};
use shared::api::{Follow, Lead, Sealed, Version};
use shared::model::{Epoch, Positions};
use syncd::logic::gate::Gate;
use syncd::logic::station::{Decision, Disobedience, Standing};

use crate::fault::Fault;
use crate::step::{CLUSTER, Wire};
use crate::world::{NAMES, World};

impl Wire {
    /// Puts a decision on disk (unless it is lost there) and in force.
    pub(crate) fn obey(&self, world: &mut World, at: NodeId, decision: Decision, keep: bool) {
        let node = world.node_mut(at);
        if let Some(held) = decision.persist.clone().filter(|_| keep) {
            node.held = held;
        }
        let inside = node.inside.is_some();
        let Some(syncd) = &mut node.syncd else { return };
        let before = syncd.station.held().epoch;
        let led = syncd.station.has_led();
        let moved = decision.standing.is_some();
        syncd.station.commit(decision);
        if syncd.station.held().epoch != before {
            syncd.session = syncd.session.filter(|_| self.has(Fault::NoPromise));
            syncd.heard = None;
            syncd.gate = None;
        }
        match syncd.station.standing().clone() {
            Standing::Leading(lead) => {
                node.led = Some(lead.clone());
                self.take_the_lead(world, at, &lead);
            }
            Standing::Sealed | Standing::Following(_) if moved => {
                syncd.gate = None;
                let fences = !(self.has(Fault::NoFence) && led);
                syncd.locked = syncd.locked || (!inside && fences);
                world.barriers.retain(|(node, ..)| *node != at);
            }
            Standing::Sealed | Standing::Following(_) | Standing::Free => (),
        }
    }

    fn take_the_lead(&self, world: &mut World, at: NodeId, lead: &Lead) {
        let Some(syncd) = &mut world.node_mut(at).syncd else {
            return;
        };
        syncd.locked = false;
        syncd.unproved = false;
        match &mut syncd.gate {
            Some(gate) if gate.epoch() == lead.epoch => gate.handle_lead(lead),
            gate => *gate = Some(Gate::new(lead)),
        }
        self.sync_captured(world, at);
        let sample = world.node(at).position();
        if let Some(gate) = world.gate(at) {
            gate.handle_sample(lead.version, sample);
        }
    }

    /// With `standby-ack`, what is captured is on the primary's disk before it counts.
    pub(crate) fn sync_captured(&self, world: &mut World, at: NodeId) {
        if self.rules.durability != Durability::Async {
            let node = world.node_mut(at);
            node.synced = node.data.len();
        }
    }

    pub(crate) fn handle_seal(&self, world: &mut World, at: NodeId, epoch: Epoch) -> Option<Input> {
        let syncd = world.node(at).syncd.as_ref()?;
        let answer = match syncd.station.handle_seal(CLUSTER, epoch) {
            Ok(decision) => {
                self.obey(world, at, decision, !self.has(Fault::SealNotPersisted));
                self.sync_captured(world, at);
                let node = world.node(at);
                let syncd = node.syncd.as_ref()?;
                let fenced = syncd.locked || (self.has(Fault::NoFence) && syncd.station.has_led());
                let (heard, proved) = (syncd.heard.clone(), !syncd.unproved);
                SealAnswer::Sealed(Sealed {
                    epoch,
                    fenced,
                    proved,
                    durable: node.position(),
                    heard,
                })
            }
            Err(Disobedience { epoch, .. }) => SealAnswer::Stale(epoch),
        };
        if matches!(answer, SealAnswer::Sealed(_)) {
            world.node_mut(at).sealed_for = epoch;
        }
        Some(Input::Sealed(at, epoch, answer))
    }

    pub(crate) fn handle_lead(
        &self,
        world: &mut World,
        at: NodeId,
        epoch: Epoch,
        version: Version,
        required: &BTreeSet<NodeId>,
    ) -> Option<Input> {
        let lead = Lead {
            cluster: CLUSTER,
            epoch,
            version,
            required: required
                .iter()
                .map(|node| NAMES[node.index()].to_owned())
                .collect(),
            acks: self.rules.acks(),
            durable: self.rules.acks() > 0,
            at_least: Positions::default(),
        };
        let decided = world.node(at).syncd.as_ref()?.station.handle_lead(lead);
        let obeyed = self.answer(world, at, decided);
        if let Some(syncd) = &mut world.node_mut(at).syncd {
            syncd.told_to_lead = true;
        }
        self.check_leader(world, at, epoch);
        Some(Input::Led(at, epoch, version, obeyed))
    }

    pub(crate) fn handle_follow(
        &self,
        world: &mut World,
        at: NodeId,
        epoch: Epoch,
        primary: NodeId,
        overwrite: bool,
    ) -> Option<Input> {
        let primary = NAMES[primary.index()].to_owned();
        let follow = Follow {
            cluster: CLUSTER,
            epoch,
            primary,
            url: String::new(),
            overwrite,
        };
        let decided = world.node(at).syncd.as_ref()?.station.handle_follow(follow);
        let obeyed = self.answer(world, at, decided);
        Some(Input::Followed(at, epoch, obeyed))
    }

    fn answer(
        &self,
        world: &mut World,
        at: NodeId,
        decided: Result<Decision, Disobedience>,
    ) -> Obeyed {
        match decided {
            Ok(decision) => {
                self.obey(world, at, decision, true);
                Obeyed::Done(world.node(at).position())
            }
            Err(Disobedience { refused, epoch }) => Obeyed::Refused(refused, epoch),
        }
    }
}
