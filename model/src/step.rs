//! One step after the other: what may happen next, and what then is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy::logic::NodeId;
use proxy::logic::failover::{
    Durability, Input, Member, OnAckTimeout, Order, OrderId, Rules, Timer, TooFarBehind,
};
use shared::model::{ClusterId, Epoch};
use stateright::{Model, Property};
use syncd::logic::station::Standing;

use crate::fault::{Fault, Limits};
use crate::world::{Message, NAMES, NODES, Request, Stage, World};

pub(crate) const CLUSTER: ClusterId = ClusterId(7);

/// The model: what may happen, and which safeguard is missing.
#[derive(Clone, Debug)]
pub struct Wire {
    limits: Limits,
    fault: Option<Fault>,
    alone: bool,
    lead_in: Vec<fn(&Action) -> bool>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) now: Instant,
}

/// What may happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The arbiter's disk finishes a write.
    DiskWrites,
    /// One of the arbiter's timers goes off.
    Fire(Timer),
    /// What a node says next is held up on the way, and all that it says after it.
    Mute(NodeId),
    /// A message arrives.
    Deliver(Message),
    /// It arrives, and will arrive again.
    DeliverTwice(Message),
    /// It arrives, and the answer is held up on the way.
    DeliverAnswerLate(Message),
    /// What was held up arrives.
    LateWord,
    /// The arbiter and a node lose sight of each other.
    Cut(NodeId),
    /// They see each other again.
    Heal,
    /// A node's application seems to hang.
    Hang(NodeId),
    /// It goes on.
    Resume,
    /// A client's write is admitted.
    Admit,
    /// The application begins a write.
    Begin(u8, NodeId),
    /// It commits it.
    Commit(NodeId),
    /// The application's answer arrives.
    Respond(u8),
    /// The proxy looks at the application's answer.
    AtGate(u8),
    /// A lost request is sent again, by proof.
    Replay(u8),
    /// A request has waited long enough at the gate.
    AckTimeout(Epoch),
    /// Nothing is in flight.
    Drained,
    /// A node's syncd gets the write lock it wants.
    Lock(NodeId),
    /// A node fetches from the other.
    Pull(NodeId),
    /// It does, and its acknowledgement is held up on the way.
    PullAckLate(NodeId),
    /// A standby's disk has what it was given.
    Sync(NodeId),
    /// A barrier is satisfied.
    Pass(NodeId, u8),
    /// A barrier is satisfied, and the answer is held up on the way.
    PassLate(NodeId, u8),
    /// The application dies.
    KillApp(NodeId),
    /// It starts again.
    StartApp(NodeId),
    /// A syncd dies.
    KillSyncd(NodeId),
    /// It starts again.
    StartSyncd(NodeId),
    /// A machine dies with all that runs on it and all that was not synced.
    KillHost(NodeId),
    /// The proxy dies.
    KillProxy,
    /// It starts again.
    StartProxy,
    /// An operator asks for a switchover.
    Switchover,
}

impl Wire {
    /// Durability with one acknowledgement that degrades.
    pub const STANDBY_ACK: Durability = Durability::StandbyAck {
        count: 1,
        on_timeout: OnAckTimeout::Degrade,
    };

    /// A model within `limits`. `now` is any moment: time stands still.
    #[must_use]
    pub fn new(limits: Limits, durability: Durability, now: Instant) -> Self {
        let span = Duration::from_secs(1);
        let rules = Rules {
            service: String::from("shop"),
            members: NAMES
                .iter()
                .map(|name| Member {
                    name: (*name).to_owned(),
                    priority: 0,
                })
                .collect(),
            replicated: true,
            auto: true,
            durability,
            max_lag: span,
            max_lag_bytes: 1,
            too_far_behind: TooFarBehind::Wait,
            failback: false,
            min_interval: Duration::ZERO,
            crash_after: span,
            drain_within: span,
            seal_within: span,
            catch_up_within: span,
            lead_within: span,
            enter_within: span,
            rest: span,
            meet_within: span,
            start_within: span,
        };
        Self {
            limits,
            fault: None,
            alone: false,
            lead_in: Vec::new(),
            rules: Arc::new(rules),
            now,
        }
    }

