//! The order of the middleware, outermost first, with the reason for each place. One stack a worker.
//!
//! When services change, the stack is built anew between two requests. A service that stays as it is keeps everything it has;
//! the others' former halves go on until the last request that is in them has ended.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use shared::metrics::IntGauge;
use shared::rng::Rng;
use tower::{Layer, ServiceBuilder};

use crate::config;
use crate::exchange::{Deadlines, Peer};
use crate::layer::access_log::{AccessLog, Pen};
use crate::layer::balance::Balance;
use crate::layer::breaker::{Breaker, BreakerLayer, Breakers};
use crate::layer::deadline::{Bounded, DeadlineLayer};
use crate::layer::forward::{Forward, ForwardLayer};
use crate::layer::gate::{self, Answer, Gate, GateLayer};
use crate::layer::hold::{Desk, Hold, HoldLayer, Shedding};
use crate::layer::observe::{Observe, ObserveLayer, Observer, Watched};
use crate::layer::rescue::{Rescue, RescueLayer};
use crate::layer::retry::{self, Retry, RetryLayer};
use crate::layer::route::Route;
use crate::layer::strict::{Strict, StrictLayer};
use crate::layer::tunnel::{self, TunnelLayer, Tunnels};
use crate::logic::route::Table;
use crate::metrics::Metrics;
use crate::metrics::local::{ServiceNumbers, Share};
use crate::secret::Secret;
use crate::steer::Steering;
use crate::upstream::barrier::{Barriers, Door, NotPassed};
use crate::upstream::client::Terms;
use crate::upstream::places::Cap;
use crate::upstream::pool::{Pool, PoolLimits, Pools, knock};

/// What a request passes before its service is known.
pub type Stack = Observe<Rescue<Strict<Route<ServiceStack>>>>;

/// What it passes then.
pub type ServiceStack = Forward<Inner>;

/// Connections of one worker to one `syncd`: a few rounds, and one to spare for each.
const SYNCD_CONNECTIONS: usize = 8;

/// What it passes there when it is known where it came from.
type Inner = Hold<Gate<Tunnels<Retry<Breaker<Bounded<Pools>>>>>>;

/// What all workers share of one service.
#[derive(Clone, Debug)]
pub struct Shared {
    /// What the operator decided.
    pub service: Arc<config::Service>,
    /// Where requests go.
    pub steering: Arc<Steering>,
    /// Which nodes are in trouble.
    pub breakers: Arc<Breakers>,
    /// What cookies are signed with.
    pub secret: Secret,
    /// How many connections each node has, in the order of their ids.
    pub caps: Arc<[Arc<Cap>]>,
    /// How many workers have it, or requests that came when they had.
    pub in_use: Arc<AtomicUsize>,
}

/// What one worker is built from.
#[derive(Debug)]
pub struct Plan<'p> {
    /// Which worker.
    pub lane: usize,
    /// Of how many.
    pub lanes: usize,
    /// Where its numbers go.
    pub metrics: &'p Metrics,
    /// Where its lines go.
    pub log: Option<AccessLog>,
    /// Its deadlines.
    pub deadlines: Deadlines,
    /// Where its ids come from.
    pub rng: Rng,
}

/// One worker's services: builds the stack, and does what must be done for it a few times a second.
#[derive(Debug)]
pub struct Works {
    lane: usize,
    lanes: usize,
    metrics: Metrics,
    deadlines: Deadlines,
    rng: Rc<RefCell<Rng>>,
    pen: Rc<Pen>,
    nowhere: Watched,
    observer: Option<Rc<Observer>>,
    kept: Vec<Kept>,
    /// Former services and settings that still have requests.
    former: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    shared: Shared,
    /// What requests are given to; nothing any more, once it is a former one.
    stack: Option<(ServiceStack, Inner)>,
    watched: Watched,
    pools: Pools,
    shares: Vec<(Share, Share)>,
    queued: Vec<IntGauge>,
    syncd: Vec<Rc<Pool>>,
    held: IntGauge,
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Whoever looks at this counts on the numbers being complete.
        self.flush();
        self.shared.in_use.fetch_sub(1, SeqCst);
    }
}

