//! Balancing: finds the node for each request of a service whose nodes are all active, and for each read of one whose standbys
//! may answer reads.
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
use super::reading::Reading;
use super::sticky::Sticky;
use crate::config::{self, HashKey};
use crate::exchange::{Response, Trail, cookie};
use crate::logic::NodeId;
use crate::logic::balance::{Balancer, Field, Policy, candidates, key};
use crate::logic::nodes::NodeSet;
use crate::secret::Secret;
use crate::steer::{Admission, Class, Lane, Members, View};

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
    /// There is a primary, and this is how it shares reads.
    reading: Option<Reading>,
    weights: Box<[u32]>,
    balancer: RefCell<Balancer>,
}

impl Balance {
    /// For `service`; `None` if the primary has all requests. `rng` makes each worker begin at a place of its own.
    #[must_use]
    pub fn new(
        service: &config::Service,
        lane: Rc<Lane>,
        breakers: Arc<Breakers>,
        secret: &Secret,
        rng: Rng,
    ) -> Option<Self> {
        let reading = Reading::new(service, secret);
        if reading.is_none() && !service.is_balanced() {
            return None;
        }
        let cookie = service.balance.sticky.as_deref();
        let names = service.nodes.iter().map(|node| &*node.name);
        Some(Self {
            lane,
            breakers,
            reading,
            weights: service.nodes.iter().map(|node| node.weight).collect(),
            balancer: RefCell::new(Balancer::new(service.balance.policy, names, rng)),
            rules: service.balance.clone(),
            sticky: cookie.map(|name| Sticky::new(service, name, secret)),
        })
    }

    /// Admits a request to a node, if possible to one where it was not tried yet.
    pub fn admit(&self, class: Class, trail: &Trail, tries: Tries) -> Admission {
        self.lane
            .admit_by(class, |view| match (&self.reading, class) {
                (None, _) => self.choose(view.members.as_ref()?, trail, tries),
                (Some(_), Class::Write) => view.taker(class),
                (Some(reading), Class::Safe) => self.choose_reader(reading, view, trail, tries),
            })
    }

    fn choose_reader(
        &self,
        reading: &Reading,
        view: &View,
        trail: &Trail,
        tries: Tries,
    ) -> Option<NodeId> {
        let broken = self.breakers.broken();
        let choice = reading.choose(view, &self.lane.readers(), trail, broken, tries);
        let field = Field {
            among: choice.among,
            weights: &self.weights,
            now: self.now(trail),
            key: self.key(trail),
        };
        let mut balancer = self.balancer.borrow_mut();
        let chosen = balancer.choose(field, |node| self.lane.load(node));
        chosen.or(choice.otherwise)
    }

    /// Whether `node` is what all depends on: the primary, whose role may go to another.
    #[must_use]
    pub fn is_primary(&self, node: NodeId) -> bool {
        self.reading.is_some() && self.lane.view().target == Some(node)
    }

    /// Whether there is a primary at all.
    #[must_use]
    pub const fn has_primary(&self) -> bool {
        self.reading.is_some()
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

    /// Whether the client is to be told something with the response to such a request.
    #[must_use]
    pub fn marks(&self, class: Class) -> bool {
        let remembers = self.reading.as_ref().is_some_and(Reading::remembers);
        self.sticky.is_some() || class == Class::Write && remembers
    }

    /// Lets the client come back to the node that answered it, or remember what it wrote.
    pub fn mark(&self, trail: &Trail, response: &mut Response) {
        if let Some(reading) = &self.reading {
            reading.remember(trail, response);
        }
        if let Some(sticky) = &self.sticky {
            sticky.stick(trail, response);
        }
    }

    /// Whether there is a sound node where a request was not tried yet.
    #[must_use]
    pub fn has_another(&self, tries: Tries) -> bool {
        let view = self.lane.view();
        if self.reading.is_some() {
            // What a standby has failed to answer, the primary answers.
            let is_new = |target| !tries.all.has(target);
            return !tries.all.is_empty() && view.target.is_some_and(is_new);
        }
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
