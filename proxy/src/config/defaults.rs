//! What holds when a key is absent, and why.

use std::path::PathBuf;

use shared::config::{Size, Span};

/// Only this machine may look, and no token is needed for that.
pub(super) const ADMIN_BIND: &str = "127.0.0.1:9900";
/// Long enough for requests of ordinary length; shorter than what service managers wait before they kill.
pub(super) const DRAIN_TIMEOUT: Span = Span::secs(30);
/// About 400 MiB of connection state at worst; beyond it a machine of ordinary size is better off refusing politely.
pub(super) const MAX_CONNECTIONS: usize = 10_000;
/// A head arrives in one packet or is being held open on purpose; slow mobile networks still manage in this time.
pub(super) const HEADER_TIMEOUT: Span = Span::secs(10);
/// What browsers and load balancers commonly keep a connection for.
pub(super) const IDLE_TIMEOUT: Span = Span::secs(60);
/// A sender or reader that makes no progress for this long is gone or hostile.
pub(super) const BODY_IDLE_TIMEOUT: Span = Span::secs(30);
/// What the slowest modems did, and what other servers ask for; whoever drips to hold connections does less.
pub(super) const MIN_BODY_RATE: Size = Size(240);
/// Eight times what common application servers accept.
pub(super) const MAX_HEADER_BYTES: Size = Size(64 << 10);
/// Twice what a browser behind two proxies sends; up to here the parser needs no memory of its own.
pub(super) const MAX_HEADERS: usize = 100;
/// What common servers allow; RFC 9113 §6.5.2 advises at least 100.
pub(super) const MAX_STREAMS: u32 = 128;
/// Room for finer shares on both sides.
pub(super) const WEIGHT: u32 = 100;
/// More than the workers of an application server, less than its backlog (2048 in gunicorn).
pub(super) const NODE_MAX_CONNECTIONS: usize = 256;
/// As many as a listener has connections: the application decides how many it wants.
pub(super) const NODE_MAX_TUNNELS: usize = MAX_CONNECTIONS;
/// The habit of the field.
pub(super) const HEALTH_PATH: &str = "/healthz";
/// Half a second to notice, times `fall`.
pub(super) const HEALTH_INTERVAL: Span = Span::millis(500);
/// A health check that takes longer than the interval is as good as failed.
pub(super) const HEALTH_TIMEOUT: Span = Span::millis(500);
/// One pass may be luck.
pub(super) const RISE: u32 = 2;
/// Two failures may be a garbage collection.
pub(super) const FALL: u32 = 3;
/// A redirect is an answer, too.
pub(super) const HEALTH_STATUS: &str = "200-399";
/// Enough that probes of many nodes do not march in step.
pub(super) const JITTER: f64 = 0.1;
/// Longer than an application server's graceful restart of its listener, short enough for an outage of half a second.
pub(super) const CRASH_AFTER: Span = Span::millis(250);
/// Five in a row are no accident.
pub(super) const CONSECUTIVE_FAILURES: u32 = 5;
/// Half of the requests failing is an outage.
pub(super) const ERROR_RATE: f64 = 0.5;
/// Fewer requests say nothing about a rate.
pub(super) const MIN_REQUESTS: u64 = 20;
/// Long enough to gather `min_requests` in a quiet service.
pub(super) const WINDOW: Span = Span::secs(10);
/// Shorter than the hold, so that requests outlive a breaker's opening.
pub(super) const OPEN_FOR: Span = Span::secs(2);
/// One success may be luck.
pub(super) const HALF_OPEN_PROBES: u32 = 3;
/// One retry catches nearly everything that a retry can catch.
pub(super) const ATTEMPTS: u32 = 2;
/// A fifth more load is what a struggling node can still bear.
pub(super) const BUDGET: f64 = 0.2;
/// The methods that RFC 9110 §9.2.2 calls idempotent, without TRACE, which is never forwarded.
pub(super) const RETRY_METHODS: [&str; 5] = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"];
/// Forms and JSON documents fit; uploads do not.
pub(super) const MAX_BODY: Size = Size(64 << 10);
/// Longer than any promotion, shorter than the patience of common clients (30 s and more).
pub(super) const MAX_WAIT: Span = Span::secs(10);
/// A thousand waiting clients are what ten seconds of a busy small site amount to.
pub(super) const MAX_HELD: u64 = 1000;
/// 64 KiB for each of them.
pub(super) const MAX_HELD_BYTES: Size = Size(64 << 20);
/// A connection within a data centre takes milliseconds; one lost SYN is repeated after a second.
pub(super) const CONNECT: Span = Span::secs(1);
/// What nginx and HAProxy setups commonly allow an application.
pub(super) const RESPONSE_HEADER: Span = Span::secs(60);
/// The same for pauses within a body.
pub(super) const IDLE: Span = Span::secs(60);
/// WebSockets are quiet for long.
pub(super) const TUNNEL_IDLE: Span = Span::secs(3600);
/// Twenty times a slow disk's sync.
pub(super) const ACK_TIMEOUT: Span = Span::secs(2);
/// One standby is what most have.
pub(super) const ACK_COUNT: usize = 1;
/// Every common method that is not safe.
pub(super) const GATE_METHODS: [&str; 4] = ["POST", "PUT", "PATCH", "DELETE"];
/// What a standby on a busy day is behind for a moment.
pub(super) const MAX_LAG: Span = Span::secs(5);
/// Seconds of writing at full speed.
pub(super) const MAX_LAG_BYTES: Size = Size(64 << 20);
/// Nobody else's.
pub(super) const COOKIE: &str = "hotwarm_node";
/// Longer than a restart, so that two sick nodes do not hand the role to and fro.
pub(super) const MIN_INTERVAL: Span = Span::secs(30);

pub(super) const fn drain_timeout() -> Span {
    DRAIN_TIMEOUT
}

pub(super) fn access_log_path() -> PathBuf {
    PathBuf::from("-")
}

pub(super) fn hosts() -> Vec<String> {
    vec!["*".to_owned()]
}

/// Another proxy on this machine is believed, as application servers do; everybody else could write any address into the
/// log.
pub(super) fn trusted_proxies() -> Vec<String> {
    vec!["127.0.0.0/8".to_owned(), "::1".to_owned()]
}

/// What browsers speak besides HTTP.
pub(super) fn upgrades() -> Vec<String> {
    vec!["websocket".to_owned()]
}

pub(super) const fn weight() -> u32 {
    WEIGHT
}

pub(super) const fn node_max_connections() -> usize {
    NODE_MAX_CONNECTIONS
}

pub(super) const fn node_max_tunnels() -> usize {
    NODE_MAX_TUNNELS
}

/// As many as may be held while there is no node at all.
pub(super) const fn node_max_queue() -> usize {
    1000
}
