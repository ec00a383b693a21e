//! What this node says of itself, to the arbiter and to people.

use std::collections::BTreeMap;
use std::time::Instant;

use shared::api::{Peer, Report, SourceStatus, Status};
use shared::clock;
use shared::model::{Lag, Positions, Role};

use super::boards::{Boards, positions};
use super::upstream::Upstreams;
use super::{Inner, Node};
use crate::diverged;
use crate::logic::gate::Gate;
use crate::logic::station::Standing;
use crate::replica::{Board, Work};

/// Not behind at all.
pub(super) const NO_LAG: Lag = Lag {
    seconds: Some(0.0),
    bytes: Some(0),
    transactions: Some(0),
};

impl Node {
    /// How this node stands.
    #[must_use]
    pub fn report(&self) -> Report {
        let boards = self.boards();
        let inner = self.inner();
        let held = inner.station.held();
        let view = View::of(&inner, &boards);
        let role = view.role();
        let report = Report {
            node: self.name.clone(),
            run: self.run,
            cluster: held.cluster,
            epoch: held.epoch,
            role,
            primary: held.last.as_ref().map(|last| last.name.clone()),
            fenced: boards.are_fenced(),
            tip: boards.tip(),
            durable: boards.durable(),
            applied: boards.applied(),
            heard: view.heard(),
            lag: view.lag(role),
            peers: self.report_peers(&inner, &boards),
            gate: inner.gate.as_ref().map(Gate::report),
            content: boards.content(),
            unfit: view.unfit(),
        };
        drop(inner);
        self.show(&report, &boards);
        report
    }

    /// How this node stands, in detail.
    #[must_use]
    pub fn status(&self) -> Status {
        let report = self.report();
        let boards = self.boards();
        let inner = self.inner();
        let view = View::of(&inner, &boards);
        let sources = boards
            .iter()
            .map(|(name, board)| view.source(name, board, report.role))
            .collect();
        drop(inner);
        let lineage = self
            .replicas
            .iter()
            .map(|replica| (replica.name().to_owned(), replica.lineage()))
            .collect();
        let diverged = diverged::list(&self.store.diverged()).map_or(0, |list| list.len() as u64);
        Status {
            report,
            sources,
            lineage,
            diverged,
        }
    }

    /// The former primary's final position, if it has told it for every source.
    pub(super) fn heard(&self, boards: &Boards) -> Option<Positions> {
        View::of(&self.inner(), boards).heard()
    }

    fn show(&self, report: &Report, boards: &Boards) {
        self.metrics.stand(report.role, report.epoch.0);
        for (replica, (_, board)) in self.replicas.iter().zip(boards.iter()) {
            replica
                .metrics()
                .stand(board.tip.map_or(0, |tip| tip.position.seq), report.lag);
        }
    }

    fn report_peers(&self, inner: &Inner, boards: &Boards) -> BTreeMap<String, Peer> {
        if inner.station.leads().is_none() {
            return BTreeMap::new();
        }
        let now = clock::now();
        let present: Vec<_> = self
            .replicas
            .iter()
            .zip(boards.iter())
            .filter(|(_, (_, board))| !board.is_absent)
            .collect();
        let names: Vec<_> = present.iter().map(|(_, (name, _))| *name).collect();
        inner.peers.report(&names, |source, applied| {
            let found = present.iter().find(|(_, (name, _))| *name == source);
            let (replica, (_, board)) = found?;
            Some(replica.meter().lag(applied, board.tip?.position, now))
        })
    }
}

/// Everything that a report is made of.
struct View<'a> {
    standing: &'a Standing,
    upstream: &'a Upstreams,
    boards: &'a Boards,
    now: Instant,
}

impl<'a> View<'a> {
    fn of(inner: &'a Inner, boards: &'a Boards) -> Self {
        Self {
            standing: inner.station.standing(),
            upstream: &inner.upstream,
            boards,
            now: clock::now(),
        }
    }

