//! One service at a time, and what services may not have in common.

mod balance;
mod question;
mod trust;

use std::sync::Arc;

use http::Method;
use shared::call::Peer;

use self::trust::NodeTrust;
use super::{Check, unique};
use crate::config::endpoint::address;
use crate::config::file::{self, Fencing, Reads};
use crate::config::{Durability, Failover, Health, Hold, Node, Retry, Service, Syncd, Timeouts};
use crate::logic::NodeId;
use crate::logic::breaker::BreakerLimits;
use crate::logic::health::Patience;
use crate::logic::network::Network;
use crate::logic::route::HostPattern;

/// A service with more copies than this is another kind of system.
const NODES_MOST: usize = 64;
/// Each of those who wait takes memory, and a client's patience.
const QUEUE_MOST: usize = 100_000;
/// Names appear in paths, metrics and file names.
const NAME_MOST: usize = 64;
/// Larger weights say nothing more.
const WEIGHT_MOST: u32 = 1000;
/// As many levels as a byte holds.
const PRIORITY_MOST: u32 = 255;
/// More tries than this are an attack on one's own node.
const ATTEMPTS_MOST: u32 = 10;
/// A body that is kept takes this much memory for each request under way.
const KEPT_BODY_MOST: u64 = 16 << 20;
/// Each is looked for in every request that would rather speak another protocol.
const UPGRADES_MOST: usize = 16;
/// Probes more frequent than this cost more than they tell.
const INTERVAL_LEAST_MS: u64 = 10;

pub(super) fn services(
    check: &mut Check,
    services: Vec<file::Service>,
    syncd_token: Option<&str>,
) -> Vec<Arc<Service>> {
    if services.is_empty() {
        check.note(
            "service",
            "there is none; add [[service]] with a name and its [[service.node]]",
        );
    }
    let names = services.iter().enumerate();
    unique(
        check,
        "the service",
        names.map(|(n, service)| (format!("service.{n}.name"), service.name.as_str())),
    );
    let lower: Vec<_> = services
        .iter()
        .enumerate()
        .flat_map(|(n, service)| {
            let hosts = service.hosts.iter().enumerate();
            hosts
                .map(move |(m, host)| (format!("service.{n}.hosts.{m}"), host.to_ascii_lowercase()))
        })
        .collect();
    let hosts = lower.iter().map(|(key, host)| (key.clone(), host.as_str()));
    unique(check, "the host", hosts);
    let numbered = services.into_iter().enumerate();
    numbered
        .map(|(n, service)| {
            let mut one = One {
                check,
                key: format!("service.{n}"),
                syncd_token,
            };
            Arc::new(one.service(&service))
        })
        .collect()
}

/// One service under examination.
struct One<'c> {
    check: &'c mut Check,
    key: String,
    syncd_token: Option<&'c str>,
}

