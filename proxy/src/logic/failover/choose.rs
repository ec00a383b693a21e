//! Who may lead: the rule of promotion, and the words for everybody whom it excludes.

use std::time::{Duration, Instant};

use shared::model::{Positions, Role};

use super::round::Round;
use super::{App, Cause, Durability, Failover, Loss, Phase, TooFarBehind};
use crate::logic::NodeId;

/// Why nobody is promoted at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Refusal {
    /// A bounded word for it, for metrics.
    pub(super) label: &'static str,
    /// The reason, for people.
    pub(super) why: String,
    /// When it is only a matter of time.
    pub(super) wait: Option<Duration>,
    /// Who may answer safe requests meanwhile.
    pub(super) reads: Option<NodeId>,
}

impl Refusal {
    fn new(label: &'static str, why: impl Into<String>) -> Self {
        Self {
            label,
            why: why.into(),
            wait: None,
            reads: None,
        }
    }
}

/// What a round comes to with what is known now.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Choice {
    /// This node leads, and this is what that costs.
    Lead(NodeId, Loss),
    /// Something that is under way may still change the choice; `catching_up` when it is a candidate fetching the tail.
    Wait { why: String, catching_up: bool },
    /// Nobody may lead.
    Nobody(Refusal),
}

/// Why `node` cannot take requests as a primary, whatever its position.
pub(super) fn unfit(machine: &Failover, node: NodeId) -> Option<String> {
    let facts = &machine.nodes[node.index()];
    if facts.draining {
        return Some(format!(
            "it is draining; `hotwarm undrain {} {}` ends that",
            machine.rules.service,
            machine.name(node)
        ));
    }
    if facts.signs.refusing {
        return Some("its application refuses connections".to_owned());
    }
    match facts.app {
        App::Up => (),
        App::Unknown => {
            return Some("its application has not answered a health check yet".to_owned());
        }
        App::Down => {
            return Some(format!(
                "its application fails its health checks: {}",
                facts.app_why
            ));
        }
    }
    if !machine.rules.replicated {
        return None;
    }
    let Some(standing) = &facts.standing else {
        return Some(match &facts.last {
            Some(last) if machine.is_foreign(last) => "its data is of another cluster".to_owned(),
            _ => "its syncd cannot be heard".to_owned(),
        });
    };
    if let Some(why) = &standing.unfit {
        return Some(why.clone());
    }
    (standing.role == Role::Rejoining).then(|| "it is not a copy of the primary yet".to_owned())
}

/// Why `node`, fit as it may be, would not be chosen if the primary were lost now.
pub(super) fn unplausible(machine: &Failover, node: NodeId) -> Option<String> {
    let primary = machine
        .record
        .primary
        .filter(|_| machine.rules.replicated)?;
    if machine.nodes[primary.index()].standing.is_some() {
        return None;
    }
    match machine.rules.durability {
        Durability::StandbyAck { .. } if machine.record.in_sync.contains(&node) => None,
        Durability::StandbyAck { .. } => Some(
            "it is not in sync, and the primary's syncd cannot be asked for what is missing"
                .to_owned(),
        ),
        Durability::Async if machine.rules.too_far_behind == TooFarBehind::Promote => None,
        Durability::Async => too_far_behind(machine, primary, node),
    }
}

/// Whether a change of primary could succeed if it began now.
pub(super) fn plausible(machine: &Failover, now: Instant) -> Result<(), Refusal> {
    if !machine.rules.auto {
        return Err(Refusal::new(
            "manual",
            "automatic failover is switched off (failover.auto = false)",
        ));
    }
    if let Some(left) = machine.interval_left(now) {
        let why = format!(
            "the last automatic promotion was less than {:?} ago",
            machine.rules.min_interval
        );
        return Err(Refusal {
            wait: Some(left),
            ..Refusal::new("too-soon", why)
        });
    }
    let others: Vec<_> = machine
        .ids()
        .filter(|node| Some(*node) != machine.record.primary)
        .collect();
    let fit: Vec<_> = others
        .iter()
        .copied()
        .filter(|node| unfit(machine, *node).is_none())
        .collect();
    if fit.is_empty() {
        let why = others.iter().filter_map(|node| {
            Some(format!(
                "{}: {}",
                machine.name(*node),
                unfit(machine, *node)?
            ))
        });
        return Err(Refusal::new(
            "no-healthy-standby",
            why.collect::<Vec<_>>().join("; "),
        ));
    }
    if fit.iter().any(|node| unplausible(machine, *node).is_none()) {
        return Ok(());
    }
    Err(too_far(machine, &fit))
}

