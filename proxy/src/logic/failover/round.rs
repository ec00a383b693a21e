//! One change of primary: seal everybody, choose, write it down, let the chosen one lead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use shared::model::{Epoch, Positions, Role};

use super::choose::{self, Choice};
use super::facts::Standing;
use super::{
    Cause, Effect, Event, Failover, Loss, OrderId, Phase, Promotion, Record, SealAnswer, Then,
    Timer,
};
use crate::logic::NodeId;

/// A change of primary under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Round {
    pub(super) epoch: Epoch,
    pub(super) cause: Cause,
    /// In words, for the event.
    pub(super) reason: String,
    pub(super) from: Option<NodeId>,
    /// The only one that may be chosen, if somebody decided so.
    pub(super) to: Option<NodeId>,
    pub(super) accept_loss: bool,
    order: Option<OrderId>,
    /// Since when the primary is in trouble, or the round under way.
    pub(super) began: Instant,
    answers: BTreeMap<NodeId, Answer>,
    pub(super) seal_late: bool,
    pub(super) catch_up_late: bool,
    /// Why it is not over yet.
    pub(super) why: Option<String>,
    said: Option<&'static str>,
    step: Step,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Asked,
    Sealed {
        fenced: bool,
        proved: bool,
        durable: Positions,
    },
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Choosing,
    Persisting {
        to: NodeId,
        loss: Loss,
    },
    Leading {
        to: NodeId,
        loss: Loss,
        fork: Positions,
    },
}

impl Round {
    /// Whether the node may be chosen: the one that somebody named, else anybody but the primary.
    pub(super) fn wants(&self, node: NodeId) -> bool {
        match self.to {
            Some(to) => to == node,
            None => self.from != Some(node),
        }
    }

    /// What the node has on disk, if it is sealed.
    pub(super) fn sealed(&self, node: NodeId) -> Option<&Positions> {
        match self.answers.get(&node)? {
            Answer::Sealed { durable, .. } => Some(durable),
            Answer::Asked | Answer::Failed => None,
        }
    }

    /// Whether the node is sealed and its application cannot write any more.
    pub(super) fn is_fenced(&self, node: NodeId) -> bool {
        matches!(
            self.answers.get(&node),
            Some(Answer::Sealed { fenced: true, .. })
        )
    }

    /// Whether what the node has is provably all that it ever vouched for.
    pub(super) fn is_proved(&self, node: NodeId) -> bool {
        matches!(
            self.answers.get(&node),
            Some(Answer::Sealed { proved: true, .. })
        )
    }

    pub(super) fn is_pending(&self, node: NodeId) -> bool {
        matches!(self.answers.get(&node), Some(Answer::Asked))
    }

    pub(super) fn anybody_pending(&self) -> bool {
        self.answers.values().any(|answer| *answer == Answer::Asked)
    }

    pub(super) const fn is_leading(&self) -> bool {
        matches!(self.step, Step::Leading { .. })
    }

    pub(super) const fn word(&self) -> &'static str {
        match self.said {
            Some(_) => "unavailable",
            None if self.cause.is_planned() => "switching-over",
            None => "promoting",
        }
    }

    /// A report of a sealed node is as good as its answer, and newer.
    pub(super) fn handle_report(&mut self, node: NodeId, standing: &Standing) {
        if self.step != Step::Choosing {
            return;
        }
        if standing.epoch < self.epoch {
            // It was not reached, or came back: ask it again.
            if self.answers.get(&node) == Some(&Answer::Failed) {
                self.answers.remove(&node);
            }
        } else if standing.epoch == self.epoch && standing.role == Role::Fenced {
            self.note(
                node,
                standing.fenced,
                standing.unfit.is_none(),
                &standing.durable,
            );
        }
    }

    fn note(&mut self, node: NodeId, fenced: bool, proved: bool, durable: &Positions) {
        if let Some(Answer::Sealed {
            fenced: was,
            durable: before,
            ..
        }) = self.answers.get(&node)
        {
            // An older word that comes late.
            if (*was && !fenced) || (before != durable && durable.behind(before) > 0) {
                return;
            }
        }
        self.answers.insert(
            node,
            Answer::Sealed {
                fenced,
                proved,
                durable: durable.clone(),
            },
        );
    }
}

