//! Which of several nodes takes the next request: one policy each, over the same facts.
//!
//! A balancer belongs to one worker and remembers only what its policy needs; who may be chosen, with which weight and how
//! busy each one is comes in with every choice. So nodes come and go without telling anybody here.

mod ewma;
mod rendezvous;
mod smooth;

use std::time::{Duration, Instant};

use shared::rng::Rng;

use self::ewma::Ewma;
use self::rendezvous::Rendezvous;
use self::smooth::Smooth;
use super::NodeId;
use super::nodes::NodeSet;

/// How the next node is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Each in turn, whatever its weight.
    RoundRobin,
    /// Each in turn, as often as its weight says, spread out as evenly as can be.
    Weighted,
    /// The one with the fewest requests under way for its weight; in turn among equals.
    #[default]
    LeastConn,
    /// The better of two drawn at random, judged by how long it takes to answer and how much it has to do.
    P2cEwma,
    /// The one that the request's key belongs to, unless it is a quarter busier than the others.
    Hash,
}

/// The facts of one choice.
#[derive(Clone, Copy, Debug)]
pub struct Field<'f> {
    /// Who may be chosen.
    pub among: NodeSet,
    /// Each node's weight, by its place; whoever may be chosen has one, and it is not 0.
    pub weights: &'f [u32],
    /// The moment.
    pub now: Instant,
    /// The request's key; see [`key`].
    pub key: u64,
}

impl Field<'_> {
    fn weight(&self, node: NodeId) -> u64 {
        u64::from(self.weights.get(node.index()).copied().unwrap_or(1).max(1))
    }
}

/// One worker's balancer.
#[derive(Debug)]
pub struct Balancer(Kind);

#[derive(Debug)]
enum Kind {
    Turn(Smooth),
    Least(Smooth),
    Ewma(Ewma),
    Hash(Rendezvous),
}

impl Balancer {
    /// A balancer among nodes of these names. `rng` makes workers begin at different places.
    #[must_use]
    pub fn new<'n>(policy: Policy, names: impl Iterator<Item = &'n str>, mut rng: Rng) -> Self {
        let names: Vec<_> = names.collect();
        Self(match policy {
            Policy::RoundRobin | Policy::Weighted => Kind::Turn(Smooth::new(names.len(), &mut rng)),
            Policy::LeastConn => Kind::Least(Smooth::new(names.len(), &mut rng)),
            Policy::P2cEwma => Kind::Ewma(Ewma::new(names.len(), rng)),
            Policy::Hash => Kind::Hash(Rendezvous::new(&names)),
        })
    }

    /// Chooses; `load` tells how many requests a node has under way. `None` only if nobody may be chosen.
    pub fn choose(&mut self, field: Field<'_>, load: impl Fn(NodeId) -> u64) -> Option<NodeId> {
        if field.among.len() < 2 {
            return field.among.iter().next();
        }
        match &mut self.0 {
            Kind::Turn(turn) => turn.choose(&field),
            Kind::Least(turn) => turn.choose(&Field {
                among: least(&field, load),
                ..field
            }),
            Kind::Ewma(ewma) => ewma.choose(&field, load),
            Kind::Hash(hash) => hash.choose(&field, load),
        }
    }

    /// Takes in how long `node` took to begin its answer; `None` when it failed.
    pub fn settle(&mut self, node: NodeId, now: Instant, took: Option<Duration>) {
        if let Kind::Ewma(ewma) = &mut self.0 {
            ewma.settle(node, now, took);
        }
    }
}

/// Those with the fewest requests under way for their weight.
fn least(field: &Field<'_>, load: impl Fn(NodeId) -> u64) -> NodeSet {
    let mut least = NodeSet::NONE;
    let mut best = (u64::MAX, 1);
    for node in field.among.iter() {
        let (load, weight) = (load(node), field.weight(node));
        let (left, right) = (
            u128::from(load) * u128::from(best.1),
            u128::from(best.0) * u128::from(weight),
        );
        if left < right {
            (least, best) = (NodeSet::only(node), (load, weight));
        } else if left == right {
            least = least.with(node);
        }
    }
    least
}

/// Whom to choose from: who is up and not in trouble, and was not tried for this request yet; failing that, whoever was not
/// tried last. Only when everybody is in trouble is that overlooked: some answer beats none.
#[must_use]
pub fn candidates(up: NodeSet, broken: NodeSet, tried: NodeSet, last: Option<NodeId>) -> NodeSet {
    let last = last.map_or(NodeSet::NONE, NodeSet::only);
    let sound = up.except(broken);
    let pool = if sound.is_empty() { up } else { sound };
    let fresh = pool.except(tried);
    if !fresh.is_empty() {
        return fresh;
    }
    let others = pool.except(last);
    if others.is_empty() { pool } else { others }
}

