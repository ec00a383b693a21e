//! Everything that the checker distinguishes: machines, disks, wires, clients, and what was promised to them.

use std::collections::{BTreeMap, BTreeSet};

use proxy::logic::NodeId;
use proxy::logic::failover::{Failover, Input, Record, Steer};
use shared::api::Version;
use shared::model::{Epoch, Positions};
use syncd::logic::gate::Gate;

use crate::fault::Limits;
use crate::node::Node;

/// The nodes' names.
pub(crate) const NAMES: [&str; 2] = ["a", "b"];
/// The nodes.
pub(crate) const NODES: [NodeId; 2] = [NodeId(0), NodeId(1)];

/// The one that is not `node`.
pub(crate) const fn other(node: NodeId) -> NodeId {
    NodeId(1 - node.0)
}

/// A message on its way. One that is never delivered is a lost one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    /// An order to a node.
    Seal(NodeId, Epoch),
    /// An order to lead.
    Lead(NodeId, Epoch, Version, BTreeSet<NodeId>),
    /// An order to follow.
    Follow(NodeId, Epoch, NodeId, bool),
    /// An acknowledgement: from the standby, in a session of this epoch.
    Ack(NodeId, Epoch, Positions),
    /// A barrier for a write, admitted in this epoch.
    Barrier(NodeId, u8, Epoch),
    /// Its answer, with the position that was reached.
    Passed(u8, Epoch, Positions),
}

impl Message {
    pub(crate) const fn is_order(&self) -> bool {
        matches!(self, Self::Seal(..) | Self::Lead(..) | Self::Follow(..))
    }

    /// The node that it goes to, unless that is the proxy.
    pub(crate) const fn to(&self) -> Option<NodeId> {
        match self {
            Self::Seal(at, ..)
            | Self::Lead(at, ..)
            | Self::Follow(at, ..)
            | Self::Barrier(at, ..) => Some(*at),
            Self::Ack(from, ..) => Some(other(*from)),
            Self::Passed(..) => None,
        }
    }
}

/// How far a client's write has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    /// On its way to the application, or inside it.
    Sent,
    /// Committed; the application's answer is on its way.
    Done,
    /// The answer has come; it is at the gate.
    Answered,
    /// A barrier was asked for.
    Waiting,
    /// Its connection broke because the application died.
    Lost,
}

/// A client's write under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Request {
    pub(crate) id: u8,
    pub(crate) node: NodeId,
    pub(crate) epoch: Epoch,
    pub(crate) stage: Stage,
    /// The primary's newest position that the proxy had heard in that epoch before it sent this.
    pub(crate) known: Option<Positions>,
    /// The proxy that admitted it is gone, or has given it up: its answer reaches nobody.
    pub(crate) orphan: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub(crate) arbiter: Option<Failover>,
    pub(crate) disk: Record,
    /// The record before the last one.
    pub(crate) older: Record,
    pub(crate) writing: Option<Record>,
    pub(crate) view: Option<Steer>,
    /// Requests of epochs below this one are given up.
    pub(crate) floor: Epoch,
    pub(crate) nodes: [Node; 2],
    pub(crate) wire: BTreeSet<Message>,
    /// Something that a node said, held up on the way.
    pub(crate) late: Option<Input>,
    /// The node whose reports are held up: the first that says something new becomes `late`, and the others queue behind it.
    pub(crate) muted: Option<NodeId>,
    /// The node that the arbiter cannot reach, nor it the arbiter.
    pub(crate) cut: Option<NodeId>,
    /// The node whose application seems to hang.
    pub(crate) hung: Option<NodeId>,
    /// Barriers that wait at a node: (node, write, epoch asked about, sample).
    pub(crate) barriers: BTreeSet<(NodeId, u8, Epoch, Positions)>,
    pub(crate) requests: Vec<Request>,
    /// The newest position of the primary that the proxy has heard, and in which epoch.
    pub(crate) known: Option<(Epoch, Positions)>,
    pub(crate) begun: u8,
    pub(crate) executed: BTreeSet<u8>,
    pub(crate) acked: BTreeSet<u8>,
    /// Those of them that no standby was waited for.
    pub(crate) alone: BTreeSet<u8>,
    /// Who committed writes in an epoch, as its leader.
    pub(crate) writers: BTreeMap<Epoch, NodeId>,
    /// Writes that were on a disk after the last step.
    pub(crate) stood: BTreeSet<u8>,
    pub(crate) spent: Limits,
    pub(crate) broken: Option<&'static str>,
}