    /// With one safeguard switched off.
    #[must_use]
    pub fn without(self, fault: Fault) -> Self {
        Self {
            fault: Some(fault),
            ..self
        }
    }

    /// How far it goes.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Begins while the standby has not entered the in-sync set yet.
    #[must_use]
    pub fn from_alone(self) -> Self {
        Self {
            alone: true,
            ..self
        }
    }

    /// Begins after these steps: of each, the first that is possible.
    #[must_use]
    pub fn after(self, lead_in: Vec<fn(&Action) -> bool>) -> Self {
        Self { lead_in, ..self }
    }

    fn step_in(&self, world: World, wanted: fn(&Action) -> bool) -> World {
        let mut actions = Vec::new();
        self.actions(&world, &mut actions);
        let mut possible = actions
            .into_iter()
            .filter(wanted)
            .filter_map(|action| self.next_state(&world, action));
        possible.next().expect("the lead-in is possible")
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// The first meeting and the first entrance, once, so that exploration begins where it becomes interesting.
    fn bring_up(&self, world: &mut World) {
        for _ in 0..20 {
            self.disk_writes(world);
            self.keep_told(world);
            for at in NODES.into_iter().filter(|_| !self.alone) {
                let _ = self.pull(world, at);
            }
            for message in std::mem::take(&mut world.wire) {
                self.deliver(world, message);
            }
        }
        assert_eq!(
            world.disk.epoch,
            Epoch(1),
            "the first meeting is over: {world:#?}"
        );
    }

    /// The message arrives; what the node answers reaches the arbiter at once.
    fn deliver(&self, world: &mut World, message: Message) {
        let to = message.to();
        let answer = self.arrive(world, message);
        if let Some(answer) = answer.filter(|_| to.is_some_and(|at| world.reaches(at))) {
            self.input(world, answer);
        }
    }

    /// Delivers what nothing holds up.
    fn arrive_now(&self, world: &mut World, which: impl Fn(&Message) -> bool) {
        let (now, later) = std::mem::take(&mut world.wire).into_iter().partition(which);
        world.wire = later;
        let now: BTreeSet<Message> = now;
        for message in now {
            self.deliver(world, message);
        }
    }

    fn arrive(&self, world: &mut World, message: Message) -> Option<Input> {
        match message {
            Message::Seal(at, epoch) => self.handle_seal(world, at, epoch),
            Message::Lead(at, epoch, version, required) => {
                self.handle_lead(world, at, epoch, version, &required)
            }
            Message::Follow(at, epoch, primary, overwrite) => {
                self.handle_follow(world, at, epoch, primary, overwrite)
            }
            Message::Ack(from, epoch, durable) => {
                self.handle_ack(world, from, epoch, durable);
                None
            }
            Message::Barrier(at, id, epoch) => {
                self.handle_barrier(world, at, id, epoch);
                None
            }
            Message::Passed(id, epoch, position) => {
                self.passed(world, id, epoch, position);
                None
            }
        }
    }

    fn act(&self, world: &mut World, action: Action) -> Option<()> {
        match action {
            Action::DiskWrites => self.disk_writes(world),
            Action::Fire(timer) => {
                world.spent.ack_timeouts += u8::from(timer == Timer::Enter);
                world.arbiter.as_mut()?.fire(self.now, timer);
                self.carry_out(world);
            }
            Action::Deliver(message) => {
                world.wire.remove(&message);
                self.deliver(world, message);
            }
            Action::DeliverTwice(message) => {
                world.spent.doubles += 1;
                self.deliver(world, message);
            }
            Action::DeliverAnswerLate(message) => {
                world.spent.late += 1;
                world.wire.remove(&message);
                world.late = Some(self.arrive(world, message)?);
            }
            Action::Mute(at) => {
                world.spent.mutes += 1;
                world.muted = Some(at);
            }
            Action::LateWord => {
                let input = world.late.take()?;
                world.muted = None;
                let input = self.restamp(world, input);
                self.input(world, input);
            }
            Action::Drained => {
                let busy = |request: &Request| !request.orphan && request.stage != Stage::Lost;
                if world.requests.iter().any(busy) {
                    return None;
                }
                self.input(world, Input::Drained);
            }
            Action::Admit => self.admit(world)?,
            Action::Begin(id, at) => self.begin(world, id, at)?,
            Action::Commit(at) => self.commit(world, at)?,
            Action::Respond(id) => self.respond(world, id)?,
            Action::AtGate(id) => {
                self.at_gate(world, id)?;
                self.arrive_now(world, |message| matches!(message, Message::Barrier(..)));
            }
            Action::Replay(id) => self.replay(world, id)?,
            Action::AckTimeout(epoch) => self.ack_timeout(world, epoch),
            Action::Lock(at) => self.lock(world, at)?,
            Action::Pull(at) => {
                self.pull(world, at)?;
                let to = crate::world::other(at);
                self.arrive_now(world, |message| {
                    matches!(message, Message::Ack(..)) && message.to() == Some(to)
                });
            }
            Action::PullAckLate(at) => {
                world.spent.late += 1;
                self.pull(world, at)?;
            }
            Action::Pass(at, id) => {
                self.pass(world, at, id)?;
                self.arrive_now(world, |message| matches!(message, Message::Passed(..)));
            }
            Action::PassLate(at, id) => {
                world.spent.late += 1;
                self.pass(world, at, id)?;
            }
            Action::Sync(at) => {
                let node = world.node_mut(at);
                node.synced = node.data.len();
            }
            Action::Switchover => {
                world.spent.switchovers += 1;
                self.input(world, Input::Order(OrderId(0), Order::Switchover(None)));
            }
            Action::Cut(..)
            | Action::Heal
            | Action::Hang(..)
            | Action::Resume
            | Action::KillApp(..)
            | Action::StartApp(..)
            | Action::KillSyncd(..)
            | Action::StartSyncd(..)
            | Action::KillHost(..)
            | Action::KillProxy
            | Action::StartProxy => self.act_fault(world, &action),
        }
        Some(())
    }

    fn act_fault(&self, world: &mut World, action: &Action) {
        match *action {
            Action::Cut(at) => {
                world.spent.cuts += 1;
                world.cut = Some(at);
                // Connections break: what was being said over them is lost, except orders that were sent.
                world.late = None;
                world.muted = None;
                world.wire.retain(|message| {
                    !matches!(message, Message::Passed(..) | Message::Barrier(..))
                });
            }
            Action::Heal => world.cut = None,
            Action::Hang(at) => {
                world.spent.hangs += 1;
                world.hung = Some(at);
            }
            Action::Resume => world.hung = None,
            Action::KillApp(at) => {
                world.spent.apps += 1;
                world.lose_app(at);
            }
            Action::StartApp(at) => world.node_mut(at).app = true,
            Action::KillSyncd(at) => {
                world.spent.syncds += 1;
                world.lose_syncd(at);
            }
            Action::StartSyncd(at) => self.boot(world, at),
            Action::KillHost(at) => {
                world.spent.hosts += 1;
                world.lose_app(at);
                world.lose_syncd(at);
                world.lose_unsynced(at);
            }
            Action::KillProxy => {
                world.spent.proxies += 1;
                world.lose_proxy();
            }
            Action::StartProxy => self.start_proxy(world),
            _ => (),
        }
    }

    fn ack_timeout(&self, world: &mut World, epoch: Epoch) {
        world.spent.ack_timeouts += 1;
        let view = world.view.as_mut().filter(|view| view.epoch == epoch);
        if let Some(view) = view.filter(|_| self.has(Fault::DegradeBeforePersist)) {
            view.gate = proxy::logic::failover::Gate::Open;
        }
        self.input(world, Input::AckTimeout(epoch));
    }

    fn lock(&self, world: &mut World, at: NodeId) -> Option<()> {
        let inside = world.node(at).inside.is_some();
        let syncd = world.node_mut(at).syncd.as_mut()?;
        let wants = matches!(
            syncd.station.standing(),
            Standing::Sealed | Standing::Following(_)
        );
        let fences = !(self.has(Fault::NoFence) && syncd.station.has_led());
        (wants && !inside && !syncd.locked && fences).then(|| syncd.locked = true)
    }

    fn boot(&self, world: &mut World, at: NodeId) {
        let led = world.node(at).led.clone();
        world.node_mut(at).boot(NAMES[at.index()]);
        if self.has(Fault::BootUnfenced)
            && let (Some(led), Some(syncd)) = (led, &world.node(at).syncd)
            && let Ok(decision) = syncd.station.handle_lead(led)
        {
            self.obey(world, at, decision, true);
        }
    }

    fn arbiter_actions(&self, world: &World, actions: &mut Vec<Action>) {
        let Some(arbiter) = &world.arbiter else {
            return actions.push(Action::StartProxy);
        };
        if world.writing.is_some() {
            actions.push(Action::DiskWrites);
        }
        actions.extend(arbiter.timers().map(Action::Fire));
        if world.late.is_some() {
            actions.push(Action::LateWord);
        } else if world.muted.is_none() {
            actions.extend(
                NODES
                    .into_iter()
                    .filter(|at| world.reaches(*at))
                    .map(Action::Mute),
            );
        }
        if arbiter.phase_word() == "switching-over" {
            actions.push(Action::Drained);
        }
        if arbiter.phase_word() == "serving" {
            actions.push(Action::Switchover);
        }
        actions.push(Action::KillProxy);
    }

    fn wire_actions(&self, world: &World, actions: &mut Vec<Action>) {
        for message in world
            .wire
            .iter()
            .filter(|message| message.to() != world.cut || !message.is_order())
        {
            actions.push(Action::Deliver(message.clone()));
            if message.is_order() {
                actions.push(Action::DeliverTwice(message.clone()));
                if world.late.is_none() {
                    actions.push(Action::DeliverAnswerLate(message.clone()));
                }
            }
        }
    }

    fn client_actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.begun < self.limits.writes && world.arbiter.is_some() {
            actions.push(Action::Admit);
        }
        for request in &world.requests {
            match request.stage {
                Stage::Sent => actions.extend([
                    Action::Begin(request.id, request.node),
                    Action::Replay(request.id),
                ]),
                Stage::Done => actions.push(Action::Respond(request.id)),
                Stage::Answered => actions.push(Action::AtGate(request.id)),
                Stage::Waiting => {
                    actions.extend([
                        Action::AtGate(request.id),
                        Action::AckTimeout(request.epoch),
                    ]);
                }
                Stage::Lost => actions.push(Action::Replay(request.id)),
            }
        }
    }

