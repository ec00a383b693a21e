//! The better of two drawn at random, judged by what it would cost to wait for it (Finagle's peak EWMA, as in linkerd).
//!
//! A node's cost is the time it takes to begin an answer, averaged over about ten seconds, except that a slower answer counts
//! at once: getting worse is believed, getting better must be shown. Two are drawn, not all compared, so that workers that know
//! the same do not all run to the same node.

use std::time::{Duration, Instant};

use shared::rng::Rng;

use super::Field;
use crate::logic::NodeId;

/// After so long a measurement counts for a third.
const SETTLES_OVER: Duration = Duration::from_secs(10);
/// A failure costs as much as an answer that takes this long, however soon it came: failing fast must not attract requests.
const FAILURE: Duration = Duration::from_secs(1);
/// What a node is taken for that has requests and has answered none yet.
const UNKNOWN: Duration = Duration::from_secs(1);

/// One worker's measurements.
#[derive(Debug)]
pub(super) struct Ewma {
    costs: Vec<Option<Cost>>,
    rng: Rng,
}

#[derive(Clone, Copy, Debug)]
struct Cost {
    seconds: f64,
    at: Instant,
}

impl Cost {
    /// It fades, so that a node that was slow is tried again one day.
    fn faded(self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at);
        self.seconds * (-age.as_secs_f64() / SETTLES_OVER.as_secs_f64()).exp()
    }
}

impl Ewma {
    pub(super) fn new(nodes: usize, rng: Rng) -> Self {
        Self {
            costs: vec![None; nodes],
            rng,
        }
    }

    pub(super) fn choose(
        &mut self,
        field: &Field<'_>,
        load: impl Fn(NodeId) -> u64,
    ) -> Option<NodeId> {
        let count = field.among.len();
        let first = self.rng.u32(..count);
        let second = (first + self.rng.u32(1..count)) % count;
        let nth = |at: u32| field.among.iter().nth(usize::try_from(at).ok()?);
        let (one, other) = (nth(first)?, nth(second)?);
        let score = |node| self.score(node, field, load(node));
        Some(if score(other) < score(one) {
            other
        } else {
            one
        })
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "loads and weights are far below 52 bits"
    )]
    fn score(&self, node: NodeId, field: &Field<'_>, load: u64) -> f64 {
        let cost = match self.costs.get(node.index()).copied().flatten() {
            Some(cost) => cost.faded(field.now),
            None if load == 0 => 0.0,
            None => UNKNOWN.as_secs_f64(),
        };
        cost * (load + 1) as f64 / field.weight(node) as f64
    }

    pub(super) fn settle(&mut self, node: NodeId, now: Instant, took: Option<Duration>) {
        let Some(cost) = self.costs.get_mut(node.index()) else {
            return;
        };
        let took = took.unwrap_or(FAILURE).as_secs_f64();
        let seconds = match cost {
            Some(before) if took < before.seconds => {
                let age = now.saturating_duration_since(before.at).as_secs_f64();
                let kept = (-age / SETTLES_OVER.as_secs_f64()).exp();
                before.seconds * kept + took * (1.0 - kept)
            }
            Some(_) | None => took,
        };
        *cost = Some(Cost { seconds, at: now });
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::set;
    use super::*;

    const SEED: u64 = 11;

    struct Bench {
        ewma: Ewma,
        now: Instant,
    }

    impl Bench {
        fn new(nodes: usize) -> Self {
            Self {
                ewma: Ewma::new(nodes, Rng::with_seed(SEED)),
                now: shared::clock::now(),
            }
        }

        fn choose(&mut self, weights: &[u32], loads: &[u64]) -> usize {
            let among: Vec<_> = (0..u8::try_from(loads.len()).unwrap()).collect();
            let field = Field {
                among: set(&among),
                weights,
                now: self.now,
                key: 0,
            };
            let chosen = self.ewma.choose(&field, |node| loads[node.index()]);
            chosen.unwrap().index()
        }

        /// One request after the other, each taking its node's time.
        fn run(&mut self, requests: u32, took_ms: &[u64]) -> Vec<u32> {
            let mut counts = vec![0; took_ms.len()];
            let loads = vec![0; took_ms.len()];
            let weights = vec![100; took_ms.len()];
            for _ in 0..requests {
                let node = self.choose(&weights, &loads);
                let took = Duration::from_millis(took_ms[node]);
                self.now += took;
                let id = NodeId(u8::try_from(node).unwrap());
                self.ewma.settle(id, self.now, Some(took));
                counts[node] += 1;
            }
            counts
        }
    }

    #[test]
    fn a_slow_node_gets_few_requests_and_is_not_forgotten() {
        let counts = Bench::new(3).run(3000, &[10, 10, 200]);
        assert!(
            counts[2] * 20 < counts[0] && counts[2] > 0,
            "seed {SEED}: {counts:?}"
        );
        assert!(
            counts[0] > 800 && counts[1] > 800,
            "seed {SEED}: {counts:?}"
        );
    }

    #[test]
    fn getting_slower_is_believed_at_once_and_getting_faster_takes_a_while() {
        let mut bench = Bench::new(2);
        let (a, b) = (NodeId(0), NodeId(1));
        for node in [a, b] {
            bench
                .ewma
                .settle(node, bench.now, Some(Duration::from_millis(10)));
        }
        bench
            .ewma
            .settle(a, bench.now, Some(Duration::from_millis(500)));
        assert!(
            (0..50).all(|_| bench.choose(&[1, 1], &[0, 0]) == 1),
            "seed {SEED}"
        );
        bench.now += Duration::from_millis(100);
        bench
            .ewma
            .settle(a, bench.now, Some(Duration::from_millis(1)));
        assert!(
            (0..50).all(|_| bench.choose(&[1, 1], &[0, 0]) == 1),
            "seed {SEED}"
        );
        // A busy fast node is worth as much as an idle slow one, at some point.
        assert!(
            (0..50).all(|_| bench.choose(&[1, 1], &[0, 1000]) == 0),
            "seed {SEED}"
        );
    }

    #[test]
    fn failing_fast_does_not_attract_requests() {
        let mut bench = Bench::new(2);
        bench.ewma.settle(NodeId(0), bench.now, None);
        bench
            .ewma
            .settle(NodeId(1), bench.now, Some(Duration::from_millis(300)));
        assert!(
            (0..50).all(|_| bench.choose(&[1, 1], &[0, 0]) == 1),
            "seed {SEED}"
        );
    }

    #[test]
    fn a_node_of_which_nothing_is_known_gets_one_request_to_begin_with() {
        let mut bench = Bench::new(2);
        bench
            .ewma
            .settle(NodeId(0), bench.now, Some(Duration::from_millis(5)));
        assert!(
            (0..50).all(|_| bench.choose(&[1, 1], &[0, 0]) == 1),
            "seed {SEED}"
        );
        assert!(
            (0..50).all(|_| bench.choose(&[1, 1], &[0, 1]) == 0),
            "seed {SEED}"
        );
    }
}
