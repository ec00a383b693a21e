//! The boards of all sources at one moment, taken together: a node is only as good as its worst source.

use shared::api::Content;
use shared::model::{Position, Positions};

use crate::replica::Board;

/// Each source's name and board, in the order of the configuration.
#[derive(Clone, Debug, Default)]
pub(super) struct Boards(pub(super) Vec<(String, Board)>);

impl Boards {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Board)> + Clone {
        self.0.iter().map(|(name, board)| (name.as_str(), board))
    }

    /// What each source would keep after a crash.
    pub(super) fn durable(&self) -> Positions {
        self.positions(|board| board.durable)
    }

    /// What readers of each source see.
    pub(super) fn applied(&self) -> Positions {
        self.positions(|board| board.applied)
    }

    /// The newest that each source has captured or received.
    pub(super) fn tip(&self) -> Positions {
        self.positions(|board| board.tip.map(|tip| tip.position))
    }

    /// Whether the application cannot write anywhere. There is nothing to write to where no database is.
    pub(super) fn are_fenced(&self) -> bool {
        self.iter()
            .all(|(_, board)| board.is_fenced || board.is_absent)
    }

    /// Whether what is here is provably all that this node ever vouched for.
    pub(super) fn are_proved(&self) -> bool {
        self.iter().all(|(_, board)| board.is_proved)
    }

    /// What all of them hold; `None` while one has not been counted.
    pub(super) fn content(&self) -> Option<Content> {
        self.iter().try_fold(Content::default(), |all, (_, board)| {
            let held = if board.is_absent {
                Content::default()
            } else {
                board.holds?
            };
            Some(Content {
                rows: all.rows + held.rows,
                bytes: all.bytes + held.bytes,
            })
        })
    }

    fn positions(&self, of: impl Fn(&Board) -> Option<Position>) -> Positions {
        positions(self.iter().map(|(name, board)| (name, of(board))))
    }
}

/// Those sources that are anywhere.
pub(super) fn positions<'a>(each: impl Iterator<Item = (&'a str, Option<Position>)>) -> Positions {
    Positions(
        each.filter_map(|(name, position)| Some((name.to_owned(), position?)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boards(boards: impl IntoIterator<Item = Board>) -> Boards {
        let named = ["db", "uploads"].map(str::to_owned);
        Boards(named.into_iter().zip(boards).collect())
    }

    fn holding(rows: u64) -> Board {
        let holds = Some(Content {
            rows,
            bytes: 10 * rows,
        });
        Board {
            holds,
            ..Board::default()
        }
    }

    fn absent() -> Board {
        Board {
            is_absent: true,
            ..Board::default()
        }
    }

    #[test]
    fn a_source_that_nobody_has_counted_makes_the_sum_unknown() {
        let both = Content { rows: 5, bytes: 50 };
        assert_eq!(boards([holding(2), holding(3)]).content(), Some(both));
        assert_eq!(boards([holding(2), Board::default()]).content(), None);
    }

    #[test]
    fn what_is_not_there_holds_nothing_and_cannot_be_written_to() {
        let fenced = Board {
            is_fenced: true,
            ..Board::default()
        };
        let both = boards([fenced.clone(), absent()]);
        assert!(both.are_fenced());
        assert_eq!(boards([absent(), absent()]).content().unwrap().rows, 0);
        assert!(!boards([fenced, Board::default()]).are_fenced());
    }

    #[test]
    fn one_doubtful_source_makes_the_node_doubtful() {
        let proved = Board {
            is_proved: true,
            ..Board::default()
        };
        assert!(boards([proved.clone(), proved.clone()]).are_proved());
        assert!(!boards([proved, Board::default()]).are_proved());
    }

    #[test]
    fn a_source_without_a_position_is_left_out_and_not_counted_as_zero() {
        let at = Position {
            seq: 7,
            ..Position::default()
        };
        let standing = Board {
            durable: Some(at),
            ..Board::default()
        };
        let durable = boards([standing, Board::default()]).durable();
        assert_eq!(durable.0.len(), 1);
        assert_eq!(durable.0["db"], at);
    }
}
