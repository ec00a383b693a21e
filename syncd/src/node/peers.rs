//! Standbys as their primary sees them: who has a session for which source, and how far each one is.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared::api::{Peer, Refusal, Seal};
use shared::model::{ClusterId, Epoch, Lag, Position, Positions};

use super::Node;
use super::boards::positions;
use super::report::worst;
use crate::wire::message::Ack;

/// Standbys with a session in this epoch, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers(BTreeMap<String, BTreeMap<String, Session>>);

/// The last session of one standby for one source.
#[derive(Clone, Copy, Debug, Default)]
struct Session {
    /// Which; `None` when it has ended.
    open: Option<u64>,
    ack: Option<Ack>,
}

impl Node {
    /// A peer greets with a newer epoch than was seen here: it has heard of it from the arbiter, so it counts as an order.
    ///
    /// # Errors
    /// As [`Node::seal`].
    pub async fn seal_by_greeting(
        self: &Arc<Self>,
        cluster: ClusterId,
        epoch: Epoch,
    ) -> Result<(), Refusal> {
        self.seal(Seal {
            cluster,
            epoch,
            within_ms: 100,
        })
        .await
        .map(drop)
    }

    /// Whether a follower's greeting may be answered with this node's history.
    ///
    /// # Errors
    /// Why not.
    pub fn check_greeting(&self, cluster: ClusterId, epoch: Epoch) -> Result<(), Refusal> {
        let checked = self.inner().station.handle_greeting(cluster, epoch);
        checked.map_err(|why| self.refusal(why))
    }

    /// A follower's session begins; a former one of the same follower and source counts no more.
    pub fn open_session(&self, peer: &str, source: &str, session: u64) {
        self.inner().peers.open(peer, source, session);
        self.touch();
    }

    /// It ends.
    pub fn close_session(&self, peer: &str, source: &str, session: u64) {
        self.inner().peers.close(peer, source, session);
        self.touch();
    }

    /// A follower says how far it is, in a session of `epoch`. False if that session counts no more.
    pub fn handle_ack(
        &self,
        peer: &str,
        source: &str,
        session: u64,
        epoch: Epoch,
        ack: Ack,
    ) -> bool {
        let mut inner = self.inner();
        if inner.station.held().epoch != epoch {
            return false;
        }
        let Some(durable) = inner.peers.handle_ack(peer, source, session, ack) else {
            return false;
        };
        if let Some(gate) = &mut inner.gate {
            gate.handle_durable(peer, durable);
        }
        drop(inner);
        self.touch();
        true
    }
}

impl Peers {
    fn open(&mut self, peer: &str, source: &str, session: u64) {
        let sessions = self.0.entry(peer.to_owned()).or_default();
        let session = Session {
            open: Some(session),
            ack: None,
        };
        sessions.insert(source.to_owned(), session);
    }

    fn close(&mut self, peer: &str, source: &str, session: u64) {
        if let Some(found) = self.find(peer, source, session) {
            found.open = None;
        }
    }

    /// Everything that `peer` has on disk now; `None` if the session counts no more.
    fn handle_ack(
        &mut self,
        peer: &str,
        source: &str,
        session: u64,
        ack: Ack,
    ) -> Option<Positions> {
        self.find(peer, source, session)?.ack = Some(ack);
        let sessions = self.0.get(peer)?;
        let durable = sessions
            .iter()
            .map(|(name, session)| (name.as_str(), session.ack.map(|ack| ack.durable)));
        Some(positions(durable))
    }

    fn find(&mut self, peer: &str, source: &str, session: u64) -> Option<&mut Session> {
        let found = self.0.get_mut(peer)?.get_mut(source)?;
        (found.open == Some(session)).then_some(found)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// How each standby stands with regard to `sources`; `lag` tells how far a position of one is behind.
    pub(super) fn report(
        &self,
        sources: &[&str],
        lag: impl Fn(&str, Position) -> Option<Lag>,
    ) -> BTreeMap<String, Peer> {
        let peer = |sessions: &BTreeMap<String, Session>| {
            let each = sources.iter().map(|name| (*name, sessions.get(*name)));
            let acks = each
                .clone()
                .map(|(name, session)| (name, session.and_then(|session| session.ack)));
            Peer {
                connected: each
                    .clone()
                    .all(|(_, session)| session.is_some_and(|session| session.open.is_some())),
                durable: positions(
                    acks.clone()
                        .map(|(name, ack)| (name, ack.map(|ack| ack.durable))),
                ),
                applied: positions(
                    acks.clone()
                        .map(|(name, ack)| (name, ack.map(|ack| ack.applied))),
                ),
                lag: worst(acks.map(|(name, ack)| lag(name, ack?.applied))),
            }
        };
        self.0
            .iter()
            .map(|(name, sessions)| (name.clone(), peer(sessions)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Position {
        Position {
            seq,
            ..Position::default()
        }
    }

    fn ack(durable: u64, applied: u64) -> Ack {
        Ack {
            durable: at(durable),
            applied: at(applied),
        }
    }

    #[test]
    fn only_the_last_session_of_a_standby_counts() {
        let mut peers = Peers::default();
        assert!(peers.handle_ack("b", "db", 1, ack(1, 1)).is_none());
        peers.open("b", "db", 1);
        assert_eq!(
            peers.handle_ack("b", "db", 1, ack(5, 4)).unwrap().0["db"],
            at(5)
        );
        peers.open("b", "db", 2);
        assert!(peers.handle_ack("b", "db", 1, ack(9, 9)).is_none());
        peers.close("b", "db", 1);
        assert!(peers.handle_ack("b", "db", 2, ack(6, 6)).is_some());
        peers.close("b", "db", 2);
        assert!(peers.handle_ack("b", "db", 2, ack(7, 7)).is_none());
    }

    #[test]
    fn a_standby_is_connected_with_all_sources_and_as_far_behind_as_their_sum() {
        let mut peers = Peers::default();
        peers.open("b", "db", 1);
        peers.handle_ack("b", "db", 1, ack(5, 4));
        let lag = |_: &str, applied: Position| {
            Some(Lag {
                seconds: Some(1.0),
                bytes: Some(10),
                transactions: Some(9 - applied.seq),
            })
        };
        let of_b = |peers: &Peers| peers.report(&["db", "more"], lag)["b"].clone();
        assert!(!of_b(&peers).connected);
        assert_eq!(of_b(&peers).lag, Lag::default());
        peers.open("b", "more", 2);
        peers.handle_ack("b", "more", 2, ack(8, 8));
        let seen = of_b(&peers);
        assert!(seen.connected);
        assert_eq!(seen.durable.0["more"], at(8));
        assert_eq!(seen.applied.0["db"], at(4));
        assert_eq!(seen.lag.transactions, Some(6));
        peers.close("b", "db", 1);
        let seen = of_b(&peers);
        assert!(!seen.connected && seen.durable.0["db"] == at(5));
    }
}
