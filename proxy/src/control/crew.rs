//! The loop of a service whose nodes are all active: hears probes, signs and operators, tells workers who may take requests.
//!
//! Nothing is on record and nothing has an epoch: a node takes requests while it can.

use std::sync::Arc;
use std::time::Instant;

use shared::rng::Rng;
use shared::{clock, drain};
use tokio::sync::{mpsc, oneshot, watch};

use super::driver::{INPUTS_MOST, SHOW_EVERY, until};
use super::view::{NodeView, ServiceView};
use super::{Chronicle, Done, Left, Ordered, Parts};
use crate::config::Service;
use crate::logic::NodeId;
use crate::logic::balance::Policy;
use crate::logic::failover::Order;
use crate::logic::fleet::{Fleet, Input, Members};
use crate::logic::health::{Check, Health};
use crate::metrics::Metrics;
use crate::steer::{Sign, Steering, View};
use crate::upstream::probe::{self, How, Observation, Seen};
use crate::worker::ServiceHandle;

pub(super) struct Crew {
    service: Arc<Service>,
    handle: ServiceHandle,
    steering: Arc<Steering>,
    signs: mpsc::Receiver<Sign>,
    chronicle: Chronicle,
    metrics: Metrics,
    fleet: Fleet,
    nodes: Vec<Watched>,
    published: Option<(Members, &'static str)>,
    grows_at: Option<Instant>,
    shown: watch::Sender<Arc<ServiceView>>,
}

struct Watched {
    health: Health,
    /// Why it does not take requests, if that was seen.
    why: String,
    /// How many answers were counted when it was probed last.
    answers: u64,
    alert: watch::Sender<bool>,
    /// A request was lost there; it is watched until it answers.
    lost: bool,
}

impl Crew {
    /// The loop, and what it shows, from the first look on.
    pub(super) fn new(parts: Parts) -> (Self, watch::Receiver<Arc<ServiceView>>) {
        let service = Arc::clone(parts.handle.service());
        let now = clock::now();
        let watched = |_| Watched {
            health: Health::new(service.health.patience, now),
            why: String::new(),
            answers: 0,
            alert: watch::channel(false).0,
            lost: false,
        };
        let in_turn = service.balance.policy == Policy::RoundRobin;
        let weights = service
            .nodes
            .iter()
            .map(|node| if in_turn { 1 } else { node.weight });
        let (shown, view) = watch::channel(Arc::default());
        let mut fleet = Fleet::new(weights, service.balance.slow_start);
        for node in parts.kept_out() {
            fleet.handle_input(now, Input::Drain(node, true));
        }
        let mut crew = Self {
            fleet,
            nodes: service.nodes.iter().map(watched).collect(),
            steering: Arc::clone(parts.handle.steering()),
            handle: parts.handle,
            signs: parts.signs,
            chronicle: parts.chronicle,
            metrics: parts.metrics,
            published: None,
            grows_at: None,
            shown,
            service,
        };
        crew.publish();
        crew.show();
        (crew, view)
    }

    pub(super) async fn run(
        mut self,
        mut orders: mpsc::Receiver<Ordered>,
        mut drain: drain::Watch,
    ) -> Left {
        let (seen, mut observations) = mpsc::channel(INPUTS_MOST);
        self.start_probing(&seen, &drain);
        let mut tick = tokio::time::interval(SHOW_EVERY);
        loop {
            self.publish();
            self.show();
            tokio::select! {
                () = drain.begun() => break,
                Some(sign) = self.signs.recv() => self.handle_sign(sign),
                Some(observation) = observations.recv() => self.handle_observation(observation),
                Some(Ordered { order, answer }) = orders.recv() => self.handle_order(order, answer),
                () = until(self.grows_at) => (),
                _ = tick.tick() => (),
            }
        }
        let out = |node: &&crate::config::Node| self.fleet.is_draining(node.id);
        let nodes = self.service.nodes.iter();
        Left {
            unreported: 0,
            draining: nodes
                .filter(out)
                .map(|node| Arc::clone(&node.name))
                .collect(),
            signs: self.signs,
            last_failover: None,
        }
    }

