//! The proxy's side: the machine that decides, its disk, and what reaches it.

use std::sync::Arc;

use proxy::logic::NodeId;
use proxy::logic::failover::{
    App, Effect, Failover, FollowOrder, Gate as GateState, Input, LeadOrder, PeerStanding, Record,
    Standing as Seen,
};
use shared::model::Role;

use crate::fault::Fault;
use crate::step::{CLUSTER, Wire};
use crate::world::{Message, NODES, World, other};

impl Wire {
    pub(crate) fn start_proxy(&self, world: &mut World) {
        let forgets = self.has(Fault::DegradeForgotten) && world.older.epoch == world.disk.epoch;
        let in_sync = if forgets {
            &world.older.in_sync
        } else {
            &world.disk.in_sync
        };
        let record = Record {
            in_sync: in_sync.clone(),
            ..world.disk.clone()
        };
        world.arbiter = Some(Failover::new(Arc::clone(&self.rules), record, CLUSTER));
        self.carry_out(world);
    }

    pub(crate) fn input(&self, world: &mut World, input: Input) {
        if let Some(arbiter) = &mut world.arbiter {
            arbiter.handle_input(self.now, input);
            self.carry_out(world);
        }
    }

    pub(crate) fn carry_out(&self, world: &mut World) {
        while let Some(effect) = world.arbiter.as_mut().and_then(Failover::poll_effect) {
            match effect {
                Effect::Persist(record) => self.persist(world, record),
                Effect::Seal(node, epoch) => world.send(Message::Seal(node, epoch)),
                Effect::Lead(
                    node,
                    LeadOrder {
                        epoch,
                        version,
                        required,
                        ..
                    },
                ) => {
                    world.send(Message::Lead(node, epoch, version, required));
                }
                Effect::Follow(
                    node,
                    FollowOrder {
                        epoch,
                        primary,
                        overwrite,
                    },
                ) => {
                    world.send(Message::Follow(node, epoch, primary, overwrite));
                }
                Effect::Steer(mut steer) => {
                    let alone = world.disk.in_sync.is_empty() && steer.epoch == world.disk.epoch;
                    if self.has(Fault::EnterWithOpenGate)
                        && alone
                        && steer.gate == GateState::Barrier
                    {
                        steer.gate = GateState::Open;
                    }
                    world.view = Some(steer);
                }
                Effect::Abandon(epoch) => world.floor = world.floor.max(epoch),
                Effect::AwaitDrain | Effect::Alert(..) | Effect::Tell(_) | Effect::Answer(..) => (),
            }
        }
    }

    fn persist(&self, world: &mut World, record: Record) {
        world.writing = Some(record.clone());
        if self.has(Fault::SpeakBeforePersist)
            && let Some(arbiter) = &mut world.arbiter
        {
            // The machine is told that it is on disk; it is not, until the disk gets round to it.
            arbiter.handle_input(self.now, Input::Persisted(Ok(record)));
        }
    }

    pub(crate) fn disk_writes(&self, world: &mut World) {
        let Some(record) = world.writing.take() else {
            return;
        };
        world.older = std::mem::replace(&mut world.disk, record.clone());
        self.input(world, Input::Persisted(Ok(record)));
    }

    /// What the arbiter would hear of `node` now.
    pub(crate) fn report_of(&self, world: &World, node: NodeId) -> Option<Seen> {
        let leads = world.node(node).leads();
        let session = world
            .node(other(node))
            .syncd
            .as_ref()
            .and_then(|syncd| syncd.session);
        let connected = leads.is_some() && leads == session;
        let durable = world.node(other(node)).position();
        let peer = PeerStanding {
            connected,
            durable,
            lag_bytes: Some(0),
            lag_millis: Some(0),
        };
        let mut seen = world
            .node(node)
            .report(leads.map(|_| (other(node), peer)))?;
        if self.has(Fault::EnterWithoutSample)
            && let Some((_, reached)) = &mut seen.gate
        {
            *reached = true;
        }
        Some(seen)
    }

    /// Reports and probes reach the arbiter as soon as something has changed, unless they are cut off or held up.
    pub(crate) fn keep_told(&self, world: &mut World) {
        for _ in 0..6 {
            let before = world.arbiter.clone();
            for at in NODES {
                self.tell_standing(world, at);
                self.tell_health(world, at);
            }
            if world.arbiter == before {
                return;
            }
        }
    }

    fn tell_standing(&self, world: &mut World, at: NodeId) {
        let Some(arbiter) = &world.arbiter else {
            return;
        };
        let seen = self.report_of(world, at).filter(|_| world.reaches(at));
        if arbiter.standing(at) == seen.as_ref() {
            return;
        }
        match seen {
            Some(seen) if world.muted == Some(at) => {
                world.late.get_or_insert(Input::Report(at, seen));
            }
            Some(seen) => {
                if seen.role == Role::Primary {
                    world.learn(seen.epoch, seen.tip.clone());
                }
                self.input(world, Input::Report(at, seen));
            }
            None => self.input(world, Input::Silent(at)),
        }
    }

    fn tell_health(&self, world: &mut World, at: NodeId) {
        let Some(arbiter) = &world.arbiter else {
            return;
        };
        let up = world.node(at).app && world.reaches(at) && world.hung != Some(at);
        let app = if up { App::Up } else { App::Down };
        if arbiter.app(at).0 != app {
            self.input(world, Input::Health(at, app, String::new()));
        }
    }

    /// [`Fault::ReachedUnversioned`]: "reached" is taken to be about whatever was ordered last.
    pub(crate) fn restamp(&self, world: &World, input: Input) -> Input {
        match input {
            Input::Report(at, mut seen) if self.has(Fault::ReachedUnversioned) => {
                let ordered = world.wire.iter().filter_map(|message| match message {
                    Message::Lead(to, _, version, _) if *to == at => Some(*version),
                    _ => None,
                });
                if let (Some(newest), Some((stamp, _))) = (ordered.max(), &mut seen.gate) {
                    *stamp = newest;
                }
                Input::Report(at, seen)
            }
            input => input,
        }
    }
}
