//! The thread that owns a database: opens it, fences it or lets it go, and captures or applies as it is told.
//!
//! One pass after the other: hear what is wanted, open what is not open, fence or unfence, turn to the right work, do a bounded
//! piece of it, answer whoever waits, show how things stand, rest. Whatever fails is shown and tried again after a while; no
//! failure ends the thread, and none is silent.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shared::clock;
use shared::model::Position;
use tokio::sync::watch;

use super::follow::{Pending, PendingResync};
use super::patience::Patience;
use super::resize::Attempts;
use super::tender::Tender;
use super::{Board, Claim, Command, ReplicaError, Reply, Shared, Wanted, Work};
use crate::log::{Point, Retention};
use crate::sqlite::{
    Apply, Database, Kick, NotYet, Opened, Options, PageHashes, PageReader, Sample, Tail, content,
};
use crate::store;
use crate::wire::message::{self, Base};

/// A database that is not there yet is looked for this often.
const ABSENT_REST: Duration = Duration::from_millis(20);
/// While the application is asked for its write lock.
const FENCE_REST: Duration = Duration::from_micros(200);
/// With nothing to do.
const IDLE_REST: Duration = Duration::from_millis(250);
/// What a node without a cluster holds is counted this often.
const COUNT_EVERY: Duration = Duration::from_millis(300);
/// Old history is dropped this often.
const RETAIN_EVERY: Duration = Duration::from_secs(1);
/// Whether the file is still the same is looked at this often, where capturing does not do it.
const REPLACED_EVERY: Duration = Duration::from_millis(100);

/// The thread's ends of its connections to everybody else.
pub(super) struct Ends {
    pub(super) inbox: Receiver<Command>,
    pub(super) kick: Arc<Mutex<Option<Kick>>>,
    pub(super) board: watch::Sender<Board>,
    pub(super) shared: Arc<Shared>,
}

/// An open database and what is being done with it.
pub(super) struct Open {
    // Dropped first: the checkpoint thread must end before the database's locks go.
    pub(super) tender: Tender,
    pub(super) work: Doing,
    pub(super) database: Database,
    pub(super) replaced_at: Instant,
}

/// What is being done with a database.
pub(super) enum Doing {
    Nothing,
    Capture(Box<Tail>),
    Apply(Box<Apply>),
}

/// Whoever waits for a barrier, and for what.
pub(super) struct Sampled {
    pub(super) sample: Option<Sample>,
    pub(super) reply: Reply<Option<Position>>,
}

pub(super) struct Keeper {
    ends: Ends,
    pub(super) shared: Arc<Shared>,
    pub(super) options: Options,
    retention: Retention,
    pub(super) wanted: Wanted,
    pub(super) open: Option<Open>,
    pub(super) board: Board,
    patience: Patience,
    retry_at: Option<Instant>,
    retain_at: Instant,
    count_at: Instant,
    pub(super) resizes: Attempts,
    /// The last pass found nothing more to capture.
    pub(super) is_drained: bool,
    settling: Vec<(Instant, Reply<()>)>,
    leading: Vec<Reply<()>>,
    pub(super) sampling: Vec<Sampled>,
    claiming: Vec<Reply<Claim>>,
    pub(super) pending: Pending,
    is_stopping: bool,
}

impl Keeper {
    pub(super) fn new(ends: Ends, options: Options, retention: Retention, wanted: Wanted) -> Self {
        let shared = Arc::clone(&ends.shared);
        let now = clock::now();
        Self {
            ends,
            shared,
            options,
            retention,
            wanted,
            open: None,
            board: Board {
                state: "opening",
                is_proved: true,
                ..Board::default()
            },
            patience: Patience::default(),
            retry_at: None,
            retain_at: now,
            count_at: now,
            resizes: Attempts::default(),
            is_drained: false,
            settling: Vec::new(),
            leading: Vec::new(),
            sampling: Vec::new(),
            claiming: Vec::new(),
            pending: Pending::default(),
            is_stopping: false,
        }
    }

    pub(super) fn run(mut self) {
        while !self.is_stopping {
            let rest = self.pass();
            self.publish();
            self.rest(rest);
        }
        self.finish();
    }

    fn pass(&mut self) -> Duration {
        while let Some(command) = self.next_command() {
            self.handle(command);
        }
        if self.retry_at.is_some_and(|at| clock::now() < at) {
            self.answer_late();
            return ABSENT_REST;
        }
        self.retry_at = None;
        let rest = match self.work() {
            Ok(rest) => rest,
            Err(why) => {
                self.fail(why);
                ABSENT_REST
            }
        };
        self.answer();
        self.retain();
        rest
    }

