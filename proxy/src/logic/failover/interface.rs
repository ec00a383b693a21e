//! What goes into the machine and what comes out: values, nothing else.

use std::collections::BTreeSet;

use shared::api::{Refused, Sealed, Version};
use shared::model::{ClusterId, Epoch, Positions};

use super::facts::{App, Standing, Trouble};
use crate::logic::NodeId;

/// What the arbiter must not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    /// The cluster that it arbitrates, once there is one.
    pub cluster: Option<ClusterId>,
    /// The newest epoch that was decided.
    pub epoch: Epoch,
    /// Who leads in it.
    pub primary: Option<NodeId>,
    /// Standbys that have every acknowledged write of every epoch up to this one.
    pub in_sync: BTreeSet<NodeId>,
    /// How often an arbiter has started from this record.
    pub run: u64,
}

/// Why a primary is, or was, changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its application is in trouble.
    Trouble(Trouble),
    /// An operator asked for a planned change.
    Switchover,
    /// An operator decided.
    Promote,
    /// The preferred node has caught up again.
    Failback,
    /// Somebody has seen a newer epoch than the one on record, or the primary came back without a proof of its data: a
    /// decision must be made anew.
    Restart,
}

impl Cause {
    /// The word that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trouble(trouble) => trouble.as_str(),
            Self::Switchover => "switchover",
            Self::Promote => "promote",
            Self::Failback => "failback",
            Self::Restart => "restart",
        }
    }

    pub(super) const fn is_planned(self) -> bool {
        matches!(self, Self::Switchover | Self::Failback)
    }
}

/// What was lost in a change of primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// Nothing that anybody was told had succeeded: proved.
    None,
    /// At most this many transactions, besides responses released since the primary's position was last known.
    Bounded(u64),
    /// Nothing is known of what the former primary had.
    Unknown,
}

/// Names an operator's order, so that its answer finds its asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrderId(pub u64);

/// What an operator may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// A planned change without a failed request or a lost write; to the best standby when none is named.
    Switchover(Option<NodeId>),
    /// Promote this node now.
    Promote {
        /// The node.
        to: NodeId,
        /// Even when acknowledged writes would be lost.
        accept_loss: bool,
    },
    /// Give this node no requests and do not promote it, until told otherwise; a primary hands over first, as planned.
    Drain(NodeId),
    /// The end of that.
    Undrain(NodeId),
    /// Let this node give up data that has no common history with the cluster's (it is preserved first).
    Rejoin(NodeId),
}

/// How a node answered its sealing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SealAnswer {
    /// It is sealed.
    Sealed(Sealed),
    /// It has seen this epoch already.
    Stale(Epoch),
    /// It was not reached, or failed.
    Failed(String),
}

/// How a node answered an order to lead or to follow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Obeyed {
    /// Done; where it stands.
    Done(Positions),
    /// It refuses, and has seen this epoch.
    Refused(Refused, Epoch),
    /// It was not reached, or failed.
    Failed(String),
}

/// What goes in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// A change of health verdict, with the reason.
    Health(NodeId, App, String),
    /// A connection to the node's application was refused.
    Refused(NodeId),
    /// A connection to it was made.
    Answered(NodeId),
    /// Requests have waited at the node for a while, and none was answered.
    Stalled(NodeId),
    /// It answered a request or a health check.
    Responded(NodeId),
    /// Its breaker opened.
    Broke(NodeId),
    /// Its breaker closed.
    Mended(NodeId),
    /// Its syncd says how it stands.
    Report(NodeId, Standing),
    /// Its syncd cannot be heard.
    Silent(NodeId),
    /// Answer to [`Effect::Seal`].
    Sealed(NodeId, Epoch, SealAnswer),
    /// Answer to [`Effect::Lead`].
    Led(NodeId, Epoch, Version, Obeyed),
    /// Answer to [`Effect::Follow`].
    Followed(NodeId, Epoch, Obeyed),
    /// Answer to [`Effect::Persist`]: this is on disk, or why not.
    Persisted(Result<Record, String>),
    /// No request of the closed view is in flight any more.
    Drained,
    /// A gated response of this epoch has waited as long as it may.
    AckTimeout(Epoch),
    /// An operator's order.
    Order(OrderId, Order),
}