impl Kept {
    fn flush(&self) {
        self.watched.numbers.flush();
        for (pool, (idle, active)) in self.pools.iter().zip(&self.shares) {
            let (unused, open) = pool.count();
            idle.set(unused);
            active.set(open.saturating_sub(unused));
        }
    }

    fn reap(&self) {
        let pools = self.pools.iter().chain(&self.syncd);
        pools.for_each(|pool| pool.reap());
    }

    /// Whether a request is still in it: each of them, and its record, holds the numbers.
    fn is_needed(&self) -> bool {
        Rc::strong_count(&self.watched.numbers) > 1
    }
}

impl Works {
    /// Without services; see [`Works::build`].
    #[must_use]
    pub fn new(plan: Plan<'_>) -> Self {
        let pen = Rc::<Pen>::default();
        pen.take_up(plan.log);
        Self {
            lane: plan.lane,
            lanes: plan.lanes,
            metrics: plan.metrics.clone(),
            deadlines: plan.deadlines,
            rng: Rc::new(RefCell::new(plan.rng)),
            pen,
            nowhere: Watched {
                name: "".into(),
                nodes: Vec::new(),
                numbers: Rc::new(ServiceNumbers::new(plan.metrics, "", std::iter::empty())),
            },
            observer: None,
            kept: Vec::new(),
            former: Vec::new(),
        }
    }

    /// Writes finished requests to `log` from now on.
    pub fn write_to(&self, log: Option<AccessLog>) {
        self.pen.take_up(log);
    }

    /// Builds the stack for these services, in the order of the configuration. What is there already of those that have not
    /// changed is used again; requests that are held for settings that have changed wait at the new ones.
    pub fn build(&mut self, services: &[Shared], syncd_token: Option<&str>) -> Stack {
        let mut before = std::mem::take(&mut self.kept);
        for shared in services {
            let same = |kept: &Kept| Arc::ptr_eq(&kept.shared.in_use, &shared.in_use);
            let kept = match before.iter().position(same) {
                Some(place) => before.swap_remove(place),
                None => self.service(shared, syncd_token),
            };
            self.kept.push(kept);
        }
        for mut kept in before {
            let name = &kept.shared.service.name;
            let mut now = self.kept.iter();
            let heir = now.find(|other| other.shared.service.name == *name);
            if let (Some((_, old)), Some((_, new))) =
                (kept.stack.take(), heir.and_then(|heir| heir.stack.as_ref()))
            {
                old.bequeath(new.clone());
            }
            self.former.push(kept);
        }
        let watched = self.kept.iter().map(|kept| kept.watched.clone()).collect();
        let (pen, rng) = (Rc::clone(&self.pen), Rc::clone(&self.rng));
        let observer = Observer::new(pen, watched, self.nowhere.clone(), rng);
        self.observer = Some(Rc::clone(&observer));
        let mut rules = Vec::new();
        let mut stacks = Vec::new();
        for (at, kept) in self.kept.iter().enumerate() {
            let hosts = kept.shared.service.hosts.iter().cloned();
            rules.extend(hosts.map(|host| (host, at)));
            stacks.extend(kept.stack.as_ref().map(|(stack, _)| stack.clone()));
        }
        ServiceBuilder::new()
            // Sees everything, also what the others refuse, and the very end of each response.
            .layer(ObserveLayer::new(observer))
            // Inside of the eyes, so that our own answers are counted like others'; outside of all that can fail.
            .layer(RescueLayer)
            // Nothing may be decided by a head that can be read in two ways.
            .layer(StrictLayer)
            .service(Route::new(Rc::new(Table::new(rules)), stacks))
    }

    /// Hands over lines and numbers. Every tick.
    pub fn flush(&self) {
        if let Some(observer) = &self.observer {
            observer.flush();
        }
        for kept in &self.kept {
            let held = kept.shared.steering.held();
            kept.held.set(i64::try_from(held).unwrap_or(i64::MAX));
            for (cap, shown) in kept.shared.caps.iter().zip(&kept.queued) {
                shown.set(i64::try_from(cap.waiting()).unwrap_or(i64::MAX));
            }
        }
        let all = self.kept.iter().chain(&self.former);
        all.for_each(Kept::flush);
    }

