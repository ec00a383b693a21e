//! The order of the middleware, outermost first, with the reason for each place. One stack a worker.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use shared::metrics::IntGauge;
use shared::rng::Rng;
use tower::ServiceBuilder;

use crate::config;
use crate::exchange::{Deadlines, Peer};
use crate::layer::access_log::Lines;
use crate::layer::balance::Balance;
use crate::layer::breaker::{Breaker, BreakerLayer, Breakers};
use crate::layer::deadline::{Bounded, DeadlineLayer};
use crate::layer::forward::{Forward, ForwardLayer};
use crate::layer::gate::{self, Answer, Gate, GateLayer};
use crate::layer::hold::{Desk, Hold, HoldLayer};
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
use crate::upstream::pool::{Pool, PoolLimits, Pools, knock};

/// What a request passes before its service is known.
pub type Stack = Observe<Rescue<Strict<Route<ServiceStack>>>>;

/// What it passes then.
pub type ServiceStack = Forward<Hold<Gate<Tunnels<Retry<Breaker<Bounded<Pools>>>>>>>;

/// Connections of one worker to one `syncd`: a few rounds, and one to spare for each.
const SYNCD_CONNECTIONS: usize = 8;

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
}

/// What one worker is built from.
#[derive(Debug)]
pub struct Plan<'p> {
    /// Which worker.
    pub lane: usize,
    /// Of how many.
    pub lanes: usize,
    /// The services, in the order of the configuration.
    pub services: &'p [Shared],
    /// The token for every `syncd`.
    pub syncd_token: Option<&'p str>,
    /// Where its numbers go.
    pub metrics: &'p Metrics,
    /// Where its lines go.
    pub log: Option<Lines>,
    /// Its deadlines.
    pub deadlines: Deadlines,
    /// Where its ids come from.
    pub rng: Rng,
}

/// A worker's stack, and what must be done for it a few times a second.
#[derive(Debug)]
pub struct Built {
    /// The stack.
    pub stack: Stack,
    /// What must be done.
    pub upkeep: Upkeep,
}

/// What must be done a few times a second.
#[derive(Debug)]
pub struct Upkeep {
    observer: Rc<Observer>,
    kept: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    shared: Shared,
    pools: Pools,
    shares: Vec<(Share, Share)>,
    syncd: Vec<Rc<Pool>>,
    held: IntGauge,
}

impl Upkeep {
    /// Hands over lines and numbers. Every tick.
    pub fn flush(&self) {
        self.observer.flush();
        for kept in &self.kept {
            let held = kept.shared.steering.held();
            kept.held.set(i64::try_from(held).unwrap_or(i64::MAX));
            for (pool, (idle, active)) in kept.pools.iter().zip(&kept.shares) {
                let (unused, open) = pool.count();
                idle.set(unused);
                active.set(open.saturating_sub(unused));
            }
        }
    }

    /// Closes what has been idle, adds up what was counted. Every few ticks.
    pub fn tidy(&self, now: Instant) {
        for kept in &self.kept {
            kept.pools
                .iter()
                .chain(&kept.syncd)
                .for_each(|pool| pool.reap());
            kept.shared.breakers.tick(now);
        }
    }
}

/// Builds one worker's stack.
#[must_use]
pub fn build(plan: Plan<'_>) -> Built {
    let rng = Rc::new(RefCell::new(plan.rng.clone()));
    let mut watched = Vec::new();
    let mut services = Vec::new();
    let mut kept = Vec::new();
    let mut rules = Vec::new();
    for (at, shared) in plan.services.iter().enumerate() {
        let service = &shared.service;
        let names = || service.nodes.iter().map(|node| &*node.name);
        let numbers = Rc::new(ServiceNumbers::new(plan.metrics, &service.name, names()));
        watched.push(Watched {
            name: (&*service.name).into(),
            nodes: names().map(Into::into).collect(),
            numbers: Rc::clone(&numbers),
        });
        rules.extend(service.hosts.iter().cloned().map(|host| (host, at)));
        let (stack, keep) = service_stack(&plan, shared, &numbers, &rng);
        services.push(stack);
        kept.push(keep);
    }
    let nowhere = Watched {
        name: "".into(),
        nodes: Vec::new(),
        numbers: Rc::new(ServiceNumbers::new(plan.metrics, "", std::iter::empty())),
    };
    let observer = Observer::new(plan.log, watched, nowhere, rng);
    let stack = ServiceBuilder::new()
        // Sees everything, also what the others refuse, and the very end of each response.
        .layer(ObserveLayer::new(Rc::clone(&observer)))
        // Inside of the eyes, so that our own answers are counted like others'; outside of all that can fail.
        .layer(RescueLayer)
        // Nothing may be decided by a head that can be read in two ways.
        .layer(StrictLayer)
        .service(Route::new(Rc::new(Table::new(rules)), services));
    Built {
        stack,
        upkeep: Upkeep { observer, kept },
    }
}

fn service_stack(
    plan: &Plan<'_>,
    shared: &Shared,
    numbers: &Rc<ServiceNumbers>,
    rng: &Rc<RefCell<Rng>>,
) -> (ServiceStack, Kept) {
    let service = &shared.service;
    let lane = shared.steering.lane(plan.lane);
    let pools = pools(plan, service);
    let (barriers, syncd) = barriers(plan, service);
    let balance = service.is_balanced().then(|| {
        let seed = rng.borrow_mut().u64(..);
        let (lane, breakers) = (Rc::clone(&lane), Arc::clone(&shared.breakers));
        Balance::new(
            service,
            lane,
            breakers,
            &shared.secret,
            Rng::with_seed(seed),
        )
    });
    let desk = Rc::new(Desk::new(
        Rc::clone(&lane),
        service.hold,
        Arc::clone(&shared.breakers),
        balance,
        Rc::clone(numbers),
    ));
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
        methods: if gated {
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
        open: open_tunnels(plan.metrics, service),
    };
    let response_within = service.timeouts.response_header;
    let stack = ServiceBuilder::new()
        // Once, whatever happens inside: nothing in the head depends on the node.
        .layer(ForwardLayer::new(Arc::clone(service), Rc::clone(rng)))
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
    let kept = Kept {
        shares: shares(plan.metrics, service),
        held: plan
            .metrics
            .held_requests
            .with_label_values(&[&*service.name]),
        shared: shared.clone(),
        pools,
        syncd,
    };
    (stack, kept)
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

fn pools(plan: &Plan<'_>, service: &config::Service) -> Pools {
    Pools::new(service.nodes.iter().map(|node| {
        let limits = PoolLimits {
            connections: node.max_connections.div_ceil(plan.lanes).max(1),
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

fn barriers(plan: &Plan<'_>, service: &config::Service) -> (Rc<Barriers>, Vec<Rc<Pool>>) {
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
            connections: SYNCD_CONNECTIONS,
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
            token: plan.syncd_token.map(str::to_owned),
            ourselves: Rc::clone(&ourselves),
        }));
    }
    (Barriers::new(doors, within), pools)
}
