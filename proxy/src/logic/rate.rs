//! Whether a client sends or takes a body fast enough to be worth its connection.
//!
//! Whoever moves a byte now and then is never idle and holds a connection, and a place at a node, for as long as it likes.
//! So waiting for a client costs patience, and bytes pay for it. Only time in which the client alone was waited for counts,
//! and nobody is judged in a pause: that is the idle timeout's business, and a client that goes on as it should is forgiven.

use std::time::Duration;

/// One client's account, in bytes times milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Bytes a second; 0 if any rate is good.
    least: u64,
    most: u64,
    left: u64,
    spent: bool,
}

impl Rate {
    /// At least `least` bytes a second (0: any rate is good); pauses that add up to `pauses` are free, and twice that can be
    /// paid for in advance.
    #[must_use]
    pub fn new(least: u64, pauses: Duration) -> Self {
        let free = millis(pauses).saturating_mul(least);
        Self {
            least,
            most: free.saturating_mul(2),
            left: free,
            spent: false,
        }
    }

    /// The client was waited for.
    pub fn handle_wait(&mut self, span: Duration) {
        let price = millis(span).saturating_mul(self.least);
        self.spent |= price > self.left;
        self.left = self.left.saturating_sub(price);
    }

    /// Bytes were moved; returns whether they were too few for the time that they took.
    pub fn handle_bytes(&mut self, bytes: u64) -> bool {
        let paid = bytes.saturating_mul(1000);
        self.left = self.left.saturating_add(paid).min(self.most);
        // What came at last may be worth the wait.
        let too_few = self.least > 0 && self.spent && self.left < self.most / 4;
        self.spent = false;
        too_few
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// After how many seconds a client that moves `bytes` every `pause` seconds is too slow, within an hour.
    fn ends_after(least: u64, bytes: u64, pause: u32) -> Option<u32> {
        let mut rate = Rate::new(least, SECOND * 30);
        (1..=3600 / pause).find_map(|turn| {
            rate.handle_wait(SECOND * pause);
            rate.handle_bytes(bytes).then_some(turn * pause)
        })
    }

    #[test]
    fn a_client_below_the_rate_is_too_slow_once_its_pauses_are_spent() {
        assert_eq!(ends_after(240, 1, 1), Some(31));
        assert_eq!(ends_after(240, 24, 1), Some(34));
        assert_eq!(ends_after(240, 239, 29), Some(58));
        assert_eq!(ends_after(240, 240, 1), None);
        assert_eq!(ends_after(240, 240 * 29, 29), None);
        assert_eq!(ends_after(0, 1, 29), None, "any rate is good");
    }

    #[test]
    fn what_was_sent_fast_pays_for_pauses_but_not_for_ever() {
        let mut rate = Rate::new(240, SECOND * 30);
        assert!(!rate.handle_bytes(1 << 40));
        for turn in 0..60 {
            rate.handle_wait(SECOND);
            assert!(!rate.handle_bytes(1), "{turn}");
        }
        rate.handle_wait(SECOND);
        assert!(rate.handle_bytes(1));
    }

    #[test]
    fn a_client_that_goes_on_as_it_should_after_a_long_pause_is_forgiven() {
        let mut rate = Rate::new(240, SECOND * 30);
        rate.handle_wait(SECOND * 300);
        assert!(!rate.handle_bytes(64 << 10));
        rate.handle_wait(SECOND * 300);
        assert!(rate.handle_bytes(100));
    }
}
