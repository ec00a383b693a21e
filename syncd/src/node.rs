//! The node as a whole: orders in, reports out. Puts decisions of `logic::station` on disk and in force, and answers barriers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shared::api::{
    Follow, Lead, Led, Passed, Peer, Refusal, Refused, Report, Seal, Sealed, SourceStatus, Status,
};
use shared::clock;
use shared::model::{ClusterId, Epoch, Lag, Position, Positions, Role};
use shared::rng::Rng;
use tokio::sync::watch;

use crate::config::{Hooks, Settings};
use crate::diverged;
use crate::hook;
use crate::logic::gate::Gate;
use crate::logic::station::{Decision, Disobedience, Held, Standing, Station};
use crate::metrics::Metrics;
use crate::replica::{Board, Replica, Wanted, Work};
use crate::store::Store;
use crate::wire::message::Point;

/// A primary that has not been heard for this long is at an unknown distance.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
/// Why following does not work is logged at most so often; the status always has the latest.
const TROUBLE_LOG_INTERVAL: Duration = Duration::from_secs(5);
/// How long a source may take to begin leading, beyond which the order fails and is repeated.
const LEAD_WITHIN: Duration = Duration::from_secs(60);

/// This node.
#[derive(Debug)]
pub struct Node {
    name: String,
    run: u64,
    store: Store,
    hooks: Hooks,
    replicas: Vec<Replica>,
    metrics: Metrics,
    orders: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
    /// Changes whenever something that is reported may have changed.
    changed: watch::Sender<u64>,
    /// Changes with every order obeyed.
    standing: watch::Sender<(Epoch, Standing)>,
}

#[derive(Debug)]
struct Inner {
    station: Station,
    gate: Option<Gate>,
    /// Standbys with a session, by name.
    peers: BTreeMap<String, PeerState>,
    /// What is heard of the primary, by source.
    upstream: BTreeMap<String, Upstream>,
}

/// A standby as this primary sees it.
#[derive(Clone, Debug, Default)]
struct PeerState {
    /// By source: whether its session is up, and how far it is.
    sources: BTreeMap<String, PeerSource>,
}

#[derive(Clone, Copy, Debug, Default)]
struct PeerSource {
    session: Option<u64>,
    durable: Option<Position>,
    applied: Option<Position>,
}

/// What a session with the primary knows.
#[derive(Clone, Debug, Default)]
struct Upstream {
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

impl Node {
    /// Boots with what is on disk.
    #[must_use]
    pub fn new(
        settings: &Settings,
        held: Held,
        store: Store,
        replicas: Vec<Replica>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let station = Station::new(settings.node.clone(), held);
        let standing = (station.held().epoch, station.standing().clone());
        let inner = Inner {
            station,
            gate: None,
            peers: BTreeMap::new(),
            upstream: BTreeMap::new(),
        };
        Arc::new(Self {
            name: settings.node.clone(),
            run: Rng::new().u64(..),
            store,
            hooks: settings.hooks.clone(),
            replicas,
            metrics,
            orders: tokio::sync::Mutex::new(()),
            inner: Mutex::new(inner),
            changed: watch::channel(0).0,
            standing: watch::channel(standing).0,
        })
    }

