//! Who is primary: one pure machine per service.
//!
//! Everything that can change who takes writes goes in as an [`Input`]: probes, workers' signs, nodes' reports, answers to
//! orders, operators' wishes, the clock. What must be done comes out as [`Effect`]s, which the shell carries out in order.
//! The machine looks at its facts again after every input and acts on what it finds (level-triggered), so that a lost or
//! doubled message is repaired by the next report and needs no case of its own.
//!
//! What keeps writes safe (see `ARCHITECTURE.md`, "The promotion protocol"):
//! - an epoch is on disk before anybody is told to lead in it, and each has one primary for ever;
//! - nobody is told to lead before the others were sealed, and nobody who may lack an acknowledged write;
//! - the set of standbys that the primary must wait for always contains the set on disk from which one may be chosen.

mod choose;
mod facts;
mod insync;
mod meeting;
mod round;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::api::{Refused, Sealed, Version};
use shared::model::{ClusterId, Epoch, Positions, Role};

pub use facts::{App, PeerStanding, Standing, Trouble};
pub use rules::{Durability, Member, OnAckTimeout, Rules, TooFarBehind};

use crate::logic::NodeId;
use facts::{Asked, Facts};
use insync::Entering;
use round::Round;

/// What the arbiter must not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    /// The cluster that it arbitrates, once there is one.
    pub cluster: Option<ClusterId>,
    /// The newest epoch that was decided.
    pub epoch: Epoch,
    /// Who leads in it.
    pub primary: Option<NodeId>,
    /// Standbys that have every acknowledged write of every epoch up to this one.
    pub in_sync: BTreeSet<NodeId>,
    /// How often an arbiter has started from this record.
    pub run: u64,
}

/// Why a primary is, or was, changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its application is in trouble.
    Trouble(Trouble),
    /// An operator asked for a planned change.
    Switchover,
    /// An operator decided.
    Promote,
    /// The preferred node has caught up again.
    Failback,
    /// Somebody has seen a newer epoch than the one on record, or the primary came back without a proof of its data: a
    /// decision must be made anew.
    Restart,
}

impl Cause {
    /// The word that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trouble(trouble) => trouble.as_str(),
            Self::Switchover => "switchover",
            Self::Promote => "promote",
            Self::Failback => "failback",
            Self::Restart => "restart",
        }
    }

    const fn is_planned(self) -> bool {
        matches!(self, Self::Switchover | Self::Failback)
    }
}

/// What was lost in a change of primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// Nothing that anybody was told had succeeded: proved.
    None,
    /// At most this many transactions, besides responses released since the primary's position was last known.
    Bounded(u64),
    /// Nothing is known of what the former primary had.
    Unknown,
}

/// Names an operator's order, so that its answer finds its asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrderId(pub u64);

/// What an operator may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// A planned change without a failed request or a lost write; to the best standby when none is named.
    Switchover(Option<NodeId>),
    /// Promote this node now.
    Promote {
        /// The node.
        to: NodeId,
        /// Even when acknowledged writes would be lost.
        accept_loss: bool,
    },
    /// Let this node give up data that has no common history with the cluster's (it is preserved first).
    Rejoin(NodeId),
}

/// How a node answered its sealing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SealAnswer {
    /// It is sealed.
    Sealed(Sealed),
    /// It has seen this epoch already.
    Stale(Epoch),
    /// It was not reached, or failed.
    Failed(String),
}

/// How a node answered an order to lead or to follow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Obeyed {
    /// Done; where it stands.
    Done(Positions),
    /// It refuses, and has seen this epoch.
    Refused(Refused, Epoch),
    /// It was not reached, or failed.
    Failed(String),
}

/// What goes in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// A change of health verdict, with the reason.
    Health(NodeId, App, String),
    /// A connection to the node's application was refused.
    Refused(NodeId),
    /// A connection to it was made, or a request answered.
    Answered(NodeId),
    /// Its breaker opened.
    Broke(NodeId),
    /// Its breaker closed.
    Mended(NodeId),
    /// Its syncd says how it stands.
    Report(NodeId, Standing),
    /// Its syncd cannot be heard.
    Silent(NodeId),
    /// Answer to [`Effect::Seal`].
    Sealed(NodeId, Epoch, SealAnswer),
    /// Answer to [`Effect::Lead`].
    Led(NodeId, Epoch, Version, Obeyed),
    /// Answer to [`Effect::Follow`].
    Followed(NodeId, Epoch, Obeyed),
    /// Answer to [`Effect::Persist`]: this is on disk, or why not.
    Persisted(Result<Record, String>),
    /// No request of the closed view is in flight any more.
    Drained,
    /// A gated response of this epoch has waited as long as it may.
    AckTimeout(Epoch),
    /// An operator's order.
    Order(OrderId, Order),
}