impl Failover {
    pub(super) fn begin_round(
        &mut self,
        now: Instant,
        cause: Cause,
        to: Option<NodeId>,
        accept_loss: bool,
        order: Option<OrderId>,
    ) {
        let began = match &self.phase {
            Phase::Suspect { since, .. } => *since,
            Phase::Round(round) => round.began,
            Phase::Starting { .. } | Phase::Serving | Phase::Draining { .. } => now,
        };
        let reason = self.reason(cause);
        if matches!(cause, Cause::Trouble(_)) {
            self.last_auto = Some(now);
        }
        self.drop_entrance();
        for timer in [
            Timer::Crash,
            Timer::Interval,
            Timer::Drain,
            Timer::Seal,
            Timer::CatchUp,
            Timer::Lead,
        ] {
            self.timers.remove(&timer);
        }
        self.nodes.iter_mut().for_each(|facts| facts.asked = None);
        let epoch = self.newest.max(self.record.epoch).next();
        self.newest = epoch;
        self.phase = Phase::Round(Round {
            epoch,
            cause,
            reason,
            from: self.record.primary,
            to,
            accept_loss,
            order,
            began,
            answers: BTreeMap::new(),
            seal_late: false,
            catch_up_late: false,
            why: None,
            said: None,
            step: Step::Choosing,
        });
        // First nobody is sent there, then nobody there is waited for, and only then is the primary asked where it stands:
        // so whatever it acknowledged is in its answer.
        self.steer();
        if !cause.is_planned() {
            self.effects.push_back(Effect::Abandon(epoch));
        }
        self.effects
            .push_back(Effect::Tell(Event::Began(epoch, cause)));
        self.arm(now, Timer::Seal, self.rules.seal_within);
        self.ask_all();
    }

    fn reason(&mut self, cause: Cause) -> String {
        let primary = self.record.primary;
        let why = primary
            .map(|primary| self.facts(primary))
            .map(|facts| (facts.signs.refusing, facts.app_why.clone()));
        match (cause, why) {
            (Cause::Trouble(super::Trouble::Crash), _) | (Cause::Trouble(_), Some((true, _))) => {
                "connect refused".to_owned()
            }
            (Cause::Trouble(super::Trouble::Breaker), _) => "circuit breaker opened".to_owned(),
            (Cause::Trouble(super::Trouble::Hang), Some((_, why))) if !why.is_empty() => why,
            (Cause::Trouble(super::Trouble::Hang | super::Trouble::Stall), _) => {
                "health checks failed".to_owned()
            }
            (Cause::Switchover, _) => "planned switchover".to_owned(),
            (Cause::Promote, _) => "operator's decision".to_owned(),
            (Cause::Failback, _) => "the preferred node has caught up".to_owned(),
            (Cause::Restart, _) => "roles had to be decided anew".to_owned(),
        }
    }

    /// Asks everybody who has not been asked, or could not be reached and speaks again.
    fn ask_all(&mut self) {
        if !self.rules.replicated {
            return;
        }
        let ids = self.ids();
        let Phase::Round(round) = &mut self.phase else {
            return;
        };
        for node in ids {
            if let std::collections::btree_map::Entry::Vacant(entry) = round.answers.entry(node) {
                entry.insert(Answer::Asked);
                self.effects.push_back(Effect::Seal(node, round.epoch));
            }
        }
    }

