//! The form of `hotwarm.toml`: what may be written. Every key is here, with its default; what it means is checked elsewhere.

use std::path::PathBuf;

use serde::Deserialize;
use shared::config::{Size, Span};
use shared::telemetry::Log;

use super::defaults as default;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) state_dir: PathBuf,
    #[serde(default)]
    pub(super) threads: usize,
    #[serde(default = "default::drain_timeout")]
    pub(super) drain_timeout: Span,
    #[serde(default)]
    pub(super) log: Log,
    pub(super) access_log: Option<AccessLog>,
    pub(super) syncd_token_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) admin: Admin,
    #[serde(default)]
    pub(super) coordinator: Coordinator,
    #[serde(default)]
    pub(super) listener: Vec<Listener>,
    #[serde(default)]
    pub(super) service: Vec<Service>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AccessLog {
    #[serde(default = "default::access_log_path")]
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) format: AccessFormat,
}

/// How a finished request is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessFormat {
    /// One JSON object a line, with the attempts and every phase's time.
    #[default]
    Json,
    /// The combined log format of Apache and nginx, with the attempts and every phase's time behind it.
    Combined,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Admin {
    pub(super) bind: String,
    pub(super) token_file: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            bind: default::ADMIN_BIND.to_owned(),
            token_file: None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CoordinatorKind {
    #[default]
    File,
    Etcd,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Coordinator {
    pub(super) kind: CoordinatorKind,
    pub(super) endpoints: Option<Vec<String>>,
    pub(super) prefix: Option<String>,
    pub(super) lease_ttl: Option<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    pub(super) bind: String,
    #[serde(default)]
    pub(super) tls: Vec<Certificate>,
    pub(super) client_ca: Option<PathBuf>,
    pub(super) client_auth: Option<ClientAuth>,
    #[serde(default)]
    pub(super) proxy_protocol: ProxyProtocol,
    pub(super) proxy_protocol_from: Option<Vec<String>>,
    #[serde(default)]
    pub(super) limits: Limits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Certificate {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ClientAuth {
    Off,
    Optional,
    Required,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ProxyProtocol {
    #[default]
    Off,
    Accept,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) max_connections: usize,
    pub(super) header_timeout: Span,
    pub(super) idle_timeout: Span,
    pub(super) body_idle_timeout: Span,
    pub(super) min_body_rate: Size,
    pub(super) max_header_bytes: Size,
    pub(super) max_headers: usize,
    pub(super) max_streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: default::MAX_CONNECTIONS,
            header_timeout: default::HEADER_TIMEOUT,
            idle_timeout: default::IDLE_TIMEOUT,
            body_idle_timeout: default::BODY_IDLE_TIMEOUT,
            min_body_rate: default::MIN_BODY_RATE,
            max_header_bytes: default::MAX_HEADER_BYTES,
            max_headers: default::MAX_HEADERS,
            max_streams: default::MAX_STREAMS,
        }
    }
}

/// Who takes requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One node; others stand by.
    #[default]
    HotWarm,
    /// Every node.
    HotHot,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: String,
    #[serde(default = "default::hosts")]
    pub(super) hosts: Vec<String>,
    #[serde(default)]
    pub(super) mode: Mode,
    #[serde(default = "default::trusted_proxies")]
    pub(super) trusted_proxies: Vec<String>,
    #[serde(default = "default::upgrades")]
    pub(super) upgrades: Vec<String>,
    #[serde(default)]
    pub(super) node: Vec<Node>,
    pub(super) tls: Option<NodeTls>,
    #[serde(default)]
    pub(super) health: Health,
    #[serde(default)]
    pub(super) breaker: Breaker,
    #[serde(default)]
    pub(super) retry: Retry,
    #[serde(default)]
    pub(super) hold: Hold,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    #[serde(default)]
    pub(super) balance: Balance,
    pub(super) failover: Option<Failover>,
    #[serde(default)]
    pub(super) route: Vec<Route>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) url: String,
    pub(super) syncd: Option<String>,
    #[serde(default = "default::weight")]
    pub(super) weight: u32,
    #[serde(default)]
    pub(super) priority: u32,
    #[serde(default = "default::node_max_connections")]
    pub(super) max_connections: usize,
    #[serde(default = "default::node_max_tunnels")]
    pub(super) max_tunnels: usize,
    #[serde(default = "default::node_max_queue")]
    pub(super) max_queue: usize,
}

