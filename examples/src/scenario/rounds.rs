//! Crash of anything, at any time: rounds of blows drawn from a seed, under load, each followed by an audit.
//!
//! A round is drawn from the seed and its own number alone, so that one round of a long run can be replayed by itself.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use shared::clock;
use shared::model::Epoch;
use shared::rng::Rng;

use crate::admin::Service;
use crate::audit::{Books, Verdict};
use crate::client::Client;
use crate::diverged;
use crate::ledger::{Fate, Ledger};
use crate::load::{Load, Plan};
use crate::scenario::{Report, UP_WITHIN, WHOLE_WITHIN, audit_from, millis, wrong_at_rest};
use crate::stack::{Durability, Part, Shape, Side, Stack};
use crate::stats::Sample;
use crate::trouble::Trouble;
use crate::witness::Witness;

/// How long an application on a standby may be silent before it is restarted. What was queued at it while it hung fails at the fence
/// one by one, each after SQLite's own wait of 5 s; a supervisor's liveness probe would end that, and so do we.
const SILENT_MOST: Duration = Duration::from_secs(3);
/// How long it may take over one answer to such a probe: as long as it may take over one of the proxy's.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// How to rehearse it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// When writes are answered.
    pub durability: Durability,
    /// What every round is drawn from.
    pub seed: u64,
    /// The first round.
    pub first: u32,
    /// How many.
    pub rounds: u32,
    /// Requests per second; half of them orders.
    pub rate: f64,
    /// Whether to leave the folder of a broken run for somebody to look at.
    pub keep: bool,
}

/// What happens in one round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// The blows, in the order in which they fall.
    pub blows: Vec<Blow>,
    /// How long the customers are served after the last of it.
    pub after: Duration,
}

/// One blow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blow {
    /// When it falls, counted from the beginning of the round.
    pub at: Duration,
    /// What it hits, all in the same instant.
    pub parts: Vec<Part>,
    /// How.
    pub how: How,
}

/// What a blow does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// `kill -9`.
    Kill,
    /// SIGSTOP, and SIGCONT after this long. Other blows may fall meanwhile.
    Freeze(Duration),
}

/// What is done to parts at one moment of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    Kill,
    Freeze,
    Thaw,
}

impl Round {
    /// The round of that number.
    #[must_use]
    pub fn draw(seed: u64, number: u32) -> Self {
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(number));
        let blows = match rng.u32(..10) {
            0..=4 => 1,
            5..=7 => 2,
            _ => 3,
        };
        let mut at = millis_in(&mut rng, 200..1000);
        let mut blow = || {
            let blow = Blow::draw(&mut rng, at);
            at += millis_in(&mut rng, 0..1200);
            blow
        };
        Self {
            blows: (0..blows).map(|_| blow()).collect(),
            after: millis_in(&mut rng, 0..800),
        }
    }

    /// Everything that is done, in order, each with its moment counted from the beginning of the round.
    fn deeds(&self) -> Vec<(Duration, Deed, &[Part])> {
        let mut deeds = Vec::new();
        for Blow { at, parts, how } in &self.blows {
            match how {
                How::Kill => deeds.push((*at, Deed::Kill, &**parts)),
                How::Freeze(span) => {
                    deeds.push((*at, Deed::Freeze, &**parts));
                    deeds.push((*at + *span, Deed::Thaw, &**parts));
                }
            }
        }
        deeds.sort();
        deeds
    }

    /// Carries it out.
    async fn strike(&self, stack: &Stack) {
        let begun = clock::now();
        for (at, deed, parts) in self.deeds() {
            clock::sleep_until(begun + at).await;
            match deed {
                Deed::Kill => stack.kill(parts),
                Deed::Freeze => stack.freeze(parts),
                Deed::Thaw => stack.thaw(parts),
            }
        }
        clock::sleep(self.after).await;
    }
}

impl Blow {
    fn draw(rng: &mut Rng, at: Duration) -> Self {
        let side = if rng.bool() { Side::A } else { Side::B };
        let host = vec![Part::App(side), Part::Syncd(side)];
        let parts = match rng.u32(..12) {
            0..=2 => vec![Part::App(side)],
            3..=5 => vec![Part::Syncd(side)],
            6..=7 => vec![Part::Proxy],
            8..=9 => host,
            10 => [host, vec![Part::Proxy]].concat(),
            _ => Part::ALL.to_vec(),
        };
        let how = if rng.f64() < 0.65 {
            How::Kill
        } else {
            How::Freeze(millis_in(rng, 100..3500))
        };
        Self { at, parts, how }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Blow { at, parts, how } in &self.blows {
            let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
            write!(f, "at {at:?} {how:?} {}, ", parts.join("+"))?;
        }
        write!(f, "then {:?}", self.after)
    }
}