/// What must be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Put this on disk, then say [`Input::Persisted`].
    Persist(Record),
    /// Seal the node: promise, for a standby; fence, for a primary.
    Seal(NodeId, Epoch),
    /// Let the node lead.
    Lead(NodeId, LeadOrder),
    /// Let the node follow.
    Follow(NodeId, FollowOrder),
    /// Put this view in force for requests.
    Steer(Steer),
    /// Give up requests in flight that were admitted in older epochs.
    Abandon(Epoch),
    /// Say [`Input::Drained`] as soon as nothing is in flight.
    AwaitDrain,
    /// Look closely at the node (connection attempts in quick succession), or no longer.
    Alert(NodeId, bool),
    /// Something happened that people should be able to see.
    Tell(Event),
    /// An operator's order is done, or refused.
    Answer(OrderId, Result<String, String>),
}

/// An order to lead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeadOrder {
    /// The epoch.
    pub epoch: Epoch,
    /// Which state of the gate this is.
    pub version: Version,
    /// Whom a barrier waits for.
    pub required: BTreeSet<NodeId>,
    /// What the node must have.
    pub at_least: Positions,
}

/// An order to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FollowOrder {
    /// The epoch.
    pub epoch: Epoch,
    /// The primary.
    pub primary: NodeId,
    /// Whether to give up data without a common history.
    pub overwrite: bool,
}

/// How requests are steered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Steer {
    /// The term in force.
    pub epoch: Epoch,
    /// Who takes requests.
    pub target: Option<NodeId>,
    /// Who takes safe ones while nobody takes all.
    pub reads: Option<NodeId>,
    /// What gated responses wait for.
    pub gate: Gate,
    /// The epoch in which requests were last taken before this one, and where its primary ended, if that is known.
    pub settled: Option<(Epoch, Option<Positions>)>,
    /// The phase that users see.
    pub phase: &'static str,
    /// Why requests wait.
    pub why: Option<String>,
}

/// What becomes of the response to a gated request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Gate {
    /// It is released at once: nothing waits for a standby (`async`, or nothing to replicate).
    #[default]
    Off,
    /// It waits for a barrier of the primary's syncd.
    Barrier,
    /// It is released at once, because the arbiter has put on record that no standby is in sync.
    Open,
}

/// What people should be able to see, in the log, the API and the metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The primary's application is in trouble.
    Suspected(NodeId, Trouble, String),
    /// It answers again; nothing was changed.
    Cleared(NodeId),
    /// A change of primary has begun.
    Began(Epoch, Cause),
    /// Nobody can be promoted at this moment, and why.
    Refused(Epoch, &'static str, String),
    /// A change of primary is complete.
    Promoted(Promotion),
    /// A change of primary ended with the same primary.
    Kept(Epoch, NodeId, String),
    /// Both sides were new to each other; this one's data is the cluster's.
    Met(NodeId, String),
    /// A standby entered the in-sync set.
    InSync(BTreeSet<NodeId>),
    /// Writes are released without a standby.
    Degraded(BTreeSet<NodeId>, String),
    /// A node did not obey.
    Disobeyed(NodeId, String),
    /// The record could not be written.
    NotPersisted(String),
    /// An operator's order was not carried out.
    Aborted(String),
}

/// A completed change of primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Promotion {
    /// The new epoch.
    pub epoch: Epoch,
    /// Who led before.
    pub from: Option<NodeId>,
    /// Who leads now.
    pub to: NodeId,
    /// Why.
    pub cause: Cause,
    /// The reason in words.
    pub reason: String,
    /// What was lost.
    pub loss: Loss,
}

/// What the machine waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// The remembered primary's first word after a start.
    Start,
    /// Applications that are still starting, before a first meeting is decided.
    Meet,
    /// Refused connections turn into a crash.
    Crash,
    /// The least time between promotions that nobody asked for.
    Interval,
    /// Requests under way before a switchover.
    Drain,
    /// Answers to sealing.
    Seal,
    /// A candidate that fetches the tail.
    CatchUp,
    /// A node that begins to lead.
    Lead,
    /// A standby that enters the in-sync set.
    Enter,
    /// Rest before an entrance is tried again.
    EnterRest,
    /// Rest before something that failed is tried again.
    Rest,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// This process has not taken up its record yet.
    Starting { waited: bool, met_late: bool },
    /// The primary on record takes requests.
    Serving,
    /// It is in trouble; requests are held.
    Suspect {
        trouble: Trouble,
        since: Instant,
        ripe: bool,
        reads: Option<NodeId>,
        said: Option<&'static str>,
    },
    /// A switchover waits for requests under way.
    Draining {
        cause: Cause,
        to: NodeId,
        order: Option<OrderId>,
    },
    /// A change of primary.
    Round(Round),
}