/// The key of some bytes: the same on every proxy and after every restart.
#[must_use]
pub fn key(bytes: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64;
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(start, fold))
}

/// Spreads every bit over the word (the end of `SplitMix64`).
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn set(nodes: &[u8]) -> NodeSet {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn field<'f>(among: &[u8], weights: &'f [u32]) -> Field<'f> {
        Field {
            among: set(among),
            weights,
            now: shared::clock::now(),
            key: 0,
        }
    }

    fn balancer(policy: Policy) -> Balancer {
        Balancer::new(policy, ["a", "b", "c"].into_iter(), Rng::with_seed(1))
    }

    #[test]
    fn nobody_is_chosen_only_if_nobody_may_be_whatever_the_policy() {
        for policy in [
            Policy::RoundRobin,
            Policy::Weighted,
            Policy::LeastConn,
            Policy::P2cEwma,
            Policy::Hash,
        ] {
            let mut balancer = balancer(policy);
            assert_eq!(balancer.choose(field(&[], &[1, 1, 1]), |_| 0), None);
            for _ in 0..100 {
                let only = balancer.choose(field(&[1], &[1, 1, 1]), |_| 9);
                assert_eq!(only, Some(NodeId(1)), "{policy:?}");
                let chosen = balancer.choose(field(&[0, 2], &[1, 1, 1]), |_| 9);
                assert!(chosen.is_some_and(|node| node != NodeId(1)), "{policy:?}");
            }
        }
    }

    #[test]
    fn the_least_busy_for_its_weight_is_chosen_and_equals_take_turns() {
        let mut least = balancer(Policy::LeastConn);
        let loads = [3, 1, 2];
        let chosen = least.choose(field(&[0, 1, 2], &[1, 1, 1]), |node| loads[node.index()]);
        assert_eq!(chosen, Some(NodeId(1)));
        let chosen = least.choose(field(&[0, 1, 2], &[4, 1, 1]), |node| loads[node.index()]);
        assert_eq!(chosen, Some(NodeId(0)), "3 of 4 is less than 1 of 1");
        let mut counts = [0; 3];
        for _ in 0..600 {
            let idle = least.choose(field(&[0, 1, 2], &[1, 2, 3]), |_| 0);
            counts[idle.unwrap().index()] += 1;
        }
        for (count, share) in counts.iter().zip([100_i32, 200, 300]) {
            assert!((count - share).abs() <= 2, "idle, by weight: {counts:?}");
        }
    }

    #[test]
    fn requests_of_different_length_are_spread_by_how_busy_nodes_are() {
        // One node answers ten times slower; each tick a request comes, and each ends after its node's time.
        let mut least = balancer(Policy::LeastConn);
        let (spans, mut under_way, mut counts) = ([1, 1, 10], [0_u64; 3], [0; 3]);
        let mut ends: Vec<(u32, usize)> = Vec::new();
        for tick in 0..3000 {
            ends.retain(|(end, node)| {
                under_way[*node] -= u64::from(*end == tick);
                *end != tick
            });
            for _ in 0..2 {
                let busy = under_way;
                let chosen = least.choose(field(&[0, 1, 2], &[1, 1, 1]), |node| busy[node.index()]);
                let node = chosen.unwrap().index();
                under_way[node] += 1;
                counts[node] += 1;
                ends.push((tick + spans[node], node));
            }
        }
        assert!(counts[2] * 5 < counts[0] && counts[2] > 0, "{counts:?}");
    }

    #[test]
    fn another_node_is_tried_before_the_same_one_and_the_sound_before_the_broken() {
        let none = NodeSet::NONE;
        let up = set(&[0, 1, 2]);
        assert_eq!(candidates(up, none, none, None), up);
        assert_eq!(candidates(up, set(&[1]), none, None), set(&[0, 2]));
        let first = Some(NodeId(0));
        assert_eq!(candidates(up, set(&[1]), set(&[0]), first), set(&[2]));
        let both = set(&[0, 2]);
        assert_eq!(candidates(up, set(&[1]), both, Some(NodeId(2))), set(&[0]));
        assert_eq!(
            candidates(set(&[0]), none, set(&[0]), first),
            set(&[0]),
            "there is no other"
        );
    }

    #[test]
    fn when_everybody_is_in_trouble_somebody_is_asked_all_the_same() {
        let up = set(&[0, 1]);
        assert_eq!(candidates(up, up, NodeSet::NONE, None), up);
        assert_eq!(candidates(up, up, set(&[0]), Some(NodeId(0))), set(&[1]));
        assert_eq!(
            candidates(NodeSet::NONE, up, NodeSet::NONE, None),
            NodeSet::NONE
        );
    }
}
