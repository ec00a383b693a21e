//! The loop: wait for something to happen, let the machine decide, carry it out, show it.

mod display;
mod effects;
mod events;
mod readers;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::call::Peer;
use shared::model::Role;
use shared::rng::Rng;
use shared::{api, clock, drain};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::chronicle::Chronicle;
use super::report::{self, Heard};
use super::view::{LastFailover, ServiceView};
use super::{Done, Left, Ordered, Parts};
use crate::arbiter::Place;
use crate::config::Service;
use crate::logic::NodeId;
use crate::logic::failover::{App, Failover, Input, OrderId, Promotion, Steer};
use crate::logic::health::{Check, Health};
use crate::logic::stall::{Change, Stall};
use crate::metrics::Metrics;
use crate::steer::{Readers, Sign, Steering};
use crate::upstream::probe::{self, How, Observation, Seen};
use crate::worker::ServiceHandle;

/// How many inputs may wait for the loop.
pub(super) const INPUTS_MOST: usize = 256;
/// Whether the primary answers is looked at this often.
const PULSE_LOOK: Duration = Duration::from_millis(50);
/// So long may requests wait without any response before no more are sent: longer than a response may well take, shorter
/// than what an application's queue should grow by.
const STALL_AFTER: Duration = Duration::from_millis(250);
/// What is shown is brought up to date at least this often.
pub(super) const SHOW_EVERY: Duration = Duration::from_millis(250);
/// A response released this long before a report was heard is in that report, whatever the network did.
const REPORT_SETTLES: Duration = Duration::from_millis(100);

/// What else can happen, from tasks of this service's own.
enum Happening {
    Input(Input),
}

struct NodeDriver {
    health: Health,
    /// How many requests of the service had been answered when it was probed last.
    answered: u64,
    health_why: String,
    alert: watch::Sender<bool>,
    /// The machine wants it watched closely.
    wanted: bool,
    /// A request was lost there; it is watched until it answers.
    lost: bool,
    peer: Option<Peer>,
    url: String,
    report: Option<Box<api::Report>>,
}

pub(super) struct Driver {
    service: Arc<Service>,
    handle: ServiceHandle,
    steering: Arc<Steering>,
    signs: mpsc::Receiver<Sign>,
    place: Place,
    chronicle: Chronicle,
    metrics: Metrics,
    machine: Failover,
    shown: watch::Sender<Arc<ServiceView>>,
    nodes: Vec<NodeDriver>,
    stall: Stall,
    happenings: (mpsc::Sender<Happening>, mpsc::Receiver<Happening>),
    saves: JoinSet<()>,
    answers: HashMap<u64, oneshot::Sender<Result<Done, String>>>,
    next_order: u64,
    steer: Option<Steer>,
    closed_at: Option<Instant>,
    last_outage: Option<Duration>,
    last_failover: Option<LastFailover>,
    pending_promotion: Option<Promotion>,
    /// When reports of the primary were heard, and how many responses had been released by then.
    released: VecDeque<(Instant, u64)>,
    /// Who was last allowed to answer reads.
    readers: Readers,
}

impl Driver {
    /// A driver of `machine`, and what it shows, from the first look on.
    pub(super) fn new(
        parts: Parts,
        machine: Failover,
    ) -> (Self, watch::Receiver<Arc<ServiceView>>) {
        let service = Arc::clone(parts.handle.service());
        let steering = Arc::clone(parts.handle.steering());
        let now = clock::now();
        let node = |node: &crate::config::Node| NodeDriver {
            health: Health::new(service.health.patience, now),
            answered: 0,
            health_why: String::new(),
            alert: watch::channel(false).0,
            wanted: false,
            lost: false,
            peer: node.syncd.as_ref().map(|syncd| syncd.peer.clone()),
            url: node
                .syncd
                .as_ref()
                .map(|syncd| syncd.url.clone())
                .unwrap_or_default(),
            report: None,
        };
        let nodes = service.nodes.iter().map(node).collect();
        let (shown, view) = watch::channel(Arc::default());
        let driver = Self {
            service,
            handle: parts.handle,
            steering,
            signs: parts.signs,
            place: parts.place,
            chronicle: parts.chronicle,
            metrics: parts.metrics,
            machine,
            shown,
            nodes,
            stall: Stall::new(STALL_AFTER),
            happenings: mpsc::channel(INPUTS_MOST),
            saves: JoinSet::new(),
            answers: HashMap::new(),
            next_order: 0,
            steer: None,
            closed_at: Some(now),
            last_outage: None,
            last_failover: parts.former.and_then(|left| left.last_failover),
            pending_promotion: None,
            released: VecDeque::new(),
            readers: Readers::default(),
        };
        driver.show();
        (driver, view)
    }