/// Why a record is being written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Then {
    Begin,
    Meet {
        reason: String,
        order: Option<OrderId>,
    },
    Lead,
    Enter,
    Shrink {
        why: String,
    },
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Failover {
    rules: Arc<Rules>,
    record: Record,
    writing: Option<(Record, Then)>,
    unwritten: bool,
    fresh: ClusterId,
    changes: u64,
    nodes: Vec<Facts>,
    newest: Epoch,
    phase: Phase,
    entering: Option<Entering>,
    /// The epoch in which requests were last taken, its primary, and where that ended, once known.
    served: Option<(Epoch, NodeId)>,
    ended: Option<Positions>,
    overwrite: BTreeSet<NodeId>,
    last_auto: Option<Instant>,
    steered: Option<Steer>,
    timers: BTreeMap<Timer, Instant>,
    effects: VecDeque<Effect>,
}

impl Failover {
    /// Starts from what was last on disk (`Record::default()` the first time). `fresh` names the cluster if there is none yet.
    #[must_use]
    pub fn new(rules: Arc<Rules>, record: Record, fresh: ClusterId) -> Self {
        let nodes = vec![Facts::default(); rules.members.len()];
        let mut begun = record.clone();
        begun.run += 1;
        let mut machine = Self {
            newest: record.epoch,
            rules,
            record,
            writing: None,
            unwritten: false,
            fresh,
            changes: 0,
            nodes,
            phase: Phase::Starting {
                waited: false,
                met_late: false,
            },
            entering: None,
            served: None,
            ended: None,
            overwrite: BTreeSet::new(),
            last_auto: None,
            steered: None,
            timers: BTreeMap::new(),
            effects: VecDeque::new(),
        };
        machine.steer();
        machine.write(begun, Then::Begin);
        machine
    }

