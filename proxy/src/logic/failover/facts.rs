//! What is known of each node: what probes, workers and its own reports say.

use std::collections::BTreeMap;
use std::time::Instant;

use shared::api::{Content, Version};
use shared::model::{ClusterId, Epoch, Positions, Role};

use crate::logic::NodeId;

/// A health verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum App {
    /// Not judged yet.
    #[default]
    Unknown,
    /// It answers its health checks.
    Up,
    /// It fails them.
    Down,
}

/// A standby as its primary reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerStanding {
    /// Whether its stream is up.
    pub connected: bool,
    /// What it has on disk.
    pub durable: Positions,
    /// Bytes it lacks; `None` is unknown.
    pub lag_bytes: Option<u64>,
    /// Age in milliseconds of the oldest commit it lacks; `None` is unknown.
    pub lag_millis: Option<u64>,
}

/// A node's report, reduced to what decisions need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Standing {
    /// Changes when the process restarts.
    pub run: u64,
    /// The cluster it belongs to.
    pub cluster: Option<ClusterId>,
    /// The newest epoch it has seen.
    pub epoch: Epoch,
    /// What it does.
    pub role: Role,
    /// Whom it follows.
    pub primary: Option<NodeId>,
    /// Whether its application cannot write.
    pub fenced: bool,
    /// The newest position it captured, or heard of.
    pub tip: Positions,
    /// What it would keep after a crash.
    pub durable: Positions,
    /// What its readers see.
    pub applied: Positions,
    /// The former primary's last position, heard from that primary itself in the current epoch.
    pub heard: Option<Positions>,
    /// The state of its gate and whether it is reached.
    pub gate: Option<(Version, bool)>,
    /// Its standbys.
    pub peers: BTreeMap<NodeId, PeerStanding>,
    /// What it holds, if it never belonged to a cluster.
    pub content: Option<Content>,
    /// Why it must not be promoted.
    pub unfit: Option<String>,
}

/// An order that has been sent and not been answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asked {
    Lead(Epoch, Version),
    Follow(Epoch),
}

/// What requests, and knocks at its port, say of an application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Signs {
    /// Its port refuses connections.
    pub(super) refusing: bool,
    /// Its breaker is open.
    pub(super) broken: bool,
    /// Requests wait there and none is answered.
    pub(super) stalled: bool,
}

/// All that is known of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    /// Its application, by probes.
    pub(super) app: App,
    /// Why it is down, as the probe said.
    pub(super) app_why: String,
    /// Its application, by requests and knocks.
    pub(super) signs: Signs,
    /// Its latest report; `None` while its syncd is silent.
    pub(super) standing: Option<Standing>,
    /// When the latest report came, also when it is silent since.
    pub(super) heard_at: Option<Instant>,
    /// The latest report it ever made.
    pub(super) last: Option<Standing>,
    /// The order under way.
    pub(super) asked: Option<Asked>,
    /// An operator has taken it out.
    pub(super) draining: bool,
    /// An order failed: wait for its next report or the rest to be over.
    pub(super) resting: bool,
}

/// What is wrong with a primary's application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// Its port refuses connections.
    Crash,
    /// It fails its health checks.
    Hang,
    /// Its breaker is open.
    Breaker,
    /// Requests wait there and none is answered. Not enough to replace it, enough to send it no more of them.
    Stall,
}

impl Trouble {
    /// The word that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::Breaker => "breaker",
            Self::Stall => "stall",
        }
    }
}

impl Facts {
    /// What is wrong with the application, if anything.
    pub(super) const fn trouble(&self) -> Option<Trouble> {
        if self.signs.refusing {
            Some(Trouble::Crash)
        } else if matches!(self.app, App::Down) {
            Some(Trouble::Hang)
        } else if self.signs.broken {
            Some(Trouble::Breaker)
        } else if self.signs.stalled {
            Some(Trouble::Stall)
        } else {
            None
        }
    }

    /// The latest report, if the node may be given an order now.
    pub(super) fn free_to_be_asked(&self) -> Option<&Standing> {
        self.standing
            .as_ref()
            .filter(|_| self.asked.is_none() && !self.resting)
    }

    /// Whether requests could be answered here.
    pub(super) const fn is_up(&self) -> bool {
        matches!(self.app, App::Up) && !self.signs.refusing
    }
}
