//! Turns by weight, spread out as evenly as can be: nginx's smooth weighted round-robin.
//!
//! Every choice gives each candidate its weight in credit, takes the one with the most, and charges it what was given out.
//! Over any stretch of choices among the same candidates a node is at most one turn away from its share.

use shared::rng::Rng;

use super::Field;
use crate::logic::NodeId;

/// One worker's turns.
#[derive(Debug)]
pub(super) struct Smooth {
    credit: Vec<i64>,
}

impl Smooth {
    /// Begins at a place of its own, so that the workers do not all send their first requests to the first node.
    pub(super) fn new(nodes: usize, rng: &mut Rng) -> Self {
        Self {
            credit: (0..nodes).map(|_| rng.i64(0..64)).collect(),
        }
    }

    pub(super) fn choose(&mut self, field: &Field<'_>) -> Option<NodeId> {
        let given: i64 = weights(field).map(|(_, weight)| weight).sum();
        let mut best: Option<NodeId> = None;
        for (node, weight) in weights(field) {
            let credit = self.credit.get_mut(node.index())?;
            // What a node saved or owed while others were candidates is worth no more than one round.
            *credit = (*credit).clamp(-given, given) + weight;
            if best.is_none_or(|best| self.credit[node.index()] > self.credit[best.index()]) {
                best = Some(node);
            }
        }
        let best = best?;
        self.credit[best.index()] -= given;
        Some(best)
    }
}

fn weights(field: &Field<'_>) -> impl Iterator<Item = (NodeId, i64)> {
    let nodes = field.among.iter();
    nodes.map(|node| (node, field.weight(node).cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::set;
    use super::*;
    use crate::logic::nodes::NodeSet;

    fn choose(turns: &mut Smooth, among: NodeSet, weights: &[u32]) -> usize {
        let field = Field {
            among,
            weights,
            now: shared::clock::now(),
            key: 0,
        };
        turns.choose(&field).unwrap().index()
    }

    #[test]
    fn equal_nodes_take_strict_turns() {
        let mut turns = Smooth::new(3, &mut Rng::with_seed(3));
        let all = set(&[0, 1, 2]);
        let first: Vec<_> = (0..3).map(|_| choose(&mut turns, all, &[100; 3])).collect();
        for _ in 0..10 {
            let next: Vec<_> = (0..3).map(|_| choose(&mut turns, all, &[100; 3])).collect();
            assert_eq!(next, first);
        }
    }

    #[test]
    fn shares_are_exact_by_weight_and_the_heaviest_is_not_asked_in_a_burst() {
        let mut turns = Smooth { credit: vec![0; 3] };
        let weights = [5, 1, 1];
        let order: Vec<_> = (0..7)
            .map(|_| choose(&mut turns, set(&[0, 1, 2]), &weights))
            .collect();
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
        let mut counts = [0; 3];
        for _ in 0..7000 {
            counts[choose(&mut turns, set(&[0, 1, 2]), &weights)] += 1;
        }
        assert_eq!(counts, [5000, 1000, 1000]);
    }

    #[test]
    fn a_node_that_returns_does_not_make_up_for_its_absence() {
        let mut turns = Smooth::new(3, &mut Rng::with_seed(5));
        for _ in 0..1000 {
            assert_ne!(choose(&mut turns, set(&[0, 1]), &[100; 3]), 2);
        }
        let mut counts = [0; 3];
        for _ in 0..30 {
            counts[choose(&mut turns, set(&[0, 1, 2]), &[100; 3])] += 1;
        }
        assert!(
            counts.iter().all(|count| (8..=12).contains(count)),
            "{counts:?}"
        );
    }
}