fn millis_in(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

/// Rehearses it. Stops at the first round that breaks a promise. `tell` hears of every round as it ends.
///
/// # Errors
/// It could not be carried out, or the deployment did not become whole again; says in which round.
pub async fn run(options: Options, mut tell: impl FnMut(&str)) -> Result<Report, Trouble> {
    let Options {
        durability, seed, ..
    } = options;
    let shape = Shape::new(durability)
        .supervised()
        .with("failover", "min_interval", "\"1s\"");
    let mut stack = Stack::new(shape)?;
    stack.start_all()?;
    stack.until_safe(UP_WITHIN).await?;
    let witness = Witness::begin(&stack);
    let name = format!("{} random rounds, {}", options.rounds, durability.as_str());
    let mut report = Report::new(name, seed);
    let mut all = Ledger::default();
    let (mut recoveries, mut spans) = (Vec::new(), Vec::new());
    let (mut lost, mut restarted, mut too_soon) = (0, 0, Vec::new());
    for number in options.first..options.first + options.rounds {
        let round = Round::draw(seed, number);
        let begun = clock::now();
        let outcome = one(&stack, &options, number, &round, &witness, &mut all).await;
        let span = clock::now() - begun;
        report.broken.extend(witness.contradictions());
        match outcome {
            Ok(found) => {
                tell(&format!(
                    "round {number}: {round}: {found}; {:.1} s",
                    span.as_secs_f64()
                ));
                recoveries.push(millis(found.recovery));
                spans.push(span.as_secs_f64());
                lost += found.verdict.lost.len();
                restarted += usize::from(found.restarted);
                too_soon.extend(Some(millis(found.too_soon)).filter(|ms| *ms > 0.0));
                report.broken.extend(found.broken);
            }
            Err(trouble) => report.broken.push(trouble.to_string()),
        }
        if !report.broken.is_empty() {
            let replay = format!(
                "in round {number} ({round}); replay with --mode {} --seed {seed} --first {number} --rounds 1",
                durability.as_str()
            );
            report.broken.push(replay);
            if options.keep {
                report
                    .notes
                    .push(format!("kept in {}", stack.keep_folder().display()));
            }
            break;
        }
    }
    let recoveries: Sample = recoveries.into_iter().collect();
    let spans: Sample = spans.into_iter().collect();
    report.count("rounds", recoveries.len());
    report.count("accepted", all.accepted());
    report.count("lost_and_reported", lost);
    report.count("hung_applications_restarted", restarted);
    let too_soon: Sample = too_soon.into_iter().collect();
    report.count("level_said_too_soon", too_soon.len());
    if !too_soon.is_empty() {
        report.fact("level_said_too_soon_ms_max", too_soon.max());
    }
    report.fact("recovery_ms_p50", recoveries.median());
    report.fact("recovery_ms_max", recoveries.max());
    report.fact("round_s_p50", spans.median());
    report.fact("round_s_max", spans.max());
    Ok(report)
}

/// What one round showed.
struct Found {
    verdict: Verdict,
    recovery: Duration,
    restarted: bool,
    too_soon: Duration,
    broken: Vec<String>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "whole again after {:.1} s{}; {}",
            self.recovery.as_secs_f64(),
            if self.restarted {
                " with a hung application restarted"
            } else {
                ""
            },
            self.verdict
        )
    }
}

async fn one(
    stack: &Stack,
    options: &Options,
    number: u32,
    round: &Round,
    witness: &Witness,
    all: &mut Ledger,
) -> Result<Found, Trouble> {
    let before = stack.service().await?.epoch;
    // Orders of earlier rounds were read over HTTP in their rounds; at the end of the run all are read once more.
    let last = number + 1 == options.first + options.rounds;
    let known = if last { 0 } else { all.accepted() };
    let plan = Plan {
        rate: options.rate,
        writes: 0.5,
        patience: Duration::from_secs(15),
        name: format!("r{number}"),
        seed: options.seed ^ u64::from(number),
    };
    let load = Load::start(stack.front(), plan);
    round.strike(stack).await;
    let since = clock::now();
    let whole = until_whole(stack).await;
    let recovery = clock::now() - since;
    let ledger = load.finish().await;
    let unseen = ledger.not_found();
    all.orders.extend(ledger.orders);
    // The last customers may have been too many for an application that had just come up.
    let restarted = whole? | until_whole(stack).await?;
    let may_lose = match options.durability {
        Durability::StandbyAck => 0,
        Durability::Async => admitted(stack, witness, before).await?,
    };
    let (verdict, mut broken) = audit_from(known, stack, all, may_lose).await?;
    if unseen > 0 && options.durability == Durability::StandbyAck {
        broken.push(format!(
            "{unseen} times an accepted order was looked up and not found"
        ));
    }
    let (wrong, too_soon) = wrong_at_rest(stack).await?;
    broken.extend(wrong);
    broken.extend(unexplained(stack, &verdict.lost)?);
    // A loss that was reported and preserved counts once.
    for reference in &verdict.lost {
        all.orders.remove(reference);
    }
    settle(stack, all).await?;
    Ok(Found {
        verdict,
        recovery,
        restarted,
        too_soon,
        broken,
    })
}

