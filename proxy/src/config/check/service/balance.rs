//! Services whose nodes are all active: what only they may say, and what they may not.

use std::sync::Arc;

use super::One;
use crate::config::defaults as default;
use crate::config::file::{self, Mode, Reads, RouteClass, Sticky};
use crate::config::{Balance, HashKey, Node};
use crate::logic::balance::Policy;
use crate::logic::tier::{Prefer, Tier, Tiers, Worth};

impl One<'_> {
    /// Everything that has a meaning only where there is a primary is refused where there is none.
    pub(super) fn all_active(&mut self, service: &file::Service, nodes: &[Node]) {
        if service.mode == Mode::HotWarm {
            return;
        }
        if service.failover.is_some() {
            self.note(
                "failover",
                "has no meaning with mode = \"hot-hot\": every node is active, so there is no primary to fail over from; remove [service.failover]",
            );
        }
        for node in nodes {
            if node.syncd.is_some() {
                self.note(
                    &format!("node.{}.syncd", node.id.index()),
                    "has no meaning with mode = \"hot-hot\": syncd copies one writer's data to standbys, and here every node writes; remove it, or use mode = \"hot-warm\"",
                );
            }
            if node.priority != 0 {
                self.note(
                    &format!("node.{}.priority", node.id.index()),
                    "has no meaning with mode = \"hot-hot\": it orders standbys, and there are none; use weight",
                );
            }
        }
    }

    pub(super) fn balance(&mut self, service: &file::Service) -> Balance {
        let balance = &service.balance;
        if service.mode == Mode::HotWarm {
            let failover = service.failover.as_ref();
            let reads = failover.map_or(Reads::Primary, |failover| failover.reads);
            self.one_at_a_time(balance, reads);
        }
        let policy = match balance.policy {
            None => Policy::default(),
            Some(file::Policy::RoundRobin) => Policy::RoundRobin,
            Some(file::Policy::Weighted) => Policy::Weighted,
            Some(file::Policy::LeastConn) => Policy::LeastConn,
            Some(file::Policy::P2cEwma) => Policy::P2cEwma,
            Some(file::Policy::Hash) => Policy::Hash,
        };
        if balance.hash_key.is_some() && policy != Policy::Hash {
            self.note(
                "balance.hash_key",
                "only belongs to policy = \"hash\"; remove it",
            );
        }
        let hash_key = balance.hash_key.as_deref().unwrap_or("client-ip");
        Balance {
            policy,
            hash_key: self.hash_key(hash_key),
            sticky: self.sticky(balance),
            slow_start: balance.slow_start.0,
        }
    }

    /// The primary has all requests of a `hot-warm` service: there is nothing to choose. The default may be written all the same.
    fn one_at_a_time(&mut self, balance: &file::Balance, reads: Reads) {
        let why = "has no meaning with mode = \"hot-warm\": the primary has all requests; remove it, or use mode = \"hot-hot\"";
        let chosen = balance.policy;
        let is_other = chosen.is_some_and(|policy| policy != file::Policy::LeastConn);
        if is_other && reads == Reads::Primary {
            self.note("balance.policy", why);
        }
        if !balance.slow_start.0.is_zero() {
            self.note("balance.slow_start", why);
        }
        if balance.sticky == Sticky::Cookie {
            self.note("balance.sticky", why);
        }
    }

    fn sticky(&mut self, balance: &file::Balance) -> Option<Arc<str>> {
        let name = balance.cookie.as_deref();
        if name.is_some_and(|name| !is_token(name)) {
            self.note(
                "balance.cookie",
                "is not the name of a cookie: letters, digits and !#$%&'*+-.^_`|~ are allowed",
            );
        }
        if balance.sticky == Sticky::Off {
            if name.is_some() {
                self.note(
                    "balance.cookie",
                    "only belongs to sticky = \"cookie\"; remove it",
                );
            }
            return None;
        }
        Some(name.unwrap_or(default::COOKIE).into())
    }

    pub(super) fn tiers(&mut self, service: &file::Service) -> Arc<Tiers> {
        let mut tiers = Vec::new();
        let mut paths = std::collections::BTreeSet::new();
        for (n, route) in service.route.iter().enumerate() {
            let path = &route.path;
            let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#');
            if !path.starts_with('/') || !path.bytes().all(plain) {
                self.note(
                    &format!("route.{n}.path"),
                    format!("\"{path}\" is not a path: it begins with '/', is plain ASCII and has no query"),
                );
            }
            if !paths.insert(path.trim_end_matches('/')) {
                self.note(
                    &format!("route.{n}.path"),
                    format!("\"{path}\" is there twice"),
                );
            }
            if route.class.is_none() && route.prefer.is_none() {
                self.note(
                    &format!("route.{n}"),
                    "says nothing of its path: add class = \"non-core\" or prefer = \"warm\"",
                );
            }
            if route.prefer == Some(file::Prefer::Warm) && service.mode == Mode::HotHot {
                self.note(
                    &format!("route.{n}.prefer"),
                    "\"warm\" has no meaning with mode = \"hot-hot\": there are no standbys; remove it",
                );
            }
            let worth = match route.class {
                Some(RouteClass::NonCore) => Worth::NonCore,
                Some(RouteClass::Core) | None => Worth::Core,
            };
            let prefer = match route.prefer {
                Some(file::Prefer::Warm) => Prefer::Warm,
                Some(file::Prefer::Hot) | None => Prefer::Hot,
            };
            tiers.push((path.clone(), Tier { worth, prefer }));
        }
        Arc::new(Tiers::new(tiers))
    }

    fn hash_key(&mut self, text: &str) -> HashKey {
        let read = match (text, text.split_once(':')) {
            ("client-ip", _) => Some(HashKey::ClientIp),
            ("path", _) => Some(HashKey::Path),
            (_, Some(("header", name))) if is_token(name) => Some(HashKey::Header(name.to_owned())),
            (_, Some(("cookie", name))) if is_token(name) => Some(HashKey::Cookie(name.to_owned())),
            _ => None,
        };
        if read.is_none() {
            self.note(
                "balance.hash_key",
                format!(
                    "\"{text}\" is none: \"client-ip\", \"path\", \"header:NAME\" or \"cookie:NAME\" is allowed"
                ),
            );
        }
        read.unwrap_or(HashKey::ClientIp)
    }
}

/// Whether it may name a field or a cookie (RFC 9110 §5.6.2).
fn is_token(name: &str) -> bool {
    let special = |b: u8| b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || special(b))
}
