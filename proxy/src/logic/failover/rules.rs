//! What an operator has decided in advance.

use std::time::Duration;

/// One node as the machine knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Its name, for events.
    pub name: String,
    /// Lower is preferred among equally caught-up standbys.
    pub priority: u32,
}

/// Whether a write's response waits for a standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// It does not.
    Async,
    /// It waits until this many standbys have it on disk.
    StandbyAck {
        /// At least one.
        count: usize,
        /// What happens when they do not answer in time.
        on_timeout: OnAckTimeout,
    },
}

/// What becomes of a gated response whose standby does not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnAckTimeout {
    /// The standby is put on record as out of sync, then the response is released.
    Degrade,
    /// The response fails; the write stands on the primary.
    Fail,
}

/// What to do when no standby is close enough to a primary that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TooFarBehind {
    /// Safe methods go to the standby; writes are held, then refused.
    ReadOnly,
    /// Everything is held, then refused.
    Wait,
    /// Promote it, and say what was lost.
    Promote,
}

/// The rules of one service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// The service's name, for the commands that events advise.
    pub service: String,
    /// The nodes, in the order of the configuration.
    pub members: Vec<Member>,
    /// Whether the nodes have a syncd; without one a promotion is a change of routing and nothing else.
    pub replicated: bool,
    /// Whether the machine may promote without being asked.
    pub auto: bool,
    /// What a write's response waits for.
    pub durability: Durability,
    /// How old the last knowledge of a lost primary may be for its standby to be promoted (`async`).
    pub max_lag: Duration,
    /// How many bytes a standby may lack (`async`).
    pub max_lag_bytes: u64,
    /// What to do beyond that.
    pub too_far_behind: TooFarBehind,
    /// Whether to return to the preferred node once it has caught up.
    pub failback: bool,
    /// Least time between promotions that nobody asked for.
    pub min_interval: Duration,
    /// How long connections must have been refused for the application to count as crashed.
    pub crash_after: Duration,
    /// How long a switchover waits for requests under way.
    pub drain_within: Duration,
    /// How long to wait for a former primary to answer its fencing.
    pub seal_within: Duration,
    /// How long to wait for a candidate to fetch what a fenced primary has.
    pub catch_up_within: Duration,
    /// How long a node may take to begin leading before it is asked again.
    pub lead_within: Duration,
    /// How long a standby may take to reach the sample when it enters the in-sync set.
    pub enter_within: Duration,
    /// Rest after a failed attempt of anything that is repeated.
    pub rest: Duration,
    /// How long the decision of a first meeting waits for applications that are still starting.
    pub meet_within: Duration,
    /// How long a starting arbiter waits for the first word of the primary it remembers.
    pub start_within: Duration,
}

impl Rules {
    /// How many standbys must have a write, 0 in `async`.
    #[must_use]
    pub const fn acks(&self) -> usize {
        match self.durability {
            Durability::Async => 0,
            Durability::StandbyAck { count, .. } => count,
        }
    }
}
