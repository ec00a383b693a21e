//! Crash of anything, at any time: rounds of blows drawn from a seed, under load, each followed by an audit.
//!
//! A round is drawn from the seed and its own number alone, so that one round of a long run can be replayed by itself.

use std::fmt;
use std::time::Duration;

use shared::clock;
use shared::rng::Rng;

use crate::audit::{Books, Verdict};
use crate::diverged;
use crate::ledger::{Fate, Ledger};
use crate::load::{Load, Plan};
use crate::scenario::{Report, UP_WITHIN, WHOLE_WITHIN, audit, millis, wrong};
use crate::stack::{Durability, Part, Shape, Side, Stack};
use crate::stats::Sample;
use crate::trouble::Trouble;
use crate::witness::Witness;

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
    /// How long the customers are served before the first blow.
    pub calm: Duration,
    /// The blows, each with the wait before the next.
    pub blows: Vec<(Blow, Duration)>,
}

/// One blow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blow {
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
    /// SIGSTOP, and SIGCONT after this long.
    Freeze(Duration),
}

impl Round {
    /// The round of that number.
    #[must_use]
    pub fn draw(seed: u64, number: u32) -> Self {
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(number));
        let blows = if rng.f64() < 0.4 { 2 } else { 1 };
        Self {
            calm: millis_in(&mut rng, 200..1200),
            blows: (0..blows)
                .map(|_| (Blow::draw(&mut rng), millis_in(&mut rng, 0..1500)))
                .collect(),
        }
    }
}

impl Blow {
    fn draw(rng: &mut Rng) -> Self {
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
            How::Freeze(millis_in(rng, 100..4000))
        };
        Self { parts, how }
    }

    async fn strike(&self, stack: &Stack) {
        match self.how {
            How::Kill => stack.kill(&self.parts),
            How::Freeze(span) => {
                stack.freeze(&self.parts);
                clock::sleep(span).await;
                stack.thaw(&self.parts);
            }
        }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} calm", self.calm)?;
        for (Blow { parts, how }, then) in &self.blows {
            let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
            write!(f, ", {how:?} {}, wait {then:?}", parts.join("+"))?;
        }
        Ok(())
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
    let mut recoveries = Vec::new();
    let mut lost = 0;
    for number in options.first..options.first + options.rounds {
        let round = Round::draw(seed, number);
        let outcome = one(&stack, &options, number, &round, &mut all).await;
        report.broken.extend(witness.contradictions());
        match outcome {
            Ok(found) => {
                tell(&format!("round {number}: {round}: {found}"));
                recoveries.push(millis(found.recovery));
                lost += found.verdict.lost.len();
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
    report.count("rounds", recoveries.len());
    report.count("accepted", all.accepted());
    report.count("lost_and_reported", lost);
    report.fact("recovery_ms_p50", recoveries.median());
    report.fact("recovery_ms_max", recoveries.max());
    Ok(report)
}

/// What one round showed.
struct Found {
    verdict: Verdict,
    recovery: Duration,
    broken: Vec<String>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "whole again after {:.1} s; {}",
            self.recovery.as_secs_f64(),
            self.verdict
        )
    }
}

async fn one(
    stack: &Stack,
    options: &Options,
    number: u32,
    round: &Round,
    all: &mut Ledger,
) -> Result<Found, Trouble> {
    let plan = Plan {
        rate: options.rate,
        writes: 0.5,
        patience: Duration::from_secs(15),
        name: format!("r{number}"),
        seed: options.seed ^ u64::from(number),
    };
    let load = Load::start(stack.front(), plan);
    clock::sleep(round.calm).await;
    for (blow, then) in &round.blows {
        blow.strike(stack).await;
        clock::sleep(*then).await;
    }
    let since = clock::now();
    let whole = stack.until_safe(WHOLE_WITHIN).await;
    let recovery = clock::now() - since;
    let ledger = load.finish().await;
    all.orders.extend(ledger.orders);
    whole?;
    stack.until_level(WHOLE_WITHIN).await?;
    let may_lose = match options.durability {
        Durability::StandbyAck => 0,
        Durability::Async => usize::MAX,
    };
    let (verdict, mut broken) = audit(stack, all, may_lose).await?;
    broken.extend(wrong(stack)?);
    broken.extend(unexplained(stack, &verdict.lost)?);
    // A loss that was reported and preserved counts once.
    for reference in &verdict.lost {
        all.orders.remove(reference);
    }
    settle(stack, all)?;
    Ok(Found {
        verdict,
        recovery,
        broken,
    })
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

/// Orders of unknown outcome that are in the books when a round ends must stay there; those that are not must not turn up
/// later. From here on they count as accepted and refused.
fn settle(stack: &Stack, all: &mut Ledger) -> Result<(), Trouble> {
    let books = Books::read(&stack.database(Side::A))?;
    let there: std::collections::BTreeSet<_> = books
        .orders
        .iter()
        .filter_map(|order| order.reference.as_deref())
        .collect();
    for (reference, fate) in &mut all.orders {
        if matches!(fate, Fate::Unknown(_)) {
            *fate = if there.contains(reference.as_str()) {
                Fate::Accepted(0)
            } else {
                Fate::Refused("not there when its round ended".to_owned())
            };
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
            let hit = |round: &&Round| {
                round
                    .blows
                    .iter()
                    .any(|(blow, _)| blow.parts.contains(&part))
            };
            rounds.iter().filter(hit).count()
        };
        for part in Part::ALL {
            assert!(hits(part) > 20, "{part} is hardly ever hit");
        }
        let frozen = |round: &&Round| round.blows.iter().any(|(blow, _)| blow.how != How::Kill);
        assert!(rounds.iter().filter(frozen).count() > 40);
    }
}
