//! Consistent choice by a key, with a bound on how much busier than others a node may become.
//!
//! Rendezvous hashing: every node draws a number from the key and its own name, the highest wins; with weights as in
//! Schindelhauer and Schomaker ("Weighted distributed hash tables", 2005). When a node leaves, only its keys move. A node that
//! has a quarter more requests under way than its share is passed over for the next (Mirrokni, Thorup, Zadimoghaddam,
//! "Consistent hashing with bounded loads", 2016).

use super::{Field, key, mix};
use crate::logic::NodeId;
use crate::logic::nodes::NodeSet;

/// How much busier than its share a node may be: by a quarter.
const BOUND: (u64, u64) = (5, 4);

/// The nodes' names as numbers: the same on every proxy, and whatever their order in the configuration.
#[derive(Debug)]
pub(super) struct Rendezvous {
    seeds: Vec<u64>,
}

impl Rendezvous {
    pub(super) fn new(names: &[&str]) -> Self {
        Self {
            seeds: names.iter().map(|name| key(name.as_bytes())).collect(),
        }
    }

    pub(super) fn choose(&self, field: &Field<'_>, load: impl Fn(NodeId) -> u64) -> Option<NodeId> {
        let sum = |of: &dyn Fn(NodeId) -> u64| field.among.iter().map(of).sum::<u64>();
        let all = sum(&load) + 1;
        let weights = sum(&|node| field.weight(node));
        let mut left = field.among;
        let mut first = None;
        while let Some(node) = self.highest(field, left) {
            let room = u128::from(all) * u128::from(field.weight(node)) * u128::from(BOUND.0);
            let room = room.div_ceil(u128::from(weights) * u128::from(BOUND.1));
            if u128::from(load(node)) < room {
                return Some(node);
            }
            first.get_or_insert(node);
            left = left.except(NodeSet::only(node));
        }
        first
    }

    fn highest(&self, field: &Field<'_>, among: NodeSet) -> Option<NodeId> {
        let scored = among.iter().map(|node| (self.score(field, node), node));
        scored
            .max_by(|one, other| one.0.total_cmp(&other.0))
            .map(|(_, node)| node)
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "53 bits of the draw are used, and weights are smaller"
    )]
    fn score(&self, field: &Field<'_>, node: NodeId) -> f64 {
        let seed = self.seeds.get(node.index()).copied().unwrap_or_default();
        let drawn = mix(field.key ^ seed) >> 11;
        // Above 0 and below 1.
        let drawn = (drawn as f64 + 0.5) / (1_u64 << 53) as f64;
        field.weight(node) as f64 / -drawn.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::set;
    use super::*;
    use shared::rng::Rng;

    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
    const KEYS: u64 = 20_000;

    fn owner(among: &[u8], weights: &[u32], of: u64) -> usize {
        let field = Field {
            among: set(among),
            weights,
            now: shared::clock::now(),
            key: key(&of.to_le_bytes()),
        };
        let nodes = Rendezvous::new(&NAMES);
        nodes.choose(&field, |_| 0).unwrap().index()
    }

    #[test]
    fn keys_are_spread_by_weight() {
        let weights = [100, 100, 200, 100, 500];
        let mut counts = [0_u32; 5];
        for n in 0..KEYS {
            counts[owner(&[0, 1, 2, 3, 4], &weights, n)] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let (share, wanted) = (f64::from(*count) / 20_000.0, f64::from(weight) / 1000.0);
            assert!((share - wanted).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn only_the_keys_of_a_node_that_leaves_move_and_they_spread() {
        let weights = [100; 5];
        let mut moved_to = [0_u32; 5];
        for n in 0..KEYS {
            let before = owner(&[0, 1, 2, 3, 4], &weights, n);
            let after = owner(&[0, 1, 3, 4], &weights, n);
            if before == 2 {
                moved_to[after] += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert!(
            moved_to[2] == 0 && [0, 1, 3, 4].iter().all(|at| moved_to[*at] > 800),
            "{moved_to:?}"
        );
    }

    #[test]
    fn one_hot_key_cannot_make_a_node_busier_than_a_quarter_above_its_share() {
        let nodes = Rendezvous::new(&NAMES);
        let mut loads = [0_u64; 5];
        for n in 0..1000 {
            let field = Field {
                among: set(&[0, 1, 2, 3, 4]),
                weights: &[1; 5],
                now: shared::clock::now(),
                key: 7,
            };
            let chosen = nodes.choose(&field, |node| loads[node.index()]).unwrap();
            loads[chosen.index()] += 1;
            let bound = (f64::from(n + 1) / 5.0 * 1.25).ceil();
            #[expect(clippy::cast_precision_loss, reason = "a thousand at most")]
            let most = *loads.iter().max().unwrap() as f64;
            assert!(most <= bound, "{loads:?}");
        }
    }

    #[test]
    fn random_loads_never_leave_a_request_without_a_node() {
        let seed = 23;
        let mut rng = Rng::with_seed(seed);
        let nodes = Rendezvous::new(&NAMES);
        for _ in 0..2000 {
            let loads: [u64; 5] = std::array::from_fn(|_| rng.u64(0..50));
            let weights: [u32; 5] = std::array::from_fn(|_| rng.u32(1..1000));
            let field = Field {
                among: set(&[0, 1, 2, 3, 4]),
                weights: &weights,
                now: shared::clock::now(),
                key: rng.u64(..),
            };
            let chosen = nodes.choose(&field, |node| loads[node.index()]).unwrap();
            let all = loads.iter().sum::<u64>() + 1;
            let weight = u64::from(weights[chosen.index()]);
            let share = (all * weight * 5)
                .div_ceil(weights.iter().copied().map(u64::from).sum::<u64>() * 4);
            assert!(loads[chosen.index()] < share, "seed {seed}");
        }
    }
}