    pub(super) async fn run(
        mut self,
        mut orders: mpsc::Receiver<Ordered>,
        mut drain: drain::Watch,
    ) -> Left {
        let (seen, mut observations) = mpsc::channel(INPUTS_MOST);
        let (heard, mut reports) = mpsc::channel(INPUTS_MOST);
        self.start_watching(&seen, &heard, &drain);
        self.carry_out();
        let mut tick = tokio::time::interval(SHOW_EVERY);
        let mut pulse = tokio::time::interval(PULSE_LOOK);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.show();
            self.let_read();
            let due = self.machine.poll_timeout();
            tokio::select! {
                () = drain.begun() => break,
                Some(sign) = self.signs.recv() => self.handle_sign(sign),
                Some(observation) = observations.recv() => self.handle_observation(observation),
                Some(heard) = reports.recv() => self.handle_heard(heard),
                Some(Happening::Input(input)) = self.happenings.1.recv() => self.input(input),
                Some(ordered) = orders.recv() => self.handle_order(ordered),
                () = until(due) => {
                    self.machine.handle_timeout(clock::now());
                    self.carry_out();
                }
                _ = pulse.tick() => self.feel_pulse(),
                _ = tick.tick() => (),
            }
        }
        self.leave().await
    }

    /// Lets what is being written reach the disk, so that nobody reads a record that is about to change.
    async fn leave(mut self) -> Left {
        self.happenings.1.close();
        while self.saves.join_next().await.is_some() {}
        for (_, answer) in self.answers.drain() {
            let why = "the service's settings have changed, or the program ends; see how it stands and ask again";
            let _ = answer.send(Err(why.to_owned()));
        }
        let out = |node: &&crate::config::Node| self.machine.is_draining(node.id);
        let nodes = self.service.nodes.iter();
        Left {
            unreported: self.unreported(),
            draining: nodes
                .filter(out)
                .map(|node| Arc::clone(&node.name))
                .collect(),
            signs: self.signs,
            last_failover: self.last_failover,
        }
    }

    fn start_watching(
        &self,
        seen: &mpsc::Sender<Observation>,
        heard: &mpsc::Sender<Heard>,
        drain: &drain::Watch,
    ) {
        let mut rng = Rng::new();
        for (node, driver) in self.service.nodes.iter().zip(&self.nodes) {
            let target = probe::Target {
                node: node.id,
                endpoint: node.endpoint.clone(),
                health: self.service.health.clone(),
            };
            tokio::spawn(probe::run(
                target,
                driver.alert.subscribe(),
                seen.clone(),
                Rng::with_seed(rng.u64(..)),
                drain.clone(),
            ));
            if let Some(peer) = &driver.peer {
                tokio::spawn(report::run(
                    node.id,
                    peer.clone(),
                    heard.clone(),
                    drain.clone(),
                ));
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.machine.handle_input(clock::now(), input);
        self.carry_out();
    }

    fn handle_sign(&mut self, sign: Sign) {
        match sign {
            Sign::Refused(node) => self.input(Input::Refused(node)),
            Sign::Lost(node) => {
                self.nodes[node.index()].lost = true;
                self.set_alert(node);
            }
            Sign::Broke(node) => self.input(Input::Broke(node)),
            Sign::Mended(node) => self.input(Input::Mended(node)),
            Sign::AckTimeout(epoch) => self.input(Input::AckTimeout(epoch)),
        }
    }

    fn handle_observation(&mut self, Observation { node, kind }: Observation) {
        let now = clock::now();
        match kind {
            Seen::Passed => {
                self.answered(node);
                self.responded(node);
                self.observe(now, node, Check::Passed, String::new());
            }
            Seen::Failed { why, how } => {
                if how == How::Refused {
                    self.input(Input::Refused(node));
                }
                let alive = how == How::Late && self.has_answered(node);
                let check = if alive { Check::Late } else { Check::Failed };
                self.observe(now, node, check, why);
            }
            Seen::Refused => self.input(Input::Refused(node)),
            Seen::Answered => self.answered(node),
        }
    }

    fn observe(&mut self, now: Instant, node: NodeId, check: Check, why: String) {
        self.nodes[node.index()].answered = self.steering.pulse().answered;
        match self.nodes[node.index()].health.observe(now, check) {
            Some(true) => self.judge(node, App::Up, why),
            Some(false) => self.judge(node, App::Down, why),
            None => (),
        }
    }

    /// Whether the node has answered requests since its last probe.
    fn has_answered(&self, node: NodeId) -> bool {
        let target = self.steer.as_ref().and_then(|steer| steer.target);
        target == Some(node) && self.steering.pulse().answered != self.nodes[node.index()].answered
    }

    fn answered(&mut self, node: NodeId) {
        self.nodes[node.index()].lost = false;
        self.set_alert(node);
        self.input(Input::Answered(node));
    }

    /// The node answers; if it was thought to have stalled, it has not.
    fn responded(&mut self, node: NodeId) {
        if self.machine.record().primary == Some(node) {
            self.stall.relent();
        }
        self.input(Input::Responded(node));
    }

    fn feel_pulse(&mut self) {
        let Some(primary) = self.machine.record().primary else {
            return;
        };
        match self.stall.observe(clock::now(), self.steering.pulse()) {
            Some(Change::Stalled) => self.input(Input::Stalled(primary)),
            Some(Change::Answers) => self.input(Input::Responded(primary)),
            None => (),
        }
    }

    fn judge(&mut self, node: NodeId, app: App, why: String) {
        let name = Arc::clone(&self.service.nodes[node.index()].name);
        let up = app == App::Up;
        tracing::info!(
            service = &*self.service.name,
            node = &*name,
            up,
            why,
            "health verdict"
        );
        self.metrics
            .node_up
            .with_label_values(&[&*self.service.name, &*name])
            .set(i64::from(up));
        let (kind, message) = if up {
            ("up", "passes its health checks".to_owned())
        } else {
            ("down", format!("fails its health checks: {why}"))
        };
        self.tell(kind, Some(node), message);
        self.nodes[node.index()].health_why.clone_from(&why);
        self.input(Input::Health(node, app, why));
    }

    fn handle_heard(&mut self, Heard { node, report }: Heard) {
        match report {
            Ok(report) => {
                let names = Arc::clone(&self.service);
                let id = |name: &str| {
                    names
                        .nodes
                        .iter()
                        .find(|node| *node.name == *name)
                        .map(|node| node.id)
                };
                let standing = report::standing(&report, id);
                if report.node != *self.service.nodes[node.index()].name {
                    return self.hear_stranger(node, &report);
                }
                let record = self.machine.record();
                if record.primary == Some(node)
                    && standing.role == Role::Primary
                    && standing.epoch == record.epoch
                {
                    self.steering.learn(standing.epoch, &standing.tip);
                    self.note_released();
                }
                self.nodes[node.index()].report = Some(report);
                self.input(Input::Report(node, standing));
            }
            Err(why) => {
                if self.nodes[node.index()].report.take().is_some() {
                    self.tell(
                        "syncd-silent",
                        Some(node),
                        format!("its syncd cannot be heard: {why}"),
                    );
                }
                self.input(Input::Silent(node));
            }
        }
    }

    /// The address is that of another node's syncd.
    fn hear_stranger(&mut self, node: NodeId, report: &api::Report) {
        let name = &self.service.nodes[node.index()].name;
        tracing::error!(
            service = &*self.service.name,
            node = &**name,
            url = self.nodes[node.index()].url,
            said = report.node,
            "the syncd at this URL says that it belongs to another node; correct hotwarm.toml or syncd.toml"
        );
        self.input(Input::Silent(node));
    }

    fn note_released(&mut self) {
        let now = clock::now();
        while self
            .released
            .get(1)
            .is_some_and(|(at, _)| *at + REPORT_SETTLES <= now)
        {
            self.released.pop_front();
        }
        if self
            .released
            .back()
            .is_none_or(|(at, _)| *at + REPORT_SETTLES / 4 <= now)
        {
            self.released.push_back((now, self.steering.released()));
        }
    }

    /// Responses released that the primary's last report may not have known of.
    fn unreported(&self) -> u64 {
        let counted = self.released.front().map_or(0, |(_, released)| *released);
        let here = self.steering.released().saturating_sub(counted);
        here + self.place.released_before()
    }

    fn handle_order(&mut self, Ordered { order, answer }: Ordered) {
        self.next_order += 1;
        self.answers.insert(self.next_order, answer);
        self.input(Input::Order(OrderId(self.next_order), order));
    }
}

pub(super) async fn until(due: Option<Instant>) {
    match due {
        Some(due) => clock::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
