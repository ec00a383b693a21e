//! The follower's side: finds out whom to follow, greets, and hands on what comes.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use shared::backoff::Backoff;
use shared::call::Peer;
use shared::clock;
use shared::drain;
use shared::model::{ClusterId, Epoch, Position};
use shared::rng::Rng;
use tokio::sync::watch;

use super::frames::{Hearing, LinkError, Speaking, frames};
use super::{GREETING_WITHIN, HEARTBEAT_EVERY, SILENCE_MOST};
use crate::logic::station::Standing;
use crate::node::Node;
use crate::replica::{Claim, Replica, Resync, Turn};
use crate::wire::increment::Increment;
use crate::wire::message::{
    Ack, Base, HASHES_AT_ONCE, Hello, Message, PROTOCOL, Plan, Reason, VERSION, Welcome,
};

type Stream = TokioIo<hyper::upgrade::Upgraded>;
/// How far the spool is on disk, or why not.
type Spooled = Result<Option<Position>, String>;

/// How long a primary may take to answer the phone.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// A connection that held for so long was a good one: the next attempt need not wait.
const LASTING: Duration = Duration::from_secs(1);
/// At most so many increments are handed to the spool at once.
const BATCH_MOST: usize = 256;

/// Whom to follow, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    cluster: ClusterId,
    epoch: Epoch,
    primary: String,
    url: String,
    /// An order to follow; otherwise only the tail of a former primary is fetched.
    follows: bool,
    overwrite: bool,
}

/// Keeps the source of `replica` a copy of whoever is primary, until the drain begins.
pub async fn run(
    node: Arc<Node>,
    replica: Replica,
    token: Option<String>,
    mut drain: drain::Watch,
) {
    let mut standings = node.standings();
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(250));
    let mut rng = Rng::new();
    loop {
        standings.borrow_and_update();
        let Some(target) = target(&node) else {
            tokio::select! {
                () = drain.begun() => return,
                changed = standings.changed() => if changed.is_err() { return },
            }
            continue;
        };
        let began = clock::now();
        let mut session = Session {
            node: &node,
            replica: &replica,
            target,
            spooled: false,
        };
        let ended = tokio::select! {
            () = drain.begun() => return,
            changed = standings.changed() => {
                if changed.is_err() { return }
                backoff.reset();
                continue;
            }
            ended = session.run(token.as_deref()) => ended,
        };
        if session.spooled || clock::now().duration_since(began) >= LASTING {
            backoff.reset();
        }
        if let Err(why) = ended {
            node.trouble(replica.name(), why);
        }
        tokio::select! {
            () = drain.begun() => return,
            () = clock::sleep(backoff.wait(&mut rng)) => (),
            changed = standings.changed() => if changed.is_err() { return },
        }
    }
}

fn target(node: &Node) -> Option<Target> {
    let held = node.held();
    let (cluster, epoch) = (held.cluster?, held.epoch);
    let (_, standing) = node.standings().borrow().clone();
    match standing {
        Standing::Following(follow) => Some(Target {
            cluster,
            epoch,
            primary: follow.primary,
            url: follow.url,
            follows: true,
            overwrite: follow.overwrite,
        }),
        Standing::Sealed => {
            let last = held.last.filter(|last| last.name != node.name())?;
            Some(Target {
                cluster,
                epoch,
                primary: last.name,
                url: last.url,
                follows: false,
                overwrite: false,
            })
        }
        Standing::Free | Standing::Leading(_) => None,
    }
}

struct Session<'a> {
    node: &'a Node,
    replica: &'a Replica,
    target: Target,
    /// Something new has been made durable.
    spooled: bool,
}