    /// Takes in one input.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Health(node, app, why) => {
                let facts = self.facts(node);
                facts.app = app;
                facts.app_why = why;
            }
            Input::Refused(node) => self.facts(node).refusing = true,
            Input::Answered(node) => self.facts(node).refusing = false,
            Input::Broke(node) => self.facts(node).broken = true,
            Input::Mended(node) => self.facts(node).broken = false,
            Input::Report(node, standing) => self.handle_report(now, node, standing),
            Input::Silent(node) => {
                let facts = self.facts(node);
                facts.standing = None;
                facts.asked = None;
            }
            Input::Sealed(node, epoch, answer) => self.handle_sealed(node, epoch, answer),
            Input::Led(node, epoch, version, answer) => {
                self.handle_led(now, node, epoch, version, answer);
            }
            Input::Followed(node, epoch, answer) => self.handle_followed(now, node, epoch, answer),
            Input::Persisted(result) => self.handle_persisted(now, result),
            Input::Drained => self.handle_drained(now),
            Input::AckTimeout(epoch) => self.handle_ack_timeout(now, epoch),
            Input::Order(id, order) => self.handle_order(now, id, order),
        }
        self.settle(now);
    }

    /// Lets every timer go off that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self
            .timers
            .iter()
            .find(|(_, at)| **at <= now)
            .map(|(timer, _)| *timer)
        {
            self.fire(now, timer);
        }
    }

    /// Lets one timer go off, due or not; nothing happens if it is not running.
    pub fn fire(&mut self, now: Instant, timer: Timer) {
        if self.timers.remove(&timer).is_none() {
            return;
        }
        match timer {
            Timer::Start => {
                if let Phase::Starting { waited, .. } = &mut self.phase {
                    *waited = true;
                }
            }
            Timer::Meet => {
                if let Phase::Starting { met_late, .. } = &mut self.phase {
                    *met_late = true;
                }
            }
            Timer::Crash => {
                if let Phase::Suspect { ripe, .. } = &mut self.phase {
                    *ripe = true;
                }
            }
            Timer::Drain => self.abort_drain(),
            Timer::Seal => self.with_round(|round| round.seal_late = true),
            Timer::CatchUp => self.with_round(|round| round.catch_up_late = true),
            Timer::Lead => self.lead_again(now),
            Timer::Enter => self.leave_entrance(now),
            Timer::Rest => self
                .nodes
                .iter_mut()
                .for_each(|facts| facts.resting = false),
            Timer::Interval | Timer::EnterRest => (),
        }
        if timer == Timer::Rest
            && std::mem::take(&mut self.unwritten)
            && let Some((record, _)) = &self.writing
        {
            self.effects.push_back(Effect::Persist(record.clone()));
        }
        self.settle(now);
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Failover::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.values().min().copied()
    }

    /// The timers that run.
    pub fn timers(&self) -> impl Iterator<Item = Timer> + '_ {
        self.timers.keys().copied()
    }

    /// What is on disk.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// A node's latest report, while its syncd can be heard.
    #[must_use]
    pub fn standing(&self, node: NodeId) -> Option<&Standing> {
        self.nodes[node.index()].standing.as_ref()
    }

    /// The health verdict on a node, and whether its port refuses connections.
    #[must_use]
    pub fn app(&self, node: NodeId) -> (App, bool) {
        let facts = &self.nodes[node.index()];
        (facts.app, facts.refusing)
    }

    /// Why `node` could not be promoted at this moment; `None` if it could.
    #[must_use]
    pub fn not_promotable(&self, node: NodeId) -> Option<String> {
        if self.record.primary == Some(node) {
            return None;
        }
        choose::unfit(self, node).or_else(|| choose::unplausible(self, node))
    }

    // ---- one look at everything ------------------------------------------------------------------------------------

    /// Acts on the facts until nothing more follows from them. Each pass moves to another phase, so it ends.
    fn settle(&mut self, now: Instant) {
        for _ in 0..8 {
            let before = std::mem::discriminant(&self.phase);
            match self.phase {
                Phase::Starting { .. } => self.look_starting(now),
                Phase::Serving => self.look_serving(now),
                Phase::Suspect { .. } => self.look_suspect(now),
                Phase::Draining { .. } => self.look_draining(now),
                Phase::Round(_) => self.look_round(now),
            }
            if before == std::mem::discriminant(&self.phase) {
                break;
            }
        }
        self.steer();
        self.order_nodes(now);
        let leading = matches!(&self.phase, Phase::Round(round) if round.is_leading());
        if !leading && self.nodes.iter().all(|facts| facts.asked.is_none()) {
            self.timers.remove(&Timer::Lead);
        }
    }

    fn look_starting(&mut self, now: Instant) {
        if self.writing.is_some() {
            return;
        }
        self.arm(now, Timer::Start, self.rules.start_within);
        let waited = matches!(self.phase, Phase::Starting { waited: true, .. });
        let Some(primary) = self.record.primary else {
            return self.look_meeting(now, waited);
        };
        if !self.rules.replicated || waited || self.standing(primary).is_some() {
            self.timers.remove(&Timer::Start);
            self.serve();
        }
    }

    fn look_serving(&mut self, now: Instant) {
        let Some(primary) = self.record.primary else {
            return;
        };
        if self.must_decide_anew(primary) {
            return self.begin_round(now, Cause::Restart, None, false, None);
        }
        if let Some(trouble) = self.facts(primary).trouble() {
            // An open breaker lets single requests try again by itself; holding all of them would keep it open for ever.
            if trouble != Trouble::Breaker || choose::plausible(self, now).is_ok() {
                return self.suspect(now, primary, trouble);
            }
        }
        self.look_in_sync(now, primary);
        self.look_failback(now, primary);
    }

    fn look_suspect(&mut self, now: Instant) {
        let Some(primary) = self.record.primary else {
            return;
        };
        if self.must_decide_anew(primary) {
            return self.begin_round(now, Cause::Restart, None, false, None);
        }
        let Phase::Suspect { trouble, ripe, .. } = self.phase else {
            return;
        };
        let Some(worst) = self.facts(primary).trouble() else {
            self.effects
                .push_back(Effect::Tell(Event::Cleared(primary)));
            return self.serve();
        };
        self.look_in_sync(now, primary);
        // A refused port is given a moment to come back; every other trouble has been watched for long enough already.
        if !(ripe || worst != Trouble::Crash) {
            return;
        }
        match choose::plausible(self, now) {
            Ok(()) => self.begin_round(now, Cause::Trouble(trouble), None, false, None),
            Err(refusal) => self.refuse(now, refusal),
        }
    }

    fn look_draining(&mut self, now: Instant) {
        let Some(primary) = self.record.primary else {
            return;
        };
        let Phase::Draining { to, cause, order } = self.phase else {
            return;
        };
        // Whatever befalls the primary now, the way on is the same, except that nobody need be waited for.
        if self.facts(primary).trouble() == Some(Trouble::Crash) || self.must_decide_anew(primary) {
            self.timers.remove(&Timer::Drain);
            self.begin_round(now, cause, Some(to), false, order);
        }
    }

    /// Whether somebody has seen a newer epoch than the record's, or the primary returned without a proof of its data.
    fn must_decide_anew(&mut self, primary: NodeId) -> bool {
        let unproved =
            |standing: &Standing| standing.role != Role::Primary && standing.unfit.is_some();
        self.rules.replicated
            && (self.newest > self.record.epoch
                || self.facts(primary).standing.as_ref().is_some_and(unproved))
    }

    fn look_failback(&mut self, now: Instant, primary: NodeId) {
        let members = &self.rules.members;
        let preferred = (0..members.len()).min_by_key(|at| (members[*at].priority, *at));
        let Some(to) = preferred.and_then(|at| u8::try_from(at).ok()).map(NodeId) else {
            return;
        };
        let rested = self.interval_left(now).is_none();
        if !self.rules.failback
            || to == primary
            || !rested
            || self.ready_for_switchover(primary, to).is_err()
        {
            return;
        }
        self.last_auto = Some(now);
        self.begin_drain(now, Cause::Failback, to, None);
    }

    fn serve(&mut self) {
        self.timers.remove(&Timer::Crash);
        if let Some(primary) = self.record.primary {
            self.effects.push_back(Effect::Alert(primary, false));
            self.served = Some((self.record.epoch, primary));
            self.ended = None;
        }
        self.phase = Phase::Serving;
    }

    fn suspect(&mut self, now: Instant, primary: NodeId, trouble: Trouble) {
        let why = match trouble {
            Trouble::Crash => "connections refused".to_owned(),
            Trouble::Hang => self.facts(primary).app_why.clone(),
            Trouble::Breaker => "circuit breaker opened".to_owned(),
        };
        self.effects
            .push_back(Effect::Tell(Event::Suspected(primary, trouble, why)));
        self.effects.push_back(Effect::Alert(primary, true));
        self.arm(now, Timer::Crash, self.rules.crash_after);
        self.phase = Phase::Suspect {
            trouble,
            since: now,
            ripe: false,
            reads: None,
            said: None,
        };
    }

    /// Stays suspect, says why once, and lets reads through if the rules and the facts allow.
    fn refuse(&mut self, now: Instant, refusal: choose::Refusal) {
        if let Some(left) = refusal.wait {
            self.arm(now, Timer::Interval, left);
        }
        let epoch = self.record.epoch;
        let Phase::Suspect { reads, said, .. } = &mut self.phase else {
            return;
        };
        *reads = refusal.reads;
        if *said != Some(refusal.label) {
            *said = Some(refusal.label);
            self.effects.push_back(Effect::Tell(Event::Refused(
                epoch,
                refusal.label,
                refusal.why,
            )));
        }
    }

    // ---- operators -------------------------------------------------------------------------------------------------

    fn handle_order(&mut self, now: Instant, id: OrderId, order: Order) {
        let begun = match order {
            Order::Switchover(to) => self.order_switchover(now, id, to),
            Order::Promote { to, accept_loss } => self.order_promote(now, id, to, accept_loss),
            Order::Rejoin(node) => self.order_rejoin(id, node),
        };
        if let Err(why) = begun {
            self.effects.push_back(Effect::Answer(id, Err(why)));
        }
    }

    fn order_switchover(
        &mut self,
        now: Instant,
        id: OrderId,
        to: Option<NodeId>,
    ) -> Result<(), String> {
        let Some(primary) = self.record.primary.filter(|_| self.phase == Phase::Serving) else {
            return Err(format!(
                "the service is {}, not serving; a switchover needs a working primary",
                self.phase_word()
            ));
        };
        let to = match to {
            Some(to) if to == primary => {
                return Err(format!("{} is the primary already", self.name(to)));
            }
            Some(to) => to,
            None => self.best_standby(primary)?,
        };
        self.ready_for_switchover(primary, to)?;
        self.begin_drain(now, Cause::Switchover, to, Some(id));
        Ok(())
    }

    fn best_standby(&self, primary: NodeId) -> Result<NodeId, String> {
        let all = self.ids().filter(|node| *node != primary);
        let ready = all.filter(|node| self.ready_for_switchover(primary, *node).is_ok());
        ready
            .min_by_key(|node| (self.rules.members[node.index()].priority, *node))
            .ok_or_else(|| {
                "no standby is ready for a switchover; `hotwarm status` says why".to_owned()
            })
    }

    fn ready_for_switchover(&self, primary: NodeId, to: NodeId) -> Result<(), String> {
        if let Some(why) = choose::unfit(self, to) {
            return Err(format!("{} cannot take over: {why}", self.name(to)));
        }
        if !self.rules.replicated {
            return Ok(());
        }
        let lead = self.nodes[primary.index()].standing.as_ref();
        let lead =
            lead.ok_or_else(|| format!("the syncd of {} cannot be heard", self.name(primary)))?;
        let peer = lead.peers.get(&to).filter(|peer| peer.connected);
        let peer = peer.ok_or_else(|| {
            format!(
                "{} is not connected to {}",
                self.name(to),
                self.name(primary)
            )
        })?;
        let same_history = lead.tip.0.iter().all(|(source, tip)| {
            peer.durable
                .0
                .get(source)
                .is_some_and(|at| (at.epoch, at.generation) == (tip.epoch, tip.generation))
        });
        let missing = peer.durable.behind(&lead.tip);
        if !same_history && missing > 0 || missing > SWITCHOVER_BEHIND_MOST {
            return Err(format!(
                "{} is {missing} transactions behind; wait until it has caught up",
                self.name(to)
            ));
        }
        Ok(())
    }

    fn begin_drain(&mut self, now: Instant, cause: Cause, to: NodeId, order: Option<OrderId>) {
        self.drop_entrance();
        self.phase = Phase::Draining { cause, to, order };
        self.steer();
        self.effects.push_back(Effect::AwaitDrain);
        self.arm(now, Timer::Drain, self.rules.drain_within);
    }

    fn handle_drained(&mut self, now: Instant) {
        if let Phase::Draining { to, cause, order } = self.phase {
            self.timers.remove(&Timer::Drain);
            self.begin_round(now, cause, Some(to), false, order);
        }
    }

    fn abort_drain(&mut self) {
        if let Phase::Draining { order, .. } = self.phase {
            let within = self.rules.drain_within;
            let why =
                format!("requests were still under way after {within:?}; nothing was changed");
            self.effects
                .push_back(Effect::Tell(Event::Aborted(why.clone())));
            self.effects
                .extend(order.map(|id| Effect::Answer(id, Err(why))));
            self.phase = Phase::Serving;
        }
    }

    fn order_promote(
        &mut self,
        now: Instant,
        id: OrderId,
        to: NodeId,
        accept_loss: bool,
    ) -> Result<(), String> {
        if matches!(self.phase, Phase::Round(_) | Phase::Draining { .. }) {
            return Err("a change of primary is under way; ask again when it has ended".to_owned());
        }
        if self.record.primary.is_none() {
            return self.order_meeting(id, to, accept_loss);
        }
        if self.record.primary == Some(to) && self.phase == Phase::Serving {
            return Err(format!("{} is the primary already", self.name(to)));
        }
        if let Some(why) = choose::unfit(self, to).filter(|_| !accept_loss) {
            return Err(format!("{} cannot be promoted: {why}", self.name(to)));
        }
        if !accept_loss && self.record.primary != Some(to) {
            choose::would_lose(self, to).map_or(Ok(()), Err)?;
        }
        self.begin_round(now, Cause::Promote, Some(to), accept_loss, Some(id));
        Ok(())
    }

    fn order_rejoin(&mut self, id: OrderId, node: NodeId) -> Result<(), String> {
        if self.record.primary == Some(node) {
            return Err(format!(
                "{} is the primary; it does not rejoin",
                self.name(node)
            ));
        }
        self.overwrite.insert(node);
        self.facts(node).asked = None;
        self.facts(node).resting = false;
        if let Some(standing) = &mut self.facts(node).standing {
            // Makes the next look send the order again, now with the permission.
            standing.role = Role::Fenced;
        }
        self.effects.push_back(Effect::Answer(
            id,
            Ok(format!("{} may give up its own data", self.name(node))),
        ));
        Ok(())
    }

    // ---- nodes -----------------------------------------------------------------------------------------------------

    fn handle_report(&mut self, now: Instant, node: NodeId, standing: Standing) {
        if self.is_foreign(&standing) {
            // A node of another cluster is as good as silent: nothing it says may be believed or acted on.
            let facts = self.facts(node);
            facts.last = Some(standing);
            facts.standing = None;
            return;
        }
        if standing.cluster.is_some() {
            self.newest = self.newest.max(standing.epoch);
        }
        if let Phase::Round(round) = &mut self.phase {
            round.handle_report(node, &standing);
        }
        let facts = self.facts(node);
        facts.heard_at = Some(now);
        facts.last = Some(standing.clone());
        facts.standing = Some(standing);
        facts.resting = false;
    }

    fn is_foreign(&self, standing: &Standing) -> bool {
        self.record.cluster.is_some()
            && standing.cluster.is_some()
            && standing.cluster != self.record.cluster
    }

    /// Tells every node what it should be doing and is not, by its own report.
    fn order_nodes(&mut self, now: Instant) {
        let settled = matches!(
            self.phase,
            Phase::Serving | Phase::Suspect { .. } | Phase::Draining { .. }
        );
        let leading = matches!(&self.phase, Phase::Round(round) if round.is_leading());
        if !self.rules.replicated
            || !(settled || leading)
            || matches!(self.writing, Some((_, Then::Begin)))
        {
            return;
        }
        let Some(primary) = self.record.primary else {
            return;
        };
        for node in self.ids() {
            if node == primary {
                self.order_primary(now, node);
            } else if settled {
                self.order_standby(now, node, primary);
            }
        }
    }

    fn order_primary(&mut self, now: Instant, node: NodeId) {
        let (epoch, version, required) = (self.record.epoch, self.version(), self.required());
        let at_least = self.fork_of_round().unwrap_or_default();
        let facts = self.facts(node);
        let Some(standing) = facts
            .standing
            .as_ref()
            .filter(|_| facts.asked.is_none() && !facts.resting)
        else {
            return;
        };
        let gate = standing.gate.map(|(version, _)| version);
        if standing.epoch > epoch
            || (standing.role == Role::Primary && standing.epoch == epoch && gate >= Some(version))
        {
            return;
        }
        facts.asked = Some(Asked::Lead(epoch, version));
        self.effects.push_back(Effect::Lead(
            node,
            LeadOrder {
                epoch,
                version,
                required,
                at_least,
            },
        ));
        self.arm(now, Timer::Lead, self.rules.lead_within);
    }

    fn order_standby(&mut self, now: Instant, node: NodeId, primary: NodeId) {
        let epoch = self.record.epoch;
        let overwrite = self.overwrite.contains(&node);
        let facts = self.facts(node);
        let Some(standing) = facts
            .standing
            .as_ref()
            .filter(|_| facts.asked.is_none() && !facts.resting)
        else {
            return;
        };
        let follows = matches!(standing.role, Role::Standby | Role::Rejoining)
            && standing.primary == Some(primary);
        if standing.epoch > epoch || (follows && standing.epoch == epoch) {
            return;
        }
        facts.asked = Some(Asked::Follow(epoch));
        self.effects.push_back(Effect::Follow(
            node,
            FollowOrder {
                epoch,
                primary,
                overwrite,
            },
        ));
        self.arm(now, Timer::Lead, self.rules.lead_within);
    }

    fn handle_led(
        &mut self,
        now: Instant,
        node: NodeId,
        epoch: Epoch,
        version: Version,
        answer: Obeyed,
    ) {
        if self.facts(node).asked == Some(Asked::Lead(epoch, version)) {
            self.facts(node).asked = None;
        }
        if epoch != self.record.epoch || self.record.primary != Some(node) {
            return;
        }
        match answer {
            Obeyed::Done(_) => {
                if let Some(standing) = &mut self.facts(node).standing {
                    standing.role = Role::Primary;
                    standing.epoch = epoch;
                    standing.fenced = false;
                    let gate = standing.gate.get_or_insert((version, false));
                    if gate.0 < version {
                        *gate = (version, false);
                    }
                }
                self.overwrite.remove(&node);
                self.finish_round(node);
            }
            Obeyed::Refused(why, newest) => self.disobeyed(now, node, newest, format!("{why:?}")),
            Obeyed::Failed(why) => self.disobeyed(now, node, Epoch(0), why),
        }
    }

    fn handle_followed(&mut self, now: Instant, node: NodeId, epoch: Epoch, answer: Obeyed) {
        if self.facts(node).asked == Some(Asked::Follow(epoch)) {
            self.facts(node).asked = None;
        }
        let primary = self.record.primary;
        match answer {
            Obeyed::Done(_) => {
                let current = epoch == self.record.epoch;
                if let Some(standing) = self.facts(node).standing.as_mut().filter(|_| current) {
                    standing.epoch = epoch;
                    standing.primary = primary;
                    if standing.role != Role::Standby {
                        standing.role = Role::Rejoining;
                    }
                }
            }
            Obeyed::Refused(why, newest) => self.disobeyed(now, node, newest, format!("{why:?}")),
            Obeyed::Failed(why) => self.disobeyed(now, node, Epoch(0), why),
        }
    }

    fn disobeyed(&mut self, now: Instant, node: NodeId, newest: Epoch, why: String) {
        self.newest = self.newest.max(newest);
        self.facts(node).resting = true;
        self.arm(now, Timer::Rest, self.rules.rest);
        self.effects
            .push_back(Effect::Tell(Event::Disobeyed(node, why)));
    }

    /// An order was not answered in time: forget that it was asked, so that the next look asks again.
    fn lead_again(&mut self, now: Instant) {
        if self.give_up_leader(now) {
            return;
        }
        let mut forgot = false;
        for facts in &mut self.nodes {
            forgot |= facts.asked.take().is_some();
        }
        if forgot {
            self.arm(now, Timer::Lead, self.rules.lead_within);
        }
    }

    // ---- the record ------------------------------------------------------------------------------------------------

    fn write(&mut self, record: Record, then: Then) {
        self.effects.push_back(Effect::Persist(record.clone()));
        self.writing = Some((record, then));
    }

    fn handle_persisted(&mut self, now: Instant, result: Result<Record, String>) {
        let written = match result {
            Ok(written) => written,
            Err(why) => {
                self.unwritten = true;
                self.effects
                    .push_back(Effect::Tell(Event::NotPersisted(why)));
                return self.arm(now, Timer::Rest, self.rules.rest);
            }
        };
        // A word about an older write that comes late or twice says nothing about the one under way.
        let Some((record, then)) = self.writing.take_if(|(record, _)| *record == written) else {
            return;
        };
        self.newest = self.newest.max(record.epoch);
        self.record = record;
        match then {
            Then::Begin => (),
            Then::Meet { reason, order } => self.met(reason, order),
            Then::Lead => self.round_persisted(),
            Then::Enter => self.entered(),
            Then::Shrink { why } => self.shrunk(why),
        }
    }

    // ---- steering --------------------------------------------------------------------------------------------------

    /// Publishes what requests must know, if it has changed.
    fn steer(&mut self) {
        let steer = self.steering();
        if self.steered.as_ref() != Some(&steer) {
            self.steered = Some(steer.clone());
            self.effects.push_back(Effect::Steer(steer));
        }
    }

    fn steering(&self) -> Steer {
        let serving = self.phase == Phase::Serving;
        let reads = if let Phase::Suspect { reads, .. } = self.phase {
            reads
        } else {
            None
        };
        let left = self
            .served
            .map(|(epoch, _)| epoch)
            .filter(|epoch| *epoch < self.record.epoch);
        let before = self
            .steered
            .as_ref()
            .and_then(|steered| steered.settled.clone());
        Steer {
            epoch: self.record.epoch,
            target: self.record.primary.filter(|_| serving),
            reads,
            gate: self.gate(),
            settled: left.map(|epoch| (epoch, self.ended.clone())).or(before),
            phase: self.phase_word(),
            why: self.why(),
        }
    }

    /// The phase, as users see it.
    #[must_use]
    pub const fn phase_word(&self) -> &'static str {
        match &self.phase {
            Phase::Starting { .. } => "starting",
            Phase::Serving => "serving",
            Phase::Suspect { reads: Some(_), .. } => "read-only",
            Phase::Suspect { said: Some(_), .. } => "unavailable",
            Phase::Suspect { .. } => "suspect",
            Phase::Draining { .. } => "switching-over",
            Phase::Round(round) => round.word(),
        }
    }

    fn why(&self) -> Option<String> {
        match &self.phase {
            Phase::Serving => None,
            Phase::Starting { .. } => Some(self.why_starting()),
            Phase::Suspect {
                said: Some(label), ..
            } => Some(format!("no node can take over: {label}")),
            Phase::Suspect { trouble, .. } => {
                Some(format!("the primary is in trouble ({})", trouble.as_str()))
            }
            Phase::Draining { .. } => Some("a planned switchover is under way".to_owned()),
            Phase::Round(round) => Some(
                round
                    .why
                    .clone()
                    .unwrap_or_else(|| "a new primary is being chosen".to_owned()),
            ),
        }
    }

    // ---- small things ----------------------------------------------------------------------------------------------

    fn facts(&mut self, node: NodeId) -> &mut Facts {
        &mut self.nodes[node.index()]
    }

    fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len())
            .filter_map(|at| u8::try_from(at).ok())
            .map(NodeId)
    }

    fn name(&self, node: NodeId) -> &str {
        &self.rules.members[node.index()].name
    }

    /// What is left of the least interval between promotions that nobody asked for.
    fn interval_left(&self, now: Instant) -> Option<Duration> {
        let again = self.last_auto? + self.rules.min_interval;
        again
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
    }

    /// Starts a timer, unless it runs already.
    fn arm(&mut self, now: Instant, timer: Timer, span: Duration) {
        self.timers.entry(timer).or_insert(now + span);
    }
}

/// A standby further behind than this would make a switchover's pause long; it is asked to catch up first.
const SWITCHOVER_BEHIND_MOST: u64 = 1000;
