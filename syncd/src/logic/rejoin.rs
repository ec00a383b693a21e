//! What a follower needs: its next increment, or a resync, and whether what it has must be preserved first.
//!
//! The follower says where it believes to stand and what its content's checksum is. The primary compares that with its own
//! history: the *lineage* (where each epoch and gen began) and the checksums in its log. Content decides; a position alone
//! proves nothing, because a former primary may have written after its syncd died.

use shared::api::Fork;
use shared::model::Position;

pub use crate::wire::message::Reason;

/// What the follower says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// Where it stands, if it knows.
    pub position: Option<Position>,
    /// Checksum of its content; `None` if it has none (no database).
    pub checksum: Option<u64>,
    /// Where epochs and gens began in its own history, oldest first.
    pub lineage: &'a [Fork],
}

/// What the primary can say of its own history.
pub trait History {
    /// Where epochs and gens began, oldest first.
    fn lineage(&self) -> &[Fork];
    /// Where it stands, and the checksum there.
    fn tip(&self) -> (Position, u64);
    /// The checksum after increment `seq`, if it is still known.
    fn checksum_at(&self, seq: u64) -> Option<u64>;
    /// The newest position whose content had this checksum, among those still known.
    fn position_of(&self, checksum: u64) -> Option<Position>;
    /// Whether every increment after `seq` up to the tip is in the log, in one unbroken stretch.
    fn can_stream_from(&self, seq: u64) -> bool;
}

/// What the follower needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The increments after this position, which it has.
    Stream(Position),
    /// A page-hash difference; what it has is an older state of the same history and need not be kept.
    Resync(Reason),
    /// A page-hash difference, after what it has was preserved: it holds something that the primary's history does not.
    PreserveThenResync(Reason),
}

/// Decides what the follower needs.
#[must_use]
pub fn need(history: &impl History, claim: Claim<'_>) -> Need {
    let Some(checksum) = claim.checksum else {
        return Need::Resync(Reason::Empty);
    };
    // Same content as a state that is still known: whatever it believes, that is where it stands.
    let (tip, at_tip) = history.tip();
    let known = if checksum == at_tip {
        Some(tip)
    } else {
        history.position_of(checksum)
    };
    if let Some(position) = known {
        return if history.can_stream_from(position.seq) {
            Need::Stream(position)
        } else {
            Need::Resync(Reason::NewGeneration)
        };
    }
    let is_related = claim
        .lineage
        .iter()
        .any(|fork| history.lineage().contains(fork));
    let Some(position) = claim.position else {
        return Need::PreserveThenResync(if is_related {
            Reason::Altered
        } else {
            Reason::Unrelated
        });
    };
    let Some(end) = end_of(history, position) else {
        // A former primary went on alone after the two parted, in a stretch that nobody else knows.
        return Need::PreserveThenResync(if is_related {
            Reason::Ahead
        } else {
            Reason::Unrelated
        });
    };
    if position.seq > end {
        return Need::PreserveThenResync(Reason::Ahead);
    }
    match history.checksum_at(position.seq) {
        // The state at that position is known, and this is not it.
        Some(_) => Need::PreserveThenResync(Reason::Altered),
        None if position.generation != tip.generation => Need::Resync(Reason::NewGeneration),
        None => Need::Resync(Reason::LogTooShort),
    }
}

/// The last seq of the stretch of history that `position` belongs to; `None` if the lineage does not have it.
fn end_of(history: &impl History, position: Position) -> Option<u64> {
    let lineage = history.lineage();
    let same = |fork: &Fork| {
        (fork.start.epoch, fork.start.generation) == (position.epoch, position.generation)
    };
    let at = lineage.iter().rposition(same)?;
    Some(
        lineage
            .get(at + 1)
            .map_or_else(|| history.tip().0.seq, |next| next.start.seq),
    )
}