    pub(super) fn handle_sealed(&mut self, node: NodeId, epoch: Epoch, answer: SealAnswer) {
        let Phase::Round(round) = &mut self.phase else {
            return;
        };
        if round.epoch != epoch || round.step != Step::Choosing {
            return;
        }
        match answer {
            SealAnswer::Sealed(sealed) => {
                round.note(node, sealed.fenced, sealed.proved, &sealed.durable);
                if let Some(last) = sealed.heard {
                    self.hear_end(&last);
                }
            }
            SealAnswer::Stale(newest) => {
                self.newest = self.newest.max(newest);
            }
            SealAnswer::Failed(_) => {
                if round.is_pending(node) {
                    round.answers.insert(node, Answer::Failed);
                }
            }
        }
    }

    /// The former primary's last position, from itself or from a standby that it told.
    fn hear_end(&mut self, last: &Positions) {
        if self.ended.is_none() {
            self.ended = Some(last.clone());
        }
    }

    pub(super) fn look_round(&mut self, now: Instant) {
        let Phase::Round(round) = &self.phase else {
            return;
        };
        if round.step != Step::Choosing {
            return;
        }
        let (epoch, from, cause, to, accept_loss, order) = (
            round.epoch,
            round.from,
            round.cause,
            round.to,
            round.accept_loss,
            round.order,
        );
        if self.newest > epoch {
            // Somebody has seen a newer epoch than this one: whatever was answered so far is of no use.
            return self.begin_round(now, cause, to, accept_loss, order);
        }
        self.ask_all();
        self.learn_end(from, epoch);
        if self.writing.is_some() {
            return;
        }
        let Phase::Round(round) = &self.phase else {
            return;
        };
        match choose::choose(self, round) {
            Choice::Lead(to, loss) => self.persist_choice(to, loss),
            Choice::Wait { why, catching_up } => {
                if catching_up {
                    self.arm(now, Timer::CatchUp, self.rules.catch_up_within);
                }
                self.with_round(|round| {
                    round.why = Some(why);
                    round.said = None;
                });
            }
            Choice::Nobody(refusal) => self.say_nobody(epoch, refusal),
        }
    }

    /// Remembers where the primary of the last served epoch ended, once it is fenced or a standby has heard it.
    fn learn_end(&mut self, from: Option<NodeId>, epoch: Epoch) {
        let Phase::Round(round) = &self.phase else {
            return;
        };
        let last_served = self.served.map(|(_, node)| node).or(from);
        let ends = |node: &NodeId| round.is_fenced(*node) && round.is_proved(*node);
        let own = last_served
            .filter(ends)
            .and_then(|node| round.sealed(node))
            .cloned();
        let current = self
            .nodes
            .iter()
            .filter_map(|facts| facts.standing.as_ref())
            .filter(|at| at.epoch == epoch);
        let heard = current.filter_map(|standing| standing.heard.clone()).next();
        if let Some(last) = own.or(heard) {
            self.hear_end(&last);
        }
    }

    fn say_nobody(&mut self, epoch: Epoch, refusal: choose::Refusal) {
        let Phase::Round(round) = &mut self.phase else {
            return;
        };
        round.why = Some(format!("no node can take over: {}", refusal.label));
        if round.said != Some(refusal.label) {
            round.said = Some(refusal.label);
            let order = round.order.take();
            self.effects.push_back(Effect::Tell(Event::Refused(
                epoch,
                refusal.label,
                refusal.why.clone(),
            )));
            self.effects
                .extend(order.map(|id| Effect::Answer(id, Err(refusal.why))));
        }
    }

    fn persist_choice(&mut self, to: NodeId, loss: Loss) {
        let in_sync = self.in_sync_after(to);
        let Phase::Round(round) = &mut self.phase else {
            return;
        };
        round.step = Step::Persisting { to, loss };
        round.why = None;
        round.said = None;
        let record = Record {
            epoch: round.epoch,
            primary: Some(to),
            in_sync,
            ..self.record.clone()
        };
        self.write(record, Then::Lead);
    }

