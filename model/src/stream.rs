//! Between the two syncds: greeting, increments, acknowledgements, barriers, rejoin.

use proxy::logic::NodeId;
use shared::model::{Epoch, Positions};
use syncd::logic::station::Standing;

use crate::fault::Fault;
use crate::node::Write;
use crate::step::{CLUSTER, Wire};
use crate::world::{Message, NAMES, World, other};

impl Wire {
    /// The node `at` fetches from the other: greets, is found to be a prefix or made one, takes the next write.
    pub(crate) fn pull(&self, world: &mut World, at: NodeId) -> Option<()> {
        if self.has(Fault::NoPromise) && self.pull_by_old_session(world, at).is_some() {
            return Some(());
        }
        let from = other(at);
        let (epoch, following) = self.whom_to_greet(world, at)?;
        let theirs = &world.node(from).syncd.as_ref()?.station;
        if epoch > theirs.held().epoch {
            // A greeting with a newer epoch seals the one that hears it.
            let decision = theirs.handle_seal(CLUSTER, epoch).ok()?;
            self.obey(world, from, decision, true);
            return Some(());
        }
        theirs.handle_greeting(CLUSTER, epoch).ok()?;
        self.sync_captured(world, from);
        let greeted = world.node(at).syncd.as_ref()?.session == Some(epoch);
        self.advance(world, at, following, greeted)?;
        let theirs = world.node(from).syncd.as_ref()?;
        let ended = theirs.locked && !theirs.unproved && theirs.station.leads().is_none();
        let end = ended.then(|| world.node(from).position());
        let syncd = world.node_mut(at).syncd.as_mut()?;
        syncd.session = Some(epoch);
        syncd.heard = end.or_else(|| syncd.heard.take());
        let position = world.node(at).position();
        world.send(Message::Ack(at, epoch, position));
        Some(())
    }

    /// In which epoch `at` would greet the other, and whether it has been told to follow it.
    fn whom_to_greet(&self, world: &World, at: NodeId) -> Option<(Epoch, bool)> {
        // A node that cannot keep its own application from writing cannot be a copy of another.
        let mine = &world
            .node(at)
            .syncd
            .as_ref()
            .filter(|syncd| syncd.locked)?
            .station;
        let theirs = NAMES[other(at).index()];
        match mine.standing() {
            Standing::Following(follow) if follow.primary == theirs => Some((follow.epoch, true)),
            Standing::Sealed if mine.held().last.as_ref()?.name == theirs => {
                Some((mine.held().epoch, false))
            }
            Standing::Free | Standing::Sealed | Standing::Leading(_) | Standing::Following(_) => {
                None
            }
        }
    }

    /// One step towards being a copy.
    fn advance(&self, world: &mut World, at: NodeId, following: bool, greeted: bool) -> Option<()> {
        let source = world.node(other(at)).data.clone();
        let held = &world.node(at).data;
        let by_content = source.starts_with(held);
        let is_prefix =
            by_content || (self.has(Fault::PositionWithoutContent) && held.len() <= source.len());
        if !is_prefix {
            let may_overwrite = following && world.node(at).syncd.as_ref()?.locked;
            may_overwrite.then(|| self.resync(world, at, &source))?;
        } else if let Some(next) = source.get(held.len()).filter(|_| greeted) {
            world.node_mut(at).data.push(*next);
        }
        if !self.has(Fault::AckBeforeDurable) {
            let node = world.node_mut(at);
            node.synced = node.data.len();
        }
        world.node_mut(at).syncd.as_mut()?.unproved = false;
        Some(())
    }

    fn resync(&self, world: &mut World, at: NodeId, source: &[Write]) {
        let keep = !self.has(Fault::NoPreserve);
        let node = world.node_mut(at);
        let diverged = node
            .data
            .iter()
            .filter(|write| keep && !source.contains(write))
            .map(|write| write.id);
        node.preserved.extend(diverged);
        node.data = source.to_vec();
        node.synced = node.data.len();
    }

    /// [`Fault::NoPromise`]: the standby has moved on, its session has not.
    fn pull_by_old_session(&self, world: &mut World, at: NodeId) -> Option<()> {
        let syncd = world.node(at).syncd.as_ref()?;
        let session = syncd
            .session
            .filter(|session| *session < syncd.station.held().epoch)?;
        if world.node(other(at)).leads() != Some(session) {
            return None;
        }
        let position = world.node(other(at)).position();
        world.send(Message::Ack(at, session, position));
        Some(())
    }

    pub(crate) fn handle_ack(
        &self,
        world: &mut World,
        from: NodeId,
        epoch: Epoch,
        durable: Positions,
    ) {
        let at = other(from);
        if world.node(at).leads() == Some(epoch)
            && let Some(gate) = world.gate(at)
        {
            gate.handle_durable(NAMES[from.index()], durable);
        }
    }

    pub(crate) fn handle_barrier(&self, world: &mut World, at: NodeId, id: u8, epoch: Epoch) {
        self.sync_captured(world, at);
        let sample = world.node(at).position();
        let leads = world.node(at).leads();
        if leads == Some(epoch) || (leads.is_some() && self.has(Fault::BarrierUnbound)) {
            world.barriers.insert((at, id, epoch, sample));
        }
    }

    /// A barrier that waits at `at` is satisfied.
    pub(crate) fn pass(&self, world: &mut World, at: NodeId, id: u8) -> Option<()> {
        let barrier = world
            .barriers
            .iter()
            .find(|(node, write, ..)| *node == at && *write == id)?
            .clone();
        let (_, _, epoch, sample) = &barrier;
        let bound = world.node(at).leads() == Some(*epoch) || self.has(Fault::BarrierUnbound);
        let passes = world.gate(at).is_some_and(|gate| gate.passes(sample));
        if !(bound && passes) {
            return None;
        }
        world.send(Message::Passed(id, *epoch, sample.clone()));
        world.barriers.remove(&barrier);
        Some(())
    }
}