    /// One bounded piece of work. An error is shown, and everything is tried anew after a while.
    fn work(&mut self) -> Result<Duration, String> {
        if !self.ensure_open()? {
            return Ok(ABSENT_REST);
        }
        if self.is_gone() {
            self.let_go("the database file was replaced");
            return Ok(Duration::ZERO);
        }
        match self.wanted {
            Wanted::Free => {
                self.set_free();
                Ok(IDLE_REST.min(COUNT_EVERY))
            }
            Wanted::Lead { .. } | Wanted::Seal { led: true } => self.capture_or_lead(),
            Wanted::Follow | Wanted::Seal { led: false } => self.follow(),
        }
    }

    // ---- opening and letting go ------------------------------------------------------------------------------------

    fn ensure_open(&mut self) -> Result<bool, String> {
        if self.open.is_some() {
            return Ok(true);
        }
        match Database::open(&self.options).map_err(|error| error.to_string())? {
            Opened::Ready(database) => self.hold(*database).map(|()| true),
            Opened::NotYet(reason) => {
                self.board.is_absent = matches!(reason, NotYet::Absent | NotYet::Empty);
                self.board.is_fenced = self.board.is_absent;
                self.board.state = match reason {
                    NotYet::Absent | NotYet::Empty => "waiting for the database",
                    NotYet::Locked => "waiting for the database to be unlocked",
                    NotYet::Converting => "waiting for a pause to convert the database",
                };
                self.board.error = (!self.board.is_absent).then(|| reason.to_string());
                Ok(false)
            }
        }
    }

    pub(super) fn hold(&mut self, database: Database) -> Result<(), String> {
        if database.was_converted() {
            tracing::info!(source = self.shared.name, path = %database.path().display(), "converted the database to write-ahead logging");
        }
        let tender = Tender::start(&database, &self.shared)?;
        *self
            .ends
            .kick
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(database.kick());
        self.open = Some(Open {
            tender,
            work: Doing::Nothing,
            database,
            replaced_at: clock::now(),
        });
        self.board.is_absent = false;
        self.board.error = None;
        Ok(())
    }