    /// Who certainly has everything that the new primary has at the fork.
    fn in_sync_after(&self, to: NodeId) -> BTreeSet<NodeId> {
        let Phase::Round(round) = &self.phase else {
            return BTreeSet::new();
        };
        let Some(fork) = round.sealed(to).filter(|_| self.rules.acks() > 0) else {
            return BTreeSet::new();
        };
        let speaks = |node: &NodeId| {
            let standing = self.nodes[node.index()].standing.as_ref();
            standing
                .is_some_and(|standing| standing.unfit.is_none() && standing.epoch <= round.epoch)
        };
        let has_all = |node: &NodeId| {
            round.is_fenced(*node)
                && round.is_proved(*node)
                && round.sealed(*node).is_some_and(|at| at.covers(fork))
        };
        self.ids()
            .filter(|node| *node != to)
            .filter(speaks)
            .filter(has_all)
            .collect()
    }

    pub(super) fn round_persisted(&mut self) {
        self.changes = 0;
        let Phase::Round(round) = &mut self.phase else {
            return;
        };
        let Step::Persisting { to, loss } = round.step else {
            return;
        };
        let fork = round.sealed(to).cloned().unwrap_or_default();
        round.step = Step::Leading { to, loss, fork };
        self.timers.remove(&Timer::Seal);
        self.timers.remove(&Timer::CatchUp);
        self.nodes
            .iter_mut()
            .for_each(|facts| facts.resting = false);
        if !self.rules.replicated {
            self.finish_round(to);
        }
    }

    /// What the new primary must have, while it has not led yet.
    pub(super) fn fork_of_round(&self) -> Option<Positions> {
        let Phase::Round(round) = &self.phase else {
            return None;
        };
        match &round.step {
            Step::Leading { fork, .. } => Some(fork.clone()),
            Step::Choosing | Step::Persisting { .. } => None,
        }
    }

    /// The chosen one leads.
    pub(super) fn finish_round(&mut self, node: NodeId) {
        let Phase::Round(round) = &self.phase else {
            return;
        };
        let Step::Leading { to, loss, .. } = round.step else {
            return;
        };
        if to != node {
            return;
        }
        let round = round.clone();
        let name = self.name(to).to_owned();
        if round.from == Some(to) {
            self.effects.push_back(Effect::Tell(Event::Kept(
                round.epoch,
                to,
                round.reason.clone(),
            )));
            let kept = format!("{name} remains the primary, now in epoch {}", round.epoch);
            let wanted = round.to.is_none_or(|wanted| wanted == to);
            let answer = if wanted {
                Ok(kept)
            } else {
                Err(format!("the change was undone: {kept}"))
            };
            self.effects
                .extend(round.order.map(|id| Effect::Answer(id, answer)));
        } else {
            self.effects
                .push_back(Effect::Tell(Event::Promoted(Promotion {
                    epoch: round.epoch,
                    from: round.from,
                    to,
                    cause: round.cause,
                    reason: round.reason.clone(),
                    loss,
                })));
            let done = format!("{name} is the primary, in epoch {}", round.epoch);
            self.effects
                .extend(round.order.map(|id| Effect::Answer(id, Ok(done))));
        }
        self.timers.remove(&Timer::Lead);
        self.serve();
    }

    /// The chosen one has not answered in time. If it is gone too, the others decide anew; else it is asked again.
    pub(super) fn give_up_leader(&mut self, now: Instant) -> bool {
        let Phase::Round(round) = &self.phase else {
            return false;
        };
        let Step::Leading { to, .. } = round.step else {
            return false;
        };
        let (cause, order) = (round.cause, round.order);
        if self.nodes[to.index()].standing.is_some() {
            return false;
        }
        self.begin_round(now, cause, None, false, order);
        true
    }

    pub(super) fn with_round(&mut self, change: impl FnOnce(&mut Round)) {
        if let Phase::Round(round) = &mut self.phase {
            change(round);
        }
    }
}