/// What must be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Put this on disk, then say [`Input::Persisted`].
    Persist(Record),
    /// Seal the node: promise, for a standby; fence, for a primary.
    Seal(NodeId, Epoch),
    /// Let the node lead.
    Lead(NodeId, LeadOrder),
    /// Let the node follow.
    Follow(NodeId, FollowOrder),
    /// Put this view in force for requests.
    Steer(Steer),
    /// Give up requests in flight that were admitted in older epochs.
    Abandon(Epoch),
    /// Say [`Input::Drained`] as soon as nothing is in flight.
    AwaitDrain,
    /// Look closely at the node (connection attempts in quick succession), or no longer.
    Alert(NodeId, bool),
    /// Something happened that people should be able to see.
    Tell(Event),
    /// An operator's order is done, or refused.
    Answer(OrderId, Result<String, String>),
}

/// An order to lead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeadOrder {
    /// The epoch.
    pub epoch: Epoch,
    /// Which state of the gate this is.
    pub version: Version,
    /// Whom a barrier waits for.
    pub required: BTreeSet<NodeId>,
    /// What the node must have.
    pub at_least: Positions,
}

/// An order to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FollowOrder {
    /// The epoch.
    pub epoch: Epoch,
    /// The primary.
    pub primary: NodeId,
    /// Whether to give up data without a common history.
    pub overwrite: bool,
}

/// How requests are steered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Steer {
    /// The term in force.
    pub epoch: Epoch,
    /// Who takes requests.
    pub target: Option<NodeId>,
    /// Who takes safe ones while nobody takes all.
    pub reads: Option<NodeId>,
    /// Who is in doubt, and nobody has begun to replace it: whatever it has at hand it may go on with.
    pub doubted: Option<NodeId>,
    /// What gated responses wait for.
    pub gate: Gate,
    /// The epoch in which requests were last taken before this one, and where its primary ended, if that is known.
    pub settled: Option<(Epoch, Option<Positions>)>,
    /// The phase that users see.
    pub phase: &'static str,
    /// Why requests wait.
    pub why: Option<String>,
}

/// What becomes of the response to a gated request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Gate {
    /// It is released at once: nothing waits for a standby (`async`, or nothing to replicate).
    #[default]
    Off,
    /// It waits for a barrier of the primary's syncd.
    Barrier,
    /// It is released at once, because the arbiter has put on record that no standby is in sync.
    Open,
}

/// What people should be able to see, in the log, the API and the metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The primary's application is in trouble.
    Suspected(NodeId, Trouble, String),
    /// It answers again; nothing was changed.
    Cleared(NodeId),
    /// A change of primary has begun.
    Began(Epoch, Cause),
    /// Nobody can be promoted at this moment, and why.
    Refused(Epoch, &'static str, String),
    /// A change of primary is complete.
    Promoted(Promotion),
    /// A change of primary ended with the same primary.
    Kept(Epoch, NodeId, String),
    /// Both sides were new to each other; this one's data is the cluster's.
    Met(NodeId, String),
    /// A standby entered the in-sync set.
    InSync(BTreeSet<NodeId>),
    /// Writes are released without a standby.
    Degraded(BTreeSet<NodeId>, String),
    /// A node did not obey.
    Disobeyed(NodeId, String),
    /// The record could not be written.
    NotPersisted(String),
    /// An operator's order was not carried out.
    Aborted(String),
    /// An operator has taken the node out, or put it back.
    Draining(NodeId, bool),
}

/// A completed change of primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Promotion {
    /// The new epoch.
    pub epoch: Epoch,
    /// Who led before.
    pub from: Option<NodeId>,
    /// Who leads now.
    pub to: NodeId,
    /// Why.
    pub cause: Cause,
    /// The reason in words.
    pub reason: String,
    /// What was lost.
    pub loss: Loss,
}
