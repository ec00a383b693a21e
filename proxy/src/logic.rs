//! Decisions: values in, values out. Nothing here waits, reads a clock or touches the world.

pub mod balance;
pub mod breaker;
pub mod failover;
pub mod fleet;
pub mod health;
pub mod network;
pub mod nodes;
pub mod outcome;
pub mod pace;
pub mod rate;
pub mod retry;
pub mod route;
pub mod seen;
pub mod shed;
pub mod stall;
pub mod tier;

/// One node of a service, by its place in the configuration: "first listed" is the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u8);

impl NodeId {
    /// Its place in the service's list of nodes.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}
