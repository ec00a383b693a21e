//! One source as a thread of its own: it owns the database and the log, captures or applies, and keeps its fence.
//!
//! Everybody else has a [`Replica`]: a handle whose calls are messages to that thread, and a [`Board`] on which the thread
//! shows how it stands. Increments that arrive for a standby take a second thread, the spool, so that an acknowledgement never
//! waits for a large transaction to be applied. A third runs checkpoints.

mod capture;
mod follow;
mod keeper;
mod meter;
mod patience;
mod resize;
mod spool;
mod tender;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use shared::api::{Content, Fork};
use shared::clock;
use shared::model::{Epoch, Position};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::meter::Meter;
use crate::config::Source;
use crate::log::{Limits, Log, Point, Retention};
use crate::logic::rejoin::History;
use crate::metrics::SourceMetrics;
use crate::sqlite::{Kick, Options, PageHashes, PageReader};
use crate::store::{Lineage, Store, StoreError};
use crate::wire::increment::Increment;
use crate::wire::message::{Base, Reason};

/// How many batches of increments may wait for the spool; the session stops reading beyond that.
const SPOOL_ROOM: usize = 64;

/// What the thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Leave the application alone: this node belongs to no cluster yet.
    Free,
    /// Keep the application from writing. With `led`, this node was the last primary and its history is captured to its end.
    Seal {
        /// Whether it was.
        led: bool,
    },
    /// Capture what the application commits, as increments of this epoch.
    Lead {
        /// The term.
        epoch: Epoch,
        /// Commits are synced before they count.
        durable: bool,
    },
    /// Keep the application from writing, and apply what the primary sends.
    Follow,
}

/// What the thread is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// Nothing: there is no database, or it cannot be worked with.
    #[default]
    Nothing,
    /// It captures.
    Capture,
    /// It applies.
    Apply,
}

/// How a source stands. Published whenever it changes.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that others ask for; no two exclude each other"
)]
pub struct Board {
    /// What the thread is doing.
    pub work: Work,
    /// In a few words, for people.
    pub state: &'static str,
    /// There is no database.
    pub is_absent: bool,
    /// The application cannot write.
    pub is_fenced: bool,
    /// Nobody can write, and all that was written is captured.
    pub is_settled: bool,
    /// What is known of the content is provably all that this node ever vouched for.
    pub is_proved: bool,
    /// The newest point that was captured, or received.
    pub tip: Option<Point>,
    /// What a crash leaves.
    pub durable: Option<Position>,
    /// What readers see.
    pub applied: Option<Position>,
    /// Checksum of the content.
    pub content: Option<u64>,
    /// What is wrong, and what to do.
    pub error: Option<String>,
    /// A resync under way: bytes done, and all.
    pub progress: Option<(u64, u64)>,
    /// What a node without a cluster holds.
    pub holds: Option<Content>,
    /// Size of the write-ahead log, in bytes.
    pub wal_bytes: u64,
}

/// What a follower says of itself before anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Where it stands, if it knows.
    pub position: Option<Position>,
    /// Its content; `None` without a database.
    pub content: Option<u64>,
    /// A resync that it could go on with.
    pub stage: Option<Base>,
    /// What it holds is no more than an application writes at boot.
    pub is_fresh: bool,
}

/// What entitles one session to hand increments to the spool, until the next one begins or the node is told to do something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

/// Why the thread could not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReplicaError {
    /// It has stopped: the program is ending.
    #[error("the thread of the source has ended")]
    Gone,
    /// It is doing something that does not go with it.
    #[error("{0}")]
    Unfit(String),
    /// A disk or a database refuses.
    #[error("{0}")]
    Failed(String),
}

/// Answers a command.
type Reply<T> = oneshot::Sender<Result<T, ReplicaError>>;

/// A message to the thread.
#[derive(Debug)]
enum Command {
    /// Do this from now on.
    Want(Wanted),
    /// Answer as soon as the application cannot write and all it wrote is captured, or at the deadline.
    Settle(std::time::Instant, Reply<()>),
    /// Answer as soon as the application may write and is captured.
    Lead(Reply<()>),
    /// Answer with the position of everything that is committed now.
    Sample(Reply<Option<Position>>),
    /// Answer as soon as it is known where a follower stands.
    Claim(Reply<Claim>),
    /// Increments will follow this point, which the content is at.
    Stream(Point, Vec<Fork>, Reply<Turn>),
    /// Pages will come, and then increments after the base.
    BeginResync(Resync, Reply<()>),
    /// Hashes of the pages from this one on.
    Hashes(u32, Reply<Vec<u64>>),
    /// Pages for the resync.
    Stage(Vec<(u32, Bytes)>, Reply<()>),
    /// No more pages; increments up to this seq complete them.
    EndPages(u64, Reply<Turn>),
    /// A connection for reading pages, and the point at which they are now.
    OpenPages(Reply<(PageReader, PageHashes, Base)>),
    /// Read the whole content anew and compare.
    Verify(Reply<Option<Point>>),
    /// The spool has more.
    Spooled,
    /// Finish.
    Stop,
}

