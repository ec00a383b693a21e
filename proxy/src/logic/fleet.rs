//! Who of a `hot-hot` service may take requests: nodes that pass their health checks, accept connections and are not taken
//! out; each with its weight, which grows slowly after an absence.
//!
//! There is no primary, no epoch and nothing on record: every node is as good as any other, and what is decided here is
//! decided anew after a restart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::NodeId;
use super::nodes::NodeSet;

/// A node's full weight is this many times its weight in the configuration, so that there is room for less.
const FINE: u32 = 100;
/// A node that returns begins with a tenth of its weight.
const BEGIN_AT: f64 = 0.1;
/// In so many steps it grows.
const STEPS: u32 = 20;
/// Steps are not shorter than this.
const STEP_LEAST: Duration = Duration::from_millis(100);

/// Who may take requests at one moment, as workers see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Who may take any.
    pub takes: NodeSet,
    /// Who is being drained: takes only those of clients that it has already.
    pub keeps: NodeSet,
    /// Weights, by the nodes' places; 0 for whoever takes none.
    pub weights: Arc<[u32]>,
}

impl Members {
    /// `count` nodes, none of which takes requests.
    #[must_use]
    pub fn none_of(count: usize) -> Self {
        Self {
            weights: (0..count).map(|_| 0).collect(),
            ..Self::default()
        }
    }
}

/// What can happen to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The health checks' verdict.
    Health(NodeId, bool),
    /// A connection was refused or could not be made.
    Refused(NodeId),
    /// A connection was made.
    Answered(NodeId),
    /// Its breaker lets requests through again.
    Mended(NodeId),
    /// An operator takes it out, or puts it back.
    Drain(NodeId, bool),
}

/// One service's nodes.
#[derive(Clone, Debug)]
pub struct Fleet {
    nodes: Vec<Node>,
    slow_start: Duration,
}

#[derive(Clone, Debug)]
struct Node {
    weight: u32,
    app: Option<bool>,
    refusing: bool,
    draining: bool,
    /// Since when it is back.
    back: Option<Instant>,
}

impl Node {
    fn is_up(&self) -> bool {
        self.app == Some(true) && !self.refusing
    }
}

impl Fleet {
    /// Nothing is known of the nodes yet. `slow_start` is how long a node that returns takes to its full weight.
    #[must_use]
    pub fn new(weights: impl IntoIterator<Item = u32>, slow_start: Duration) -> Self {
        let node = |weight| Node {
            weight,
            app: None,
            refusing: false,
            draining: false,
            back: None,
        };
        Self {
            nodes: weights.into_iter().map(node).collect(),
            slow_start,
        }
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        let (Input::Health(id, _)
        | Input::Refused(id)
        | Input::Answered(id)
        | Input::Mended(id)
        | Input::Drain(id, _)) = input;
        let Some(node) = self.nodes.get_mut(id.index()) else {
            return;
        };
        let (known, took) = (node.app.is_some(), node.is_up() && !node.draining);
        match input {
            Input::Health(_, up) => node.app = Some(up),
            Input::Refused(_) => node.refusing = true,
            Input::Answered(_) => node.refusing = false,
            Input::Drain(_, on) => node.draining = on,
            Input::Mended(_) => (),
        }
        let takes = node.is_up() && !node.draining;
        let returns = !took || matches!(input, Input::Mended(_));
        // One that comes up at the start is not back: nobody had its share meanwhile.
        if takes && returns && known {
            node.back = Some(now);
        }
    }

    /// Who may take requests.
    #[must_use]
    pub fn members(&self, now: Instant) -> Members {
        let some = |which: &dyn Fn(&Node) -> bool| {
            let nodes = self.ids().zip(&self.nodes);
            nodes
                .filter(|(_, node)| which(node))
                .map(|(id, _)| id)
                .collect::<NodeSet>()
        };
        Members {
            takes: some(&|node| node.is_up() && !node.draining),
            keeps: some(&|node| node.is_up() && node.draining),
            weights: self
                .nodes
                .iter()
                .map(|node| self.weight(node, now))
                .collect(),
        }
    }

