//! Balancing: finds the node for each request of a service whose nodes are all active.
//!
//! Who may be chosen comes from two sides: the control plane's view says who is up and not taken out, the breakers say who is in
//! trouble at this very moment. The choice itself is the worker's own (`logic::balance`).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::clock;
use shared::rng::Rng;

use super::breaker::Breakers;
use super::sticky::Sticky;
use crate::config::{self, HashKey};
use crate::exchange::{Response, Trail, cookie};
use crate::logic::NodeId;
use crate::logic::balance::{Balancer, Field, Policy, candidates, key};
use crate::logic::nodes::NodeSet;
use crate::secret::Secret;
use crate::steer::{Admission, Class, Lane, Members};

/// The nodes that a request was tried at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    /// All of them.
    pub all: NodeSet,
    /// The last.
    pub last: Option<NodeId>,
}

impl Tries {
    /// One more.
    pub const fn add(&mut self, node: NodeId) {
        self.all = self.all.with(node);
        self.last = Some(node);
    }
}

/// One worker's balancing of one service.
#[derive(Debug)]
pub struct Balance {
    lane: Rc<Lane>,
    breakers: Arc<Breakers>,
    rules: config::Balance,
    sticky: Option<Sticky>,
    balancer: RefCell<Balancer>,
}

impl Balance {
    /// For `service`; `rng` makes each worker begin at a place of its own.
    #[must_use]
    pub fn new(
        service: &config::Service,
        lane: Rc<Lane>,
        breakers: Arc<Breakers>,
        secret: &Secret,
        rng: Rng,
    ) -> Self {
        let cookie = service.balance.sticky.as_deref();
        let names = service.nodes.iter().map(|node| &*node.name);
        Self {
            lane,
            breakers,
            balancer: RefCell::new(Balancer::new(service.balance.policy, names, rng)),
            rules: service.balance.clone(),
            sticky: cookie.map(|name| Sticky::new(service, name, secret)),
        }
    }

    /// Admits a request to a node, if possible to one where it was not tried yet.
    pub fn admit(&self, class: Class, trail: &Trail, tries: Tries) -> Admission {
        self.lane.admit_by(class, |view| {
            let members = view.members.as_ref()?;
            self.choose(members, trail, tries)
        })
    }

    fn choose(&self, members: &Members, trail: &Trail, tries: Tries) -> Option<NodeId> {
        let (up, broken) = (members.takes, self.breakers.broken());
        if let Some(kept) = self.kept(trail) {
            // A node that is being drained keeps the clients that it has.
            let up = up.or(members.keeps.among(NodeSet::only(kept)));
            if candidates(up, broken, tries.all, tries.last).has(kept) {
                return Some(kept);
            }
        }
        let field = Field {
            among: candidates(up, broken, tries.all, tries.last),
            weights: &members.weights,
            now: self.now(trail),
            key: self.key(trail),
        };
        let mut balancer = self.balancer.borrow_mut();
        balancer.choose(field, |node| self.lane.load(node))
    }

    /// The node that the client was sent to before.
    fn kept(&self, trail: &Trail) -> Option<NodeId> {
        self.sticky.as_ref()?.node(trail)
    }

    /// Whether responses have to be marked with the node that they come from.
    #[must_use]
    pub const fn sticks(&self) -> bool {
        self.sticky.is_some()
    }

    /// Lets the client come back to the node that answered it.
    pub fn stick(&self, trail: &Trail, response: &mut Response) {
        if let Some(sticky) = &self.sticky {
            sticky.stick(trail, response);
        }
    }

    /// Whether there is a sound node where a request was not tried yet.
    #[must_use]
    pub fn has_another(&self, tries: Tries) -> bool {
        let view = self.lane.view();
        let others = |members: &Members| {
            let sound = members.takes.except(self.breakers.broken());
            !sound.except(tries.all).is_empty()
        };
        view.members.as_ref().is_some_and(others)
    }

    /// Takes in how long a node took to begin its answer; `None` when it failed.
    pub fn settle(&self, node: NodeId, now: Instant, took: Option<Duration>) {
        self.balancer.borrow_mut().settle(node, now, took);
    }

    /// Only one policy looks at the time; the others are spared the question.
    fn now(&self, trail: &Trail) -> Instant {
        if self.rules.policy == Policy::P2cEwma {
            clock::now()
        } else {
            trail.began
        }
    }

    /// What the request is told from others by. Without it, it counts as its client's address.
    fn key(&self, trail: &Trail) -> u64 {
        if self.rules.policy != Policy::Hash {
            return 0;
        }
        let head = trail.head();
        let told = head.and_then(|head| match &self.rules.hash_key {
            HashKey::ClientIp => None,
            HashKey::Path => head.target().split(|byte| *byte == b'?').next(),
            HashKey::Cookie(name) => cookie::find(&head.fields, name),
            HashKey::Header(name) => {
                let mut fields = head.fields.iter();
                let found =
                    fields.find(|(_, field, _)| field.eq_ignore_ascii_case(name.as_bytes()));
                found.map(|(_, _, value)| value)
            }
        });
        told.map_or_else(
            || match trail.client() {
                std::net::IpAddr::V4(ip) => key(&ip.octets()),
                std::net::IpAddr::V6(ip) => key(&ip.octets()),
            },
            key,
        )
    }
}