/// A resync as the follower's thread needs to know it.
#[derive(Clone, Debug)]
pub struct Resync {
    /// Where it begins.
    pub base: Base,
    /// The primary's history.
    pub lineage: Vec<Fork>,
    /// Why.
    pub reason: Reason,
    /// What is here must be kept first.
    pub preserve: bool,
    /// The present term, for the name of what is kept.
    pub epoch: Epoch,
}

/// The handle of one source.
#[derive(Clone, Debug)]
pub struct Replica {
    name: Arc<str>,
    inbox: std_mpsc::Sender<Command>,
    kick: Arc<Mutex<Option<Kick>>>,
    board: watch::Receiver<Board>,
    spool: mpsc::Sender<spool::Batch>,
    spooled: watch::Receiver<Result<Option<Position>, String>>,
    shared: Arc<Shared>,
}

/// What the threads of a source and its sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) log: Mutex<Log>,
    pub(crate) lineage: Mutex<Lineage>,
    /// How far the log is on disk, where it is a spool.
    synced: Mutex<Option<Position>>,
    /// Whose increments are appended to the log, where it is a spool.
    turn: Mutex<u64>,
    pub(crate) meter: Meter,
    pub(crate) metrics: SourceMetrics,
    pub(crate) node: String,
    pub(crate) name: String,
    pub(crate) store: Store,
}