    /// Closes what has been idle, adds up what was counted, lets go of what nobody needs. Every few ticks.
    pub fn tidy(&mut self, now: Instant) {
        self.former.retain(Kept::is_needed);
        self.former.iter().for_each(Kept::reap);
        for kept in &self.kept {
            kept.reap();
            kept.shared.breakers.tick(now);
        }
    }

    fn service(&self, shared: &Shared, syncd_token: Option<&str>) -> Kept {
        let service = &shared.service;
        let names = || service.nodes.iter().map(|node| &*node.name);
        let numbers = ServiceNumbers::new(&self.metrics, &service.name, names());
        let watched = Watched {
            name: (&*service.name).into(),
            nodes: names().map(Into::into).collect(),
            numbers: Rc::new(numbers),
        };
        service_stack(self, shared, syncd_token, watched)
    }
}

fn service_stack(
    plan: &Works,
    shared: &Shared,
    syncd_token: Option<&str>,
    watched: Watched,
) -> Kept {
    let service = &shared.service;
    let numbers = &watched.numbers;
    let lane = shared.steering.lane(plan.lane);
    let pools = pools(plan, shared);
    let (barriers, syncd) = barriers(plan, service, syncd_token);
    let balance = {
        let seed = plan.rng.borrow_mut().u64(..);
        let (lane, breakers) = (Rc::clone(&lane), Arc::clone(&shared.breakers));
        Balance::new(
            service,
            lane,
            breakers,
            &shared.secret,
            Rng::with_seed(seed),
        )
    };
    let room = |node: &config::Node| share(node.max_connections, plan.lanes) as u64;
    let shedding = (!service.tiers.is_empty()).then(|| Shedding {
        tiers: Arc::clone(&service.tiers),
        rooms: service.nodes.iter().map(room).collect(),
    });
    let desk = Desk::new(
        Rc::clone(&lane),
        service.hold,
        Arc::clone(&shared.breakers),
        balance,
        Rc::clone(numbers),
    );
    let desk = Rc::new(desk.shedding(shedding));
    let knocked = pools.clone();
    let within = service.timeouts.connect;
    let retry = retry::Rules {
        retry: service.retry.clone(),
        replicated: service.is_replicated(),
        desk: Rc::clone(&desk),
        deadlines: plan.deadlines.clone(),
        numbers: Rc::clone(numbers),
        knock: Rc::new(move |node| {
            let pool = knocked.iter().nth(node.index()).cloned();
            Box::pin(async move { knock(&*pool?, within).await })
        }),
    };
    let gated = service.is_gated();
    let gate = gate::Rules {
        tells: service.is_read_anywhere(),
        methods: if gated || service.is_read_anywhere() {
            service.failover.gate_methods.clone()
        } else {
            Vec::new()
        },
        within: service.failover.ack_timeout,
        degrade: service.failover.on_ack_timeout == config::OnAckTimeout::Degrade,
        ask: Rc::new(move |node, epoch| {
            let barriers = Rc::clone(&barriers);
            Box::pin(async move {
                match barriers.pass(node, epoch).await {
                    Ok(position) => Answer::Passed(position),
                    Err(NotPassed::Stale) => Answer::Stale,
                    Err(NotPassed::NotYet) => Answer::NotYet,
                }
            })
        }),
        lane: Rc::clone(&lane),
        numbers: Rc::clone(numbers),
    };
    let tunnels = tunnel::Rules {
        service: Arc::clone(service),
        lane,
        open: open_tunnels(&plan.metrics, service),
    };
    let response_within = service.timeouts.response_header;
    let inner = ServiceBuilder::new()
        // Before anything is read of the body.
        .layer(HoldLayer::new(desk))
        // Outside of the attempts: what waits is the answer, whichever attempt it came from.
        .layer(GateLayer::new(gate))
        // Outside of the attempts, which end where a tunnel begins.
        .layer(TunnelLayer::new(tunnels))
        // Comes back to the desk for each attempt, because the node, or the epoch, may be another then.
        .layer(RetryLayer::new(retry))
        // Judges every attempt, not only the last.
        .layer(BreakerLayer::new(Arc::clone(&shared.breakers), plan.lane))
        // Inside of the breaker, so that silence counts against the node.
        .layer(DeadlineLayer::new(plan.deadlines.clone(), response_within))
        .service(pools.clone());
    // Once, whatever happens inside: nothing in the head depends on the node.
    let forward = ForwardLayer::new(Arc::clone(service), Rc::clone(&plan.rng));
    let stack = forward.layer(inner.clone());
    shared.in_use.fetch_add(1, SeqCst);
    Kept {
        stack: Some((stack, inner)),
        watched,
        shares: shares(&plan.metrics, service),
        queued: queued(&plan.metrics, service),
        held: plan
            .metrics
            .held_requests
            .with_label_values(&[&*service.name]),
        shared: shared.clone(),
        pools,
        syncd,
    }
}