/// Waits until requests are served and a standby could take over. Returns whether its application had to be restarted for that.
async fn until_whole(stack: &Stack) -> Result<bool, Trouble> {
    stack.until_followed(WHOLE_WITHIN).await?;
    let deadline = clock::now() + WHOLE_WITHIN;
    let mut restarted = false;
    loop {
        let safe = stack.until_safe(SILENT_MOST).await;
        if safe.is_ok() || clock::now() > deadline {
            return safe.map(|_| restarted);
        }
        for side in unwell(&stack.service().await?) {
            if !answers(stack, side).await {
                stack.kill(&[Part::App(side)]);
                restarted = true;
            }
        }
    }
}

/// The nodes whose applications fail their health checks and that do not serve.
fn unwell(service: &Service) -> Vec<Side> {
    let nodes = service.nodes.iter();
    nodes
        .filter(|node| node.health != "up" && service.primary.as_ref() != Some(&node.name))
        .filter_map(|node| Side::named(&node.name))
        .collect()
}

/// Whether the application answers us, whatever the proxy thinks of it.
async fn answers(stack: &Stack, side: Side) -> bool {
    let app = Client::new(stack.app(side));
    let answer = app.get("/healthz", ANSWERS_WITHIN).await;
    answer.is_ok_and(|answer| answer.status.is_success())
}

/// How many accepted orders the changes of primary since `before` are said to have lost at most, if they were all seen.
async fn admitted(stack: &Stack, witness: &Witness, before: Epoch) -> Result<usize, Trouble> {
    let after = stack.service().await?.epoch;
    let admitted = witness.admitted_loss(before, after);
    Ok(admitted.map_or(usize::MAX, |lost| {
        usize::try_from(lost).unwrap_or(usize::MAX)
    }))
}

/// No path deletes the only copy of a write: what was accepted and is not in the books is kept as diverged on one of the nodes.
fn unexplained(stack: &Stack, lost: &[String]) -> Result<Vec<String>, Trouble> {
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    let on_a = diverged::missing(stack, Side::A, lost)?;
    let nowhere = diverged::missing(stack, Side::B, &on_a)?;
    if nowhere.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![format!(
        "{} accepted orders are neither in the books nor kept as diverged: {nowhere:?}",
        nowhere.len()
    )])
}

/// Orders of unknown outcome that are in the books when a round ends must stay there: from here on they count as accepted. Those
/// that are not may still be carried out, once: they may be queued at an application that hung.
async fn settle(stack: &Stack, all: &mut Ledger) -> Result<(), Trouble> {
    let books = Books::read(&stack.database(stack.primary().await?))?;
    let there: BTreeMap<_, _> = books
        .orders
        .iter()
        .filter_map(|order| Some((order.reference.as_deref()?, order.id)))
        .collect();
    for (reference, fate) in &mut all.orders {
        if let (Fate::Unknown(_), Some(id)) = (&*fate, there.get(reference.as_str())) {
            *fate = Fate::Accepted(*id);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_drawn_from_its_seed_and_number_alone() {
        assert_eq!(Round::draw(7, 3), Round::draw(7, 3));
        let rounds: Vec<_> = (0..200).map(|number| Round::draw(7, number)).collect();
        let hits = |part: Part| {
            let hit = |round: &&Round| round.blows.iter().any(|blow| blow.parts.contains(&part));
            rounds.iter().filter(hit).count()
        };
        for part in Part::ALL {
            assert!(hits(part) > 20, "{part} is hardly ever hit");
        }
        let frozen = |round: &&Round| round.blows.iter().any(|blow| blow.how != How::Kill);
        assert!(rounds.iter().filter(frozen).count() > 40);
        let overlapping = |round: &&Round| {
            round
                .deeds()
                .windows(2)
                .any(|pair| pair[0].1 == Deed::Freeze && pair[1].1 != Deed::Thaw)
        };
        assert!(
            rounds.iter().filter(overlapping).count() > 20,
            "blows hardly ever fall while something is frozen"
        );
    }

    #[test]
    fn everything_that_is_frozen_is_thawed_later_and_deeds_are_in_order() {
        for number in 0..200 {
            let round = Round::draw(8, number);
            let deeds = round.deeds();
            assert!(deeds.is_sorted_by_key(|(at, _, _)| *at));
            for (at, deed, parts) in &deeds {
                let thawed = |(later, then, same): &(Duration, Deed, &[Part])| {
                    later > at && *then == Deed::Thaw && same == parts
                };
                assert!(*deed != Deed::Freeze || deeds.iter().any(thawed), "{round}");
            }
            let lasts = deeds.last().map(|(at, _, _)| *at + round.after);
            assert!(lasts.is_some_and(|span| span < Duration::from_secs(8)));
        }
    }
}