impl Session<'_> {
    /// One session, until it breaks. The error says why, in words.
    async fn run(&mut self, token: Option<&str>) -> Result<(), String> {
        let peer = Peer::new(&self.target.url, token).map_err(|error| error.to_string())?;
        let claim = self
            .replica
            .claim()
            .await
            .map_err(|error| error.to_string())?;
        let path = format!("/v1/stream?source={}", self.replica.name());
        let connection = peer
            .upgrade(&path, PROTOCOL, CONNECT_WITHIN)
            .await
            .map_err(|error| error.to_string())?;
        let (mut hearing, mut speaking) = frames(TokioIo::new(connection));
        let hello = Message::Hello(self.hello(&claim));
        speaking.say(&hello).await.map_err(words)?;
        let welcome = match tokio::time::timeout(GREETING_WITHIN, hearing.next()).await {
            Ok(Ok(Message::Welcome(welcome))) => welcome,
            Ok(Ok(Message::Farewell(farewell))) => {
                return Err(format!("{}: {}", self.target.primary, farewell.message));
            }
            Ok(Ok(_)) => {
                return Err(format!(
                    "{} answered with something else than a welcome",
                    self.target.primary
                ));
            }
            Ok(Err(error)) => return Err(words(error)),
            Err(_) => {
                return Err(format!(
                    "{} did not answer the greeting",
                    self.target.primary
                ));
            }
        };
        self.follow(welcome, &claim, &mut hearing, &mut speaking)
            .await
    }

    fn hello(&self, claim: &Claim) -> Hello {
        Hello {
            version: VERSION,
            cluster: self.target.cluster,
            epoch: self.target.epoch,
            node: self.node.name().to_owned(),
            position: claim.position,
            content: claim.content,
            stage: claim.stage,
            lineage: self.replica.lineage(),
        }
    }

    async fn follow(
        &mut self,
        welcome: Welcome,
        claim: &Claim,
        hearing: &mut Hearing<Stream>,
        speaking: &mut Speaking<Stream>,
    ) -> Result<(), String> {
        let source = self.replica.name();
        let (turn, until) = match welcome.plan {
            Plan::Nothing => return self.wait_with(hearing).await,
            Plan::Stream(point) => {
                let at = crate::log::Point {
                    position: point.position,
                    content: point.content,
                };
                let turn = self.replica.stream(at, welcome.lineage).await;
                (turn.map_err(|error| error.to_string())?, None)
            }
            Plan::Resync {
                base,
                reason,
                preserve,
            } => {
                self.may_resync(reason, preserve, claim)?;
                let (turn, until) = self
                    .resync(base, reason, preserve, welcome.lineage, hearing, speaking)
                    .await?;
                (turn, Some(until))
            }
        };
        self.node.set_unfit(source, None);
        self.node.hear(source, welcome.tip, welcome.ended);
        Streaming {
            session: self,
            turn,
            until,
            spooled: None,
            is_waiting: false,
        }
        .run(hearing, speaking)
        .await
    }

    /// The primary has no database yet; it ends the session when it has.
    async fn wait_with(&self, hearing: &mut Hearing<Stream>) -> Result<(), String> {
        loop {
            self.node.hear_nothing(self.replica.name());
            match tokio::time::timeout(SILENCE_MOST, hearing.next()).await {
                Ok(Ok(Message::Farewell(_))) => return Ok(()),
                Ok(Ok(_)) => (),
                Ok(Err(error)) => return Err(words(error)),
                Err(_) => return Err(format!("{} fell silent", self.target.primary)),
            }
        }
    }

    /// Whether what is here may be overwritten.
    fn may_resync(&self, reason: Reason, preserve: bool, claim: &Claim) -> Result<(), String> {
        if !self.target.follows && preserve {
            return Err(format!(
                "what is here is not in the history of {} ({}); waiting for an order",
                self.target.primary,
                reason.as_str()
            ));
        }
        if reason == Reason::Unrelated && !claim.is_fresh && !self.target.overwrite {
            let why = format!(
                "it holds data of its own that has no common history with {}; \
                 `hotwarm rejoin SERVICE {}` lets it give that up (a copy is kept)",
                self.target.primary,
                self.node.name()
            );
            self.node.set_unfit(self.replica.name(), Some(why.clone()));
            return Err(why);
        }
        Ok(())
    }

    /// Fetches the pages that differ. Returns the turn for the increments that come now, and the seq up to which they complete the pages.
    async fn resync(
        &self,
        base: Base,
        reason: Reason,
        preserve: bool,
        lineage: Vec<shared::api::Fork>,
        hearing: &mut Hearing<Stream>,
        speaking: &mut Speaking<Stream>,
    ) -> Result<(Turn, u64), String> {
        let order = Resync {
            base,
            lineage,
            reason,
            preserve,
            epoch: self.target.epoch,
        };
        self.replica
            .begin_resync(order)
            .await
            .map_err(|error| error.to_string())?;
        let mut first = 1;
        loop {
            let hashes = self
                .replica
                .hashes(first)
                .await
                .map_err(|error| error.to_string())?;
            let count = hashes.len();
            speaking
                .say(&Message::Hashes(first, hashes))
                .await
                .map_err(words)?;
            self.take_pages(hearing).await?;
            if count < HASHES_AT_ONCE {
                break;
            }
            first += u32::try_from(count).unwrap_or(u32::MAX);
        }
        let last = self.hear(hearing).await?;
        let Message::PagesEnd(tip) = last else {
            return Err(unexpected(&last));
        };
        let turn = self.replica.end_pages(tip.position.seq).await;
        Ok((turn.map_err(|error| error.to_string())?, tip.position.seq))
    }

    /// Stages pages until the primary says that this chunk is done.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever else a peer says here is refused alike"
    )]
    async fn take_pages(&self, hearing: &mut Hearing<Stream>) -> Result<(), String> {
        loop {
            match self.hear(hearing).await? {
                Message::Pages(_, pages) => self
                    .replica
                    .stage(pages)
                    .await
                    .map_err(|error| error.to_string())?,
                Message::Heartbeat(heartbeat) => {
                    self.node
                        .hear(self.replica.name(), heartbeat.tip, heartbeat.ended);
                }
                Message::Progress(..) => return Ok(()),
                other => return Err(unexpected(&other)),
            }
        }
    }

    async fn hear(&self, hearing: &mut Hearing<Stream>) -> Result<Message, String> {
        match tokio::time::timeout(GREETING_WITHIN, hearing.next()).await {
            Ok(Ok(Message::Farewell(farewell))) => {
                Err(format!("{}: {}", self.target.primary, farewell.message))
            }
            Ok(message) => message.map_err(words),
            Err(_) => Err(format!("{} fell silent", self.target.primary)),
        }
    }
}