    fn node_actions(&self, world: &World, actions: &mut Vec<Action>) {
        for at in NODES {
            let node = world.node(at);
            actions.extend([Action::Pull(at), Action::PullAckLate(at), Action::Lock(at)]);
            actions.extend(node.inside.is_some().then_some(Action::Commit(at)));
            actions.extend(
                self.has(Fault::AckBeforeDurable)
                    .then_some(Action::Sync(at)),
            );
            actions.push(if node.app {
                Action::KillApp(at)
            } else {
                Action::StartApp(at)
            });
            actions.push(if node.syncd.is_some() {
                Action::KillSyncd(at)
            } else {
                Action::StartSyncd(at)
            });
            actions.push(Action::KillHost(at));
            if world.cut.is_none() && world.arbiter.is_some() {
                actions.push(Action::Cut(at));
            }
            if world.hung.is_none() && node.app {
                actions.push(Action::Hang(at));
            }
        }
        actions.extend(world.cut.map(|_| Action::Heal));
        actions.extend(world.hung.map(|_| Action::Resume));
        actions.extend(
            world
                .barriers
                .iter()
                .map(|(node, id, ..)| Action::Pass(*node, *id)),
        );
    }
}

impl Model for Wire {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut world = World::new();
        let sound = Self {
            fault: None,
            ..self.clone()
        };
        sound.start_proxy(&mut world);
        sound.bring_up(&mut world);
        vec![
            self.lead_in
                .iter()
                .fold(world, |world, wanted| self.step_in(world, *wanted)),
        ]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_none() {
            self.arbiter_actions(world, actions);
            self.wire_actions(world, actions);
            self.client_actions(world, actions);
            self.node_actions(world, actions);
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        self.act(&mut world, action)?;
        if !self.limits.allows(&world.spent) {
            return None;
        }
        self.keep_told(&mut world);
        self.check(&mut world);
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("promises hold", |_, world: &World| {
            world.broken.is_none()
        })]
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.disk.epoch.0 <= self.limits.epochs
    }
}
