//! The primary's side of a session: what a follower needs is decided, and sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use shared::api::{Refusal, Refused};
use shared::clock;
use shared::model::{Epoch, Position};
use tokio::io::{AsyncRead, AsyncWrite};

use super::frames::{Hearing, LinkError, Speaking, frames};
use super::{GREETING_WITHIN, HEARTBEAT_EVERY, SILENCE_MOST};
use crate::log::{LogError, Pin, Reader};
use crate::logic::rejoin::{self, Claim, Need};
use crate::logic::station::Standing;
use crate::node::Node;
use crate::replica::Replica;
use crate::sqlite::{PageHashes, PageReader};
use crate::wire::message::{
    Base, Farewell, HASHES_AT_ONCE, Heartbeat, Hello, Message, Plan, Point, VERSION, Welcome,
};

/// So much is gathered before it is sent.
const FLUSH_BYTES: usize = 256 << 10;
/// How many pages are asked for at once.
const PAGES_AT_ONCE: usize = 64;
/// A sealed primary is given this long to come to its end before a follower is told where it stands.
const SETTLE_WITHIN: Duration = Duration::from_millis(50);

static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// What a session is about.
struct Session<S> {
    node: Arc<Node>,
    replica: Replica,
    hearing: Hearing<S>,
    speaking: Speaking<S>,
    hello: Hello,
    id: u64,
    rate: Option<u64>,
}

/// How a session ends early.
enum End {
    /// The connection, or what came over it, is of no use.
    Link(LinkError),
    /// This side says goodbye.
    Farewell(Farewell),
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// Serves one follower over `stream` until either side ends it. `rate` caps snapshots and resyncs, in bytes per second.
pub async fn serve<S: AsyncRead + AsyncWrite + Send>(
    node: Arc<Node>,
    replica: Replica,
    stream: S,
    rate: Option<u64>,
) {
    let (mut hearing, speaking) = frames(stream);
    let hello = match tokio::time::timeout(GREETING_WITHIN, hearing.next()).await {
        Ok(Ok(Message::Hello(hello))) => hello,
        Ok(Ok(_)) | Err(_) => return,
        Ok(Err(error)) => return tracing::info!(%error, "a follower's greeting was not understood"),
    };
    let (peer, source, epoch) = (hello.node.clone(), replica.name().to_owned(), hello.epoch);
    let id = SESSIONS.fetch_add(1, Relaxed);
    let mut session = Session {
        node: Arc::clone(&node),
        replica,
        hearing,
        speaking,
        hello,
        id,
        rate,
    };
    let end = session.run().await;
    node.close_session(&peer, &source, id);
    match end {
        Ok(()) => (),
        Err(End::Link(error)) => {
            tracing::info!(peer, source, epoch = epoch.0, %error, "session with a follower ended");
        }
        Err(End::Farewell(farewell)) => {
            tracing::debug!(
                peer,
                source,
                epoch = epoch.0,
                why = farewell.message,
                "sent a follower away"
            );
            let farewell = Message::Farewell(farewell);
            let said = session.speaking.say(&farewell);
            // It may not listen any more; then it will find out by itself.
            let _ = tokio::time::timeout(Duration::from_secs(1), said).await;
        }
    }
}

impl<S: AsyncRead + AsyncWrite> Session<S> {
    async fn run(&mut self) -> Result<(), End> {
        self.greet().await?;
        let epoch = self.hello.epoch;
        let mut standings = self.node.standings();
        standings.borrow_and_update();
        // From here on, whatever this side's role, the session is over when it changes.
        self.check()?;
        tokio::select! {
            ended = self.serve() => ended,
            () = moved_on(&mut standings, epoch) => Err(End::Farewell(Farewell {
                refused: Some(Refused::StaleEpoch),
                epoch: self.node.held().epoch,
                message: "the epoch of this session is over".to_owned(),
            })),
        }
    }

