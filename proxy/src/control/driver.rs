//! The loop: wait for something to happen, let the machine decide, carry it out, show it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::api::{Follow, Lead, Led, Seal, Sealed};
use shared::call::{CallError, Peer};
use shared::model::{Epoch, Lag, Role};
use shared::rng::Rng;
use shared::{api, clock, drain};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::chronicle::Chronicle;
use super::report::{self, Heard};
use super::view::{LastFailover, NodeView, ServiceView};
use super::{Done, Ordered, Parts};
use crate::arbiter::Place;
use crate::config::Service;
use crate::logic::NodeId;
use crate::logic::breaker::Phase as BreakerPhase;
use crate::logic::failover::{
    App, Durability, Effect, Event, Failover, FollowOrder, Input, LeadOrder, Loss, Obeyed, OrderId,
    Promotion, SealAnswer, Steer,
};
use crate::logic::health::Health;
use crate::logic::stall::{Change, Stall};
use crate::metrics::Metrics;
use crate::steer::{Settled, Sign, Steering, View};
use crate::upstream::probe::{self, Observation, Seen};
use crate::worker::ServiceHandle;

/// How many inputs may wait for the loop.
const INPUTS_MOST: usize = 256;
/// A node is given this long for its application to let go of its write lock before it answers that it has not.
const FENCE_WITHIN: Duration = Duration::from_millis(50);
/// Beyond what the machine waits for, so that its timers decide and not the connection.
const CALL_MARGIN: Duration = Duration::from_secs(1);
/// After this long, safe requests under way do not hold up a switchover any more; they are finished by the old primary.
const SAFE_PATIENCE: Duration = Duration::from_millis(250);
/// In-flight requests are looked at this often while a switchover drains.
const DRAIN_LOOK: Duration = Duration::from_millis(1);
/// Whether the primary answers is looked at this often.
const PULSE_LOOK: Duration = Duration::from_millis(50);
/// So long may requests wait without any response before no more are sent: longer than a response may well take, shorter
/// than what an application's queue should grow by.
const STALL_AFTER: Duration = Duration::from_millis(250);
/// What is shown is brought up to date at least this often.
const SHOW_EVERY: Duration = Duration::from_millis(250);
/// A response released this long before a report was heard is in that report, whatever the network did.
const REPORT_SETTLES: Duration = Duration::from_millis(100);

/// What else can happen, from tasks of this service's own.
enum Happening {
    Input(Input),
}

