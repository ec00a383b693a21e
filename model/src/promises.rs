//! What must never be.

use proxy::logic::NodeId;
use proxy::logic::failover::Durability;
use shared::model::Epoch;

use crate::step::Wire;
use crate::world::{NODES, World, other};

impl Wire {
    /// A leader commits a write.
    pub(crate) fn check_writer(&self, world: &mut World, at: NodeId, epoch: Epoch) {
        if *world.writers.entry(epoch).or_insert(at) != at {
            world.broken = Some("P1: two nodes took writes in one epoch");
        }
        if !world
            .node(at)
            .syncd
            .as_ref()
            .is_some_and(|syncd| syncd.told_to_lead)
        {
            world.broken =
                Some("P1: a node came back and took writes before anybody had told it to");
        }
    }

    /// A node was just told to lead: it must have everything that anybody was told had succeeded.
    pub(crate) fn check_leader(&self, world: &mut World, at: NodeId, epoch: Epoch) {
        if world.node(at).leads() != Some(epoch) {
            return;
        }
        let lacks = |id: &u8| !world.node(at).has(*id);
        if self.rules.durability != Durability::Async
            && epoch >= world.disk.epoch
            && world.acked.iter().any(lacks)
        {
            world.broken = Some("P2: a node leads without a write that was acknowledged");
        }
        if epoch < world.node(at).sealed_for {
            world.broken = Some("P1: a node leads in an epoch that it had promised is over");
        }
        if epoch > world.disk.epoch || (epoch == world.disk.epoch && world.disk.primary != Some(at))
        {
            world.broken = Some("P1: a node leads in an epoch that is not on record");
        }
    }

    /// A barrier has released a write: whoever leads the newest epoch must have it.
    pub(crate) fn check_released(&self, world: &mut World, id: u8) {
        if world.leader().is_some_and(|at| !world.node(at).has(id)) {
            world.broken = Some("P2: a write was acknowledged that the primary does not have");
        }
    }

    /// After every step.
    pub(crate) fn check(&self, world: &mut World) {
        if NODES.into_iter().any(|at| is_no_prefix(world, at)) {
            world.broken = Some("P5: a standby is not a prefix of its primary");
        }
        if !world.acked.iter().all(|id| world.is_somewhere(*id)) {
            world.broken = Some("P3: the only copy of an acknowledged write is gone");
        }
        if !world.stood.iter().all(|id| world.is_somewhere(*id)) {
            world.broken = Some("P3: the only copy of a committed write was overwritten");
        }
        world.stood = world
            .nodes
            .iter()
            .flat_map(|node| node.data.iter().take(node.synced))
            .map(|write| write.id)
            .collect();
    }
}

fn is_no_prefix(world: &World, at: NodeId) -> bool {
    let Some(syncd) = &world.node(at).syncd else {
        return false;
    };
    let held = syncd.station.held().epoch;
    let current = syncd.session == Some(held) && world.node(other(at)).leads() == Some(held);
    current && !world.node(other(at)).data.starts_with(&world.node(at).data)
}