    async fn greet(&mut self) -> Result<(), End> {
        let hello = &self.hello;
        if hello.version != VERSION {
            let message = format!(
                "this syncd speaks version {VERSION} of the protocol, not {}; upgrade the older one",
                hello.version
            );
            return Err(End::Farewell(Farewell {
                refused: None,
                epoch: self.node.held().epoch,
                message,
            }));
        }
        if hello.epoch > self.node.held().epoch && self.node.held().cluster.is_some() {
            self.node
                .seal_by_greeting(hello.cluster, hello.epoch)
                .await
                .map_err(sent_away)?;
        }
        self.check()
    }

    fn check(&self) -> Result<(), End> {
        self.node
            .check_greeting(self.hello.cluster, self.hello.epoch)
            .map_err(sent_away)
    }

    async fn serve(&mut self) -> Result<(), End> {
        if self.is_sealed() {
            let _ = self.replica.settle(SETTLE_WITHIN).await;
        }
        if self.replica.board().is_absent {
            return self.wait_for_database().await;
        }
        let plan = self.plan().await?;
        let Some(tip) = self.tip() else {
            return Err(self.later("the database is being opened"));
        };
        let welcome = Welcome {
            plan: plan.0,
            lineage: self.replica.lineage(),
            tip,
            ended: self.has_ended(),
        };
        self.speaking.say(&Message::Welcome(welcome)).await?;
        self.node
            .open_session(&self.hello.node, self.replica.name(), self.id);
        let (from, pages) = plan_start(plan);
        let (reader, pin) = self
            .replica
            .reader(from)
            .map_err(|error| self.later(&error.to_string()))?;
        if let Some((page_reader, hashes, base)) = pages {
            self.send_pages(page_reader, &hashes, base).await?;
        }
        self.stream(reader, pin).await
    }

    /// Nothing to send yet: the follower is told so, and greets again when that has changed.
    async fn wait_for_database(&mut self) -> Result<(), End> {
        let welcome = Welcome {
            plan: Plan::Nothing,
            lineage: Vec::new(),
            tip: Point::default(),
            ended: false,
        };
        self.speaking.say(&Message::Welcome(welcome)).await?;
        let mut boards = self.replica.boards();
        let mut tick = tokio::time::interval(HEARTBEAT_EVERY);
        while boards.borrow_and_update().is_absent {
            tokio::select! {
                changed = boards.changed() => if changed.is_err() { break },
                _ = tick.tick() => {
                    self.speaking.say(&Message::Progress(0, 0)).await?;
                }
                message = self.hearing.next() => {
                    message?;
                }
            }
        }
        Err(self.later("there is a database now"))
    }

    // ---- the plan --------------------------------------------------------------------------------------------------

    async fn plan(&mut self) -> Result<(Plan, Option<(PageReader, PageHashes, Base)>), End> {
        let claim = Claim {
            position: self.hello.position,
            checksum: self.hello.content,
            lineage: &self.hello.lineage,
        };
        let need = self
            .replica
            .with_history(|history| rejoin::need(history, claim));
        match need.ok_or_else(|| self.later("its history has not begun yet"))? {
            Need::Stream(position) => {
                let content = self.hello.content.unwrap_or_default();
                Ok((Plan::Stream(Point { position, content }), None))
            }
            Need::Resync(reason) => self.plan_resync(reason, false).await,
            Need::PreserveThenResync(reason) => self.plan_resync(reason, true).await,
        }
    }

    async fn plan_resync(
        &mut self,
        reason: crate::wire::message::Reason,
        preserve: bool,
    ) -> Result<(Plan, Option<(PageReader, PageHashes, Base)>), End> {
        let opened = self.replica.open_pages().await;
        let (reader, hashes, now) = opened.map_err(|error| self.later(&error.to_string()))?;
        // Going on where an earlier resync was cut spares what it has fetched, if the increments since are still there.
        let goes_on = |base: &Base| {
            base.lineage == now.lineage
                && base.page_size == now.page_size
                && self.replica.reader(base.point.position).is_ok()
        };
        let base = self.hello.stage.filter(goes_on).unwrap_or(now);
        Ok((
            Plan::Resync {
                base,
                reason,
                preserve,
            },
            Some((reader, hashes, base)),
        ))
    }

    // ---- pages -----------------------------------------------------------------------------------------------------

