//! The words of the field as values: epochs, positions, roles, lag. No behaviour beyond comparing them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A leadership term: one per promotion, issued by the arbiter alone, only ever grows. 0 means "never led".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The term after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one cluster for life, so that the copies of two unrelated services never mix. Written once, at the first meeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for ClusterId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClusterId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        u64::from_str_radix(&text, 16)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

/// A point in the history of one source.
///
/// `seq` grows by one with every increment of a lineage, whatever the epoch and gen; within one gen it has no gaps.
/// `gen` grows when continuity cannot be proved. `epoch` is the term in which the increment was captured.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// The term of the primary that captured it.
    pub epoch: Epoch,
    /// The unbroken stretch of history it belongs to.
    #[serde(rename = "gen")]
    pub generation: u32,
    /// Its number in the lineage.
    pub seq: u64,
}

impl Position {
    /// Whether a node that stands here has everything up to `other`, judged without a lineage: same epoch, same gen, not before it.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.epoch == other.epoch && self.generation == other.generation && self.seq >= other.seq
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.epoch, self.generation, self.seq)
    }
}

/// Where a node stands, source by source.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Positions(pub BTreeMap<String, Position>);

impl Positions {
    /// Whether every source of `other` is covered here; see [`Position::covers`].
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other
            .0
            .iter()
            .all(|(source, theirs)| self.0.get(source).is_some_and(|ours| ours.covers(*theirs)))
    }

    /// How many increments of `ahead` are missing here, over all sources, as far as sequence numbers tell.
    #[must_use]
    pub fn behind(&self, ahead: &Self) -> u64 {
        let missing = |(source, theirs): (&String, &Position)| {
            theirs
                .seq
                .saturating_sub(self.0.get(source).map_or(0, |ours| ours.seq))
        };
        ahead.0.iter().map(missing).sum()
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (source, position)) in self.0.iter().enumerate() {
            write!(f, "{}{source}={position}", if n == 0 { "" } else { " " })?;
        }
        if self.0.is_empty() {
            f.write_str("none")
        } else {
            Ok(())
        }
    }
}

/// What a node is doing with its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Follows the primary, is a prefix of it.
    Standby,
    /// Takes no writes and follows nobody: it waits for an order.
    Fenced,
    /// Follows, but is not yet a prefix of the primary's history.
    Rejoining,
    /// Has never belonged to a cluster, or has nothing to replicate.
    #[default]
    None,
}

impl Role {
    /// Every role, in the order in which metrics list them.
    pub const ALL: [Self; 5] = [
        Self::Primary,
        Self::Standby,
        Self::Fenced,
        Self::Rejoining,
        Self::None,
    ];

    /// The word that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::Fenced => "fenced",
            Self::Rejoining => "rejoining",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How far a standby is behind its primary. `None` is unknown, which is a value of its own and never counts as 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Age of the oldest commit that the standby has not applied.
    pub seconds: Option<f64>,
    /// Size of the increments it has not applied.
    pub bytes: Option<u64>,
    /// Their number.
    pub transactions: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, generation: u32, seq: u64) -> Position {
        Position {
            epoch: Epoch(epoch),
            generation,
            seq,
        }
    }

    #[test]
    fn a_position_covers_only_its_own_stretch_of_history() {
        assert!(at(1, 0, 5).covers(at(1, 0, 5)));
        assert!(at(1, 0, 6).covers(at(1, 0, 5)));
        assert!(!at(1, 0, 4).covers(at(1, 0, 5)));
        assert!(!at(2, 0, 9).covers(at(1, 0, 5)));
        assert!(!at(1, 1, 9).covers(at(1, 0, 5)));
    }

    #[test]
    fn a_missing_source_is_never_covered() {
        let one = Positions([("db".to_owned(), at(1, 0, 5))].into());
        assert!(one.covers(&Positions::default()));
        assert!(!Positions::default().covers(&one));
        assert_eq!(Positions::default().behind(&one), 5);
    }

    #[test]
    fn a_cluster_id_is_sixteen_hex_digits_both_ways() {
        let text = serde_json::to_string(&ClusterId(0xab)).unwrap();
        assert_eq!(text, "\"00000000000000ab\"");
        assert_eq!(
            serde_json::from_str::<ClusterId>(&text).unwrap(),
            ClusterId(0xab)
        );
    }
}