    fn role(&self) -> Role {
        match self.standing {
            Standing::Free => Role::None,
            Standing::Sealed => Role::Fenced,
            Standing::Leading(_) => Role::Primary,
            Standing::Following(_) => {
                if self
                    .boards
                    .iter()
                    .all(|(name, board)| self.is_copy(name, board))
                {
                    Role::Standby
                } else {
                    Role::Rejoining
                }
            }
        }
    }

    /// Whether a source is what its primary's was at some moment.
    fn is_copy(&self, name: &str, board: &Board) -> bool {
        let Some(upstream) = self.upstream.get(name) else {
            return false;
        };
        let applies =
            board.applied.is_some() && board.work == Work::Apply && board.progress.is_none();
        applies && upstream.has_tip() || upstream.is_absent()
    }

    fn heard(&self) -> Option<Positions> {
        let ends = self.boards.iter().map(|(name, _)| {
            (
                name,
                self.upstream.get(name).and_then(|upstream| upstream.end()),
            )
        });
        ends.clone()
            .all(|(_, end)| end.is_some())
            .then(|| positions(ends))
    }

    fn lag(&self, role: Role) -> Lag {
        if role == Role::Primary {
            return NO_LAG;
        }
        worst(
            self.boards
                .iter()
                .map(|(name, board)| self.source_lag(name, board)),
        )
    }

    fn source_lag(&self, name: &str, board: &Board) -> Option<Lag> {
        self.upstream.get(name)?.lag(board.applied, self.now)
    }

    /// Why this node must not be promoted, the gravest reason first.
    fn unfit(&self) -> Option<String> {
        let unproved = self.boards.iter().find(|(_, board)| !board.is_proved).map(|(name, _)| {
            format!("source \"{name}\": its machine went down uncleanly, so that it may lack writes that others have")
        });
        let said = || {
            let mut all = self.boards.iter();
            all.find_map(|(name, _)| Some(self.upstream.get(name)?.unfit()?.to_owned()))
        };
        let failing = || {
            let mut all = self.boards.iter();
            all.find_map(|(name, board)| {
                Some(format!("source \"{name}\": {}", board.error.as_ref()?))
            })
        };
        unproved.or_else(said).or_else(failing)
    }

    fn source(&self, name: &str, board: &Board, role: Role) -> SourceStatus {
        let lag = if role == Role::Primary {
            NO_LAG
        } else {
            self.source_lag(name, board).unwrap_or_default()
        };
        let obstacle = match self.standing {
            Standing::Following(_) => self.upstream.get(name).and_then(|it| it.obstacle()),
            Standing::Free | Standing::Sealed | Standing::Leading(_) => None,
        };
        SourceStatus {
            name: name.to_owned(),
            kind: "sqlite".to_owned(),
            position: board.tip.map(|tip| tip.position).unwrap_or_default(),
            checksum: board.content.map(|content| format!("{content:016x}")),
            lag,
            state: board.state.to_owned(),
            error: board.error.clone().or_else(|| obstacle.map(str::to_owned)),
            progress: board.progress,
            wal_bytes: board.wal_bytes,
        }
    }
}

