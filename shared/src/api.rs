//! What the arbiter and `syncd` say to each other over HTTP, as JSON: orders one way, reports the other.
//!
//! Every order carries the cluster and an epoch. A node that has seen a newer epoch answers [`Refusal`] with that epoch and
//! changes nothing. Orders are idempotent, and late duplicates of older ones are harmless: within an epoch the roles are
//! fixed, and what may change (the gate) is ordered by [`Version`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::{ClusterId, Epoch, Lag, Position, Positions, Role};

/// `POST /v1/promise` and `POST /v1/fence`: nothing of an epoch below this one may change anything here any more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seal {
    /// Whose order it is.
    pub cluster: ClusterId,
    /// The epoch that is about to begin.
    pub epoch: Epoch,
    /// How long to wait for the application to let go of its write lock, in milliseconds, before answering "not fenced yet".
    pub within_ms: u64,
}

/// The answer to [`Seal`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sealed {
    /// The epoch now in force, on disk.
    pub epoch: Epoch,
    /// Whether no application write can happen here any more; only then is `durable` final.
    pub fenced: bool,
    /// Whether `durable` is provably all that this node ever vouched for: not so after its machine went down uncleanly.
    pub proved: bool,
    /// What this node would keep after a crash.
    pub durable: Positions,
    /// The final position of the former primary, if this node heard it from that primary after it was fenced.
    pub heard: Option<Positions>,
}

/// Orders gate changes within one epoch, also across restarts of the arbiter: (restart count, change count).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version(pub u64, pub u64);

/// `POST /v1/lead`: take writes in this epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lead {
    /// Whose order it is.
    pub cluster: ClusterId,
    /// The epoch to lead.
    pub epoch: Epoch,
    /// Which state of the gate this is; older ones are ignored.
    pub version: Version,
    /// Standbys that must have a write on disk before a barrier of this epoch is answered. Never smaller than what the
    /// arbiter remembers as in sync.
    pub required: BTreeSet<String>,
    /// Nothing passes while fewer than this many are required.
    pub acks: usize,
    /// Whether captured commits must be on this node's disk before they count (`durability = "standby-ack"`).
    pub durable: bool,
    /// What this node must have, or it refuses: the point in history that the arbiter decided on.
    pub at_least: Positions,
}

/// The answer to [`Lead`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Led {
    /// Where this epoch begins.
    pub position: Positions,
}

/// `POST /v1/follow`: be a standby of that node in this epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Follow {
    /// Whose order it is.
    pub cluster: ClusterId,
    /// The epoch.
    pub epoch: Epoch,
    /// The primary's name.
    pub primary: String,
    /// Its syncd, as a base URL.
    pub url: String,
    /// Give up data of no common history (it is preserved first). Without it a node that holds such data refuses.
    #[serde(default)]
    pub overwrite: bool,
}

/// The answer to `GET /v1/barrier?epoch=N&within_ms=N`: everything the primary had committed when it was asked is on the disk of
/// every required standby.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// The position that was reached.
    pub position: Positions,
}

/// An answer that changes nothing: 409 when an order is out of date or impossible, 503 when it cannot be done yet, 504 when time ran out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The newest epoch this node has seen.
    pub epoch: Epoch,
    /// Which refusal.
    pub error: Refused,
    /// For a person: what is wrong and what to do.
    pub message: String,
}

/// Which refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refused {
    /// The order's epoch is older than one that this node has seen.
    StaleEpoch,
    /// The order is of another cluster.
    OtherCluster,
    /// The node does not lead, so it cannot answer for a primary.
    NotPrimary,
    /// The node lacks what the order says it must have.
    Behind,
    /// It could not be done in the time allowed.
    Timeout,
    /// The node's disk or database does not let it.
    Failed,
}

/// How a gate stands, in a primary's [`Report`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GateReport {
    /// The state in force.
    pub version: Version,
    /// Whether every required standby has everything that was committed before this state came into force.
    pub reached: bool,
}

/// One standby as its primary sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Whether it is connected for every source.
    pub connected: bool,
    /// On its disk.
    pub durable: Positions,
    /// Visible to its readers.
    pub applied: Positions,
    /// How far behind.
    pub lag: Lag,
}

/// What a node that has never belonged to a cluster holds; decides the first meeting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Content {
    /// Rows in all user tables of all databases, counted up to [`Content::ROWS_COUNTED`] a table.
    pub rows: u64,
    /// Bytes in use.
    pub bytes: u64,
}

impl Content {
    /// Counting stops here, table by table.
    pub const ROWS_COUNTED: u64 = 10_000;
    /// With no more rows than this, what a node holds is taken for what its application writes at boot.
    pub const ROWS_FRESH: u64 = 24;

    /// Whether there is nothing here but what an application writes at boot.
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        self.rows <= Self::ROWS_FRESH
    }
}

/// A node's state, pushed on every change: each line of `GET /v1/watch`, and the head of `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The node's name.
    pub node: String,
    /// Drawn at random at every start of the process: a change of it is a restart.
    pub run: u64,
    /// The cluster it belongs to.
    pub cluster: Option<ClusterId>,
    /// The newest epoch it has seen.
    pub epoch: Epoch,
    /// What it does.
    pub role: Role,
    /// Whom it follows, or last followed.
    pub primary: Option<String>,
    /// Whether the application here cannot write.
    pub fenced: bool,
    /// The newest captured (primary) or heard-of (standby) position.
    pub tip: Positions,
    /// What it would keep after a crash.
    pub durable: Positions,
    /// What its readers see.
    pub applied: Positions,
    /// The former primary's final position as that primary told it, in the current epoch.
    pub heard: Option<Positions>,
    /// How far behind its primary.
    pub lag: Lag,
    /// Its standbys, if it leads.
    pub peers: BTreeMap<String, Peer>,
    /// Its gate, if it leads.
    pub gate: Option<GateReport>,
    /// What it holds, while it belongs to no cluster.
    pub content: Option<Content>,
    /// Why it must not be promoted, if so.
    pub unfit: Option<String>,
}

/// One source in `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// Its kind, as in the configuration.
    pub kind: String,
    /// Newest captured or applied position.
    pub position: Position,
    /// Checksum of the content at that position, as 16 hex digits.
    pub checksum: Option<String>,
    /// How far behind the primary.
    pub lag: Lag,
    /// What it is doing, in a few words.
    pub state: String,
    /// What is wrong, if anything, and what to do.
    pub error: Option<String>,
    /// Bytes done and to do of a snapshot or resync under way.
    pub progress: Option<(u64, u64)>,
    /// Size of the database's write-ahead log, in bytes.
    pub wal_bytes: u64,
}

/// The first position of a term or of an unbroken stretch within it, with the content's checksum there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fork {
    /// Epoch, gen and the seq *after which* it begins.
    pub start: Position,
    /// Checksum of the content at that point.
    pub checksum: u64,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The state that is also pushed.
    #[serde(flatten)]
    pub report: Report,
    /// Source by source.
    pub sources: Vec<SourceStatus>,
    /// The history that makes positions comparable, source by source.
    pub lineage: BTreeMap<String, Vec<Fork>>,
    /// How many sets of diverged writes are kept.
    pub diverged: u64,
}