struct NodeDriver {
    health: Health,
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
    answers: HashMap<u64, oneshot::Sender<Result<Done, String>>>,
    next_order: u64,
    steer: Option<Steer>,
    closed_at: Option<Instant>,
    last_outage: Option<Duration>,
    last_failover: Option<LastFailover>,
    pending_promotion: Option<Promotion>,
    /// When reports of the primary were heard, and how many responses had been released by then.
    released: VecDeque<(Instant, u64)>,
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
            answers: HashMap::new(),
            next_order: 0,
            steer: None,
            closed_at: Some(now),
            last_outage: None,
            last_failover: None,
            pending_promotion: None,
            released: VecDeque::new(),
        };
        driver.show();
        (driver, view)
    }

    pub(super) async fn run(
        mut self,
        mut orders: mpsc::Receiver<Ordered>,
        mut drain: drain::Watch,
    ) {
        let (seen, mut observations) = mpsc::channel(INPUTS_MOST);
        let (heard, mut reports) = mpsc::channel(INPUTS_MOST);
        self.start_watching(&seen, &heard, &drain);
        self.carry_out();
        let mut tick = tokio::time::interval(SHOW_EVERY);
        let mut pulse = tokio::time::interval(PULSE_LOOK);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.show();
            let due = self.machine.poll_timeout();
            tokio::select! {
                () = drain.begun() => return,
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
                address: node.address.clone(),
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

    // ---- what happens ----------------------------------------------------------------------------------------------

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
                if self.nodes[node.index()].health.observe(now, true).is_some() {
                    self.judge(node, App::Up, String::new());
                }
            }
            Seen::Failed { why, refused } => {
                if refused {
                    self.input(Input::Refused(node));
                }
                if self.nodes[node.index()]
                    .health
                    .observe(now, false)
                    .is_some()
                {
                    self.judge(node, App::Down, why);
                }
            }
            Seen::Refused => self.input(Input::Refused(node)),
            Seen::Answered => self.answered(node),
        }
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
        self.steering.released().saturating_sub(counted)
    }

    fn handle_order(&mut self, Ordered { order, answer }: Ordered) {
        self.next_order += 1;
        self.answers.insert(self.next_order, answer);
        self.input(Input::Order(OrderId(self.next_order), order));
    }

    // ---- what is to be done ----------------------------------------------------------------------------------------

    fn carry_out(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Persist(record) => self.persist(record),
                Effect::Seal(node, epoch) => self.seal(node, epoch),
                Effect::Lead(node, order) => self.lead(node, order),
                Effect::Follow(node, order) => self.follow(node, order),
                Effect::Steer(steer) => self.publish(steer),
                Effect::Abandon(epoch) => self.steering.abandon_below(epoch),
                Effect::AwaitDrain => self.await_drain(),
                Effect::Alert(node, on) => {
                    self.nodes[node.index()].wanted = on;
                    self.set_alert(node);
                }
                Effect::Tell(event) => self.tell_event(event),
                Effect::Answer(id, result) => self.answer(id, result),
            }
        }
    }

    fn set_alert(&self, node: NodeId) {
        let driver = &self.nodes[node.index()];
        let on = driver.wanted || driver.lost;
        driver
            .alert
            .send_if_modified(|alert| std::mem::replace(alert, on) != on);
    }

    fn persist(&self, record: crate::logic::failover::Record) {
        let (place, happenings) = (self.place.clone(), self.happenings.0.clone());
        tokio::spawn(async move {
            let saved =
                tokio::task::spawn_blocking(move || place.save(&record).map(|()| record)).await;
            let result = match saved {
                Ok(Ok(record)) => Ok(record),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let _ = happenings
                .send(Happening::Input(Input::Persisted(result)))
                .await;
        });
    }

    fn seal(&self, node: NodeId, epoch: Epoch) {
        let within = CALL_MARGIN + FENCE_WITHIN;
        let path = if self.machine.record().primary == Some(node) {
            "/v1/fence"
        } else {
            "/v1/promise"
        };
        let millis = u64::try_from(FENCE_WITHIN.as_millis()).unwrap_or(u64::MAX);
        let Some(cluster) = self.machine.record().cluster else {
            return;
        };
        let order = Seal {
            cluster,
            epoch,
            within_ms: millis,
        };
        self.call(
            node,
            path,
            order,
            within,
            move |result: Result<Sealed, CallError>| {
                let answer = match result {
                    Ok(sealed) => SealAnswer::Sealed(sealed),
                    Err(CallError::Refused { refusal, .. })
                        if refusal.error == api::Refused::StaleEpoch =>
                    {
                        SealAnswer::Stale(refusal.epoch)
                    }
                    Err(error) => SealAnswer::Failed(error.to_string()),
                };
                Input::Sealed(node, epoch, answer)
            },
        );
    }

    fn lead(&self, node: NodeId, order: LeadOrder) {
        let Some(cluster) = self.machine.record().cluster else {
            return;
        };
        let gated = self.service.is_gated();
        let LeadOrder {
            epoch,
            version,
            required,
            at_least,
        } = order;
        let required = required
            .iter()
            .map(|node| self.service.nodes[node.index()].name.to_string())
            .collect();
        let acks = if gated {
            self.service.failover.ack_count
        } else {
            0
        };
        let order = Lead {
            cluster,
            epoch,
            version,
            required,
            acks,
            durable: gated,
            at_least,
        };
        self.call(
            node,
            "/v1/lead",
            order,
            Duration::from_secs(60),
            move |result| Input::Led(node, epoch, version, obeyed(result)),
        );
    }

    fn follow(&self, node: NodeId, order: FollowOrder) {
        let Some(cluster) = self.machine.record().cluster else {
            return;
        };
        let FollowOrder {
            epoch,
            primary,
            overwrite,
        } = order;
        let url = self.nodes[primary.index()].url.clone();
        let primary = self.service.nodes[primary.index()].name.to_string();
        let order = Follow {
            cluster,
            epoch,
            primary,
            url,
            overwrite,
        };
        self.call(node, "/v1/follow", order, CALL_MARGIN * 2, move |result| {
            Input::Followed(node, epoch, obeyed(result))
        });
    }

    fn call<B, T>(
        &self,
        node: NodeId,
        path: &'static str,
        body: B,
        within: Duration,
        done: impl FnOnce(Result<T, CallError>) -> Input + Send + 'static,
    ) where
        B: serde::Serialize + Send + Sync + 'static,
        T: serde::de::DeserializeOwned + Send,
    {
        let Some(peer) = self.nodes[node.index()].peer.clone() else {
            return;
        };
        let happenings = self.happenings.0.clone();
        tokio::spawn(async move {
            let result = peer.post(path, &body, within).await;
            let _ = happenings.send(Happening::Input(done(result))).await;
        });
    }

    fn await_drain(&self) {
        let (steering, happenings) = (Arc::clone(&self.steering), self.happenings.0.clone());
        let turn = steering.view().turn;
        tokio::spawn(async move {
            let began = clock::now();
            // Ends by itself when the view is another one: the drain was given up, or is over.
            while steering.view().turn == turn {
                let (safe, writes) = steering.in_flight();
                let patient = clock::now() < began + SAFE_PATIENCE;
                if writes == 0 && (safe == 0 || !patient) {
                    let _ = happenings.send(Happening::Input(Input::Drained)).await;
                    return;
                }
                clock::sleep(DRAIN_LOOK).await;
            }
        });
    }

    fn publish(&mut self, steer: Steer) {
        let now = clock::now();
        let opens = steer.target.is_some() && self.closed_at.is_some();
        if self
            .steer
            .as_ref()
            .is_none_or(|before| before.epoch != steer.epoch)
        {
            self.stall.reset();
        }
        if steer.target.is_none() && self.closed_at.is_none() {
            self.closed_at = Some(now);
        }
        if opens {
            let outage = self
                .closed_at
                .take()
                .map(|at| now.saturating_duration_since(at));
            self.last_outage = outage;
        }
        let settled = steer
            .settled
            .clone()
            .map(|(left, last)| Settled { left, last });
        self.steering.publish(View {
            turn: 0,
            epoch: steer.epoch,
            target: steer.target,
            reads: steer.reads,
            gate: steer.gate,
            settled,
            phase: steer.phase,
            why: steer.why.as_deref().map(Arc::from),
        });
        self.steer = Some(steer);
        if opens {
            self.finish_promotion();
        }
    }

    fn answer(&mut self, id: OrderId, result: Result<String, String>) {
        let Some(answer) = self.answers.remove(&id.0) else {
            return;
        };
        let unavailable_ms = self.last_outage.map(|outage| outage.as_secs_f64() * 1000.0);
        // The view is published first: when the asker hears of it, requests go there already.
        let _ = answer.send(result.map(|message| Done {
            message,
            unavailable_ms,
        }));
    }

    // ---- what people see -------------------------------------------------------------------------------------------

    fn name(&self, node: NodeId) -> String {
        self.service.nodes[node.index()].name.to_string()
    }

    fn tell(&self, kind: &'static str, node: Option<NodeId>, message: String) {
        let node = node.map(|node| self.name(node));
        self.chronicle.tell(
            &self.service.name,
            kind,
            node,
            self.machine.record().epoch.0,
            message,
        );
    }

    fn tell_event(&mut self, event: Event) {
        let service = Arc::clone(&self.service);
        let service = &*service.name;
        match event {
            Event::Suspected(node, trouble, why) => {
                tracing::warn!(
                    service,
                    node = self.name(node),
                    trouble = trouble.as_str(),
                    why,
                    "primary is suspect; requests are held"
                );
                self.tell(
                    "suspected",
                    Some(node),
                    format!("{}: {why}; requests are held", trouble.as_str()),
                );
            }
            Event::Cleared(node) => {
                tracing::info!(
                    service,
                    node = self.name(node),
                    "primary answers again; nothing was changed"
                );
                self.tell(
                    "cleared",
                    Some(node),
                    "answers again; nothing was changed".to_owned(),
                );
            }
            Event::Began(epoch, cause) => {
                tracing::info!(
                    service,
                    epoch = epoch.0,
                    cause = cause.as_str(),
                    "a change of primary begins"
                );
                self.tell(
                    "began",
                    None,
                    format!(
                        "a change of primary begins, epoch {epoch} ({})",
                        cause.as_str()
                    ),
                );
            }
            Event::Refused(epoch, label, why) => {
                tracing::error!(
                    service,
                    epoch = epoch.0,
                    reason = label,
                    why,
                    "nobody can be promoted"
                );
                self.metrics
                    .promotions_refused
                    .with_label_values(&[service, label])
                    .inc();
                self.tell(
                    "refused",
                    None,
                    format!("nobody can be promoted ({label}): {why}"),
                );
            }
            Event::Promoted(promotion) => self.pending_promotion = Some(promotion),
            Event::Kept(epoch, node, why) => {
                tracing::info!(
                    service,
                    node = self.name(node),
                    epoch = epoch.0,
                    why,
                    "the primary remains"
                );
                self.tell(
                    "kept",
                    Some(node),
                    format!("remains the primary in epoch {epoch} ({why})"),
                );
            }
            Event::Met(node, why) => {
                tracing::info!(
                    service,
                    node = self.name(node),
                    why,
                    "first meeting decided"
                );
                self.tell(
                    "met",
                    Some(node),
                    format!("its data is the cluster's: {why}"),
                );
            }
            Event::InSync(set) => {
                let names: Vec<_> = set.iter().map(|node| self.name(*node)).collect();
                tracing::info!(service, standbys = names.join(","), "in sync, on record");
                self.tell("in-sync", None, format!("in sync: {}", names.join(", ")));
            }
            Event::Degraded(set, why) => {
                let left: Vec<_> = set.iter().map(|node| self.name(*node)).collect();
                let left = if left.is_empty() {
                    "nobody".to_owned()
                } else {
                    left.join(", ")
                };
                tracing::warn!(service, why, left, "out of sync, on record");
                self.tell("degraded", None, format!("{why}; still in sync: {left}"));
            }
            Event::Disobeyed(node, why) => {
                tracing::warn!(
                    service,
                    node = self.name(node),
                    why,
                    "a node did not obey; it will be asked again"
                );
                self.tell("disobeyed", Some(node), why);
            }
            Event::NotPersisted(why) => {
                tracing::error!(
                    service,
                    why,
                    "the record cannot be written; nothing is decided until it can"
                );
                self.tell("not-persisted", None, why);
            }
            Event::Aborted(why) => {
                tracing::warn!(service, why, "a switchover was given up");
                self.tell("aborted", None, why);
            }
        }
    }

    /// A promotion is told when requests are taken again, because only then its duration is known.
    fn finish_promotion(&mut self) {
        let Some(promotion) = self.pending_promotion.take() else {
            return;
        };
        let outage = self.last_outage.unwrap_or_default();
        let unreported = if self.machine_is_async() {
            self.unreported()
        } else {
            0
        };
        let (loss, lost) = match promotion.loss {
            Loss::None => ("none", Some(0)),
            Loss::Bounded(count) => ("bounded", Some(count + unreported)),
            Loss::Unknown => ("unknown", None),
        };
        self.released.clear();
        let kind = promotion.cause.as_str();
        let last = LastFailover {
            epoch: promotion.epoch.0,
            from: promotion.from.map(|node| self.name(node)),
            to: self.name(promotion.to),
            kind,
            reason: promotion.reason,
            at: clock::rfc3339(),
            unavailable_ms: (outage.as_secs_f64() * 10_000.0).round() / 10.0,
            held: self.steering.held(),
            lost_transactions: lost,
            loss,
        };
        let service = &*self.service.name;
        tracing::info!(
            service,
            epoch = last.epoch,
            from = last.from,
            to = last.to,
            kind,
            reason = last.reason,
            loss,
            lost_transactions = last.lost_transactions,
            unavailable_ms = last.unavailable_ms,
            held = last.held,
            "promoted"
        );
        self.metrics
            .failovers
            .with_label_values(&[service, kind])
            .inc();
        self.metrics
            .failover_unavailable_seconds
            .with_label_values(&[service])
            .observe(outage.as_secs_f64());
        let lost = last.lost_transactions.map_or_else(
            || "an unknown number".to_owned(),
            |lost| format!("at most {lost}"),
        );
        let lost = if loss == "none" {
            "nothing".to_owned()
        } else {
            lost
        };
        let message = format!(
            "took over from {} ({kind}: {}); unavailable for {} ms, {} requests held, {lost} lost",
            last.from.as_deref().unwrap_or("nobody"),
            last.reason,
            last.unavailable_ms,
            last.held
        );
        self.tell("promoted", Some(promotion.to), message);
        self.last_failover = Some(last);
    }

    fn machine_is_async(&self) -> bool {
        matches!(super::rules(&self.service).durability, Durability::Async)
    }

    fn show(&self) {
        let record = self.machine.record();
        let steer = self.steer.as_ref();
        let view = ServiceView {
            name: self.service.name.to_string(),
            mode: "hot-warm",
            phase: steer.map_or("starting", |steer| steer.phase),
            why: steer.and_then(|steer| steer.why.clone()),
            epoch: record.epoch.0,
            primary: record.primary.map(|node| self.name(node)),
            durability: if self.service.is_gated() {
                "standby-ack"
            } else {
                "async"
            },
            in_sync: record.in_sync.iter().map(|node| self.name(*node)).collect(),
            held_requests: self.steering.held(),
            nodes: self
                .service
                .nodes
                .iter()
                .map(|node| self.node_view(node.id))
                .collect(),
            last_failover: self.last_failover.clone(),
        };
        self.show_numbers(&view);
        self.shown.send_if_modified(|shown| {
            let changed = **shown != view;
            if changed {
                *shown = Arc::new(view);
            }
            changed
        });
    }

    fn node_view(&self, node: NodeId) -> NodeView {
        let driver = &self.nodes[node.index()];
        let is_primary = self.machine.record().primary == Some(node);
        let replicated = driver.peer.is_some();
        let role = match &driver.report {
            Some(report) => report.role,
            None if replicated => Role::None,
            None if is_primary => Role::Primary,
            None => Role::Standby,
        };
        let (app, refusing) = self.machine.app(node);
        let health = match app {
            App::Up if !refusing => "up",
            App::Unknown => "unknown",
            App::Up | App::Down => "down",
        };
        let down = health == "down";
        let breaker = match self.handle.breaker(node) {
            BreakerPhase::Admit => "closed",
            BreakerPhase::Try => "half-open",
            BreakerPhase::Refuse(_) => "open",
        };
        let because = self.machine.not_promotable(node).filter(|_| !is_primary);
        let (safe, writes) = if is_primary {
            self.steering.in_flight()
        } else {
            (0, 0)
        };
        NodeView {
            name: self.name(node),
            role: role.as_str(),
            health,
            health_why: down.then(|| {
                if driver.health_why.is_empty() {
                    "connections refused".to_owned()
                } else {
                    driver.health_why.clone()
                }
            }),
            breaker,
            in_flight: safe + writes,
            syncd: match (replicated, &driver.report) {
                (false, _) => "none",
                (true, Some(_)) => "heard",
                (true, None) => "silent",
            },
            lag: self.lag(node),
            position: driver
                .report
                .as_ref()
                .map(|report| report.tip.0.clone())
                .unwrap_or_default(),
            promotable: because.is_none() && !is_primary,
            not_promotable_because: because,
        }
    }

    /// How far a node is behind: by the primary's word if that is heard, which knows best, else by its own.
    fn lag(&self, node: NodeId) -> Lag {
        let primary = self.machine.record().primary;
        if primary == Some(node) || self.nodes[node.index()].peer.is_none() {
            return Lag {
                seconds: Some(0.0),
                bytes: Some(0),
                transactions: Some(0),
            };
        }
        let told = primary.and_then(|primary| self.nodes[primary.index()].report.as_ref());
        let told = told
            .and_then(|report| report.peers.get(&*self.service.nodes[node.index()].name))
            .filter(|peer| peer.connected);
        let own = || {
            self.nodes[node.index()]
                .report
                .as_ref()
                .map(|report| report.lag)
                .unwrap_or_default()
        };
        told.map_or_else(own, |peer| peer.lag)
    }

    fn show_numbers(&self, view: &ServiceView) {
        let service = &*self.service.name;
        self.metrics
            .epoch
            .with_label_values(&[service])
            .set(i64::try_from(view.epoch).unwrap_or(i64::MAX));
        self.metrics
            .held_requests
            .with_label_values(&[service])
            .set(i64::try_from(view.held_requests).unwrap_or(i64::MAX));
        for node in &view.nodes {
            let labels = [service, node.name.as_str()];
            let is_primary = view.primary.as_ref() == Some(&node.name);
            self.metrics
                .node_primary
                .with_label_values(&labels)
                .set(i64::from(is_primary));
            self.metrics
                .node_up
                .with_label_values(&labels)
                .set(i64::from(node.health == "up"));
            self.metrics
                .replication_lag_seconds
                .with_label_values(&labels)
                .set(node.lag.seconds.unwrap_or(f64::NAN));
            let bytes = node.lag.bytes.and_then(|bytes| i64::try_from(bytes).ok());
            self.metrics
                .replication_lag_bytes
                .with_label_values(&labels)
                .set(bytes.unwrap_or(-1));
        }
    }
}

fn obeyed(result: Result<Led, CallError>) -> Obeyed {
    match result {
        Ok(led) => Obeyed::Done(led.position),
        Err(CallError::Refused { refusal, .. }) => Obeyed::Refused(refusal.error, refusal.epoch),
        Err(error) => Obeyed::Failed(error.to_string()),
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => clock::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
