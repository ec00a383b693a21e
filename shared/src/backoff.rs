//! How long to wait before trying again: doubling from a floor to a ceiling, with jitter so that peers do not march in step.

use std::time::Duration;

use crate::rng::{Rng, jitter};

/// A doubling wait. Bounded: it never exceeds `most`.
#[derive(Clone, Debug)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `least`; never waits longer than `most` (before jitter of a fifth).
    #[must_use]
    pub const fn new(least: Duration, most: Duration) -> Self {
        Self {
            least,
            most,
            next: least,
        }
    }

    /// Returns the next wait and doubles the one after it.
    pub fn wait(&mut self, rng: &mut Rng) -> Duration {
        let now = self.next;
        self.next = self.most.min(now * 2);
        jitter(now, 0.2, rng)
    }

    /// Begins again at the floor, after something went well.
    pub const fn reset(&mut self) {
        self.next = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_the_ceiling_and_begins_again() {
        let mut rng = Rng::with_seed(1);
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(50));
        let waits: Vec<_> = (0..5).map(|_| backoff.wait(&mut rng)).collect();
        for (wait, base) in waits.iter().zip([10, 20, 40, 50, 50]) {
            let base = Duration::from_millis(base);
            assert!(*wait >= base.mul_f64(0.8) && *wait <= base.mul_f64(1.2));
        }
        backoff.reset();
        assert!(backoff.wait(&mut rng) <= Duration::from_millis(12));
    }
}
