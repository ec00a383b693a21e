//! How far a client has seen a service's data, as text for a cookie: the term, and where each source stood after the client's
//! last write.

use std::fmt::Write;

use shared::model::{Epoch, Position, Positions};

/// Longer texts are not written: a client sends them with every request.
const TEXT_MOST: usize = 512;

/// What a client must be shown at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The term in which it was seen; what was seen in another says nothing of this one's history.
    pub epoch: Epoch,
    /// Where the sources stood.
    pub position: Positions,
}

impl Seen {
    /// The text; `None` when it does not fit into a cookie.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let mut text = self.epoch.to_string();
        for (source, position) in &self.position.0 {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            if !source.bytes().all(plain) {
                return None;
            }
            let Position {
                epoch,
                generation,
                seq,
            } = position;
            let _ = write!(text, "/{source}:{epoch}:{generation}:{seq}");
        }
        (text.len() <= TEXT_MOST).then_some(text)
    }

    /// What a text says; `None` when it is not of the form.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        if text.len() > TEXT_MOST {
            return None;
        }
        let mut parts = text.split('/');
        let epoch = Epoch(parts.next()?.parse().ok()?);
        let source = |part: &str| {
            let mut words = part.split(':');
            let name = words.next()?.to_owned();
            let position = Position {
                epoch: Epoch(words.next()?.parse().ok()?),
                generation: words.next()?.parse().ok()?,
                seq: words.next()?.parse().ok()?,
            };
            words.next().is_none().then_some((name, position))
        };
        let position = Positions(parts.map(source).collect::<Option<_>>()?);
        Some(Self { epoch, position })
    }

    /// Whether a node whose readers see `applied` in the term `epoch` shows at least this.
    #[must_use]
    pub fn is_in(&self, epoch: Epoch, applied: &Positions) -> bool {
        self.epoch == epoch && !self.position.0.is_empty() && applied.covers(&self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, seq: u64) -> Positions {
        let position = Position {
            epoch: Epoch(epoch),
            generation: 2,
            seq,
        };
        Positions(
            [
                ("db".to_owned(), position),
                ("other-1".to_owned(), position),
            ]
            .into(),
        )
    }

    #[test]
    fn what_is_written_is_read_again_and_nothing_else_is() {
        let seen = Seen {
            epoch: Epoch(7),
            position: at(6, 12345),
        };
        let text = seen.text().unwrap();
        assert_eq!(text, "7/db:6:2:12345/other-1:6:2:12345");
        assert_eq!(Seen::read(&text), Some(seen));
        for text in [
            "",
            "x",
            "7/",
            "7/db",
            "7/db:1:2",
            "7/db:1:2:3:4",
            "7/db:1:2:x",
            "-1",
        ] {
            assert_eq!(Seen::read(text), None, "{text}");
        }
        let odd = Positions([("a;b".to_owned(), Position::default())].into());
        let odd = Seen {
            epoch: Epoch(1),
            position: odd,
        };
        assert_eq!(odd.text(), None);
    }

    #[test]
    fn only_the_same_term_and_a_position_not_before_it_will_do() {
        let seen = Seen {
            epoch: Epoch(7),
            position: at(7, 10),
        };
        assert!(seen.is_in(Epoch(7), &at(7, 10)) && seen.is_in(Epoch(7), &at(7, 11)));
        assert!(!seen.is_in(Epoch(7), &at(7, 9)));
        assert!(!seen.is_in(Epoch(8), &at(7, 11)), "another term");
        assert!(
            !seen.is_in(Epoch(7), &at(6, 11)),
            "another stretch of history"
        );
        assert!(
            !seen.is_in(Epoch(7), &Positions::default()),
            "nothing is known"
        );
        let nothing = Seen {
            epoch: Epoch(7),
            position: Positions::default(),
        };
        assert!(!nothing.is_in(Epoch(7), &at(7, 10)));
    }
}
