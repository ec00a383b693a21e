//! When a service is overloaded, so that work that can be done without is refused to keep room for the rest.

/// How much of what there is room for is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// Requests that wait because no node may take them.
    pub held: u64,
    /// How many may.
    pub held_most: u64,
    /// Requests under way at nodes, of one worker.
    pub under_way: u64,
    /// Connections that this worker may have with them.
    pub room: u64,
}

impl Pressure {
    /// More than half of those who may wait do, or nine of ten connections are taken: what comes now would wait, or soon make
    /// others wait.
    #[must_use]
    pub const fn is_overload(self) -> bool {
        self.held.saturating_mul(2) > self.held_most
            || self.under_way.saturating_mul(10) >= self.room.saturating_mul(9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_half_full_or_connections_that_are_nearly_all_taken_are_overload() {
        let calm = Pressure {
            held: 500,
            held_most: 1000,
            under_way: 89,
            room: 100,
        };
        assert!(!calm.is_overload());
        assert!(Pressure { held: 501, ..calm }.is_overload());
        let busy = Pressure {
            under_way: 90,
            ..calm
        };
        assert!(busy.is_overload());
        let one = Pressure {
            held: 0,
            under_way: 0,
            room: 1,
            ..calm
        };
        assert!(!one.is_overload());
        assert!(
            Pressure {
                under_way: 1,
                ..one
            }
            .is_overload()
        );
    }
}