    fn start_probing(&self, seen: &mpsc::Sender<Observation>, drain: &drain::Watch) {
        let mut rng = Rng::new();
        for (node, watched) in self.service.nodes.iter().zip(&self.nodes) {
            let target = probe::Target {
                node: node.id,
                endpoint: node.endpoint.clone(),
                health: self.service.health.clone(),
            };
            let rng = Rng::with_seed(rng.u64(..));
            let alert = watched.alert.subscribe();
            tokio::spawn(probe::run(target, alert, seen.clone(), rng, drain.clone()));
        }
    }

    fn input(&mut self, input: Input) {
        self.fleet.handle_input(clock::now(), input);
    }

    fn handle_sign(&mut self, sign: Sign) {
        match sign {
            Sign::Refused(node) => self.refused(node),
            Sign::Lost(node) => {
                self.nodes[node.index()].lost = true;
                self.set_alert(node);
            }
            Sign::Broke(node) => {
                let message =
                    "its circuit breaker opened: gets requests only if no other node can take them";
                tracing::warn!(
                    service = &*self.service.name,
                    node = &*self.name(node),
                    "ejected"
                );
                self.tell("ejected", Some(node), message.to_owned());
            }
            Sign::Mended(node) => self.input(Input::Mended(node)),
            // Nothing is replicated, so nothing is waited for.
            Sign::AckTimeout(_) => (),
        }
    }

    fn refused(&mut self, node: NodeId) {
        if !self.fleet.is_refusing(node) {
            "connections refused".clone_into(&mut self.nodes[node.index()].why);
        }
        self.input(Input::Refused(node));
        self.set_alert(node);
    }

    fn answered(&mut self, node: NodeId) {
        self.nodes[node.index()].lost = false;
        self.input(Input::Answered(node));
        self.set_alert(node);
    }

    fn set_alert(&self, node: NodeId) {
        let watched = &self.nodes[node.index()];
        let on = watched.lost || self.fleet.is_refusing(node);
        let change = |alert: &mut bool| std::mem::replace(alert, on) != on;
        watched.alert.send_if_modified(change);
    }

    fn handle_observation(&mut self, Observation { node, kind }: Observation) {
        match kind {
            Seen::Passed => {
                self.answered(node);
                self.observe(node, Check::Passed, "");
            }
            Seen::Failed { why, how } => {
                if how == How::Refused {
                    self.refused(node);
                }
                let answers = self.handle.answers(node);
                let alive = how == How::Late && answers != self.nodes[node.index()].answers;
                let check = if alive { Check::Late } else { Check::Failed };
                self.observe(node, check, &why);
            }
            Seen::Refused => self.refused(node),
            Seen::Answered => self.answered(node),
        }
    }

    fn observe(&mut self, node: NodeId, check: Check, why: &str) {
        let watched = &mut self.nodes[node.index()];
        watched.answers = self.handle.answers(node);
        if let Some(up) = watched.health.observe(clock::now(), check) {
            why.clone_into(&mut watched.why);
            self.input(Input::Health(node, up));
        }
    }

    fn handle_order(&mut self, order: Order, answer: oneshot::Sender<Result<Done, String>>) {
        let result = match order {
            Order::Drain(node) => match self.fleet.not_drainable(node) {
                Some(why) => Err(why.to_owned()),
                None => Ok(self.drain(node, true)),
            },
            Order::Undrain(node) => Ok(self.drain(node, false)),
            Order::Switchover(_) | Order::Promote { .. } | Order::Rejoin(_) => Err(format!(
                "service \"{}\" has mode = \"hot-hot\": every node is active, so there is no primary to change; drain and undrain take nodes out and put them back",
                self.service.name
            )),
        };
        // In force before it is answered.
        self.publish();
        self.show();
        let _ = answer.send(result.map(|message| Done {
            message,
            unavailable_ms: None,
        }));
    }

    fn drain(&mut self, node: NodeId, on: bool) -> String {
        let name = self.name(node);
        if self.fleet.is_draining(node) == on {
            let state = if on { "is" } else { "is not" };
            return format!("{name} {state} being drained already");
        }
        self.input(Input::Drain(node, on));
        let (kind, message) = if on {
            ("draining", "gets no new requests")
        } else {
            ("undrained", "may take requests again")
        };
        tracing::info!(service = &*self.service.name, node = &*name, on, "draining");
        self.tell(kind, Some(node), message.to_owned());
        format!("{name} {message}")
    }

