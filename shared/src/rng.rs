//! Seeded randomness, handed to whoever needs it: nobody draws from an ambient source, so that every run can be replayed.

pub use fastrand::Rng;

/// Returns `base` moved up or down by at most `share` of itself, evenly.
pub fn jitter(base: std::time::Duration, share: f64, rng: &mut Rng) -> std::time::Duration {
    base.mul_f64((1.0 + share * (2.0 * rng.f64() - 1.0)).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn jitter_stays_within_its_share() {
        let mut rng = Rng::with_seed(7);
        for _ in 0..1000 {
            let drawn = jitter(Duration::from_millis(100), 0.1, &mut rng);
            assert!((Duration::from_millis(90)..=Duration::from_millis(110)).contains(&drawn));
        }
    }
}
