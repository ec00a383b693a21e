//! Sets of a service's nodes, of which there are at most 64: one word, compared and joined in one step.

use super::NodeId;

/// Some of a service's nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeSet(u64);

impl NodeSet {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// From one bit a node, the first listed the lowest.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// One bit a node.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Only this one.
    #[must_use]
    pub const fn only(node: NodeId) -> Self {
        Self(1 << (node.0 & 63))
    }

    /// These and `node`.
    #[must_use]
    pub const fn with(self, node: NodeId) -> Self {
        Self(self.0 | Self::only(node).0)
    }

    /// These and those.
    #[must_use]
    pub const fn or(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// These, as far as they are among those.
    #[must_use]
    pub const fn among(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// These, except those.
    #[must_use]
    pub const fn except(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether `node` is one of them.
    #[must_use]
    pub const fn has(self, node: NodeId) -> bool {
        self.0 & Self::only(node).0 != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Each, the first listed first.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let at = u8::try_from(rest.trailing_zeros())
                .ok()
                .filter(|at| *at < 64)?;
            rest &= rest - 1;
            Some(NodeId(at))
        })
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> Self {
        nodes.into_iter().fold(Self::NONE, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_what_was_put_into_it_in_the_order_of_the_list() {
        let set: NodeSet = [NodeId(63), NodeId(0), NodeId(5)].into_iter().collect();
        assert_eq!(
            set.iter().map(|node| node.0).collect::<Vec<_>>(),
            [0, 5, 63]
        );
        assert!(set.has(NodeId(63)) && !set.has(NodeId(1)) && set.len() == 3);
        let rest = set.except(NodeSet::only(NodeId(5)));
        assert_eq!(rest.or(NodeSet::only(NodeId(5))), set);
        assert!(rest.among(NodeSet::only(NodeId(5))).is_empty());
    }
}
