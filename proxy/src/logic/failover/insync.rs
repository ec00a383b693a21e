//! The in-sync set: the standbys that have every acknowledged write, on record.
//!
//! The primary's required set contains the set on disk at every instant. Growing: the gate closes, the primary requires the
//! newcomer too and takes a sample, the newcomer reaches it, and only then is it written down. Shrinking: it is written down,
//! and only then is nobody waited for. (The opposite orders lose writes; the crate `model` shows how.)

use std::collections::BTreeSet;
use std::time::Instant;

use shared::api::Version;
use shared::model::Epoch;

use super::rules::{Durability, OnAckTimeout};
use super::{Effect, Event, Failover, Gate, Phase, Record, Then, Timer};
use crate::logic::NodeId;

/// A standby further behind than this has to catch up before its entrance begins, because the gate is closed meanwhile.
const ENTRANCE_BEHIND_MOST: u64 = 256;

/// An entrance under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Entering {
    version: Version,
    set: BTreeSet<NodeId>,
}

impl Failover {
    /// The state of the gate that the primary should hold.
    pub(super) const fn version(&self) -> Version {
        Version(self.record.run, self.changes)
    }

    /// Whom the primary must wait for.
    pub(super) fn required(&self) -> BTreeSet<NodeId> {
        self.entering.as_ref().map_or_else(
            || self.record.in_sync.clone(),
            |entering| entering.set.clone(),
        )
    }

    /// What gated responses wait for.
    pub(super) fn gate(&self) -> Gate {
        match self.rules.durability {
            Durability::Async => Gate::Off,
            Durability::StandbyAck { .. } if !self.rules.replicated => Gate::Off,
            Durability::StandbyAck {
                on_timeout: OnAckTimeout::Fail,
                ..
            } => Gate::Barrier,
            Durability::StandbyAck {
                count,
                on_timeout: OnAckTimeout::Degrade,
            } => {
                let enough = self.record.in_sync.len() >= count;
                if enough || self.entering.is_some() {
                    Gate::Barrier
                } else {
                    Gate::Open
                }
            }
        }
    }

    /// Begins or completes an entrance, as the primary's report allows.
    pub(super) fn look_in_sync(&mut self, now: Instant, primary: NodeId) {
        if self.rules.acks() == 0 || self.writing.is_some() {
            return;
        }
        match &self.entering {
            Some(entering) => {
                let gate = self.nodes[primary.index()]
                    .standing
                    .as_ref()
                    .and_then(|standing| standing.gate);
                if gate == Some((entering.version, true)) {
                    let record = Record {
                        in_sync: entering.set.clone(),
                        ..self.record.clone()
                    };
                    self.write(record, Then::Enter);
                }
            }
            None if self.phase == Phase::Serving
                && !self.timers.contains_key(&Timer::EnterRest) =>
            {
                self.begin_entrance(now, primary);
            }
            None => (),
        }
    }

    fn begin_entrance(&mut self, now: Instant, primary: NodeId) {
        let newcomers: Vec<_> = self
            .ids()
            .filter(|node| self.may_enter(primary, *node))
            .collect();
        if newcomers.is_empty() {
            return;
        }
        let mut set = self.record.in_sync.clone();
        set.extend(newcomers);
        self.changes += 1;
        self.entering = Some(Entering {
            version: self.version(),
            set,
        });
        // The gate closes here before the primary is told to take its sample.
        self.steer();
        self.arm(now, Timer::Enter, self.rules.enter_within);
    }

    fn may_enter(&self, primary: NodeId, node: NodeId) -> bool {
        let Some(lead) = &self.nodes[primary.index()].standing else {
            return false;
        };
        let Some(peer) = lead.peers.get(&node).filter(|peer| peer.connected) else {
            return false;
        };
        let current = lead.epoch == self.record.epoch && lead.role == shared::model::Role::Primary;
        let same_history = lead.tip.0.iter().all(|(source, tip)| {
            peer.durable
                .0
                .get(source)
                .is_some_and(|at| at.generation == tip.generation)
        });
        let near = same_history && peer.durable.behind(&lead.tip) <= ENTRANCE_BEHIND_MOST;
        node != primary && current && near && !self.record.in_sync.contains(&node)
    }

    pub(super) fn entered(&mut self) {
        self.entering = None;
        self.timers.remove(&Timer::Enter);
        self.effects
            .push_back(Effect::Tell(Event::InSync(self.record.in_sync.clone())));
    }

    /// The newcomer did not reach the sample in time: nobody waits for it any more.
    pub(super) fn leave_entrance(&mut self, now: Instant) {
        if self.drop_entrance() {
            self.arm(now, Timer::EnterRest, self.rules.enter_within);
        }
    }

    /// Gives up an entrance. Returns whether there was one. One that is being written down can no longer be given up: the
    /// record may be on disk already, so nothing may be released without the newcomer any more.
    pub(super) fn drop_entrance(&mut self) -> bool {
        self.timers.remove(&Timer::Enter);
        if matches!(self.writing, Some((_, Then::Enter))) {
            return false;
        }
        let dropped = self.entering.take().is_some();
        if dropped {
            self.changes += 1;
        }
        dropped
    }

    pub(super) fn handle_ack_timeout(&mut self, now: Instant, epoch: Epoch) {
        let live = matches!(
            self.phase,
            Phase::Serving | Phase::Suspect { .. } | Phase::Draining { .. }
        );
        if epoch != self.record.epoch || !live || self.writing.is_some() {
            return;
        }
        let Durability::StandbyAck {
            on_timeout: OnAckTimeout::Degrade,
            ..
        } = self.rules.durability
        else {
            return;
        };
        if self.entering.is_some() {
            return self.leave_entrance(now);
        }
        if self.record.in_sync.is_empty() {
            return;
        }
        let keep = self.prompt_members();
        let late: Vec<_> = self
            .record
            .in_sync
            .difference(&keep)
            .map(|node| self.name(*node))
            .collect();
        let why = format!("{} did not acknowledge in time", late.join(", "));
        let record = Record {
            in_sync: keep,
            ..self.record.clone()
        };
        self.write(record, Then::Shrink { why });
        self.arm(now, Timer::EnterRest, self.rules.enter_within);
    }

    /// The members that have all that the primary had when it last spoke; nobody if that explains no delay.
    fn prompt_members(&self) -> BTreeSet<NodeId> {
        let lead = self
            .record
            .primary
            .and_then(|primary| self.nodes[primary.index()].standing.as_ref());
        let Some(lead) = lead else {
            return BTreeSet::new();
        };
        let prompt = |node: &&NodeId| {
            lead.peers
                .get(node)
                .is_some_and(|peer| peer.connected && peer.durable.covers(&lead.tip))
        };
        let keep: BTreeSet<_> = self.record.in_sync.iter().filter(prompt).copied().collect();
        if keep == self.record.in_sync {
            BTreeSet::new()
        } else {
            keep
        }
    }

    pub(super) fn shrunk(&mut self, why: String) {
        self.changes += 1;
        self.effects.push_back(Effect::Tell(Event::Degraded(
            self.record.in_sync.clone(),
            why,
        )));
    }
}
