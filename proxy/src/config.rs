//! What the operator decided: `hotwarm.toml` read as a [`file::File`], checked into [`Settings`] with every fault named at
//! once, by file, line, column and key.
//!
//! Nobody else reads the file or knows a default. What can be written but is not built yet is refused, never ignored.

mod change;
mod check;
mod defaults;
mod endpoint;
mod file;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use shared::call::Peer;
pub use shared::config::ConfigError;
use shared::telemetry::Log;

pub use self::change::{Change, Next};
pub use self::endpoint::{Address, Endpoint};
pub use self::file::{
    AccessFormat, Durability, Failback, Mode, OnAckTimeout, OnTooFarBehind, Reads,
};
use crate::logic::NodeId;
use crate::logic::balance::Policy;
use crate::logic::breaker::BreakerLimits;
use crate::logic::health::{Patience, Statuses};
pub use crate::logic::network::Network;
use crate::logic::route::HostPattern;
use crate::logic::tier::Tiers;
use crate::tls::{Clients, Loaded};

/// Reads and checks `path`.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn load(path: &Path) -> Result<Settings, ConfigError> {
    let (file, problems) = shared::config::read(path)?;
    check::settings(path, file, problems)
}

/// Reads and checks `path` again, and compares it with what is in force.
///
/// # Errors
/// As [`load`], and everything that cannot be changed while the program runs.
pub fn reload(path: &Path, now: &Settings) -> Result<(Settings, Change), ConfigError> {
    let next = load(path)?;
    match Change::between(now, &next) {
        Ok(change) => Ok((next, change)),
        Err(fixed) => {
            let (_, mut problems) = shared::config::read::<file::File>(path)?;
            for (key, why) in fixed {
                problems.note(key, why);
            }
            problems.finish((next, Change::default()))
        }
    }
}

/// Reads `text` without asking what it means, or whether that can be had.
///
/// # Errors
/// It has not the form.
pub fn form(text: String) -> Result<(), ConfigError> {
    let name = Path::new("hotwarm.toml");
    let (_, problems) = shared::config::parse::<file::File>(name, text)?;
    problems.finish(())
}

/// Everything that was decided. Immutable.
#[derive(Debug)]
pub struct Settings {
    /// The file it was read from.
    pub path: PathBuf,
    /// Where the arbiter keeps what it must not forget.
    pub state_dir: PathBuf,
    /// How many workers take requests; at least 1.
    pub threads: usize,
    /// How long requests under way may take when the program is told to stop.
    pub drain_timeout: Duration,
    /// What the program's own log holds.
    pub log: Log,
    /// Where finished requests are written down, if anywhere.
    pub access_log: Option<AccessLog>,
    /// The operator's door.
    pub admin: Admin,
    /// What to show to every `syncd`.
    pub syncd_token: Option<Arc<str>>,
    /// Where clients are listened for; at least one.
    pub listeners: Vec<Listener>,
    /// The services; at least one.
    pub services: Vec<Arc<Service>>,
    /// What is allowed but deserves a word to the operator.
    pub notes: Vec<String>,
}

/// Where and how finished requests are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// The file; `None` is the standard output.
    pub path: Option<PathBuf>,
    /// The form of a line.
    pub format: AccessFormat,
}

/// The operator's door.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens.
    pub bind: SocketAddr,
    /// The bearer token for calls that change something.
    pub token: Option<Arc<str>>,
}

/// One place where clients connect.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its address.
    pub bind: SocketAddr,
    /// Its certificates, the default first; none if connections are not encrypted.
    pub tls: Vec<Loaded>,
    /// Who certifies clients, if they are asked for certificates.
    pub clients: Option<Clients>,
    /// Who may say for whom its connections are, by the PROXY protocol; anybody, if the list is empty. `None` if that
    /// protocol is not spoken.
    pub introducers: Option<Vec<Network>>,
    /// What one client, and all together, may take.
    pub limits: Limits,
    /// What was written, to tell whether it has changed.
    pub form: String,
}