/// A change of what is applied alone is told at most this often.
const APPLIED_PACE: Duration = Duration::from_millis(10);

/// Increments come, acknowledgements go.
struct Streaming<'a, 'b> {
    session: &'a mut Session<'b>,
    turn: Turn,
    /// A resync is complete once the increments up to here are applied with it; before, nothing of it is durable.
    until: Option<u64>,
    /// What the spool has on disk, of what came in this session.
    spooled: Option<Position>,
    /// The spool has been handed something since it last said so.
    is_waiting: bool,
}

impl Streaming<'_, '_> {
    async fn run(
        mut self,
        hearing: &mut Hearing<Stream>,
        speaking: &mut Speaking<Stream>,
    ) -> Result<(), String> {
        let replica = self.session.replica;
        let (mut boards, mut spool) = (replica.boards(), replica.spooled());
        spool.borrow_and_update();
        let mut told: Option<Ack> = None;
        let mut told_at = clock::now();
        loop {
            let ack = self.ack(&mut boards);
            // Nobody waits for what is applied; it goes with the next word about what is durable, or soon by itself.
            let may_wait = told.is_some_and(|told| told.durable == ack.durable);
            let owed = told_at
                + if may_wait {
                    APPLIED_PACE
                } else {
                    Duration::ZERO
                };
            let owes = told != Some(ack);
            if owes && clock::now() >= owed {
                (told, told_at) = (Some(ack), clock::now());
                speaking.say(&Message::Ack(ack)).await.map_err(words)?;
                continue;
            }
            tokio::select! {
                () = clock::sleep_until(owed), if owes => (),
                changed = spool.changed() => {
                    changed.map_err(|_| "the spool has ended".to_owned())?;
                    self.spooled = spool.borrow_and_update().clone()?;
                    self.session.spooled = true;
                    self.is_waiting = false;
                }
                changed = boards.changed() => changed.map_err(|_| "the source has ended".to_owned())?,
                heard = tokio::time::timeout(SILENCE_MOST, hearing.next()) => {
                    let first = heard.map_err(|_| format!("{} fell silent", self.session.target.primary))?.map_err(words)?;
                    match self.take(first, hearing).await {
                        // A sign of life is asked for; any word is one.
                        Ok(true) if clock::now() >= told_at + HEARTBEAT_EVERY / 2 => told = None,
                        Ok(_) => (),
                        Err(why) => {
                            self.note_last_progress(&mut spool).await;
                            return Err(why);
                        }
                    }
                }
            }
        }
    }