    fn is_gone(&mut self) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        let now = clock::now();
        if now < open.replaced_at + REPLACED_EVERY {
            return false;
        }
        open.replaced_at = now;
        open.database.is_replaced()
    }

    /// Closes the database. What it was doing is given up, and the application is on its own until it is opened again.
    pub(super) fn let_go(&mut self, why: &'static str) {
        if self.open.is_some() {
            tracing::warn!(source = self.shared.name, why, "let the database go");
        }
        *self
            .ends
            .kick
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(mut open) = self.open.take() {
            match std::mem::replace(&mut open.work, Doing::Nothing) {
                Doing::Capture(tail) => tail.release(&mut open.database),
                Doing::Apply(apply) => apply.release(&mut open.database),
                Doing::Nothing => (),
            }
        }
        self.board = Board {
            state: why,
            is_proved: self.board.is_proved,
            ..Board::default()
        };
        self.is_drained = false;
    }

    /// Something failed: the application is let go, and all is tried anew after a rest.
    fn fail(&mut self, why: String) {
        if self.board.error.as_ref() != Some(&why) {
            tracing::error!(source = self.shared.name, why, "the source is in trouble");
        }
        self.let_go("in trouble");
        self.board.error = Some(why);
        self.retry_at = Some(self.patience.handle_failure(clock::now()));
    }

    fn set_free(&mut self) {
        let Some(open) = &mut self.open else { return };
        open.database.lift_fence();
        self.board.is_fenced = false;
        self.board.work = Work::Nothing;
        self.board.state = "free";
        let now = clock::now();
        if now >= self.count_at {
            self.count_at = now + COUNT_EVERY;
            match content(&open.database) {
                Ok(held) => {
                    self.board.holds = Some(held);
                    self.board.error = None;
                }
                Err(error) => self.board.error = Some(error.to_string()),
            }
        }
    }

    /// Takes the write lock, or goes on asking for it. Without a database there is nothing to write to.
    pub(super) fn fence(&mut self) -> Result<bool, String> {
        let Some(open) = &mut self.open else {
            return Ok(true);
        };
        let fenced = open
            .database
            .try_fence()
            .map_err(|error| error.to_string())?;
        self.board.is_fenced = fenced;
        Ok(fenced)
    }

    pub(super) const fn fence_rest() -> Duration {
        FENCE_REST
    }

    pub(super) const fn idle_rest() -> Duration {
        IDLE_REST
    }

    // ---- commands --------------------------------------------------------------------------------------------------

    fn next_command(&mut self) -> Option<Command> {
        match self.ends.inbox.try_recv() {
            Ok(command) => Some(command),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.is_stopping = true;
                None
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Want(wanted) => self.want(wanted),
            Command::Settle(until, reply) => {
                self.is_drained = false;
                self.settling.push((until, reply));
            }
            Command::Lead(reply) => self.leading.push(reply),
            Command::Sample(reply) => self.sampling.push(Sampled {
                sample: None,
                reply,
            }),
            Command::Claim(reply) => self.claiming.push(reply),
            Command::Stream(point, lineage, reply) => {
                drop(reply.send(self.begin_stream(point, lineage)));
            }
            Command::BeginResync(resync, reply) => drop(reply.send(self.begin_resync(resync))),
            Command::Hashes(first, reply) => drop(reply.send(self.hashes(first))),
            Command::Stage(pages, reply) => drop(reply.send(self.stage(&pages))),
            Command::EndPages(seq, reply) => drop(reply.send(self.end_pages(seq))),
            Command::OpenPages(reply) => drop(reply.send(self.open_pages())),
            Command::Verify(reply) => drop(reply.send(self.verify())),
            Command::Spooled => (),
            Command::Stop => self.is_stopping = true,
        }
    }

    fn want(&mut self, wanted: Wanted) {
        if self.wanted != wanted {
            tracing::debug!(source = self.shared.name, ?wanted, "told what to do");
            self.wanted = wanted;
            self.patience = Patience::default();
            // What a session of before has not spooled yet is not part of anything any more.
            self.shared.next_turn();
            self.is_drained = false;
            self.retry_at = None;
            self.board.holds = None;
        }
    }

    fn open_pages(&self) -> Result<(PageReader, PageHashes, Base), ReplicaError> {
        let missing = || ReplicaError::Unfit("the database is not captured".to_owned());
        let open = self
            .open
            .as_ref()
            .filter(|open| matches!(open.work, Doing::Capture(_)));
        let open = open.ok_or_else(missing)?;
        let tip = self.board.tip.ok_or_else(missing)?;
        let reader = PageReader::open(&open.database);
        let reader = reader.map_err(|error| ReplicaError::Failed(error.to_string()))?;
        let hashes = open.database.hashes();
        let lineage = self.shared.lineage().forks.last().map_or(0, |fork| {
            fork.checksum ^ fork.start.seq.rotate_left(32) ^ u64::from(fork.start.generation)
        });
        let point = message::Point {
            position: tip.position,
            content: tip.content,
        };
        let base = Base {
            lineage,
            point,
            pages: hashes.pages(),
            page_size: open.database.page_size(),
        };
        Ok((reader, hashes, base))
    }

    // ---- answers ---------------------------------------------------------------------------------------------------

    fn answer(&mut self) {
        let settled =
            self.board.is_fenced && (self.is_drained || !matches!(self.board.work, Work::Capture));
        self.board.is_settled = settled;
        self.answer_settling(settled);
        if self.is_leading() {
            self.leading
                .drain(..)
                .for_each(|reply| drop(reply.send(Ok(()))));
        } else if !matches!(self.wanted, Wanted::Lead { .. }) {
            let why = || ReplicaError::Unfit("the source is not to lead any more".to_owned());
            self.leading
                .drain(..)
                .for_each(|reply| drop(reply.send(Err(why()))));
        }
        self.answer_samples();
        self.answer_claims();
    }

    /// While the source rests after a failure, nobody waits longer than was allowed.
    fn answer_late(&mut self) {
        self.answer_settling(false);
        let why = self.board.error.clone().unwrap_or_default();
        self.leading
            .drain(..)
            .for_each(|reply| drop(reply.send(Err(ReplicaError::Failed(why.clone())))));
        self.sampling
            .drain(..)
            .for_each(|one| drop(one.reply.send(Err(ReplicaError::Failed(why.clone())))));
    }

    fn answer_settling(&mut self, settled: bool) {
        let now = clock::now();
        let (done, waiting) = self
            .settling
            .drain(..)
            .partition(|(until, _)| settled || now >= *until);
        self.settling = waiting;
        let done: Vec<_> = done;
        if !done.is_empty() {
            // Whoever asked looks at the board next.
            self.publish();
            done.into_iter()
                .for_each(|(_, reply)| drop(reply.send(Ok(()))));
        }
    }

    fn is_leading(&self) -> bool {
        let captures = self.open.as_ref().is_some_and(|open| {
            matches!(open.work, Doing::Capture(_)) && !open.database.is_fenced()
        });
        matches!(self.wanted, Wanted::Lead { .. }) && (captures || self.board.is_absent)
    }

    fn answer_samples(&mut self) {
        if self.sampling.is_empty() || self.is_leading() && !self.board.is_absent {
            return;
        }
        let absent = self.is_leading();
        for one in self.sampling.drain(..) {
            let why = ReplicaError::Unfit("the source does not lead".to_owned());
            let _ = one.reply.send(if absent { Ok(None) } else { Err(why) });
        }
    }

    fn answer_claims(&mut self) {
        if self.claiming.is_empty() {
            return;
        }
        if let Some(claim) = self.claim() {
            self.publish();
            self.claiming
                .drain(..)
                .for_each(|reply| drop(reply.send(Ok(claim.clone()))));
        } else if matches!(self.wanted, Wanted::Lead { .. } | Wanted::Free) {
            let why = || ReplicaError::Unfit("the source does not follow".to_owned());
            self.claiming
                .drain(..)
                .for_each(|reply| drop(reply.send(Err(why()))));
        }
    }

    // ---- the rest --------------------------------------------------------------------------------------------------

    pub(super) fn publish(&mut self) {
        if let Some(open) = &self.open {
            self.board.wal_bytes = open.tender.wal_bytes();
        }
        let board = &self.board;
        self.ends.board.send_if_modified(|shown| {
            let changed = shown != board;
            if changed {
                shown.clone_from(board);
            }
            changed
        });
    }

    fn rest(&mut self, span: Duration) {
        if span.is_zero() || self.is_stopping {
            return;
        }
        if let Some(open) = &mut self.open
            && let Doing::Capture(tail) = &mut open.work
        {
            // A failure to wait shows again, with its consequence, in the next pass.
            if tail.rest(&mut open.database, span).is_ok() {
                return;
            }
        }
        match self.ends.inbox.recv_timeout(span) {
            Ok(command) => self.handle(command),
            Err(RecvTimeoutError::Timeout) => (),
            Err(RecvTimeoutError::Disconnected) => self.is_stopping = true,
        }
    }

    fn retain(&mut self) {
        let now = clock::now();
        if now < self.retain_at {
            return;
        }
        self.retain_at = now + RETAIN_EVERY;
        let mut log = self.shared.log();
        let needed = match &self.open {
            Some(Open {
                work: Doing::Apply(apply),
                database,
                ..
            }) => apply.synced(database).map(|position| position.seq),
            _ => None,
        };
        let holds_back = matches!(self.wanted, Wanted::Follow | Wanted::Seal { led: false });
        log.keep_after(holds_back.then(|| needed.unwrap_or(0)));
        if let Err(error) = log.retain(&self.retention) {
            tracing::warn!(source = self.shared.name, %error, "could not drop old history");
        }
    }

    /// The program ends: what is known is made durable, and said to be, so that the next start need not doubt it.
    fn finish(&mut self) {
        let Some(open) = self.open.take() else { return };
        let synced = open.database.sync_log().is_ok() && self.shared.log().sync().is_ok();
        let mut lineage = self.shared.lineage().clone();
        if synced && lineage.captured_in == store::boot() && self.is_drained_now(&open) {
            store::CLEAN.clone_into(&mut lineage.captured_in);
            if let Err(error) = self.shared.set_lineage(lineage) {
                tracing::warn!(source = self.shared.name, %error, "could not note that this end was clean");
            }
        }
    }

    fn is_drained_now(&self, open: &Open) -> bool {
        open.database.checksum().is_some()
            && open.database.checksum() == self.shared.log().end().map(|end| end.content)
    }

    pub(super) fn point_at_end(&self) -> Option<Point> {
        self.shared.log().end()
    }

    pub(super) const fn resync(&self) -> Option<&PendingResync> {
        self.pending.resync.as_ref()
    }
}