/// What clients may take of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once, over all workers.
    pub max_connections: usize,
    /// From the first byte of a request to the end of its head.
    pub header_timeout: Duration,
    /// Between requests on a connection.
    pub idle_timeout: Duration,
    /// Without progress while a body is read or a response is written.
    pub body_idle_timeout: Duration,
    /// Bytes of a body that a client must send, or take, in a second on average; 0 if any rate is good.
    pub min_body_rate: u64,
    /// The size of a request's head.
    pub max_header_bytes: usize,
    /// The number of its fields.
    pub max_headers: usize,
    /// How many requests may be under way at once on one connection, if its protocol allows more than one.
    pub max_streams: u32,
}

/// One application behind the proxy.
#[derive(Debug)]
pub struct Service {
    /// Its name, as in the admin interface and in metrics.
    pub name: Arc<str>,
    /// The hosts it answers for.
    pub hosts: Vec<HostPattern>,
    /// Whether one node takes writes, or every node takes everything.
    pub mode: Mode,
    /// Whose word about the client is believed.
    pub trusted: Vec<Network>,
    /// The protocols that its nodes are offered to speak instead of HTTP, in lower case.
    pub upgrades: Vec<Arc<str>>,
    /// Its nodes, at most 64, in the order of the file.
    pub nodes: Vec<Node>,
    /// How nodes are probed.
    pub health: Health,
    /// When a node is no longer sent requests.
    pub breaker: BreakerLimits,
    /// What is tried again.
    pub retry: Retry,
    /// How long and how many requests wait while nobody may take them.
    pub hold: Hold,
    /// How long nodes may take.
    pub timeouts: Timeouts,
    /// How requests are spread over nodes, if several take requests.
    pub balance: Balance,
    /// What its routes are worth, and where they go.
    pub tiers: Arc<Tiers>,
    /// Who becomes primary, and when; without meaning where there is none.
    pub failover: Failover,
    /// What was written, to tell whether it has changed.
    pub form: String,
}

impl Service {
    /// Whether any caught-up node may answer requests that change nothing.
    #[must_use]
    pub fn is_read_anywhere(&self) -> bool {
        !self.is_balanced() && self.failover.reads == Reads::AnyCaughtUp
    }

    /// Whether standbys may answer some requests while there is a primary.
    #[must_use]
    pub fn reads_standbys(&self) -> bool {
        self.is_read_anywhere() || !self.is_balanced() && self.tiers.prefer_warm()
    }

    /// How many nodes' requests are counted one by one; none if the primary has them all.
    #[must_use]
    pub fn counted_nodes(&self) -> usize {
        if self.is_balanced() || self.reads_standbys() {
            self.nodes.len()
        } else {
            0
        }
    }

    /// Whether every node takes requests, so that there is no primary.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.mode == Mode::HotHot
    }

    /// Whether its nodes have a `syncd`; all have one, or none.
    #[must_use]
    pub fn is_replicated(&self) -> bool {
        self.nodes.iter().any(|node| node.syncd.is_some())
    }

    /// Whether responses to gated methods wait for a standby.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        self.failover.durability == Durability::StandbyAck
    }
}

/// One copy of a service.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its place in the list.
    pub id: NodeId,
    /// Its name.
    pub name: Arc<str>,
    /// Where its application listens.
    pub endpoint: Endpoint,
    /// Its `syncd`.
    pub syncd: Option<Syncd>,
    /// Its share in balancing, 1 to 1000.
    pub weight: u32,
    /// Lower is preferred among equally caught-up standbys, 0 to 255.
    pub priority: u32,
    /// Connections to it at once, over all workers; requests, if it speaks HTTP/2. Tunnels are not among them.
    pub max_connections: usize,
    /// Requests that wait at once because it has as many as it may, over all workers.
    pub max_queue: usize,
    /// Tunnels to it at once, over all workers.
    pub max_tunnels: usize,
}