    /// The session is over, but what was handed to the spool before may become durable yet: a wire that breaks again and again is
    /// worth dialling again at once as long as something comes through.
    async fn note_last_progress(&mut self, spool: &mut watch::Receiver<Spooled>) {
        if self.is_waiting {
            let told = tokio::time::timeout(LASTING, spool.changed()).await;
            self.session.spooled |= matches!(told, Ok(Ok(()))) && spool.borrow_and_update().is_ok();
        }
    }

    /// What may be said to be here.
    fn ack(&mut self, boards: &mut watch::Receiver<crate::replica::Board>) -> Ack {
        let board = boards.borrow_and_update();
        let applied = board.applied.unwrap_or_default();
        if self
            .until
            .is_some_and(|until| board.progress.is_none() && applied.seq >= until)
        {
            self.until = None;
        }
        let durable = match (self.until, self.spooled) {
            (None, Some(spooled)) => spooled,
            _ => board.durable.unwrap_or_default(),
        };
        Ack { durable, applied }
    }

    /// Hands on a message and all that have come with it. True if one was a sign of life that wants an answer.
    async fn take(
        &mut self,
        first: Message,
        hearing: &mut Hearing<Stream>,
    ) -> Result<bool, String> {
        let mut batch = Batch::default();
        let mut heard = self.sort(first, &mut batch);
        while heard.is_ok() && batch.increments.len() < BATCH_MOST {
            heard = match hearing.ready() {
                Ok(Some(message)) => self.sort(message, &mut batch),
                Ok(None) => break,
                Err(error) => Err(words(error)),
            };
        }
        // What came whole before a damaged frame is kept, or a wire that damages something now and then would allow no progress.
        if !batch.increments.is_empty() {
            self.is_waiting = true;
            self.session
                .replica
                .spool(self.turn, batch.increments)
                .await
                .map_err(|error| error.to_string())?;
        }
        heard.map(|()| batch.sign_of_life)
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever else a peer says here is refused alike"
    )]
    fn sort(&self, message: Message, batch: &mut Batch) -> Result<(), String> {
        match message {
            Message::Increment(increment) => batch.increments.push(increment),
            Message::Heartbeat(heartbeat) => {
                let source = self.session.replica.name();
                self.session
                    .node
                    .hear(source, heartbeat.tip, heartbeat.ended);
                batch.sign_of_life = true;
            }
            Message::Farewell(farewell) => {
                let primary = &self.session.target.primary;
                return Err(format!("{primary}: {}", farewell.message));
            }
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }
}

/// What came in together.
#[derive(Default)]
struct Batch {
    increments: Vec<Increment>,
    sign_of_life: bool,
}

fn unexpected(message: &Message) -> String {
    let kind = format!("{message:?}");
    let kind = kind.split(['(', ' ']).next().unwrap_or_default();
    format!("the primary sent a message of kind {kind} where it does not belong")
}

fn words(error: LinkError) -> String {
    error.to_string()
}
