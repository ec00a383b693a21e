//! One node: an application with a database, and a syncd beside it.

use std::collections::BTreeSet;

use proxy::logic::NodeId;
use proxy::logic::failover::{PeerStanding, Standing as Seen};
use shared::api::Lead;
use shared::model::{Epoch, Position, Positions, Role};
use syncd::logic::gate::Gate;
use syncd::logic::station::{Held, Standing, Station};

use crate::world::{NAMES, NODES};

/// One committed write: what it is, and the epoch in which it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Write {
    pub(crate) id: u8,
    pub(crate) epoch: Epoch,
}

/// What a running syncd holds in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Syncd {
    pub(crate) station: Station,
    pub(crate) gate: Option<Gate>,
    /// It holds the database's write lock.
    pub(crate) locked: bool,
    /// The epoch of its session with its primary.
    pub(crate) session: Option<Epoch>,
    /// Where the former primary ended, as that said.
    pub(crate) heard: Option<Positions>,
    /// The arbiter has told this process to lead.
    pub(crate) told_to_lead: bool,
    /// It cannot prove that its database is what it vouched for before its machine died.
    pub(crate) unproved: bool,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    /// The application runs.
    pub(crate) app: bool,
    /// A write that the application has begun and not committed: it holds the write lock.
    pub(crate) inside: Option<u8>,
    pub(crate) syncd: Option<Syncd>,
    /// What syncd has on disk.
    pub(crate) held: Held,
    /// The last order to lead that was obeyed.
    pub(crate) led: Option<Lead>,
    /// The newest epoch for which it has answered that it is sealed.
    pub(crate) sealed_for: Epoch,
    /// The database.
    pub(crate) data: Vec<Write>,
    /// How many of those writes survive the death of the machine.
    pub(crate) synced: usize,
    /// Diverged writes kept aside.
    pub(crate) preserved: BTreeSet<u8>,
    /// The machine died and lost writes, and syncd has not started since.
    pub(crate) lost_some: bool,
}

impl Node {
    /// A node that never belonged to a cluster, with everything running.
    pub(crate) fn new(name: &str) -> Self {
        let mut node = Self {
            app: true,
            inside: None,
            syncd: None,
            held: Held::default(),
            led: None,
            sealed_for: Epoch(0),
            data: Vec::new(),
            synced: 0,
            preserved: BTreeSet::new(),
            lost_some: false,
        };
        node.boot(name);
        node
    }

    /// Starts syncd with what it has on disk.
    pub(crate) fn boot(&mut self, name: &str) {
        let station = Station::new(name, self.held.clone());
        let locked = *station.standing() == Standing::Sealed && self.inside.is_none();
        let unproved = std::mem::take(&mut self.lost_some) && station.has_led();
        let (gate, session, heard) = (None, None, None);
        let told_to_lead = false;
        self.syncd = Some(Syncd {
            station,
            gate,
            locked,
            session,
            heard,
            told_to_lead,
            unproved,
        });
    }

    /// Where the database stands.
    pub(crate) fn position(&self) -> Positions {
        let epoch = self.data.last().map_or(Epoch(0), |write| write.epoch);
        let position = Position {
            epoch,
            generation: 0,
            seq: self.data.len() as u64,
        };
        Positions([("db".to_owned(), position)].into())
    }

    pub(crate) fn has(&self, id: u8) -> bool {
        self.data.iter().any(|write| write.id == id)
    }

    /// The epoch it leads.
    pub(crate) fn leads(&self) -> Option<Epoch> {
        self.syncd.as_ref()?.station.leads().map(|lead| lead.epoch)
    }

    /// Whether the application could begin a write now.
    pub(crate) fn may_write(&self) -> bool {
        self.app && self.inside.is_none() && self.syncd.as_ref().is_none_or(|syncd| !syncd.locked)
    }

    /// What its syncd reports, given what it knows of its standby.
    pub(crate) fn report(&self, peer: Option<(NodeId, PeerStanding)>) -> Option<Seen> {
        let syncd = self.syncd.as_ref()?;
        let held = syncd.station.held();
        let id = |name: &str| NODES.into_iter().find(|node| NAMES[node.index()] == name);
        let (role, primary) = match syncd.station.standing() {
            Standing::Free => (Role::None, None),
            Standing::Sealed => (
                Role::Fenced,
                held.last.as_ref().and_then(|last| id(&last.name)),
            ),
            Standing::Leading(_) => (Role::Primary, None),
            Standing::Following(follow) => {
                let role = if syncd.session.is_some() {
                    Role::Standby
                } else {
                    Role::Rejoining
                };
                (role, id(&follow.primary))
            }
        };
        let gate = syncd.gate.as_ref().map(Gate::report);
        Some(Seen {
            run: 0,
            cluster: held.cluster,
            epoch: held.epoch,
            role,
            primary,
            fenced: syncd.locked,
            tip: self.position(),
            durable: self.position(),
            applied: Positions::default(),
            heard: syncd.heard.clone(),
            gate: gate.map(|gate| (gate.version, gate.reached)),
            peers: peer.into_iter().collect(),
            content: (role == Role::None).then(Default::default),
            unfit: syncd.unproved.then(|| "its machine died".to_owned()),
        })
    }
}
