//! Medians and percentiles of small samples.

use std::fmt;

/// A sample, sorted.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<f64>);

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<_> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }
}

impl Sample {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that `share` (0 to 1) of the sample do not exceed; not a number when there is none.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank within a sample that fits into memory"
    )]
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        let at = rank.clamp(1, self.0.len().max(1)) - 1;
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The middle one.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The largest.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    /// The smallest.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.quantile(0.0)
    }
}

/// `median (least–most)`.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = f.precision().unwrap_or(1);
        if self.is_empty() {
            return f.write_str("–");
        }
        write!(
            f,
            "{:.places$} ({:.places$}–{:.places$})",
            self.median(),
            self.min(),
            self.max()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_of_the_sample() {
        let sample: Sample = (1..=100).rev().map(f64::from).collect();
        assert_eq!(sample.median(), 50.0);
        assert_eq!(sample.quantile(0.99), 99.0);
        assert_eq!((sample.min(), sample.max()), (1.0, 100.0));
        assert_eq!(format!("{sample:.0}"), "50 (1–100)");
    }

    #[test]
    fn an_empty_sample_has_no_number() {
        let sample: Sample = [f64::NAN].into_iter().collect();
        assert!(sample.is_empty() && sample.median().is_nan());
        assert_eq!(sample.to_string(), "–");
    }
}