/// Adds the beginning of a new stretch to `lineage`, oldest dropped beyond `most`.
pub fn extend(lineage: &mut Vec<Fork>, fork: Fork, most: usize) {
    lineage.retain(|before| before.start.seq <= fork.start.seq);
    lineage.push(fork);
    if lineage.len() > most {
        lineage.drain(..lineage.len() - most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::model::Epoch;

    fn at(epoch: u64, generation: u32, seq: u64) -> Position {
        Position {
            epoch: Epoch(epoch),
            generation,
            seq,
        }
    }

    fn fork(epoch: u64, generation: u32, seq: u64) -> Fork {
        Fork {
            start: at(epoch, generation, seq),
            checksum: seq * 10,
        }
    }

    /// A history in which the checksum after increment n is 10 n, and the log reaches back to `kept`.
    struct Sample {
        lineage: Vec<Fork>,
        tip: Position,
        kept: u64,
    }

    impl History for Sample {
        fn lineage(&self) -> &[Fork] {
            &self.lineage
        }
        fn tip(&self) -> (Position, u64) {
            (self.tip, self.tip.seq * 10)
        }
        fn checksum_at(&self, seq: u64) -> Option<u64> {
            (self.kept..=self.tip.seq)
                .contains(&seq)
                .then_some(seq * 10)
        }
        fn position_of(&self, checksum: u64) -> Option<Position> {
            let seq = checksum / 10;
            self.checksum_at(seq).filter(|known| *known == checksum)?;
            let before = self
                .lineage
                .iter()
                .rev()
                .find(|fork| fork.start.seq < seq || fork.start.seq == 0)?;
            Some(Position {
                seq,
                ..before.start
            })
        }
        fn can_stream_from(&self, seq: u64) -> bool {
            let breaks = self
                .lineage
                .windows(2)
                .filter(|pair| pair[0].start.generation != pair[1].start.generation);
            let broken = breaks.map(|pair| pair[1].start.seq).max().unwrap_or(0);
            seq >= self.kept && seq >= broken
        }
    }

    /// Epoch 1 up to seq 50, then epoch 2 up to 80; the log reaches back to 30.
    fn sample() -> Sample {
        Sample {
            lineage: vec![fork(1, 0, 0), fork(2, 0, 50)],
            tip: at(2, 0, 80),
            kept: 30,
        }
    }

    fn claim(position: Position, checksum: u64) -> Claim<'static> {
        Claim {
            position: Some(position),
            checksum: Some(checksum),
            lineage: &[],
        }
    }

    fn nowhere() -> Claim<'static> {
        Claim {
            position: None,
            checksum: None,
            lineage: &[],
        }
    }

    #[test]
    fn same_content_as_a_known_state_streams_from_there() {
        assert_eq!(
            need(&sample(), claim(at(2, 0, 80), 800)),
            Need::Stream(at(2, 0, 80))
        );
        assert_eq!(
            need(&sample(), claim(at(1, 0, 50), 500)),
            Need::Stream(at(1, 0, 50))
        );
        assert_eq!(
            need(&sample(), claim(at(1, 0, 40), 400)),
            Need::Stream(at(1, 0, 40))
        );
        let unsure = Claim {
            checksum: Some(600),
            ..nowhere()
        };
        assert_eq!(need(&sample(), unsure), Need::Stream(at(2, 0, 60)));
    }

    #[test]
    fn an_older_state_than_the_log_is_resynced_without_ceremony() {
        assert_eq!(
            need(&sample(), claim(at(1, 0, 10), 100)),
            Need::Resync(Reason::LogTooShort)
        );
        assert_eq!(need(&sample(), nowhere()), Need::Resync(Reason::Empty));
    }

    #[test]
    fn what_the_history_does_not_have_is_preserved_first() {
        assert_eq!(
            need(&sample(), claim(at(1, 0, 55), 551)),
            Need::PreserveThenResync(Reason::Ahead)
        );
        assert_eq!(
            need(&sample(), claim(at(1, 0, 50), 501)),
            Need::PreserveThenResync(Reason::Altered)
        );
        assert_eq!(
            need(&sample(), claim(at(9, 0, 50), 501)),
            Need::PreserveThenResync(Reason::Unrelated)
        );
        let unsure = Claim {
            checksum: Some(601),
            ..nowhere()
        };
        assert_eq!(
            need(&sample(), unsure),
            Need::PreserveThenResync(Reason::Unrelated)
        );
    }

    #[test]
    fn whoever_shares_a_beginning_is_no_stranger_wherever_it_went_from_there() {
        let ours = [fork(1, 0, 0), fork(1, 1, 60)];
        let alone = Claim {
            lineage: &ours,
            ..claim(at(1, 1, 65), 651)
        };
        assert_eq!(
            need(&sample(), alone),
            Need::PreserveThenResync(Reason::Ahead)
        );
        let lost = Claim {
            position: None,
            ..alone
        };
        assert_eq!(
            need(&sample(), lost),
            Need::PreserveThenResync(Reason::Altered)
        );
        let theirs = Fork {
            checksum: 7,
            ..fork(1, 0, 0)
        };
        let stranger = Claim {
            lineage: &[theirs],
            ..alone
        };
        assert_eq!(
            need(&sample(), stranger),
            Need::PreserveThenResync(Reason::Unrelated)
        );
    }

    #[test]
    fn a_break_in_continuity_ends_streaming_from_before_it() {
        let broken = Sample {
            lineage: vec![fork(1, 0, 0), fork(1, 1, 60)],
            tip: at(1, 1, 80),
            kept: 30,
        };
        assert_eq!(
            need(&broken, claim(at(1, 0, 50), 500)),
            Need::Resync(Reason::NewGeneration)
        );
        assert_eq!(
            need(&broken, claim(at(1, 1, 70), 700)),
            Need::Stream(at(1, 1, 70))
        );
        assert_eq!(
            need(&broken, claim(at(1, 0, 20), 200)),
            Need::Resync(Reason::NewGeneration)
        );
        assert_eq!(
            need(&broken, claim(at(1, 0, 65), 651)),
            Need::PreserveThenResync(Reason::Ahead)
        );
    }

    #[test]
    fn the_lineage_is_bounded_and_forgets_what_was_undone() {
        let mut lineage = vec![fork(1, 0, 0), fork(1, 1, 60)];
        extend(&mut lineage, fork(2, 0, 55), 8);
        assert_eq!(lineage, [fork(1, 0, 0), fork(2, 0, 55)]);
        (3..20).for_each(|epoch| extend(&mut lineage, fork(epoch, 0, 50 + epoch), 8));
        assert_eq!((lineage.len(), lineage[7]), (8, fork(19, 0, 69)));
    }
}