impl Shared {
    fn new(node: &str, name: &str, store: Store, log: Log, metrics: SourceMetrics) -> Self {
        Self {
            log: Mutex::new(log),
            lineage: Mutex::default(),
            synced: Mutex::default(),
            turn: Mutex::default(),
            meter: Meter::default(),
            metrics,
            node: node.to_owned(),
            name: name.to_owned(),
            store,
        }
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lineage(&self) -> MutexGuard<'_, Lineage> {
        self.lineage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn synced(&self) -> Option<Position> {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_synced(&self, position: Option<Position>) {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = position;
    }

    fn turn(&self) -> MutexGuard<'_, u64> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing of earlier sessions is appended, and what was appended is on disk as far as [`Shared::synced`] says.
    fn next_turn(&self) -> u64 {
        let mut turn = self.turn();
        *turn += 1;
        *turn
    }

    /// Puts everything that the log has on disk.
    pub(crate) fn sync_log(&self) -> Result<(), String> {
        let syncer = self.log().syncer();
        let end = syncer.sync().map_err(|error| error.to_string())?;
        self.set_synced(end.map(|end| end.position));
        Ok(())
    }

    /// Puts a new lineage on disk, then in force.
    pub(crate) fn set_lineage(&self, lineage: Lineage) -> Result<(), StoreError> {
        let mut current = self.lineage();
        if *current != lineage {
            self.store.save_lineage(&self.name, &lineage)?;
            *current = lineage;
        }
        Ok(())
    }
}

/// What a source is started with.
#[derive(Debug)]
pub struct Setup {
    /// This node's name.
    pub node: String,
    /// Which database.
    pub source: Source,
    /// Where state is kept.
    pub store: Store,
    /// How much history is kept.
    pub retention: Retention,
    /// What to do at first.
    pub wanted: Wanted,
    /// Its numbers.
    pub metrics: SourceMetrics,
}

impl Replica {
    /// Starts the threads of a source. Wait for the returned handle after [`Replica::stop`].
    ///
    /// # Errors
    /// Its state cannot be read; the message says what to do.
    pub fn start(setup: Setup) -> Result<(Self, JoinHandle<()>), String> {
        let folder = setup.store.source(&setup.source.name);
        let log =
            Log::open(&folder.join("log"), Limits::default()).map_err(|error| error.to_string())?;
        if let Some(cut) = log.cut() {
            tracing::warn!(source = setup.source.name, path = %cut.path.display(), bytes = cut.bytes, why = cut.why, "cut the end of the log off");
        }
        let lineage = setup
            .store
            .load_lineage(&setup.source.name)
            .map_err(|error| error.to_string())?;
        let shared = Shared::new(
            &setup.node,
            &setup.source.name,
            setup.store,
            log,
            setup.metrics,
        );
        *shared.lineage() = lineage;
        let shared = Arc::new(shared);
        let (inbox, heard) = std_mpsc::channel();
        let (board_tx, board) = watch::channel(Board::default());
        let kick = Arc::new(Mutex::new(None));
        let (spool, batches) = mpsc::channel(SPOOL_ROOM);
        let (spooled_tx, spooled) = watch::channel(Ok(None));
        let name = &setup.source.name;
        let to_keeper = inbox.clone();
        let of_spool = Arc::clone(&shared);
        let spool_thread = std::thread::Builder::new().name(format!("spool {name}"));
        spool_thread
            .spawn(move || spool::run(batches, &of_spool, &spooled_tx, &to_keeper))
            .map_err(|error| format!("start a thread: {error}"))?;
        let options = Options {
            path: setup.source.path,
            lock_path: folder.join("lock"),
            journal: setup.source.journal,
        };
        let keeper = keeper::Keeper::new(
            keeper::Ends {
                inbox: heard,
                kick: Arc::clone(&kick),
                board: board_tx,
                shared: Arc::clone(&shared),
            },
            options,
            setup.retention,
            setup.wanted,
        );
        let thread = std::thread::Builder::new().name(format!("source {name}"));
        let thread = thread
            .spawn(move || keeper.run())
            .map_err(|error| format!("start a thread: {error}"))?;
        let name = Arc::from(name.as_str());
        Ok((
            Self {
                name,
                inbox,
                kick,
                board,
                spool,
                spooled,
                shared,
            },
            thread,
        ))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it stands now.
    #[must_use]
    pub fn board(&self) -> Board {
        self.board.borrow().clone()
    }

    /// Hears of every change of how it stands.
    #[must_use]
    pub fn boards(&self) -> watch::Receiver<Board> {
        self.board.clone()
    }

    /// Hears how far the spool is on disk, or why not.
    #[must_use]
    pub fn spooled(&self) -> watch::Receiver<Result<Option<Position>, String>> {
        self.spooled.clone()
    }

    /// How far behind followers are.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.shared.meter
    }

    /// Its numbers.
    #[must_use]
    pub fn metrics(&self) -> &SourceMetrics {
        &self.shared.metrics
    }

    /// Where its history began.
    #[must_use]
    pub fn lineage(&self) -> Vec<Fork> {
        self.shared.lineage().forks.clone()
    }

    /// Its folder of state.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.shared.store.source(&self.name)
    }

    /// Changes what the thread does.
    pub fn want(&self, wanted: Wanted) {
        self.send(Command::Want(wanted));
    }

    /// Waits until the application cannot write and all it wrote is captured, but not longer than `within`. Then the board tells.
    ///
    /// # Errors
    /// The thread is gone.
    pub async fn settle(&self, within: Duration) -> Result<(), ReplicaError> {
        let until = clock::now() + within;
        self.ask(|reply| Command::Settle(until, reply)).await
    }

    /// Waits until the application may write and is captured.
    ///
    /// # Errors
    /// It is not to lead, or a disk or the database refuses.
    pub async fn led(&self) -> Result<(), ReplicaError> {
        self.ask(Command::Lead).await
    }

    /// The position of everything that is committed when this is called; `None` without a database.
    ///
    /// # Errors
    /// It does not capture.
    pub async fn sample(&self) -> Result<Option<Position>, ReplicaError> {
        self.ask(Command::Sample).await
    }

    /// Waits until everything committed by now is captured. False if nothing is captured here.
    pub async fn sample_or_settle(&self) -> bool {
        if self.sample().await.is_ok() {
            return true;
        }
        self.settle(Duration::from_secs(1)).await.is_ok() && self.board().is_settled
    }

    /// Where a follower stands, as soon as that is known.
    ///
    /// # Errors
    /// It does not follow.
    pub async fn claim(&self) -> Result<Claim, ReplicaError> {
        self.ask(Command::Claim).await
    }

    /// Prepares for increments after `point`.
    ///
    /// # Errors
    /// It does not follow, or is elsewhere.
    pub async fn stream(&self, point: Point, lineage: Vec<Fork>) -> Result<Turn, ReplicaError> {
        self.ask(|reply| Command::Stream(point, lineage, reply))
            .await
    }

    /// Prepares for pages.
    ///
    /// # Errors
    /// It does not follow, or what is here cannot be kept.
    pub async fn begin_resync(&self, resync: Resync) -> Result<(), ReplicaError> {
        self.ask(|reply| Command::BeginResync(resync, reply)).await
    }

    /// Hashes of the pages from `first` on, with staged pages in place of those in the database; fewer than
    /// [`crate::wire::message::HASHES_AT_ONCE`] are the last.
    ///
    /// # Errors
    /// No resync is under way.
    pub async fn hashes(&self, first: u32) -> Result<Vec<u64>, ReplicaError> {
        self.ask(|reply| Command::Hashes(first, reply)).await
    }

    /// Stages pages.
    ///
    /// # Errors
    /// No resync is under way, or the disk refuses.
    pub async fn stage(&self, pages: Vec<(u32, Bytes)>) -> Result<(), ReplicaError> {
        self.ask(|reply| Command::Stage(pages, reply)).await
    }

    /// The pages are complete once the increments up to `seq` are applied with them.
    ///
    /// # Errors
    /// No resync is under way.
    pub async fn end_pages(&self, seq: u64) -> Result<Turn, ReplicaError> {
        self.ask(|reply| Command::EndPages(seq, reply)).await
    }

    /// A connection for reading pages of a primary's database, their hashes, and the point at which they are now.
    ///
    /// # Errors
    /// There is no database, or it is not captured.
    pub async fn open_pages(&self) -> Result<(PageReader, PageHashes, Base), ReplicaError> {
        self.ask(Command::OpenPages).await
    }

    /// Reads the whole content anew, and returns what it is and where; an error if it is not what it should be.
    ///
    /// # Errors
    /// The content differs from its checksum, or cannot be read.
    pub async fn verify(&self) -> Result<Option<Point>, ReplicaError> {
        self.ask(Command::Verify).await
    }

    /// Hands increments to the spool, which passes over them once the turn is over. Waits while the spool is full.
    ///
    /// # Errors
    /// The thread is gone.
    pub async fn spool(&self, turn: Turn, increments: Vec<Increment>) -> Result<(), ReplicaError> {
        let turn = turn.0;
        self.spool
            .send(spool::Batch { turn, increments })
            .await
            .map_err(|_| ReplicaError::Gone)
    }

    /// Answers questions about the history that followers may be at.
    pub fn with_history<T>(&self, look: impl FnOnce(&Past<'_>) -> T) -> Option<T> {
        let lineage = self.lineage();
        let log = self.shared.log();
        let tip = log.end()?;
        Some(look(&Past {
            lineage: &lineage,
            log: &log,
            tip,
        }))
    }

    /// What the content was after increment `seq`, if the log has it.
    #[must_use]
    pub fn point_at(&self, seq: u64) -> Option<Point> {
        self.shared.log().point_at(seq).ok().flatten()
    }

    /// Begins to read the log after `position`.
    ///
    /// # Errors
    /// The log does not have it.
    pub fn reader(
        &self,
        position: Position,
    ) -> Result<(crate::log::Reader, crate::log::Pin), crate::log::LogError> {
        let log = self.shared.log();
        Ok((log.reader(position)?, log.pin(position.seq)))
    }

    /// Lets the thread finish.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ReplicaError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply));
        answer.await.unwrap_or(Err(ReplicaError::Gone))
    }

    fn send(&self, command: Command) {
        // A thread that is gone drops the reply, which tells whoever waits.
        let _ = self.inbox.send(command);
        if let Some(kick) = &*self.kick.lock().unwrap_or_else(PoisonError::into_inner) {
            kick.kick();
        }
    }
}

/// The log and the lineage as a history.
#[derive(Debug)]
pub struct Past<'a> {
    lineage: &'a [Fork],
    log: &'a Log,
    tip: Point,
}

impl History for Past<'_> {
    fn lineage(&self) -> &[Fork] {
        self.lineage
    }

    fn tip(&self) -> (Position, u64) {
        (self.tip.position, self.tip.content)
    }

    fn checksum_at(&self, seq: u64) -> Option<u64> {
        self.log
            .point_at(seq)
            .ok()
            .flatten()
            .map(|point| point.content)
    }

    fn position_of(&self, checksum: u64) -> Option<Position> {
        self.log
            .find_content(checksum)
            .ok()
            .flatten()
            .map(|point| point.position)
    }

    fn can_stream_from(&self, seq: u64) -> bool {
        self.log
            .start()
            .is_some_and(|start| start.position.seq <= seq)
            && seq <= self.tip.position.seq
    }
}