/// A node's `syncd`.
#[derive(Clone, Debug)]
pub struct Syncd {
    /// Its base URL, as written.
    pub url: String,
    /// Where it listens.
    pub address: Address,
    /// The way to call it, token included.
    pub peer: Peer,
}

/// What a node is asked to find out whether it is healthy.
#[derive(Clone, Debug)]
pub enum Question {
    /// A resource.
    Get {
        /// Its path.
        path: String,
        /// Which statuses pass.
        statuses: Statuses,
    },
    /// `grpc.health.v1.Health/Check` of this service of its own; empty for the node as a whole.
    Grpc(String),
}

/// How nodes are probed.
#[derive(Clone, Debug)]
pub struct Health {
    /// What they are asked.
    pub question: Question,
    /// From one probe to the next.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How many results in a row overturn a verdict.
    pub patience: Patience,
    /// By which share of itself the interval varies, 0 to 1.
    pub jitter: f64,
    /// How long connections must be refused for the application to count as crashed.
    pub crash_after: Duration,
}

/// What is tried again.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Tries of a request whose earlier ones may have been processed, the first included; 1 to 10.
    pub attempts: u32,
    /// Share of requests that may be retries, 0 to 1.
    pub budget: f64,
    /// Methods that may be repeated though they may have been processed; all idempotent.
    pub methods: Vec<Method>,
    /// Bytes of a request's body that are kept for another try.
    pub max_body: usize,
    /// Statuses of a node that are tried again, 400 to 599.
    pub statuses: Vec<u16>,
}

/// Requests that wait while nobody may take them.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    /// How long one waits, in all.
    pub max_wait: Duration,
    /// How many wait at once, over all workers.
    pub max_requests: u64,
    /// How much memory they may take together, in bytes.
    pub max_bytes: u64,
}

/// How long nodes may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To accept a connection.
    pub connect: Duration,
    /// From the end of a request to the head of its response.
    pub response_header: Duration,
    /// Without progress within a body.
    pub idle: Duration,
    /// Without traffic in a tunnel.
    pub tunnel_idle: Duration,
}

/// How requests are spread over nodes.
#[derive(Clone, Debug)]
pub struct Balance {
    /// How the next node is chosen.
    pub policy: Policy,
    /// What requests of one kind have in common ([`Policy::Hash`]).
    pub hash_key: HashKey,
    /// The cookie that brings a client back to its node, if there is one.
    pub sticky: Option<Arc<str>>,
    /// How long a node that returns takes to its full weight; nothing: it has it at once.
    pub slow_start: Duration,
}

/// What of a request decides where it belongs. One that lacks it is told by its client's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The client's address, behind proxies that are believed.
    ClientIp,
    /// The value of a field of this name.
    Header(String),
    /// The value of a cookie of this name.
    Cookie(String),
    /// The path, without the query.
    Path,
}

/// Who becomes primary, and when.
#[derive(Clone, Debug)]
pub struct Failover {
    /// Whether promotions happen without being asked for.
    pub auto: bool,
    /// Whether a write's response waits for a standby.
    pub durability: Durability,
    /// How long it waits.
    pub ack_timeout: Duration,
    /// How many standbys must have it; 1 to the number of standbys.
    pub ack_count: usize,
    /// The methods whose responses wait.
    pub gate_methods: Vec<Method>,
    /// What happens when the wait is over.
    pub on_ack_timeout: OnAckTimeout,
    /// A standby further behind than this is not promoted.
    pub max_lag: Duration,
    /// Nor one that lacks more bytes.
    pub max_lag_bytes: u64,
    /// What happens then.
    pub on_too_far_behind: OnTooFarBehind,
    /// Whether to go back to the preferred node.
    pub failback: Failback,
    /// Least time between promotions that nobody asked for.
    pub min_interval: Duration,
    /// Who answers requests that change nothing.
    pub reads: Reads,
}
