//! The primary as a follower hears it, source by source: how far it is, since when this node is behind, and what stands in the way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shared::clock;
use shared::model::{Lag, Position};

use super::Node;
use super::report::NO_LAG;
use crate::wire::message::Point;

/// A primary that has not been heard for this long is at an unknown distance.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
/// Why following does not work is logged at most so often; the status always has the latest.
const TROUBLE_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// What is heard of the primary, by source.
pub(super) type Upstreams = BTreeMap<String, Upstream>;

/// What a session with the primary knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Upstream {
    tip: Option<Point>,
    ended: bool,
    heard_at: Option<Instant>,
    /// Since when something that was heard of is not applied here.
    behind_since: Option<Instant>,
    /// Why following does not work.
    trouble: Option<String>,
    /// When that was last written to the log.
    logged_at: Option<Instant>,
    /// Why this node must not be promoted.
    unfit: Option<String>,
}

/// What is to be done about a trouble that is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Telling {
    /// It is known already.
    Known,
    /// Show it.
    Show,
    /// Show it, and write it to the log.
    ShowAndLog,
}

impl Node {
    /// The primary was heard.
    pub fn hear(&self, source: &str, tip: Point, ended: bool) {
        let now = clock::now();
        let applied = self
            .replicas
            .iter()
            .find(|replica| replica.name() == source)
            .and_then(|replica| replica.board().applied);
        let mut inner = self.inner();
        let upstream = inner.upstream.entry(source.to_owned()).or_default();
        let news = upstream.handle_tip(tip, ended, applied, now);
        drop(inner);
        if news {
            self.touch();
        }
    }

    /// The primary was heard, and has no database yet.
    pub fn hear_nothing(&self, source: &str) {
        let mut inner = self.inner();
        let upstream = inner.upstream.entry(source.to_owned()).or_default();
        let news = upstream.handle_absence(clock::now());
        drop(inner);
        if news {
            self.touch();
        }
    }

    /// Following does not work, and why.
    pub fn trouble(&self, source: &str, why: String) {
        let mut inner = self.inner();
        let upstream = inner.upstream.entry(source.to_owned()).or_default();
        let telling = upstream.handle_trouble(why.clone(), clock::now());
        drop(inner);
        if telling == Telling::ShowAndLog {
            tracing::info!(source, why, "not connected to the primary");
        }
        if telling != Telling::Known {
            self.touch();
        }
    }

    /// This node must not be promoted, and why; `None` if nothing is against it any more.
    pub fn set_unfit(&self, source: &str, why: Option<String>) {
        let mut inner = self.inner();
        let upstream = inner.upstream.entry(source.to_owned()).or_default();
        if upstream.unfit != why {
            if let Some(why) = &why {
                tracing::error!(source, why, "this node must not be promoted");
            }
            upstream.unfit = why;
            drop(inner);
            self.touch();
        }
    }
}

impl Upstream {
    /// The primary stands at `tip`, and is at its end if it says so; readers here see `applied`. Whether that is news.
    pub(super) fn handle_tip(
        &mut self,
        tip: Point,
        ended: bool,
        applied: Option<Position>,
        now: Instant,
    ) -> bool {
        let news = self.tip != Some(tip) || self.ended != ended || self.trouble.is_some();
        self.tip = Some(tip);
        self.ended = ended;
        self.heard_at = Some(now);
        self.trouble = None;
        self.behind_since = if applied == Some(tip.position) {
            None
        } else {
            self.behind_since.or(Some(now))
        };
        news
    }

    /// The primary has no database. Whether that is news.
    pub(super) fn handle_absence(&mut self, now: Instant) -> bool {
        let news = self.heard_at.is_none() || self.tip.is_some();
        *self = Self {
            heard_at: Some(now),
            ..Self::default()
        };
        news
    }

    pub(super) fn handle_trouble(&mut self, why: String, now: Instant) -> Telling {
        if self.trouble.as_ref() == Some(&why) {
            return Telling::Known;
        }
        self.trouble = Some(why);
        let lately = |at: Instant| now.duration_since(at) < TROUBLE_LOG_INTERVAL;
        if self.logged_at.is_some_and(lately) {
            return Telling::Show;
        }
        self.logged_at = Some(now);
        Telling::ShowAndLog
    }

    /// Whether the primary has said where it stands.
    pub(super) const fn has_tip(&self) -> bool {
        self.tip.is_some()
    }

    /// Whether the primary has said that it has no database.
    pub(super) const fn is_absent(&self) -> bool {
        self.tip.is_none() && self.heard_at.is_some()
    }

    /// The primary's last position, if it has come to its end and said so.
    pub(super) fn end(&self) -> Option<Position> {
        self.tip.filter(|_| self.ended).map(|tip| tip.position)
    }