fn open_tunnels(metrics: &Metrics, service: &config::Service) -> Vec<IntGauge> {
    let nodes = service.nodes.iter();
    nodes
        .map(|node| {
            let labels = [&*service.name, &*node.name];
            metrics.tunnels.with_label_values(&labels)
        })
        .collect()
}

/// One worker's part of what all together may have; at least 1.
fn share(all: usize, lanes: usize) -> usize {
    all.div_ceil(lanes).max(1)
}

fn shares(metrics: &Metrics, service: &config::Service) -> Vec<(Share, Share)> {
    let share = |node: &str, state: &str| {
        let labels = [&*service.name, node, state];
        Share::new(metrics.upstream_connections.with_label_values(&labels))
    };
    let nodes = service.nodes.iter();
    nodes
        .map(|node| (share(&node.name, "idle"), share(&node.name, "active")))
        .collect()
}

fn queued(metrics: &Metrics, service: &config::Service) -> Vec<IntGauge> {
    let gauge = |node: &config::Node| {
        let labels = [&*service.name, &*node.name];
        metrics.queued_requests.with_label_values(&labels)
    };
    service.nodes.iter().map(gauge).collect()
}

fn pools(plan: &Works, shared: &Shared) -> Pools {
    let service = &shared.service;
    Pools::new(service.nodes.iter().zip(&*shared.caps).map(|(node, cap)| {
        let limits = PoolLimits {
            cap: Arc::clone(cap),
            lane: plan.lane,
            connect: service.timeouts.connect,
            wait: service.hold.max_wait,
        };
        let terms = Terms {
            node: node.id,
            idle: service.timeouts.idle,
            deadlines: plan.deadlines.clone(),
        };
        Pool::new(node.endpoint.clone(), limits, terms)
    }))
}

fn barriers(
    plan: &Works,
    service: &config::Service,
    syncd_token: Option<&str>,
) -> (Rc<Barriers>, Vec<Rc<Pool>>) {
    let within = service.failover.ack_timeout;
    let ourselves = Peer::new([127, 0, 0, 1].into(), "http", within);
    let mut pools = Vec::new();
    let mut doors = Vec::new();
    for node in &service.nodes {
        let Some(syncd) = &node.syncd else {
            doors.push(None);
            continue;
        };
        let limits = PoolLimits {
            cap: Cap::new(SYNCD_CONNECTIONS, SYNCD_CONNECTIONS, 1),
            lane: 0,
            connect: service.timeouts.connect,
            wait: within,
        };
        let terms = Terms {
            node: node.id,
            idle: within,
            deadlines: plan.deadlines.clone(),
        };
        let pool = Pool::new(syncd.address.clone().into(), limits, terms);
        pools.push(Rc::clone(&pool));
        doors.push(Some(Door {
            pool,
            host: syncd.address.to_string(),
            token: syncd_token.map(str::to_owned),
            ourselves: Rc::clone(&ourselves),
        }));
    }
    (Barriers::new(doors, within), pools)
}