impl One<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.key)
    }

    fn note(&mut self, name: &str, why: impl std::fmt::Display) {
        let key = self.key(name);
        self.check.note(&key, why);
    }

    fn not_built(&mut self, name: &str, what: &str) {
        let key = self.key(name);
        self.check.not_built(&key, what);
    }

    fn span(&mut self, name: &str, span: shared::config::Span) -> std::time::Duration {
        let key = self.key(name);
        self.check.span(&key, span)
    }

    fn service(&mut self, service: &file::Service) -> Service {
        self.name("name", &service.name);
        self.unbuilt(service);
        let trust = self.trust(service);
        let nodes = self.nodes(&service.node, trust.as_ref());
        self.replication(&nodes);
        self.all_active(service, &nodes);
        let failover = service.failover.as_ref();
        let as_default = file::Failover::default();
        let failover = failover.unwrap_or(&as_default);
        if nodes.len() == 1 {
            self.check.notes.push(format!(
                "service {}: one node only; requests wait for it when it is away, and nobody can take over",
                service.name
            ));
        }
        if service.breaker.open_for >= service.hold.max_wait {
            self.check.notes.push(format!(
                "service {}: breaker.open_for ({}) is not shorter than hold.max_wait ({}); requests held by an open breaker end with 503",
                service.name, service.breaker.open_for, service.hold.max_wait
            ));
        }
        Service {
            name: service.name.as_str().into(),
            hosts: self.hosts(&service.hosts),
            trusted: self.trusted(&service.trusted_proxies),
            upgrades: self.upgrades(&service.upgrades),
            health: self.health(service),
            breaker: self.breaker(&service.breaker),
            retry: self.retry(&service.retry),
            timeouts: self.timeouts(&service.timeouts, &service.hold),
            hold: self.hold(&service.hold),
            mode: service.mode,
            balance: self.balance(service),
            tiers: self.tiers(service),
            failover: self.failover(failover, &nodes),
            nodes,
            form: format!("{service:?}"),
        }
    }

    fn unbuilt(&mut self, service: &file::Service) {
        let failover = service.failover.as_ref();
        if failover.is_some_and(|failover| failover.fencing != Fencing::Routing) {
            self.not_built("failover.fencing", "\"strict\"");
        }
    }

    fn name(&mut self, key: &str, name: &str) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > NAME_MOST || !name.bytes().all(plain) {
            self.note(
                key,
                format!(
                    "\"{name}\" is not a name: 1 to {NAME_MOST} letters, digits, '-', '_' or '.'"
                ),
            );
        }
    }

    fn hosts(&mut self, hosts: &[String]) -> Vec<HostPattern> {
        if hosts.is_empty() {
            self.note("hosts", "there is none; \"*\" is every host");
        }
        let mut checked = Vec::new();
        for (n, host) in hosts.iter().enumerate() {
            match HostPattern::parse(host) {
                Some(pattern) => checked.push(pattern),
                None => self.note(
                    &format!("hosts.{n}"),
                    format!("\"{host}\" is not a host: \"shop.example.com\", \"*.example.com\" or \"*\", without a port"),
                ),
            }
        }
        checked
    }

    fn trusted(&mut self, networks: &[String]) -> Vec<Network> {
        let mut checked = Vec::new();
        for (n, network) in networks.iter().enumerate() {
            match Network::parse(network) {
                Some(network) => checked.push(network),
                None => self.note(&format!("trusted_proxies.{n}"), super::no_network(network)),
            }
        }
        checked
    }

    fn upgrades(&mut self, protocols: &[String]) -> Vec<Arc<str>> {
        if protocols.len() > UPGRADES_MOST {
            self.note(
                "upgrades",
                format!("{} are too many: at most {UPGRADES_MOST}", protocols.len()),
            );
        }
        let mut checked = Vec::new();
        for (n, protocol) in protocols.iter().take(UPGRADES_MOST).enumerate() {
            let key = format!("upgrades.{n}");
            let protocol = protocol.to_ascii_lowercase();
            if !is_protocol(&protocol) {
                self.note(
                    &key,
                    format!("\"{protocol}\" is not a protocol: \"websocket\", or NAME/VERSION (RFC 9110 section 7.8)"),
                );
            } else if matches!(protocol.split('/').next(), Some("h2c" | "http" | "tls")) {
                self.note(
                    &key,
                    format!("\"{protocol}\" is never offered: requests inside of it would not be looked at"),
                );
            } else {
                checked.push(protocol.into());
            }
        }
        checked
    }

    fn nodes(&mut self, nodes: &[file::Node], trust: Option<&NodeTrust>) -> Vec<Node> {
        if nodes.is_empty() {
            self.note(
                "node",
                "there is none; add [[service.node]] with a name and a url",
            );
        }
        if nodes.len() > NODES_MOST {
            self.note(
                "node",
                format!("{} are too many: at most {NODES_MOST}", nodes.len()),
            );
        }
        let prefix = self.key.clone();
        let keyed = |name: &'static str| {
            let prefix = prefix.clone();
            move |n: usize| format!("{prefix}.node.{n}.{name}")
        };
        let (name, url, syncd) = (keyed("name"), keyed("url"), keyed("syncd"));
        let each = || nodes.iter().enumerate();
        unique(
            self.check,
            "the node",
            each().map(|(n, node)| (name(n), node.name.as_str())),
        );
        unique(
            self.check,
            "the url",
            each().map(|(n, node)| (url(n), node.url.as_str())),
        );
        unique(
            self.check,
            "the syncd",
            each().filter_map(|(n, node)| Some((syncd(n), node.syncd.as_deref()?))),
        );
        each()
            .take(NODES_MOST)
            .map(|(n, node)| self.node(n, node, trust))
            .collect()
    }

    fn node(&mut self, n: usize, node: &file::Node, trust: Option<&NodeTrust>) -> Node {
        let key = |name: &str| format!("node.{n}.{name}");
        self.name(&key("name"), &node.name);
        if !(1..=WEIGHT_MOST).contains(&node.weight) {
            self.note(
                &key("weight"),
                format!("{} is out of range: 1 to {WEIGHT_MOST}", node.weight),
            );
        }
        if node.priority > PRIORITY_MOST {
            self.note(
                &key("priority"),
                format!(
                    "{} is out of range: 0 to {PRIORITY_MOST}, lower is preferred",
                    node.priority
                ),
            );
        }
        if node.max_connections == 0 {
            self.note(&key("max_connections"), "must be at least 1");
        }
        if node.max_queue > QUEUE_MOST {
            self.note(
                &key("max_queue"),
                format!("{} is too many: 0 to {QUEUE_MOST}", node.max_queue),
            );
        }
        let syncd = node.syncd.as_deref();
        Node {
            id: NodeId(u8::try_from(n).unwrap_or(u8::MAX)),
            name: node.name.as_str().into(),
            endpoint: self.endpoint(&key("url"), &node.url, trust),
            syncd: syncd.and_then(|url| self.syncd(&key("syncd"), url)),
            weight: node.weight,
            priority: node.priority,
            max_connections: node.max_connections,
            max_tunnels: node.max_tunnels,
            max_queue: node.max_queue,
        }
    }

    fn syncd(&mut self, key: &str, url: &str) -> Option<Syncd> {
        if url.starts_with("https://") {
            self.not_built(key, "https://");
            return None;
        }
        let peer = Peer::new(url, self.syncd_token)
            .map_err(|bad| self.note(key, bad))
            .ok()?;
        let rest = url.strip_prefix("http://");
        let address = rest
            .ok_or("it does not begin with http://")
            .and_then(|rest| address(rest, 80))
            .map_err(|why| self.note(key, why))
            .ok()?;
        if !address.is_loopback() && self.syncd_token.is_none() {
            self.note(
                key,
                format!("{url} is on another machine, so syncd_token_file is required: name a file with the cluster's token (the same as token_file of every syncd)"),
            );
        }
        Some(Syncd {
            url: url.to_owned(),
            address,
            peer,
        })
    }

    fn replication(&mut self, nodes: &[Node]) {
        let with = nodes.iter().filter(|node| node.syncd.is_some()).count();
        if with > 0 && with < nodes.len() {
            let without = nodes.iter().find(|node| node.syncd.is_none());
            let n = without.map_or(0, |node| node.id.index());
            self.note(
                &format!("node.{n}"),
                "has no working syncd while others have one; give every node of a service a syncd, or none",
            );
        }
    }

    fn health(&mut self, service: &file::Service) -> Health {
        let health = &service.health;
        if health.interval.0.as_millis() < u128::from(INTERVAL_LEAST_MS) {
            self.note(
                "health.interval",
                format!("must be at least {INTERVAL_LEAST_MS}ms"),
            );
        }
        let (rise, fall, jitter) = (
            self.key("health.rise"),
            self.key("health.fall"),
            self.key("health.jitter"),
        );
        Health {
            question: self.question(service),
            interval: health.interval.0,
            timeout: self.span("health.timeout", health.timeout),
            patience: Patience {
                rise: self.check.at_least_one(&rise, health.rise),
                fall: self.check.at_least_one(&fall, health.fall),
            },
            jitter: self.check.share(&jitter, health.jitter),
            crash_after: self.span("health.crash_after", health.crash_after),
        }
    }

    fn breaker(&mut self, breaker: &file::Breaker) -> BreakerLimits {
        if !(breaker.error_rate > 0.0 && breaker.error_rate <= 1.0) {
            self.note(
                "breaker.error_rate",
                format!(
                    "{} is not a share of failures: above 0, at most 1",
                    breaker.error_rate
                ),
            );
        }
        let key = |name: &str| format!("{}.breaker.{name}", self.key);
        let (in_a_row, least, probes) = (
            key("consecutive_failures"),
            key("min_requests"),
            key("half_open_probes"),
        );
        BreakerLimits {
            consecutive_failures: self
                .check
                .at_least_one(&in_a_row, breaker.consecutive_failures),
            error_rate: breaker.error_rate,
            min_requests: self.check.at_least_one(&least, breaker.min_requests),
            window: self.span("breaker.window", breaker.window),
            open_for: self.span("breaker.open_for", breaker.open_for),
            half_open_probes: self.check.at_least_one(&probes, breaker.half_open_probes),
        }
    }

    fn retry(&mut self, retry: &file::Retry) -> Retry {
        if !(1..=ATTEMPTS_MOST).contains(&retry.attempts) {
            self.note(
                "retry.attempts",
                format!(
                    "{} is out of range: 1 (no retry) to {ATTEMPTS_MOST}",
                    retry.attempts
                ),
            );
        }
        if retry.max_body.0 > KEPT_BODY_MOST {
            self.note(
                "retry.max_body",
                format!(
                    "{} is too much to keep for every request: at most 16MiB",
                    retry.max_body
                ),
            );
        }
        for (n, status) in retry.statuses.iter().enumerate() {
            if !(400..=599).contains(status) {
                self.note(
                    &format!("retry.statuses.{n}"),
                    format!("{status} is not an error: 400 to 599 is allowed"),
                );
            }
        }
        let budget = self.key("retry.budget");
        Retry {
            attempts: retry.attempts,
            budget: self.check.share(&budget, retry.budget),
            methods: self.methods(
                "retry.methods",
                &retry.methods,
                Method::is_idempotent,
                "is not idempotent (RFC 9110 section 9.2.2), so repeating it could carry it out twice; GET, HEAD, OPTIONS, PUT and DELETE are allowed",
            ),
            max_body: usize::try_from(retry.max_body.0).unwrap_or(0),
            statuses: retry.statuses.clone(),
        }
    }

    fn methods(
        &mut self,
        name: &str,
        methods: &[String],
        is_allowed: fn(&Method) -> bool,
        why_not: &str,
    ) -> Vec<Method> {
        let mut checked = Vec::new();
        for (n, text) in methods.iter().enumerate() {
            let key = format!("{name}.{n}");
            match text.parse::<Method>() {
                Ok(Method::CONNECT | Method::TRACE) => {
                    self.note(&key, format!("{text} is never forwarded"));
                }
                Ok(method) if !is_allowed(&method) => self.note(&key, format!("{text} {why_not}")),
                Ok(method) => checked.push(method),
                Err(_) => self.note(&key, format!("\"{text}\" is not a method")),
            }
        }
        checked
    }

    fn timeouts(&mut self, timeouts: &file::Timeouts, hold: &file::Hold) -> Timeouts {
        if timeouts.connect >= hold.max_wait {
            self.note(
                "timeouts.connect",
                format!(
                    "{} is not shorter than hold.max_wait ({}): a request would be given up before another node could be tried",
                    timeouts.connect, hold.max_wait
                ),
            );
        }
        Timeouts {
            connect: self.span("timeouts.connect", timeouts.connect),
            response_header: self.span("timeouts.response_header", timeouts.response_header),
            idle: self.span("timeouts.idle", timeouts.idle),
            tunnel_idle: self.span("timeouts.tunnel_idle", timeouts.tunnel_idle),
        }
    }

    fn hold(&mut self, hold: &file::Hold) -> Hold {
        let (requests, bytes) = (self.key("hold.max_requests"), self.key("hold.max_bytes"));
        Hold {
            max_wait: self.span("hold.max_wait", hold.max_wait),
            max_requests: self.check.at_least_one(&requests, hold.max_requests),
            max_bytes: self.check.at_least_one(&bytes, hold.max_bytes.0),
        }
    }

    fn failover(&mut self, failover: &file::Failover, nodes: &[Node]) -> Failover {
        if failover.durability == Durability::StandbyAck {
            self.standby_ack(failover, nodes);
        }
        Failover {
            auto: failover.auto,
            durability: failover.durability,
            ack_timeout: self.span("failover.ack_timeout", failover.ack_timeout),
            ack_count: failover.ack_count,
            gate_methods: self.methods(
                "failover.gate_methods",
                &failover.gate_methods,
                |method| !method.is_safe(),
                "is safe (RFC 9110 section 9.2.1) and may be answered by a standby, so nothing can be waited for",
            ),
            on_ack_timeout: failover.on_ack_timeout,
            max_lag: failover.max_lag.0,
            max_lag_bytes: failover.max_lag_bytes.0,
            on_too_far_behind: failover.on_too_far_behind,
            failback: failover.failback,
            min_interval: failover.min_interval.0,
            reads: self.reads(failover.reads, nodes),
        }
    }

    fn reads(&mut self, reads: Reads, nodes: &[Node]) -> Reads {
        if reads == Reads::AnyCaughtUp && nodes.iter().any(|node| node.syncd.is_none()) {
            self.note(
                "failover.reads",
                "\"any-caught-up\" needs a syncd on every node: without one nothing says what a standby has",
            );
        }
        reads
    }

    fn standby_ack(&mut self, failover: &file::Failover, nodes: &[Node]) {
        let standbys = nodes.len().saturating_sub(1);
        if nodes.iter().any(|node| node.syncd.is_none()) {
            self.note(
                "failover.durability",
                "\"standby-ack\" needs a syncd on every node: without one nothing says what a standby has on disk",
            );
        } else if standbys == 0 {
            self.note(
                "failover.durability",
                "\"standby-ack\" needs a second node: there is no standby to wait for",
            );
        } else if !(1..=standbys).contains(&failover.ack_count) {
            self.note(
                "failover.ack_count",
                format!(
                    "{} standbys cannot acknowledge: 1 to {standbys} with {} nodes",
                    failover.ack_count,
                    nodes.len()
                ),
            );
        }
    }
}

/// `token ["/" token]` (RFC 9110 §7.8).
fn is_protocol(text: &str) -> bool {
    let is_token = |part: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        (1..=NAME_MOST).contains(&part.len()) && part.bytes().all(plain)
    };
    match text.split_once('/') {
        Some((name, version)) => is_token(name) && is_token(version),
        None => is_token(text),
    }
}