    /// When the weights are others than now, if they are about to be.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let grows = |node: &Node| node.is_up() && self.grown(node, now) < 1.0;
        let step = (self.slow_start / STEPS).max(STEP_LEAST);
        self.nodes.iter().any(grows).then(|| now + step)
    }

    /// The phase that users see: `starting`, `serving` or `unavailable`.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        let takes = |node: &Node| node.is_up() && !node.draining;
        if self.nodes.iter().any(takes) {
            "serving"
        } else if self.nodes.iter().any(|node| node.app.is_none()) {
            "starting"
        } else {
            "unavailable"
        }
    }

    /// The health checks' verdict on a node, if there is one yet.
    #[must_use]
    pub fn app(&self, node: NodeId) -> Option<bool> {
        self.nodes.get(node.index()).and_then(|node| node.app)
    }

    /// Whether its port refuses connections.
    #[must_use]
    pub fn is_refusing(&self, node: NodeId) -> bool {
        self.nodes
            .get(node.index())
            .is_some_and(|node| node.refusing)
    }

    /// Whether an operator has taken it out.
    #[must_use]
    pub fn is_draining(&self, node: NodeId) -> bool {
        self.nodes
            .get(node.index())
            .is_some_and(|node| node.draining)
    }

    /// Why `node` may not be drained: nobody else takes requests. `None` if it may.
    #[must_use]
    pub fn not_drainable(&self, node: NodeId) -> Option<&'static str> {
        let takes = |(id, other): (NodeId, &Node)| id != node && other.is_up() && !other.draining;
        let others = self.ids().zip(&self.nodes).any(takes);
        let is_last = !others && !self.is_draining(node);
        is_last.then_some("no other node takes requests; undrain or repair one first")
    }

    fn ids(&self) -> impl Iterator<Item = NodeId> {
        (0..self.nodes.len())
            .filter_map(|at| u8::try_from(at).ok())
            .map(NodeId)
    }

    fn grown(&self, node: &Node, now: Instant) -> f64 {
        let Some(back) = node.back.filter(|_| !self.slow_start.is_zero()) else {
            return 1.0;
        };
        let passed =
            now.saturating_duration_since(back).as_secs_f64() / self.slow_start.as_secs_f64();
        (BEGIN_AT + (1.0 - BEGIN_AT) * passed).min(1.0)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a small positive number"
    )]
    fn weight(&self, node: &Node, now: Instant) -> u32 {
        if !node.is_up() {
            return 0;
        }
        let full = node.weight.saturating_mul(FINE);
        ((f64::from(full) * self.grown(node, now)).round() as u32).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(0);
    const B: NodeId = NodeId(1);

    fn fleet(slow_start: u64) -> (Fleet, Instant) {
        let mut fleet = Fleet::new([100, 50], Duration::from_secs(slow_start));
        let now = shared::clock::now();
        assert_eq!(fleet.phase(), "starting");
        fleet.handle_input(now, Input::Health(A, true));
        fleet.handle_input(now, Input::Health(B, true));
        (fleet, now)
    }

    #[test]
    fn who_is_up_accepts_connections_and_is_not_drained_takes_requests() {
        let (mut fleet, now) = fleet(0);
        let all = NodeSet::only(A).with(B);
        assert_eq!(fleet.members(now).takes, all);
        assert_eq!(*fleet.members(now).weights, [10_000, 5000]);
        for (out, back) in [
            (Input::Refused(A), Input::Answered(A)),
            (Input::Health(A, false), Input::Health(A, true)),
            (Input::Drain(A, true), Input::Drain(A, false)),
        ] {
            fleet.handle_input(now, out);
            assert_eq!(fleet.members(now).takes, NodeSet::only(B), "{out:?}");
            assert_eq!(fleet.phase(), "serving");
            fleet.handle_input(now, back);
            assert_eq!(fleet.members(now).takes, all, "{back:?}");
        }
    }

    #[test]
    fn a_drained_node_keeps_its_clients_while_it_is_up_and_the_last_one_is_not_drained() {
        let (mut fleet, now) = fleet(0);
        assert_eq!(fleet.not_drainable(A), None);
        fleet.handle_input(now, Input::Drain(A, true));
        assert_eq!(fleet.members(now).keeps, NodeSet::only(A));
        assert!(fleet.not_drainable(B).is_some() && fleet.not_drainable(A).is_none());
        fleet.handle_input(now, Input::Refused(A));
        assert!(fleet.members(now).keeps.is_empty());
        fleet.handle_input(now, Input::Health(B, false));
        assert_eq!(fleet.phase(), "unavailable");
    }

    #[test]
    fn a_node_that_returns_grows_from_a_tenth_to_its_full_weight_and_one_that_starts_has_it_at_once()
     {
        let (mut fleet, now) = fleet(10);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(fleet.members(now).weights[0], 10_000);
        assert_eq!(fleet.poll_timeout(now), None);
        fleet.handle_input(at(1), Input::Refused(A));
        assert_eq!(fleet.members(at(1)).weights[0], 0);
        fleet.handle_input(at(5), Input::Answered(A));
        let weights: Vec<_> = (5..17)
            .map(|second| fleet.members(at(second)).weights[0])
            .collect();
        assert_eq!(weights[..3], [1000, 1900, 2800]);
        assert_eq!(weights[10..], [10_000, 10_000]);
        assert!(weights.is_sorted());
        assert_eq!(fleet.members(at(6)).weights[1], 5000, "others keep theirs");
        assert_eq!(
            fleet.poll_timeout(at(6)),
            Some(at(6) + Duration::from_millis(500))
        );
        assert_eq!(fleet.poll_timeout(at(15)), None);
        fleet.handle_input(at(20), Input::Mended(A));
        assert_eq!(fleet.members(at(20)).weights[0], 1000);
    }
}