impl World {
    /// Nothing has happened yet.
    pub(crate) fn new() -> Self {
        Self {
            arbiter: None,
            disk: Record::default(),
            older: Record::default(),
            writing: None,
            view: None,
            floor: Epoch(0),
            nodes: NAMES.map(Node::new),
            wire: BTreeSet::new(),
            late: None,
            muted: None,
            cut: None,
            hung: None,
            barriers: BTreeSet::new(),
            requests: Vec::new(),
            known: None,
            begun: 0,
            executed: BTreeSet::new(),
            acked: BTreeSet::new(),
            alone: BTreeSet::new(),
            writers: BTreeMap::new(),
            stood: BTreeSet::new(),
            spent: Limits::default(),
            broken: None,
        }
    }

    pub(crate) fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node.index()]
    }

    pub(crate) fn node_mut(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.index()]
    }

    pub(crate) fn gate(&mut self, node: NodeId) -> Option<&mut Gate> {
        self.node_mut(node).syncd.as_mut()?.gate.as_mut()
    }

    /// Whether the proxy and the node can talk.
    pub(crate) fn reaches(&self, node: NodeId) -> bool {
        self.arbiter.is_some() && self.cut != Some(node)
    }

    /// The node that leads the newest epoch on record, if it does.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leads = |at: &NodeId| self.node(*at).leads() == Some(self.disk.epoch);
        NODES.into_iter().find(leads)
    }

    pub(crate) fn send(&mut self, message: Message) {
        if let Message::Ack(from, epoch, _) = &message {
            // Acknowledgements of one session overtake each other only in the sense that the last one counts.
            self.wire.retain(
                |sent| !matches!(sent, Message::Ack(by, at, _) if by == from && at == epoch),
            );
        }
        self.wire.insert(message);
    }

    pub(crate) fn ack(&mut self, id: u8) {
        self.requests.retain(|request| request.id != id);
        self.acked.insert(id);
    }

    /// Released on the primary's word alone: what its machine loses after that, it has lost by itself.
    pub(crate) fn ack_alone(&mut self, id: u8) {
        self.requests.retain(|request| request.id != id);
        if self.is_somewhere(id) {
            self.acked.insert(id);
            self.alone.insert(id);
        }
    }

    /// Whether any database, or copy of diverged writes, has it.
    pub(crate) fn is_somewhere(&self, id: u8) -> bool {
        self.nodes
            .iter()
            .any(|node| node.preserved.contains(&id) || node.has(id))
    }

    /// The machine dies before its disk has everything.
    pub(crate) fn lose_unsynced(&mut self, at: NodeId) {
        let node = self.node_mut(at);
        node.lost_some = node.lost_some || node.synced < node.data.len();
        node.data.truncate(node.synced);
        let excused: Vec<_> = self
            .alone
            .iter()
            .copied()
            .filter(|id| !self.is_somewhere(*id))
            .collect();
        self.acked.retain(|id| !excused.contains(id));
        // A machine that forgets a write has not executed it.
        let forgotten: Vec<_> = self
            .executed
            .iter()
            .copied()
            .filter(|id| !self.is_somewhere(*id))
            .collect();
        self.executed.retain(|id| !forgotten.contains(id));
    }

    pub(crate) fn learn(&mut self, epoch: Epoch, position: Positions) {
        let newer = |(known, at): &(Epoch, Positions)| {
            epoch > *known || (epoch == *known && position.behind(at) == 0)
        };
        if self.known.as_ref().is_none_or(newer) {
            self.known = Some((epoch, position));
        }
    }

    pub(crate) fn lose_app(&mut self, at: NodeId) {
        let node = self.node_mut(at);
        node.app = false;
        node.inside = None;
        self.hung = self.hung.filter(|hung| *hung != at);
        let there = |request: &&mut Request| {
            request.node == at && matches!(request.stage, Stage::Sent | Stage::Done)
        };
        for request in self.requests.iter_mut().filter(there) {
            request.stage = Stage::Lost;
        }
        self.requests
            .retain(|request| !(request.orphan && request.stage == Stage::Lost));
    }

    pub(crate) fn lose_syncd(&mut self, at: NodeId) {
        self.node_mut(at).syncd = None;
        self.barriers.retain(|(node, ..)| *node != at);
        for node in &mut self.nodes {
            if let Some(syncd) = &mut node.syncd {
                syncd.session = None;
            }
        }
        // What was said in its sessions is lost with them.
        self.wire
            .retain(|message| !matches!(message, Message::Ack(..)));
    }

    pub(crate) fn lose_proxy(&mut self) {
        self.arbiter = None;
        self.writing = None;
        self.view = None;
        self.floor = Epoch(0);
        self.known = None;
        self.late = None;
        self.muted = None;
        self.requests.retain(|request| request.stage == Stage::Sent);
        self.requests
            .iter_mut()
            .for_each(|request| request.orphan = true);
        self.wire
            .retain(|message| !matches!(message, Message::Passed(..) | Message::Barrier(..)));
    }

    /// What went wrong, if anything did.
    #[must_use]
    pub const fn broken(&self) -> Option<&'static str> {
        self.broken
    }
}