/// TLS towards nodes whose URL begins with `https://`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NodeTls {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) server_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Health {
    pub(super) path: Option<String>,
    pub(super) grpc: Option<String>,
    pub(super) interval: Span,
    pub(super) timeout: Span,
    pub(super) rise: u32,
    pub(super) fall: u32,
    pub(super) status: Option<String>,
    pub(super) jitter: f64,
    pub(super) crash_after: Span,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            path: None,
            grpc: None,
            interval: default::HEALTH_INTERVAL,
            timeout: default::HEALTH_TIMEOUT,
            rise: default::RISE,
            fall: default::FALL,
            status: None,
            jitter: default::JITTER,
            crash_after: default::CRASH_AFTER,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Breaker {
    pub(super) consecutive_failures: u32,
    pub(super) error_rate: f64,
    pub(super) min_requests: u64,
    pub(super) window: Span,
    pub(super) open_for: Span,
    pub(super) half_open_probes: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            consecutive_failures: default::CONSECUTIVE_FAILURES,
            error_rate: default::ERROR_RATE,
            min_requests: default::MIN_REQUESTS,
            window: default::WINDOW,
            open_for: default::OPEN_FOR,
            half_open_probes: default::HALF_OPEN_PROBES,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retry {
    pub(super) attempts: u32,
    pub(super) budget: f64,
    pub(super) methods: Vec<String>,
    pub(super) max_body: Size,
    pub(super) statuses: Vec<u16>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: default::ATTEMPTS,
            budget: default::BUDGET,
            methods: default::RETRY_METHODS.map(str::to_owned).to_vec(),
            max_body: default::MAX_BODY,
            statuses: Vec::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Hold {
    pub(super) max_wait: Span,
    pub(super) max_requests: u64,
    pub(super) max_bytes: Size,
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            max_wait: default::MAX_WAIT,
            max_requests: default::MAX_HELD,
            max_bytes: default::MAX_HELD_BYTES,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Timeouts {
    pub(super) connect: Span,
    pub(super) response_header: Span,
    pub(super) idle: Span,
    pub(super) tunnel_idle: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: default::CONNECT,
            response_header: default::RESPONSE_HEADER,
            idle: default::IDLE,
            tunnel_idle: default::TUNNEL_IDLE,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Policy {
    RoundRobin,
    Weighted,
    LeastConn,
    P2cEwma,
    Hash,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Sticky {
    #[default]
    Off,
    Cookie,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Balance {
    pub(super) policy: Option<Policy>,
    pub(super) hash_key: Option<String>,
    pub(super) sticky: Sticky,
    pub(super) cookie: Option<String>,
    pub(super) slow_start: Span,
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            policy: None,
            hash_key: None,
            sticky: Sticky::default(),
            cookie: None,
            slow_start: Span::secs(0),
        }
    }
}

/// Whether a write's response waits for a standby.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// It does not.
    #[default]
    Async,
    /// It waits until standbys have the write on disk.
    StandbyAck,
}

/// What becomes of a gated response whose standby does not answer in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnAckTimeout {
    /// The standby is put on record as out of sync, then the response is released.
    #[default]
    Degrade,
    /// The response fails with 504; the write stands on the primary.
    Fail,
}

/// What to do when no standby is close enough to a primary that is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTooFarBehind {
    /// Safe methods go to the standby; writes are held, then refused.
    #[default]
    ReadOnly,
    /// Everything is held, then refused.
    Wait,
    /// The standby is promoted, and what was lost is said.
    Promote,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Fencing {
    #[default]
    Routing,
    Strict,
}

/// Whether to go back to the preferred node once it has caught up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failback {
    /// Only when an operator asks.
    #[default]
    Manual,
    /// By itself, as a planned switchover.
    Auto,
}

/// Who answers requests that change nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reads {
    /// The primary.
    #[default]
    Primary,
    /// Any node that shows the client at least what it wrote itself.
    AnyCaughtUp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Failover {
    pub(super) auto: bool,
    pub(super) durability: Durability,
    pub(super) ack_timeout: Span,
    pub(super) ack_count: usize,
    pub(super) gate_methods: Vec<String>,
    pub(super) on_ack_timeout: OnAckTimeout,
    pub(super) max_lag: Span,
    pub(super) max_lag_bytes: Size,
    pub(super) on_too_far_behind: OnTooFarBehind,
    pub(super) fencing: Fencing,
    pub(super) failback: Failback,
    pub(super) min_interval: Span,
    pub(super) reads: Reads,
}

impl Default for Failover {
    fn default() -> Self {
        Self {
            auto: true,
            durability: Durability::default(),
            ack_timeout: default::ACK_TIMEOUT,
            ack_count: default::ACK_COUNT,
            gate_methods: default::GATE_METHODS.map(str::to_owned).to_vec(),
            on_ack_timeout: OnAckTimeout::default(),
            max_lag: default::MAX_LAG,
            max_lag_bytes: default::MAX_LAG_BYTES,
            on_too_far_behind: OnTooFarBehind::default(),
            fencing: Fencing::default(),
            failback: Failback::default(),
            min_interval: default::MIN_INTERVAL,
            reads: Reads::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RouteClass {
    Core,
    NonCore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Prefer {
    Hot,
    Warm,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub(super) path: String,
    pub(super) class: Option<RouteClass>,
    pub(super) prefer: Option<Prefer>,
}