/// The rule of promotion.
pub(super) fn choose(machine: &Failover, round: &Round) -> Choice {
    if !machine.rules.replicated {
        return choose_unreplicated(machine, round);
    }
    if round.cause == Cause::Restart
        && let Some(from) = round.from.filter(|from| may_go_on(machine, round, *from))
    {
        return Choice::Lead(from, Loss::None);
    }
    let from_is_asked = round.from.is_some_and(|from| round.is_pending(from));
    if from_is_asked && !round.seal_late {
        return wait("the former primary is being fenced");
    }
    let candidates = candidates(machine, round);
    if let Some(best) = candidates
        .iter()
        .copied()
        .find(|node| keeps_all(machine, round, *node))
    {
        return Choice::Lead(best, Loss::None);
    }
    if machine.ended.is_some() && !candidates.is_empty() && !round.catch_up_late {
        let names: Vec<_> = candidates.iter().map(|node| machine.name(*node)).collect();
        let why = format!(
            "{} fetches the last transactions of the former primary",
            names.join(", ")
        );
        return Choice::Wait {
            why,
            catching_up: true,
        };
    }
    if candidates.is_empty() && round.anybody_pending() && !round.seal_late {
        return wait("the candidates are being asked");
    }
    choose_with_loss(machine, round, &candidates)
}

fn wait(why: &str) -> Choice {
    Choice::Wait {
        why: why.to_owned(),
        catching_up: false,
    }
}

fn choose_unreplicated(machine: &Failover, round: &Round) -> Choice {
    let up = |node: &NodeId| machine.nodes[node.index()].is_up();
    let best = machine
        .ids()
        .filter(up)
        .filter(|node| round.wants(*node))
        .min_by_key(|node| rank(machine, *node));
    match best.or_else(|| round.from.filter(up)) {
        Some(node) => Choice::Lead(node, Loss::None),
        None => Choice::Nobody(Refusal::new(
            "no-healthy-standby",
            "no node answers its health checks",
        )),
    }
}

fn rank(machine: &Failover, node: NodeId) -> (u32, NodeId) {
    (machine.rules.members[node.index()].priority, node)
}

/// Everybody who is sealed and could take requests, the best first: most advanced, then priority.
fn candidates(machine: &Failover, round: &Round) -> Vec<NodeId> {
    let fit = |node: &NodeId| unfit(machine, *node).is_none() && round.sealed(*node).is_some();
    let mut all: Vec<_> = machine
        .ids()
        .filter(|node| round.wants(*node))
        .filter(fit)
        .collect();
    all.sort_by(|a, b| {
        let at = |node: &NodeId| round.sealed(*node).cloned().unwrap_or_default();
        at(b)
            .cmp(&at(a))
            .then_with(|| rank(machine, *a).cmp(&rank(machine, *b)))
    });
    all
}

/// Whether `node` provably has every write that anybody was told had succeeded.
pub(super) fn keeps_all(machine: &Failover, round: &Round, node: NodeId) -> bool {
    let Some(durable) = round.sealed(node) else {
        return false;
    };
    let acknowledged = machine.rules.acks() > 0 && machine.record.in_sync.contains(&node);
    if let Some(end) = &machine.ended {
        // What is missing beyond the in-sync set's share was never acknowledged; it is waited for, but not for ever.
        return durable.covers(end) || (acknowledged && round.catch_up_late);
    }
    // A primary that is sealed but whose application still holds the write lock: its requests were given up before it was
    // asked, so that everything acknowledged had been committed by then.
    let from = round.from.filter(|from| round.is_proved(*from));
    let at_seal = from.and_then(|from| round.sealed(from));
    acknowledged || at_seal.is_some_and(|at| durable.covers(at))
}

/// Whether the former primary may simply lead again.
fn may_go_on(machine: &Failover, round: &Round, from: NodeId) -> bool {
    round.is_fenced(from)
        && machine.nodes[from.index()].is_up()
        && machine.nodes[from.index()]
            .standing
            .as_ref()
            .is_some_and(|standing| standing.unfit.is_none())
}

fn choose_with_loss(machine: &Failover, round: &Round, candidates: &[NodeId]) -> Choice {
    let best = candidates.first().copied();
    if round.accept_loss
        && let Some(best) = best
    {
        return Choice::Lead(best, loss(machine, round, best));
    }
    if let Some(from) = round.from.filter(|from| may_go_back(machine, round, *from)) {
        return Choice::Lead(from, Loss::None);
    }
    let Some(best) = best else {
        let others = machine.ids().filter(|node| Some(*node) != round.from);
        let why = others
            .filter_map(|node| Some(format!("{}: {}", machine.name(node), unfit(machine, node)?)));
        return Choice::Nobody(Refusal::new(
            "no-healthy-standby",
            why.collect::<Vec<_>>().join("; "),
        ));
    };
    if machine.rules.durability == Durability::Async {
        let near = round
            .from
            .is_none_or(|from| too_far_behind(machine, from, best).is_none());
        if near || machine.rules.too_far_behind == TooFarBehind::Promote {
            return Choice::Lead(best, loss(machine, round, best));
        }
    }
    Choice::Nobody(too_far(machine, candidates))
}