    /// Compares page hashes, chunk by chunk as the follower sends them, and sends the pages that differ.
    async fn send_pages(
        &mut self,
        mut reader: PageReader,
        hashes: &PageHashes,
        base: Base,
    ) -> Result<(), End> {
        let mut budget = Budget::new(self.rate);
        loop {
            let message = tokio::time::timeout(GREETING_WITHIN, self.hearing.next()).await;
            let Message::Hashes(first, theirs) =
                message.map_err(|_| self.later("no hashes came"))??
            else {
                return Err(self.later("hashes were expected"));
            };
            let is_last = theirs.len() < HASHES_AT_ONCE;
            let mut wanted = differing(hashes, first, &theirs, base.pages);
            if is_last {
                let next = first.saturating_add(u32::try_from(theirs.len()).unwrap_or(u32::MAX));
                wanted.extend((next..=base.pages).filter(|number| !hashes.is_zero(*number)));
            }
            reader = self.send_wanted(reader, &wanted, base, &mut budget).await?;
            self.speaking
                .say(&Message::Progress(
                    u64::from(first) + theirs.len() as u64,
                    u64::from(base.pages),
                ))
                .await?;
            if is_last {
                break;
            }
        }
        // Everything that was committed while pages were read is captured by now.
        let seen = self.replica.sample_or_settle().await;
        let Some(tip) = self.tip().filter(|_| seen) else {
            return Err(self.later("the capture was interrupted"));
        };
        self.speaking.say(&Message::PagesEnd(tip)).await?;
        Ok(())
    }

    async fn send_wanted(
        &mut self,
        mut reader: PageReader,
        wanted: &[u32],
        base: Base,
        budget: &mut Budget,
    ) -> Result<PageReader, End> {
        let mut rest = wanted;
        let mut told_at = clock::now();
        while !rest.is_empty() {
            let some: Vec<u32> = rest.iter().take(PAGES_AT_ONCE).copied().collect();
            let read = tokio::task::spawn_blocking(move || {
                let read = reader.read(&some);
                (reader, read)
            });
            let (back, read) = read.await.map_err(|error| self.later(&error.to_string()))?;
            reader = back;
            let (pages, done) = read.map_err(|error| self.later(&error.to_string()))?;
            rest = &rest[done.max(1)..];
            let waiting = self.speaking.add(&Message::Pages(base.page_size, pages));
            if waiting >= FLUSH_BYTES || rest.is_empty() {
                let bytes = self.speaking.flush().await?;
                self.replica.metrics().sent(bytes);
                budget.spend(bytes).await;
            }
            let now = clock::now();
            if now >= told_at + HEARTBEAT_EVERY {
                told_at = now;
                self.speaking
                    .say(&Message::Heartbeat(self.heartbeat()))
                    .await?;
            }
        }
        Ok(reader)
    }

    // ---- increments ------------------------------------------------------------------------------------------------

    async fn stream(&mut self, mut reader: Reader, pin: Pin) -> Result<(), End> {
        let mut boards = self.replica.boards();
        let mut tick = tokio::time::interval(HEARTBEAT_EVERY);
        let mut heard_at = clock::now();
        let mut told = None;
        loop {
            boards.borrow_and_update();
            while self.add_increments(&mut reader)? {
                self.send().await?;
            }
            // In one piece with what came before it, so that the follower is woken once.
            let heartbeat = self.heartbeat();
            if told != Some((heartbeat.ended, reader.position())) {
                told = Some((heartbeat.ended, reader.position()));
                self.speaking.add(&Message::Heartbeat(heartbeat));
                self.send().await?;
            }
            tokio::select! {
                changed = boards.changed() => changed.map_err(|_| self.later("the program is ending"))?,
                _ = tick.tick() => {
                    if clock::now().saturating_duration_since(heard_at) > SILENCE_MOST {
                        return Err(self.later("nothing was heard for too long"));
                    }
                    told = None;
                }
                message = self.hearing.next() => {
                    heard_at = clock::now();
                    self.handle(&message?, &pin)?;
                    while let Some(message) = self.hearing.ready()? {
                        self.handle(&message, &pin)?;
                    }
                }
            }
        }
    }