/// The greatest of several lags; unknown if any is.
pub(super) fn worst(lags: impl Iterator<Item = Option<Lag>>) -> Lag {
    lags.fold(NO_LAG, |all, one| {
        let one = one.unwrap_or_default();
        Lag {
            seconds: all.seconds.zip(one.seconds).map(|(a, b)| a.max(b)),
            bytes: all.bytes.zip(one.bytes).map(|(a, b)| a + b),
            transactions: all.transactions.zip(one.transactions).map(|(a, b)| a + b),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::Point;
    use shared::api::Follow;
    use shared::model::{ClusterId, Epoch, Position};

    fn at(seq: u64) -> Position {
        Position {
            epoch: Epoch(1),
            generation: 0,
            seq,
        }
    }

    fn following() -> Standing {
        Standing::Following(Follow {
            cluster: ClusterId(1),
            epoch: Epoch(1),
            primary: "a".into(),
            url: "http://a:1".into(),
            overwrite: false,
        })
    }

    fn copy() -> Board {
        Board {
            work: Work::Apply,
            applied: Some(at(5)),
            is_proved: true,
            ..Board::default()
        }
    }

    /// Looks at two sources of a follower, of which the first is a copy that the primary is heard for.
    fn look<T>(
        second: Board,
        hear: impl FnOnce(&mut Upstreams, Instant),
        ask: impl FnOnce(&View<'_>) -> T,
    ) -> T {
        let now = clock::now();
        let mut upstream = Upstreams::new();
        upstream
            .entry("one".into())
            .or_default()
            .handle_tip(tip(5), true, Some(at(5)), now);
        hear(&mut upstream, now);
        let boards = Boards(vec![("one".into(), copy()), ("two".into(), second)]);
        ask(&View {
            standing: &following(),
            upstream: &upstream,
            boards: &boards,
            now,
        })
    }

    fn tip(seq: u64) -> Point {
        Point {
            position: at(seq),
            content: 0,
        }
    }

    #[test]
    fn a_standby_is_one_for_every_source_or_not_at_all() {
        let heard = |upstream: &mut Upstreams, now| {
            let second = upstream.entry("two".into()).or_default();
            second.handle_tip(tip(9), false, Some(at(5)), now);
        };
        let role = |board, hear: fn(&mut Upstreams, Instant)| look(board, hear, |view| view.role());
        assert_eq!(role(copy(), heard), Role::Standby);
        assert_eq!(role(copy(), |_, _| ()), Role::Rejoining);
        assert_eq!(role(Board::default(), heard), Role::Rejoining);
        let resyncing = Board {
            progress: Some((1, 2)),
            ..copy()
        };
        assert_eq!(role(resyncing, heard), Role::Rejoining);
        let absent_there = |upstream: &mut Upstreams, now| {
            upstream
                .entry("two".into())
                .or_default()
                .handle_absence(now);
        };
        assert_eq!(role(Board::default(), absent_there), Role::Standby);
    }

    #[test]
    fn a_source_that_is_not_heard_of_makes_the_whole_lag_unknown() {
        let behind = |upstream: &mut Upstreams, now| {
            let second = upstream.entry("two".into()).or_default();
            second.handle_tip(tip(9), false, Some(at(5)), now);
        };
        let lag = look(copy(), behind, |view| view.lag(Role::Standby));
        assert_eq!((lag.transactions, lag.bytes), (Some(4), None));
        let lag = look(copy(), |_, _| (), |view| view.lag(Role::Standby));
        assert_eq!(lag, Lag::default());
    }

    #[test]
    fn a_final_position_needs_the_end_of_every_source() {
        let told = |ended: bool| {
            let hear = move |upstream: &mut Upstreams, now| {
                let second = upstream.entry("two".into()).or_default();
                second.handle_tip(tip(7), ended, None, now);
            };
            look(copy(), hear, |view| view.heard())
        };
        assert_eq!(told(false), None);
        assert_eq!(told(true).unwrap().0["two"], at(7));
    }

    #[test]
    fn the_gravest_reason_against_a_promotion_is_told_and_names_the_source() {
        let failing = Board {
            error: Some("the disk is full".into()),
            ..copy()
        };
        let why = look(failing.clone(), |_, _| (), |view| view.unfit());
        assert_eq!(why.unwrap(), "source \"two\": the disk is full");
        let unproved = Board {
            is_proved: false,
            ..failing
        };
        let why = look(unproved, |_, _| (), |view| view.unfit()).unwrap();
        assert!(
            why.contains("\"two\"") && why.contains("uncleanly"),
            "{why}"
        );
        assert_eq!(look(copy(), |_, _| (), |view| view.unfit()), None);
    }

    #[test]
    fn a_followers_trouble_is_its_error_while_nothing_worse_is_wrong() {
        let cut = |upstream: &mut Upstreams, now| {
            let second = upstream.entry("two".into()).or_default();
            second.handle_trouble("the line is cut".into(), now);
        };
        let error = |board: Board| {
            look(board.clone(), cut, |view| {
                view.source("two", &board, Role::Standby).error
            })
        };
        assert_eq!(error(copy()).unwrap(), "the line is cut");
        let failing = Board {
            error: Some("the disk is full".into()),
            ..copy()
        };
        assert_eq!(error(failing).unwrap(), "the disk is full");
    }
}
