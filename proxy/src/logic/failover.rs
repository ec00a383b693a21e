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
mod interface;
mod meeting;
mod obedience;
mod operators;
mod round;
mod rules;
mod suspicion;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::model::{ClusterId, Epoch, Positions, Role};

pub use facts::{App, PeerStanding, Standing, Trouble};
pub use interface::{
    Cause, Effect, Event, FollowOrder, Gate, Input, LeadOrder, Loss, Obeyed, Order, OrderId,
    Promotion, Record, SealAnswer, Steer,
};
pub use rules::{Durability, Member, OnAckTimeout, Rules, TooFarBehind};

use crate::logic::NodeId;
use facts::Facts;
use insync::Entering;
use round::Round;

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
    Starting {
        waited: bool,
        met_late: bool,
        said: bool,
    },
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
                said: false,
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

    /// An operator has taken the node out before this machine began.
    pub fn keep_out(&mut self, node: NodeId) {
        self.facts(node).draining = true;
    }

    /// Takes in one input.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Health(node, app, why) => {
                let facts = self.facts(node);
                facts.app = app;
                facts.app_why = why;
            }
            Input::Refused(node) => self.facts(node).signs.refusing = true,
            Input::Answered(node) => self.facts(node).signs.refusing = false,
            Input::Stalled(node) => self.facts(node).signs.stalled = true,
            Input::Responded(node) => self.facts(node).signs.stalled = false,
            Input::Broke(node) => self.facts(node).signs.broken = true,
            Input::Mended(node) => self.facts(node).signs.broken = false,
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
        (facts.app, facts.signs.refusing)
    }

    /// Whether an operator has taken the node out.
    #[must_use]
    pub fn is_draining(&self, node: NodeId) -> bool {
        self.nodes[node.index()].draining
    }

    /// Why `node` could not be promoted at this moment; `None` if it could.
    #[must_use]
    pub fn not_promotable(&self, node: NodeId) -> Option<String> {
        if self.record.primary == Some(node) {
            return None;
        }
        if self.rules.replicated && self.is_meeting() {
            return Some(self.why_starting());
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
            // An open breaker lets single requests try again by itself; holding all of them would keep it open for ever. And a
            // stalled primary that nobody can relieve had better keep its requests.
            let may_recover = matches!(trouble, Trouble::Breaker | Trouble::Stall);
            if !may_recover || choose::plausible(self, now).is_ok() {
                return self.suspect(now, primary, trouble);
            }
        }
        self.look_in_sync(now, primary);
        self.look_failback(now, primary);
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
            self.facts(primary).signs.stalled = false;
            self.undrain(primary);
            self.served = Some((self.record.epoch, primary));
            self.ended = None;
        }
        self.phase = Phase::Serving;
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
        let suspect = matches!(self.phase, Phase::Suspect { .. });
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
            doubted: self.record.primary.filter(|_| suspect),
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
