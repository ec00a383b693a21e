//! Clients' writes: admission, execution, the gate, and replay by proof.

use proxy::logic::NodeId;
use proxy::logic::failover::Gate as GateState;
use shared::model::{Epoch, Positions};

use crate::fault::Fault;
use crate::node::Write;
use crate::step::Wire;
use crate::world::{Message, Request, Stage, World};

impl Wire {
    pub(crate) fn admit(&self, world: &mut World) -> Option<()> {
        let view = world.view.as_ref()?;
        let (node, epoch) = (view.target.filter(|node| world.reaches(*node))?, view.epoch);
        let known = world
            .known
            .as_ref()
            .filter(|(at, _)| *at == epoch)
            .map(|(_, position)| position.clone());
        let id = world.begun;
        world.begun += 1;
        world.requests.push(Request {
            id,
            node,
            epoch,
            stage: Stage::Sent,
            known,
            orphan: false,
        });
        Some(())
    }

    /// The application takes up a write: from here on it holds the write lock.
    pub(crate) fn begin(&self, world: &mut World, id: u8, at: NodeId) -> Option<()> {
        let node = world.node_mut(at);
        if !node.may_write() || node.has(id) {
            return None;
        }
        node.inside = Some(id);
        Some(())
    }

    pub(crate) fn commit(&self, world: &mut World, at: NodeId) -> Option<()> {
        let id = world.node_mut(at).inside.take()?;
        let node = world.node(at);
        let epoch = node
            .syncd
            .as_ref()
            .map_or(node.held.epoch, |syncd| syncd.station.held().epoch);
        if let Some(led) = node.leads() {
            self.check_writer(world, at, led);
        }
        world.node_mut(at).data.push(Write { id, epoch });
        if !world.executed.insert(id) {
            world.broken = Some("P4: a write was executed twice");
        }
        let here = |request: &Request| {
            request.id == id && request.node == at && request.stage == Stage::Sent
        };
        if let Some(request) = world.requests.iter_mut().find(|request| here(request)) {
            request.stage = Stage::Done;
        }
        world
            .requests
            .retain(|request| !(request.orphan && request.stage == Stage::Done));
        Some(())
    }

    /// The application's answer reaches the proxy.
    pub(crate) fn respond(&self, world: &mut World, id: u8) -> Option<()> {
        let done = |request: &&mut Request| request.id == id && request.stage == Stage::Done;
        world.requests.iter_mut().find(done)?.stage = Stage::Answered;
        Some(())
    }

    /// The proxy looks at an answer of the application.
    pub(crate) fn at_gate(&self, world: &mut World, id: u8) -> Option<()> {
        let view = world.view.as_ref()?;
        let (gate, current, floor) = (view.gate, view.epoch, world.floor);
        let unbound = self.has(Fault::ReleaseUnbound);
        let answered = |request: &&mut Request| {
            request.id == id
                && !request.orphan
                && matches!(request.stage, Stage::Answered | Stage::Waiting)
        };
        let request = world.requests.iter_mut().find(answered)?;
        let live = request.epoch >= floor && current == request.epoch;
        match gate {
            GateState::Off | GateState::Open if live || unbound => {
                world.ack_alone(id);
            }
            GateState::Barrier if request.stage == Stage::Answered => {
                request.stage = Stage::Waiting;
                let barrier = Message::Barrier(request.node, id, request.epoch);
                world.send(barrier);
            }
            GateState::Off | GateState::Open | GateState::Barrier => return None,
        }
        Some(())
    }

    pub(crate) fn passed(&self, world: &mut World, id: u8, epoch: Epoch, position: Positions) {
        let waits = |request: &Request| {
            request.id == id && request.stage == Stage::Waiting && !request.orphan
        };
        if world.arbiter.is_some() && world.requests.iter().any(waits) {
            world.learn(epoch, position);
            world.ack(id);
            self.check_released(world, id);
        }
    }

    /// A request whose application died is sent again if nothing was committed there since it was sent.
    pub(crate) fn replay(&self, world: &mut World, id: u8) -> Option<()> {
        let view = world.view.clone()?;
        let floor = world.floor;
        let request = world
            .requests
            .iter_mut()
            .find(|request| request.id == id && !request.orphan)?;
        let abandoned = request.stage == Stage::Sent
            && request.epoch < floor
            && self.has(Fault::ReplayAbandoned);
        let (left, last) = view.settled?;
        let proved = left == request.epoch && last.is_some() && last == request.known;
        if !(proved && (request.stage == Stage::Lost || abandoned)) {
            return None;
        }
        let again = Request {
            id,
            node: view.target?,
            epoch: view.epoch,
            stage: Stage::Sent,
            known: None,
            orphan: false,
        };
        if abandoned {
            request.orphan = true;
            world.requests.push(again);
        } else {
            *request = again;
        }
        Some(())
    }
}