/// Whether undoing the round is right: the former primary can take requests, and nobody else may have what it lacks.
fn may_go_back(machine: &Failover, round: &Round, from: NodeId) -> bool {
    if round.to.is_some() && round.cause == Cause::Promote {
        return false;
    }
    let proved = machine.nodes[from.index()]
        .standing
        .as_ref()
        .is_some_and(|standing| standing.unfit.is_none());
    let alone = machine.rules.acks() == 0 || machine.record.in_sync.is_empty();
    round.is_fenced(from) && machine.nodes[from.index()].is_up() && (proved || alone)
}

fn loss(machine: &Failover, round: &Round, node: NodeId) -> Loss {
    if keeps_all(machine, round, node) {
        return Loss::None;
    }
    let Some(durable) = round.sealed(node) else {
        return Loss::Unknown;
    };
    let heard = round
        .from
        .and_then(|from| machine.nodes[from.index()].last.as_ref())
        .map(|last| &last.tip);
    let tip = machine
        .ended
        .as_ref()
        .or(heard)
        .filter(|tip| **tip != Positions::default());
    tip.map_or(Loss::Unknown, |tip| Loss::Bounded(durable.behind(tip)))
}

/// Why `node` is further behind the silent `primary` than the rules allow, judged by what was last known of both.
fn too_far_behind(machine: &Failover, primary: NodeId, node: NodeId) -> Option<String> {
    let facts = &machine.nodes[primary.index()];
    let unknown =
        "its lag is unknown: the primary was not heard since this proxy started".to_owned();
    let (Some(last), Some(heard_at)) = (&facts.last, facts.heard_at) else {
        return Some(unknown);
    };
    let Some(peer) = last.peers.get(&node).filter(|peer| peer.connected) else {
        return Some("it was not connected to the primary when that was last heard".to_owned());
    };
    let silence = machine
        .troubled_at()
        .map_or(Duration::ZERO, |at| at.saturating_duration_since(heard_at));
    let behind = peer
        .lag_millis
        .map(Duration::from_millis)
        .map(|lag| lag + silence);
    match (behind, peer.lag_bytes) {
        (Some(behind), _) if behind > machine.rules.max_lag => Some(format!(
            "it may be {behind:?} behind, more than max_lag ({:?})",
            machine.rules.max_lag
        )),
        (_, Some(bytes)) if bytes > machine.rules.max_lag_bytes => Some(format!(
            "it is {bytes} bytes behind, more than max_lag_bytes ({})",
            machine.rules.max_lag_bytes
        )),
        (Some(_), Some(_)) => None,
        _ => Some("its lag was unknown when the primary was last heard".to_owned()),
    }
}

/// What a node lacks that was sealed although the primary's last position did not come, while that primary can be heard.
fn lacking(machine: &Failover, node: NodeId) -> Option<String> {
    if machine.rules.acks() > 0 {
        return Some("it is not in sync, and the primary's end is not known".to_owned());
    }
    let primary = machine.record.primary?;
    too_far_behind(machine, primary, node)
        .or_else(|| Some("the primary's end is not known".to_owned()))
}

fn too_far(machine: &Failover, fit: &[NodeId]) -> Refusal {
    let label = if machine.rules.acks() > 0 {
        "not-in-sync"
    } else {
        "too-far-behind"
    };
    let why = fit.iter().filter_map(|node| {
        Some(format!(
            "{}: {}",
            machine.name(*node),
            unplausible(machine, *node).or_else(|| lacking(machine, *node))?
        ))
    });
    let why: Vec<_> = why.collect();
    let reads = fit
        .first()
        .copied()
        .filter(|_| machine.rules.too_far_behind == TooFarBehind::ReadOnly);
    let hint = fit.first().map_or("", |node| machine.name(*node));
    let why = format!(
        "{}; `hotwarm promote {} --to {hint} --accept-data-loss` overrides this",
        why.join("; "),
        machine.rules.service
    );
    Refusal {
        reads,
        ..Refusal::new(label, why)
    }
}

/// What an operator would lose by promoting `to` now, in words; `None` if provably nothing.
pub(super) fn would_lose(machine: &Failover, to: NodeId) -> Option<String> {
    let why = unplausible(machine, to).or_else(|| {
        let primary = machine
            .record
            .primary
            .filter(|_| machine.rules.replicated)?;
        let silent = machine.nodes[primary.index()].standing.is_none();
        (silent && machine.rules.durability == Durability::Async)
            .then(|| "the primary cannot be asked for what it has not sent yet".to_owned())
    })?;
    Some(format!(
        "promoting {} could lose acknowledged writes: {why}. If that is accepted, repeat with --accept-data-loss",
        machine.name(to)
    ))
}

impl Failover {
    /// Since when the primary has been in trouble, for judging how old the last knowledge of it was at that moment.
    fn troubled_at(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Round(round) => Some(round.began),
            Phase::Suspect { since, .. } => Some(*since),
            Phase::Starting { .. } | Phase::Serving | Phase::Draining { .. } => None,
        }
    }
}