    /// What a source does before the first order, given what is on disk.
    #[must_use]
    pub fn wanted_at_boot(name: &str, held: &Held) -> Wanted {
        match &held.cluster {
            None => Wanted::Free,
            Some(_) => Wanted::Seal {
                led: held.last.as_ref().is_some_and(|last| last.name == name),
            },
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its sources.
    #[must_use]
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// Hears of every order obeyed.
    #[must_use]
    pub fn standings(&self) -> watch::Receiver<(Epoch, Standing)> {
        self.standing.subscribe()
    }

    /// Hears of every change that a report would show.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The cluster and epoch it has seen, and whom it last followed.
    #[must_use]
    pub fn held(&self) -> Held {
        self.inner().station.held().clone()
    }

    // ---- orders ----------------------------------------------------------------------------------------------------

    /// Promise, for a standby; fence, for a primary.
    ///
    /// # Errors
    /// The order is out of date, or cannot be remembered.
    pub async fn seal(&self, order: Seal) -> Result<Sealed, Refusal> {
        let _one = self.orders.lock().await;
        let decision = self.inner().station.handle_seal(order.cluster, order.epoch);
        let decision = decision.map_err(|why| self.refusal(why))?;
        let news = decision.standing.is_some();
        self.persist(&decision).await?;
        self.put_in_force(decision);
        if news {
            let led = self.inner().station.has_led();
            tracing::info!(epoch = order.epoch.0, led, "sealed");
            self.replicas
                .iter()
                .for_each(|replica| replica.want(Wanted::Seal { led }));
        }
        let within = Duration::from_millis(order.within_ms);
        self.settle(within).await;
        let sealed = self.sealed(order.epoch);
        if news && sealed.fenced {
            self.run_hook(self.hooks.fenced.clone(), order.epoch, Role::Fenced);
        }
        Ok(sealed)
    }

    async fn settle(&self, within: Duration) {
        let waits = self.replicas.iter().map(|replica| replica.settle(within));
        for wait in waits.map(Box::pin).collect::<Vec<_>>() {
            // A thread that is gone is seen on its board, and by whoever runs the program.
            let _ = wait.await;
        }
    }

    fn sealed(&self, epoch: Epoch) -> Sealed {
        let boards = self.boards();
        Sealed {
            epoch,
            fenced: boards
                .iter()
                .all(|(_, board)| board.is_fenced || board.is_absent),
            proved: boards.iter().all(|(_, board)| board.is_proved),
            durable: positions(&boards, |board| board.durable),
            heard: self.heard(),
        }
    }

    /// Takes writes in the order's epoch.
    ///
    /// # Errors
    /// The order is out of date, this node lacks what it must have, or a source cannot lead.
    pub async fn lead(&self, order: Lead) -> Result<Led, Refusal> {
        let _one = self.orders.lock().await;
        let decision = self
            .inner()
            .station
            .handle_lead(order.clone())
            .map_err(|why| self.refusal(why))?;
        if decision.standing.is_none() {
            return Ok(Led {
                position: self.tip(),
            });
        }
        let begins = self
            .inner()
            .station
            .leads()
            .is_none_or(|lead| lead.epoch != order.epoch);
        if begins && !positions(&self.boards(), |board| board.durable).covers(&order.at_least) {
            let message = format!(
                "this node stands at {}, short of {}",
                self.durable(),
                order.at_least
            );
            return Err(self.refuse(Refused::Behind, message));
        }
        self.persist(&decision).await?;
        let wanted = Wanted::Lead {
            epoch: order.epoch,
            durable: order.durable,
        };
        self.replicas
            .iter()
            .for_each(|replica| replica.want(wanted));
        for replica in &self.replicas {
            let led = tokio::time::timeout(LEAD_WITHIN, replica.led()).await;
            let failed = |why: String| {
                self.refuse(
                    Refused::Failed,
                    format!("source \"{}\" cannot lead: {why}", replica.name()),
                )
            };
            led.map_err(|_| failed("it took too long".to_owned()))?
                .map_err(|error| failed(error.to_string()))?;
        }
        if begins {
            self.run_hook_to_its_end(self.hooks.promoted.clone(), order.epoch, Role::Primary)
                .await;
            tracing::info!(epoch = order.epoch.0, position = %self.tip(), "leading");
        }
        self.put_in_force(decision);
        self.sample_for_gate(&order).await;
        Ok(Led {
            position: self.tip(),
        })
    }

    /// The new state of the gate needs a sample of its own, taken after it came into force.
    async fn sample_for_gate(&self, order: &Lead) {
        match self.sample().await {
            Ok(sample) => {
                if let Some(gate) = &mut self.inner().gate {
                    gate.handle_sample(order.version, sample);
                }
                self.touch();
            }
            Err(why) => tracing::warn!(
                why,
                "no sample for the gate; it stays closed until the next order"
            ),
        }
    }

    /// Follows the order's primary.
    ///
    /// # Errors
    /// The order is out of date, or cannot be remembered.
    pub async fn follow(&self, order: Follow) -> Result<Led, Refusal> {
        let _one = self.orders.lock().await;
        let decision = self
            .inner()
            .station
            .handle_follow(order.clone())
            .map_err(|why| self.refusal(why))?;
        if decision.standing.is_some() {
            self.persist(&decision).await?;
            tracing::info!(epoch = order.epoch.0, primary = order.primary, "following");
            self.replicas
                .iter()
                .for_each(|replica| replica.want(Wanted::Follow));
            self.put_in_force(decision);
        }
        Ok(Led {
            position: self.durable(),
        })
    }

    /// A peer greets with a newer epoch than was seen here: it has heard of it from the arbiter, so it counts as an order.
    ///
    /// # Errors
    /// As [`Node::seal`].
    pub async fn seal_by_greeting(&self, cluster: ClusterId, epoch: Epoch) -> Result<(), Refusal> {
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

    /// Answers once everything that is committed now is on the disk of every required standby.
    ///
    /// # Errors
    /// This node does not lead in `epoch` (any more), or `within` is over.
    pub async fn barrier(&self, epoch: Epoch, within: Duration) -> Result<Passed, Refusal> {
        self.check_barrier(epoch)?;
        let mut changes = self.changes();
        let waited = tokio::time::timeout(within, async {
            let sample = self
                .sample()
                .await
                .map_err(|why| self.refuse(Refused::NotPrimary, why))?;
            loop {
                changes.borrow_and_update();
                self.check_barrier(epoch)?;
                if self
                    .inner()
                    .gate
                    .as_ref()
                    .is_some_and(|gate| gate.passes(&sample))
                {
                    return Ok(Passed { position: sample });
                }
                if changes.changed().await.is_err() {
                    return Err(
                        self.refuse(Refused::NotPrimary, "the program is ending".to_owned())
                    );
                }
            }
        });
        waited.await.unwrap_or_else(|_| {
            Err(self.refuse(
                Refused::Timeout,
                format!("no required standby had it on disk within {within:?}"),
            ))
        })
    }

    fn check_barrier(&self, epoch: Epoch) -> Result<(), Refusal> {
        let inner = self.inner();
        let seen = inner.station.held().epoch;
        let leads = inner.station.leads().map(|lead| lead.epoch);
        drop(inner);
        if leads == Some(epoch) {
            Ok(())
        } else if seen > epoch {
            Err(self.refuse(
                Refused::StaleEpoch,
                format!("epoch {epoch} is over; this node has seen {seen}"),
            ))
        } else {
            Err(self.refuse(
                Refused::NotPrimary,
                format!("this node does not lead in epoch {epoch}"),
            ))
        }
    }

    async fn sample(&self) -> Result<Positions, String> {
        let mut positions = BTreeMap::new();
        let samples: Vec<_> = self
            .replicas
            .iter()
            .map(|replica| Box::pin(replica.sample()))
            .collect();
        // Asked all at once: a barrier is about one moment, and as slow as the slowest source.
        for (replica, sample) in self.replicas.iter().zip(join_all(samples).await) {
            if let Some(position) =
                sample.map_err(|error| format!("source \"{}\": {error}", replica.name()))?
            {
                positions.insert(replica.name().to_owned(), position);
            }
        }
        Ok(Positions(positions))
    }

    async fn persist(&self, decision: &Decision) -> Result<(), Refusal> {
        let Some(held) = decision.persist.clone() else {
            return Ok(());
        };
        let (store, name) = (self.store.clone(), self.name.clone());
        let saved = tokio::task::spawn_blocking(move || store.save_held(&name, &held)).await;
        let why = match saved {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(
            why,
            "an order cannot be obeyed because it cannot be remembered"
        );
        Err(self.refuse(Refused::Failed, why))
    }

    fn put_in_force(&self, decision: Decision) {
        let mut inner = self.inner();
        let before = inner.station.held().epoch;
        inner.station.commit(decision);
        let epoch = inner.station.held().epoch;
        if epoch != before {
            inner.peers.clear();
            inner.upstream.clear();
        }
        let standing = inner.station.standing().clone();
        match &standing {
            Standing::Leading(lead) => match &mut inner.gate {
                Some(gate) if gate.epoch() == lead.epoch => gate.handle_lead(lead),
                gate => *gate = Some(Gate::new(lead)),
            },
            Standing::Free | Standing::Sealed | Standing::Following(_) => inner.gate = None,
        }
        drop(inner);
        self.standing.send_if_modified(|shown| {
            let news = (epoch, standing);
            let changed = *shown != news;
            *shown = news;
            changed
        });
        self.touch();
    }

    // ---- sessions --------------------------------------------------------------------------------------------------

    /// A follower's session begins; a former one of the same follower and source counts no more.
    pub fn open_session(&self, peer: &str, source: &str, session: u64) {
        let mut inner = self.inner();
        let state = inner.peers.entry(peer.to_owned()).or_default();
        state.sources.insert(
            source.to_owned(),
            PeerSource {
                session: Some(session),
                ..PeerSource::default()
            },
        );
        drop(inner);
        self.touch();
    }

    /// It ends.
    pub fn close_session(&self, peer: &str, source: &str, session: u64) {
        let mut inner = self.inner();
        let found = inner
            .peers
            .get_mut(peer)
            .and_then(|state| state.sources.get_mut(source));
        if let Some(found) = found.filter(|found| found.session == Some(session)) {
            found.session = None;
        }
        drop(inner);
        self.touch();
    }

    /// A follower says how far it is, in a session of `epoch`. False if that session counts no more.
    pub fn handle_ack(
        &self,
        peer: &str,
        source: &str,
        session: u64,
        epoch: Epoch,
        durable: Position,
        applied: Position,
    ) -> bool {
        let mut inner = self.inner();
        if inner.station.held().epoch != epoch {
            return false;
        }
        let Some(state) = inner.peers.get_mut(peer) else {
            return false;
        };
        let Some(found) = state
            .sources
            .get_mut(source)
            .filter(|found| found.session == Some(session))
        else {
            return false;
        };
        found.durable = Some(durable);
        found.applied = Some(applied);
        let all = state
            .sources
            .iter()
            .filter_map(|(name, source)| Some((name.clone(), source.durable?)))
            .collect();
        if let Some(gate) = &mut inner.gate {
            gate.handle_durable(peer, Positions(all));
        }
        drop(inner);
        self.touch();
        true
    }

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
        let news =
            upstream.tip != Some(tip) || upstream.ended != ended || upstream.trouble.is_some();
        upstream.tip = Some(tip);
        upstream.ended = ended;
        upstream.heard_at = Some(now);
        upstream.trouble = None;
        upstream.behind_since = if applied == Some(tip.position) {
            None
        } else {
            upstream.behind_since.or(Some(now))
        };
        drop(inner);
        if news {
            self.touch();
        }
    }

    /// The primary was heard, and has no database yet.
    pub fn hear_nothing(&self, source: &str) {
        let mut inner = self.inner();
        let upstream = inner.upstream.entry(source.to_owned()).or_default();
        let news = upstream.heard_at.is_none() || upstream.tip.is_some();
        *upstream = Upstream {
            heard_at: Some(clock::now()),
            ..Upstream::default()
        };
        drop(inner);
        if news {
            self.touch();
        }
    }

    /// Following does not work, and why.
    pub fn trouble(&self, source: &str, why: String) {
        let mut inner = self.inner();
        let upstream = inner.upstream.entry(source.to_owned()).or_default();
        if upstream.trouble.as_ref() != Some(&why) {
            let now = clock::now();
            let lately = |at: Instant| now.duration_since(at) < TROUBLE_LOG_INTERVAL;
            if !upstream.logged_at.is_some_and(lately) {
                tracing::info!(source, why, "not connected to the primary");
                upstream.logged_at = Some(now);
            }
            upstream.trouble = Some(why);
            drop(inner);
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

    /// Something that is reported may have changed.
    pub fn touch(&self) {
        self.changed.send_modify(|turn| *turn += 1);
    }

    // ---- reports ---------------------------------------------------------------------------------------------------

    /// How this node stands.
    #[must_use]
    pub fn report(&self) -> Report {
        let boards = self.boards();
        let inner = self.inner();
        let held = inner.station.held().clone();
        let role = role(&inner, &boards);
        let report = Report {
            node: self.name.clone(),
            run: self.run,
            cluster: held.cluster,
            epoch: held.epoch,
            role,
            primary: held.last.as_ref().map(|last| last.name.clone()),
            fenced: boards
                .iter()
                .all(|(_, board)| board.is_fenced || board.is_absent),
            tip: positions(&boards, |board| board.tip.map(|tip| tip.position)),
            durable: positions(&boards, |board| board.durable),
            applied: positions(&boards, |board| board.applied),
            heard: heard(&inner, &boards),
            lag: lag(&inner, &boards, role),
            peers: self.peers(&inner, &boards),
            gate: inner.gate.as_ref().map(Gate::report),
            content: content(&boards),
            unfit: unfit(&inner, &boards),
        };
        drop(inner);
        self.show(&report, &boards);
        report
    }

    /// How this node stands, in detail.
    #[must_use]
    pub fn status(&self) -> Status {
        let report = self.report();
        let inner = self.inner();
        let sources = self
            .boards()
            .into_iter()
            .map(|(name, board)| source_status(&inner, &name, &board, report.role))
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

    fn show(&self, report: &Report, boards: &[(String, Board)]) {
        self.metrics.stand(report.role, report.epoch.0);
        for (replica, (_, board)) in self.replicas.iter().zip(boards) {
            replica
                .metrics()
                .stand(board.tip.map_or(0, |tip| tip.position.seq), report.lag);
        }
    }

    fn boards(&self) -> Vec<(String, Board)> {
        self.replicas
            .iter()
            .map(|replica| (replica.name().to_owned(), replica.board()))
            .collect()
    }

    fn durable(&self) -> Positions {
        positions(&self.boards(), |board| board.durable)
    }

    fn tip(&self) -> Positions {
        positions(&self.boards(), |board| board.tip.map(|tip| tip.position))
    }

    fn heard(&self) -> Option<Positions> {
        heard(&self.inner(), &self.boards())
    }

    fn peers(&self, inner: &Inner, boards: &[(String, Board)]) -> BTreeMap<String, Peer> {
        let now = clock::now();
        let sources: Vec<_> = self
            .replicas
            .iter()
            .zip(boards)
            .filter(|(_, (_, board))| !board.is_absent)
            .collect();
        let peer = |state: &PeerState| {
            let each = sources
                .iter()
                .map(|(replica, (name, board))| (replica, board, state.sources.get(name)));
            let lags = each.clone().map(|(replica, board, source)| {
                let (tip, applied) = (board.tip?, source?.applied?);
                Some(replica.meter().lag(applied, tip.position, now))
            });
            Peer {
                connected: each
                    .clone()
                    .all(|(.., source)| source.is_some_and(|source| source.session.is_some())),
                durable: collect(each.clone().map(|(replica, _, source)| {
                    (replica.name(), source.and_then(|source| source.durable))
                })),
                applied: collect(each.clone().map(|(replica, _, source)| {
                    (replica.name(), source.and_then(|source| source.applied))
                })),
                lag: worst(lags),
            }
        };
        if inner.station.leads().is_none() {
            return BTreeMap::new();
        }
        inner
            .peers
            .iter()
            .map(|(name, state)| (name.clone(), peer(state)))
            .collect()
    }

    // ---- the rest --------------------------------------------------------------------------------------------------

    fn run_hook(&self, command: Option<String>, epoch: Epoch, role: Role) {
        if let Some(command) = command {
            let (node, within) = (self.name.clone(), self.hooks.timeout);
            tokio::spawn(async move { hook::run(&command, &node, epoch, role, within).await });
        }
    }

    async fn run_hook_to_its_end(&self, command: Option<String>, epoch: Epoch, role: Role) {
        if let Some(command) = command {
            hook::run(&command, &self.name, epoch, role, self.hooks.timeout).await;
        }
    }

    fn refusal(&self, why: Disobedience) -> Refusal {
        let message = match why.refused {
            Refused::StaleEpoch => format!(
                "the order is out of date: node \"{}\" has seen epoch {}",
                self.name, why.epoch
            ),
            Refused::OtherCluster => format!(
                "node \"{}\" belongs to another cluster; to let it join this one, give it an empty state_dir",
                self.name
            ),
            Refused::NotPrimary => format!(
                "node \"{}\" is not one to follow in epoch {}",
                self.name, why.epoch
            ),
            Refused::Behind | Refused::Timeout | Refused::Failed => "it cannot be done".to_owned(),
        };
        Refusal {
            epoch: why.epoch,
            error: why.refused,
            message,
        }
    }

    fn refuse(&self, error: Refused, message: String) -> Refusal {
        Refusal {
            epoch: self.inner().station.held().epoch,
            error,
            message,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn join_all<F: Future + Unpin>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures
        .into_iter()
        .map(|future| (Some(future), None))
        .collect();
    std::future::poll_fn(|cx| {
        let mut waiting = false;
        for (future, output) in &mut futures {
            let Some(pending) = future else { continue };
            match std::pin::Pin::new(pending).poll(cx) {
                std::task::Poll::Ready(done) => {
                    *future = None;
                    *output = Some(done);
                }
                std::task::Poll::Pending => waiting = true,
            }
        }
        if waiting {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    futures
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

fn positions(boards: &[(String, Board)], of: impl Fn(&Board) -> Option<Position>) -> Positions {
    collect(
        boards
            .iter()
            .map(|(name, board)| (name.as_str(), of(board))),
    )
}

fn collect<'a>(each: impl Iterator<Item = (&'a str, Option<Position>)>) -> Positions {
    Positions(
        each.filter_map(|(name, position)| Some((name.to_owned(), position?)))
            .collect(),
    )
}

fn role(inner: &Inner, boards: &[(String, Board)]) -> Role {
    match inner.station.standing() {
        Standing::Free => Role::None,
        Standing::Sealed => Role::Fenced,
        Standing::Leading(_) => Role::Primary,
        Standing::Following(_) => {
            let is_copy = |(name, board): &(String, Board)| {
                let upstream = inner.upstream.get(name);
                let absent_there = upstream
                    .is_some_and(|upstream| upstream.tip.is_none() && upstream.heard_at.is_some());
                board.applied.is_some()
                    && board.work == Work::Apply
                    && board.progress.is_none()
                    && upstream.is_some_and(|upstream| upstream.tip.is_some())
                    || absent_there
            };
            if boards.iter().all(is_copy) {
                Role::Standby
            } else {
                Role::Rejoining
            }
        }
    }
}

/// The former primary's last position as it told it, if it has told it for every source.
fn heard(inner: &Inner, boards: &[(String, Board)]) -> Option<Positions> {
    let mut last = BTreeMap::new();
    for (name, _) in boards {
        let upstream = inner.upstream.get(name).filter(|upstream| upstream.ended)?;
        last.insert(name.clone(), upstream.tip?.position);
    }
    Some(Positions(last))
}

fn lag(inner: &Inner, boards: &[(String, Board)], role: Role) -> Lag {
    if role == Role::Primary {
        return Lag {
            seconds: Some(0.0),
            bytes: Some(0),
            transactions: Some(0),
        };
    }
    worst(
        boards
            .iter()
            .map(|(name, board)| source_lag(inner, name, board)),
    )
}

/// How far a standby knows itself to be behind.
fn source_lag(inner: &Inner, name: &str, board: &Board) -> Option<Lag> {
    let upstream = inner.upstream.get(name)?;
    let now = clock::now();
    let fresh = upstream
        .heard_at
        .is_some_and(|at| now.saturating_duration_since(at) <= HEARD_WITHIN);
    let (tip, applied) = (upstream.tip?, board.applied?);
    if !fresh {
        return None;
    }
    if tip.position == applied || applied.seq > tip.position.seq {
        return Some(Lag {
            seconds: Some(0.0),
            bytes: Some(0),
            transactions: Some(0),
        });
    }
    let seconds = upstream
        .behind_since
        .map(|since| now.saturating_duration_since(since).as_secs_f64());
    Some(Lag {
        seconds,
        bytes: None,
        transactions: tip.position.seq.checked_sub(applied.seq),
    })
}

/// The greatest of several lags; unknown if any is.
fn worst(lags: impl Iterator<Item = Option<Lag>>) -> Lag {
    let zero = Lag {
        seconds: Some(0.0),
        bytes: Some(0),
        transactions: Some(0),
    };
    lags.fold(zero, |all, one| {
        let one = one.unwrap_or_default();
        Lag {
            seconds: all.seconds.zip(one.seconds).map(|(a, b)| a.max(b)),
            bytes: all.bytes.zip(one.bytes).map(|(a, b)| a + b),
            transactions: all.transactions.zip(one.transactions).map(|(a, b)| a + b),
        }
    })
}

fn content(boards: &[(String, Board)]) -> Option<shared::api::Content> {
    boards
        .iter()
        .try_fold(shared::api::Content::default(), |all, (_, board)| {
            let held = if board.is_absent {
                Some(shared::api::Content::default())
            } else {
                board.holds
            };
            held.map(|held| shared::api::Content {
                rows: all.rows + held.rows,
                bytes: all.bytes + held.bytes,
            })
        })
}

fn unfit(inner: &Inner, boards: &[(String, Board)]) -> Option<String> {
    let unproved = boards.iter().find(|(_, board)| !board.is_proved).map(|(name, _)| {
        format!("source \"{name}\": its machine went down uncleanly, so that it may lack writes that others have")
    });
    let said = || {
        boards
            .iter()
            .find_map(|(name, _)| inner.upstream.get(name)?.unfit.clone())
    };
    let failing = || {
        let failing = boards.iter().find(|(_, board)| board.error.is_some())?;
        Some(format!(
            "source \"{}\": {}",
            failing.0,
            failing.1.error.as_deref().unwrap_or_default()
        ))
    };
    unproved.or_else(said).or_else(failing)
}

fn source_status(inner: &Inner, name: &str, board: &Board, role: Role) -> SourceStatus {
    let upstream = inner.upstream.get(name);
    let lag = if role == Role::Primary {
        Lag {
            seconds: Some(0.0),
            bytes: Some(0),
            transactions: Some(0),
        }
    } else {
        source_lag(inner, name, board).unwrap_or_default()
    };
    let following = matches!(inner.station.standing(), Standing::Following(_));
    let trouble =
        upstream.and_then(|upstream| upstream.unfit.clone().or_else(|| upstream.trouble.clone()));
    SourceStatus {
        name: name.to_owned(),
        kind: "sqlite".to_owned(),
        position: board.tip.map(|tip| tip.position).unwrap_or_default(),
        checksum: board.content.map(|content| format!("{content:016x}")),
        lag,
        state: board.state.to_owned(),
        error: board
            .error
            .clone()
            .or_else(|| trouble.filter(|_| following)),
        progress: board.progress,
        wal_bytes: board.wal_bytes,
    }
}