    /// Gets a piece of what the log has ready to be sent; true if there is more.
    fn add_increments(&mut self, reader: &mut Reader) -> Result<bool, End> {
        let mut waiting = 0;
        while waiting < FLUSH_BYTES {
            match reader.poll() {
                Ok(Some(increment)) => waiting = self.speaking.add(&Message::Increment(increment)),
                Ok(None) => break,
                Err(error @ (LogError::Moved | LogError::Gone { .. })) => {
                    return Err(self.later(&error.to_string()));
                }
                Err(error) => {
                    tracing::error!(source = self.replica.name(), %error, "cannot read the log");
                    return Err(self.later(&error.to_string()));
                }
            }
        }
        Ok(waiting >= FLUSH_BYTES)
    }

    async fn send(&mut self) -> Result<(), End> {
        let bytes = self.speaking.flush().await?;
        self.replica.metrics().sent(bytes);
        Ok(())
    }

    fn handle(&self, message: &Message, pin: &Pin) -> Result<(), End> {
        let Message::Ack(ack) = message else {
            return Err(self.later("an acknowledgement was expected"));
        };
        let (peer, source) = (self.hello.node.as_str(), self.replica.name());
        if !self
            .node
            .handle_ack(peer, source, self.id, self.hello.epoch, *ack)
        {
            return Err(self.later("another session of this follower has begun"));
        }
        pin.advance(ack.durable.seq);
        if let Some(age) = self.replica.meter().age(ack.durable, clock::now()) {
            self.replica.metrics().acknowledged(age);
        }
        Ok(())
    }

    // ---- where this side stands ------------------------------------------------------------------------------------

    fn is_sealed(&self) -> bool {
        self.node.standings().borrow().1 == Standing::Sealed
    }

    /// Whether this node has led, is fenced, and all it had is captured: its tip is final.
    fn has_ended(&self) -> bool {
        let board = self.replica.board();
        self.is_sealed() && board.is_fenced && board.is_proved && board.is_settled
    }

    fn tip(&self) -> Option<Point> {
        self.replica.board().tip.map(|tip| Point {
            position: tip.position,
            content: tip.content,
        })
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            tip: self.tip().unwrap_or_default(),
            ended: self.has_ended(),
        }
    }

    fn later(&self, why: &str) -> End {
        End::Farewell(Farewell {
            refused: None,
            epoch: self.node.held().epoch,
            message: why.to_owned(),
        })
    }
}

fn sent_away(refusal: Refusal) -> End {
    End::Farewell(Farewell {
        refused: Some(refusal.error),
        epoch: refusal.epoch,
        message: refusal.message,
    })
}

async fn moved_on(standings: &mut tokio::sync::watch::Receiver<(Epoch, Standing)>, epoch: Epoch) {
    let _ = standings.wait_for(|(now, _)| *now != epoch).await;
}

fn plan_start(
    (plan, pages): (Plan, Option<(PageReader, PageHashes, Base)>),
) -> (Position, Option<(PageReader, PageHashes, Base)>) {
    let from = match plan {
        Plan::Stream(point) => point.position,
        Plan::Resync { base, .. } => base.point.position,
        Plan::Nothing => Position::default(),
    };
    (from, pages)
}

/// The numbers, up to `most`, of pages whose hash is another here.
fn differing(hashes: &PageHashes, first: u32, theirs: &[u64], most: u32) -> Vec<u32> {
    let ours = hashes.range(first, theirs.len());
    let pairs = (first..=most).zip(ours.iter().zip(theirs));
    pairs
        .filter(|(_, (ours, theirs))| ours != theirs)
        .map(|(number, _)| number)
        .collect()
}

/// A cap on bytes per second.
struct Budget {
    rate: Option<u64>,
    began: Instant,
    spent: u64,
}

impl Budget {
    fn new(rate: Option<u64>) -> Self {
        Self {
            rate,
            began: clock::now(),
            spent: 0,
        }
    }

    async fn spend(&mut self, bytes: u64) {
        self.spent += bytes;
        if let Some(rate) = self.rate {
            let millis = self.spent.saturating_mul(1000) / rate.max(1);
            clock::sleep_until(self.began + Duration::from_millis(millis)).await;
        }
    }
}