    /// Puts in force who may take requests, if that has changed.
    fn publish(&mut self) {
        let now = clock::now();
        let members = self.fleet.members(now);
        self.grows_at = self.fleet.poll_timeout(now);
        let phase = self.fleet.phase();
        let before = self.published.replace((members.clone(), phase));
        if before.as_ref() == Some(&(members.clone(), phase)) {
            return;
        }
        let why = self.why(phase);
        self.steering.publish(View {
            members: Some(members.clone()),
            phase,
            why: why.as_deref().map(Arc::from),
            ..View::default()
        });
        let (former, was) = before.unwrap_or_default();
        let ids = self.service.nodes.iter().map(|node| node.id);
        for node in ids.collect::<Vec<_>>() {
            self.tell_change(node, former.takes.has(node), members.takes.has(node));
        }
        if phase == "unavailable" && was != phase {
            let why = why.unwrap_or_default();
            tracing::error!(
                service = &*self.service.name,
                why,
                "unavailable; requests are held"
            );
            self.tell("unavailable", None, format!("requests are held: {why}"));
        }
    }

    fn tell_change(&self, node: NodeId, took: bool, takes: bool) {
        let (service, name) = (&*self.service.name, self.name(node));
        match (took, takes) {
            (false, true) => {
                tracing::info!(service, node = &*name, "takes requests");
                self.tell("up", Some(node), "takes requests".to_owned());
            }
            (true, false) if !self.fleet.is_draining(node) => {
                let why = &*self.nodes[node.index()].why;
                tracing::warn!(service, node = &*name, why, "takes no requests");
                self.tell("down", Some(node), format!("takes no requests: {why}"));
            }
            _ => (),
        }
    }

    /// Why nobody takes requests.
    fn why(&self, phase: &'static str) -> Option<String> {
        let each = self.service.nodes.iter().map(|node| {
            let why = match self.fleet.app(node.id) {
                _ if self.fleet.is_draining(node.id) => "draining",
                None => "not probed yet",
                Some(_) => &*self.nodes[node.id.index()].why,
            };
            format!("{}: {why}", node.name)
        });
        let told = || each.collect::<Vec<_>>().join("; ");
        (phase != "serving").then(|| format!("no node takes requests ({})", told()))
    }

    fn name(&self, node: NodeId) -> Arc<str> {
        Arc::clone(&self.service.nodes[node.index()].name)
    }

    fn tell(&self, kind: &'static str, node: Option<NodeId>, message: String) {
        let node = node.map(|node| self.name(node).to_string());
        self.chronicle
            .tell(&self.service.name, kind, node, 0, message);
    }

    fn show(&self) {
        let phase = self.fleet.phase();
        let view = ServiceView {
            name: self.service.name.to_string(),
            mode: "hot-hot",
            phase,
            why: self.why(phase),
            durability: "none",
            held_requests: self.steering.held(),
            nodes: self
                .service
                .nodes
                .iter()
                .map(|node| self.node_view(node.id))
                .collect(),
            ..ServiceView::default()
        };
        view.count(&self.metrics);
        self.shown.send_if_modified(|shown| {
            let changed = **shown != view;
            if changed {
                *shown = Arc::new(view);
            }
            changed
        });
    }

    fn node_view(&self, node: NodeId) -> NodeView {
        let health = match self.fleet.app(node) {
            _ if self.fleet.is_draining(node) => "draining",
            None => "unknown",
            Some(true) if !self.fleet.is_refusing(node) => "up",
            Some(_) => "down",
        };
        NodeView {
            name: self.name(node).to_string(),
            role: "none",
            health,
            health_why: (health == "down").then(|| self.nodes[node.index()].why.clone()),
            breaker: self.handle.breaker(node).as_str(),
            in_flight: self.steering.in_flight_at(node),
            queued: self.handle.queued(node),
            syncd: "none",
            lag: NodeView::NO_LAG,
            ..NodeView::default()
        }
    }
}