    /// Why this node must not be promoted.
    pub(super) fn unfit(&self) -> Option<&str> {
        self.unfit.as_deref()
    }

    /// What stands in the way of following.
    pub(super) fn obstacle(&self) -> Option<&str> {
        self.unfit.as_deref().or(self.trouble.as_deref())
    }

    /// How far readers who see `applied` are behind; `None` if that is not known.
    pub(super) fn lag(&self, applied: Option<Position>, now: Instant) -> Option<Lag> {
        let (tip, applied) = (self.tip?.position, applied?);
        let heard_at = self.heard_at?;
        if now.saturating_duration_since(heard_at) > HEARD_WITHIN {
            return None;
        }
        if tip == applied || applied.seq > tip.seq {
            return Some(NO_LAG);
        }
        let since = self.behind_since;
        Some(Lag {
            seconds: since.map(|since| now.saturating_duration_since(since).as_secs_f64()),
            bytes: None,
            transactions: tip.seq.checked_sub(applied.seq),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tip(seq: u64) -> Point {
        Point {
            position: at(seq),
            content: seq,
        }
    }

    fn at(seq: u64) -> Position {
        Position {
            seq,
            ..Position::default()
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lag_counts_from_when_the_follower_fell_behind() {
        let (mut upstream, start) = (Upstream::default(), clock::now());
        assert_eq!(upstream.lag(Some(at(5)), start), None);
        upstream.handle_tip(tip(5), false, Some(at(5)), start);
        assert_eq!(upstream.lag(Some(at(5)), start), Some(NO_LAG));
        upstream.handle_tip(tip(7), false, Some(at(5)), start + SECOND);
        upstream.handle_tip(tip(9), false, Some(at(6)), start + 2 * SECOND);
        let lag = upstream.lag(Some(at(6)), start + 3 * SECOND).unwrap();
        assert_eq!((lag.seconds, lag.transactions), (Some(2.0), Some(3)));
        upstream.handle_tip(tip(9), false, Some(at(9)), start + 3 * SECOND);
        upstream.handle_tip(tip(10), false, Some(at(9)), start + 4 * SECOND);
        let lag = upstream.lag(Some(at(9)), start + 4 * SECOND).unwrap();
        assert_eq!((lag.seconds, lag.transactions), (Some(0.0), Some(1)));
    }

    #[test]
    fn a_silent_primary_is_at_an_unknown_distance_even_if_all_it_told_is_here() {
        let (mut upstream, start) = (Upstream::default(), clock::now());
        upstream.handle_tip(tip(5), false, Some(at(5)), start);
        assert_eq!(
            upstream.lag(Some(at(5)), start + HEARD_WITHIN),
            Some(NO_LAG)
        );
        let later = start + HEARD_WITHIN + Duration::from_millis(1);
        assert_eq!(upstream.lag(Some(at(5)), later), None);
        assert_eq!(upstream.lag(None, start), None);
    }

    #[test]
    fn only_a_primary_that_has_ended_tells_its_last_position() {
        let (mut upstream, now) = (Upstream::default(), clock::now());
        upstream.handle_tip(tip(5), false, None, now);
        assert_eq!(upstream.end(), None);
        assert!(upstream.handle_tip(tip(5), true, None, now));
        assert_eq!(upstream.end(), Some(at(5)));
    }

    #[test]
    fn only_changes_are_news() {
        let (mut upstream, now) = (Upstream::default(), clock::now());
        assert!(upstream.handle_absence(now));
        assert!(!upstream.handle_absence(now));
        assert!(upstream.is_absent() && !upstream.has_tip());
        assert!(upstream.handle_tip(tip(1), false, None, now));
        assert!(!upstream.handle_tip(tip(1), false, None, now));
        upstream.handle_trouble("the line is cut".into(), now);
        assert_eq!(upstream.obstacle(), Some("the line is cut"));
        assert!(upstream.handle_tip(tip(1), false, None, now));
        assert_eq!(upstream.obstacle(), None);
    }

    #[test]
    fn a_trouble_is_always_shown_and_logged_now_and_then() {
        let (mut upstream, now) = (Upstream::default(), clock::now());
        let mut tell = |why: &str, at| upstream.handle_trouble(why.into(), at);
        assert_eq!(tell("refused", now), Telling::ShowAndLog);
        assert_eq!(tell("refused", now + SECOND), Telling::Known);
        assert_eq!(tell("timed out", now + SECOND), Telling::Show);
        let later = now + TROUBLE_LOG_INTERVAL;
        assert_eq!(tell("refused", later), Telling::ShowAndLog);
    }
}
