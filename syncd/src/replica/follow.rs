//! Applying on a standby: finding out where it stands, applying what the spool has, and resyncs.

use std::time::Duration;

use bytes::Bytes;
use shared::api::Fork;
use shared::model::Position;

use super::keeper::{Doing, Keeper, Open};
use super::{Claim, ReplicaError, Resync, Turn, Work};
use crate::diverged::{self, Circumstances, Keepsake};
use crate::log::{LogError, Point, Reader};
use crate::sqlite::{Apply, ApplyError, Database, End, Opened, Stage, StageBase, content};
use crate::store::Lineage;
use crate::wire::increment::Increment;
use crate::wire::message::{Base, HASHES_AT_ONCE};

/// At most this much is applied in one transaction, so that readers see progress.
const BATCH_BYTES: usize = 8 << 20;
const BATCH_COUNT: usize = 512;
/// A lock that somebody else has for a moment.
const SOON: Duration = Duration::from_millis(1);

/// What a follower is in the middle of.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) resync: Option<PendingResync>,
    spooled: Option<Spooled>,
}

/// Reading the spool: what comes next, and the beginning of a large transaction that was met while gathering small ones.
struct Spooled {
    reader: Reader,
    ahead: Option<Increment>,
}

/// A resync under way.
pub(super) struct PendingResync {
    stage: Stage,
    order: Resync,
    /// Increments up to here complete the pages; known when the last page has come.
    until: Option<u64>,
    keepsake: Option<Keepsake>,
}

impl Pending {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Keeper {
    /// The work of a node that follows, or is sealed and may have something left to apply.
    pub(super) fn follow(&mut self) -> Result<Duration, String> {
        if !self.fence()? {
            self.board.state = "waiting for the application's write lock";
            return Ok(Self::fence_rest());
        }
        if !self.turn_to_apply()? {
            return Ok(SOON);
        }
        let more = if self.resync_is_complete() {
            self.finish_resync()?
        } else {
            self.apply_some()?
        };
        self.show_follower();
        Ok(if more {
            Duration::ZERO
        } else {
            Self::idle_rest()
        })
    }

    /// Whether everything that was spooled is in the database, so that it may be led; applies if not.
    pub(super) fn has_applied_all(&mut self) -> Result<bool, String> {
        let spools = self.shared.lineage().captured_in.is_empty() && self.point_at_end().is_some();
        if !spools {
            return Ok(true);
        }
        // A resync that was not finished is given up: the database still has the state before it.
        self.pending.clear();
        if !self.fence()? || !self.turn_to_apply()? {
            return Ok(false);
        }
        self.reconcile_log()?;
        while self.apply_some()? {}
        self.show_follower();
        let applied = self.apply().and_then(Apply::position);
        Ok(applied.is_none() || applied == self.point_at_end().map(|end| end.position))
    }

    fn turn_to_apply(&mut self) -> Result<bool, String> {
        let Some(open) = &mut self.open else {
            return Ok(false);
        };
        if matches!(open.work, Doing::Apply(_)) {
            return Ok(true);
        }
        if let Doing::Capture(tail) = std::mem::replace(&mut open.work, Doing::Nothing) {
            tail.detach(&mut open.database);
        }
        self.board.work = Work::Nothing;
        match Apply::attach(&mut open.database) {
            Ok(apply) => open.work = Doing::Apply(Box::new(apply)),
            Err(ApplyError::CheckpointLock | ApplyError::Unreadable) => return Ok(false),
            Err(error) => return Err(error.to_string()),
        }
        self.pending.clear();
        self.board.work = Work::Apply;
        self.board.error = None;
        self.board.is_proved = true;
        self.find_position()?;
        self.reconcile_log()?;
        Ok(true)
    }

    /// A content without a position of its own may be one that the log knows: a former primary's, say.
    fn find_position(&mut self) -> Result<(), String> {
        let Some(Open {
            work: Doing::Apply(apply),
            database,
            ..
        }) = &mut self.open
        else {
            return Ok(());
        };
        if apply.position().is_some() {
            return Ok(());
        }
        let Some(content) = database.checksum() else {
            return Ok(());
        };
        let known = self
            .shared
            .log()
            .find_content(content)
            .map_err(|error| error.to_string())?;
        let Some(point) = known else { return Ok(()) };
        apply
            .adopt(database, point.position)
            .map_err(|error| error.to_string())
    }

    /// A log that does not contain what the database is at is of no use: it begins anew there.
    fn reconcile_log(&mut self) -> Result<(), String> {
        self.pending.spooled = None;
        let Some(Open {
            work: Doing::Apply(apply),
            database,
            ..
        }) = &self.open
        else {
            return Ok(());
        };
        let (Some(position), Some(content)) = (apply.position(), database.checksum()) else {
            return Ok(());
        };
        let point = Point { position, content };
        {
            let mut log = self.shared.log();
            let known = log.point_at(position.seq).ok().flatten();
            if known != Some(point) {
                log.reset(point).map_err(|error| error.to_string())?;
            }
        }
        self.shared.sync_log()
    }

    pub(super) fn apply(&self) -> Option<&Apply> {
        match &self.open {
            Some(Open {
                work: Doing::Apply(apply),
                ..
            }) => Some(apply),
            _ => None,
        }
    }

    fn show_follower(&mut self) {
        let Some(Open {
            work: Doing::Apply(apply),
            database,
            ..
        }) = &self.open
        else {
            return;
        };
        let (applied, content) = (apply.position(), database.checksum());
        let end = self.point_at_end();
        let resyncing = self.pending.resync.is_some();
        self.board.applied = applied;
        self.board.content = content;
        // While pages are replaced, only what the database itself has would be left after a crash.
        self.board.durable = if resyncing {
            applied
        } else {
            applied.and_then(|_| self.shared.synced())
        };
        self.board.tip = if resyncing {
            self.board.tip
        } else {
            applied.and(end)
        };
        self.board.state = match (resyncing, applied) {
            (true, _) => "resyncing",
            (false, Some(_)) => "following",
            (false, None) => "not a copy yet",
        };
    }

    // ---- applying --------------------------------------------------------------------------------------------------

    /// Applies one batch of what the spool has. True if there is more at once.
    fn apply_some(&mut self) -> Result<bool, String> {
        let Some(Open {
            work: Doing::Apply(apply),
            database,
            ..
        }) = &mut self.open
        else {
            return Ok(false);
        };
        let Some(position) = apply.position() else {
            return Ok(false);
        };
        if self
            .pending
            .resync
            .as_ref()
            .is_some_and(|resync| resync.until.is_some())
        {
            return Ok(false);
        }
        let mut spooled = match self.pending.spooled.take() {
            Some(spooled) if spooled.reader.position() == position => spooled,
            _ => Spooled {
                reader: self
                    .shared
                    .log()
                    .reader(position)
                    .map_err(|error| error.to_string())?,
                ahead: None,
            },
        };
        let applied = match spooled.next_batch() {
            Ok(batch) => batch.apply(apply, database, &mut spooled.reader),
            Err(LogError::Moved | LogError::Gone { .. }) => return Ok(true),
            Err(error) => return Err(error.to_string()),
        };
        match applied {
            Ok(bytes) => {
                self.shared.metrics.applied(bytes);
                self.pending.spooled = Some(spooled);
                Ok(bytes > 0)
            }
            Err(error) => self.doubt(&error),
        }
    }

    /// Something did not fit: the content is read anew, and what it then is decides.
    fn doubt(&mut self, error: &ApplyError) -> Result<bool, String> {
        if matches!(
            error,
            ApplyError::Failure(_) | ApplyError::CheckpointLock | ApplyError::Unreadable
        ) {
            return Err(error.to_string());
        }
        tracing::error!(source = self.shared.name, %error, "the standby does not fit its primary's history; its content is read anew");
        if let Some(open) = &mut self.open
            && let Doing::Apply(apply) = std::mem::replace(&mut open.work, Doing::Nothing)
        {
            apply.release(&mut open.database);
        }
        self.pending.clear();
        self.board.work = Work::Nothing;
        self.board.applied = None;
        self.board.durable = None;
        self.board.tip = None;
        self.board.error = Some(error.to_string());
        Ok(true)
    }

    // ---- sessions --------------------------------------------------------------------------------------------------

    /// Where this node stands, once that is known for certain.
    pub(super) fn claim(&mut self) -> Option<Claim> {
        let stage = Stage::base_at(&self.stage_path())
            .ok()
            .flatten()
            .map(base_of);
        if self.board.is_absent {
            return Some(Claim {
                stage,
                is_fresh: true,
                ..Claim::default()
            });
        }
        self.pending.resync = None;
        self.reconcile_log().ok()?;
        let Some(Open {
            work: Doing::Apply(apply),
            database,
            ..
        }) = &self.open
        else {
            return None;
        };
        let position = apply.position();
        if position.is_some() && position != self.point_at_end().map(|end| end.position) {
            return None;
        }
        let is_fresh = position.is_none() && content(database).is_ok_and(|held| held.is_fresh());
        Some(Claim {
            position,
            content: database.checksum(),
            stage,
            is_fresh,
        })
    }

    pub(super) fn begin_stream(
        &mut self,
        point: Point,
        forks: Vec<Fork>,
    ) -> Result<Turn, ReplicaError> {
        let turn = Turn(self.shared.next_turn());
        let Some(Open {
            work: Doing::Apply(apply),
            database,
            ..
        }) = &mut self.open
        else {
            return Err(not_following());
        };
        if database.checksum() != Some(point.content) {
            return Err(ReplicaError::Unfit(
                "the content changed since the greeting".to_owned(),
            ));
        }
        if apply.position() != Some(point.position) {
            apply.adopt(database, point.position).map_err(failed)?;
        }
        self.pending.clear();
        {
            let mut log = self.shared.log();
            if log.end() != Some(point) {
                let contains = log.point_at(point.position.seq).ok().flatten() == Some(point);
                if contains {
                    log.truncate_after(point.position)
                } else {
                    log.reset(point)
                }
                .map_err(failed)?;
            }
        }
        self.shared.sync_log().map_err(ReplicaError::Failed)?;
        self.adopt_lineage(forks)?;
        self.board.error = None;
        self.show_follower();
        Ok(turn)
    }

    /// From here on this node's history is the primary's.
    fn adopt_lineage(&self, forks: Vec<Fork>) -> Result<(), ReplicaError> {
        self.shared
            .set_lineage(Lineage {
                forks,
                captured_in: String::new(),
            })
            .map_err(failed)
    }

    pub(super) fn begin_resync(&mut self, order: Resync) -> Result<(), ReplicaError> {
        self.make_if_absent(order.base.page_size)?;
        let Some(Open {
            work: Doing::Apply(apply),
            database,
            ..
        }) = &mut self.open
        else {
            return Err(not_following());
        };
        let keepsake = if database.page_size() != order.base.page_size {
            Some(self.resize(&order)?)
        } else if order.preserve {
            apply.sync(database).map_err(failed)?;
            let position = apply.position();
            Some(self.preserve(&order, position)?)
        } else {
            apply.sync(database).map_err(failed)?;
            None
        };
        let stage = Stage::open(&self.stage_path(), stage_base(order.base)).map_err(failed)?;
        self.shared.metrics.resync(order.reason);
        tracing::info!(
            source = self.shared.name, reason = order.reason.as_str(), base = %order.base.point.position,
            kept = keepsake.as_ref().map(|kept| kept.id.as_str()), "resync begins"
        );
        self.pending = Pending {
            resync: Some(PendingResync {
                stage,
                order,
                until: None,
                keepsake,
            }),
            spooled: None,
        };
        self.board.progress = Some((0, 0));
        self.show_follower();
        self.publish();
        Ok(())
    }

    /// Keeps a copy of the database before it is overwritten.
    pub(super) fn preserve(
        &self,
        order: &Resync,
        position: Option<Position>,
    ) -> Result<Keepsake, ReplicaError> {
        let found = Circumstances {
            node: &self.shared.node,
            source: &self.shared.name,
            epoch: order.epoch,
            reason: order.reason.as_str(),
            position,
        };
        let kept = diverged::keep(&self.shared.store.diverged(), &self.options.path, found)
            .map_err(ReplicaError::Failed)?;
        self.shared.metrics.diverged();
        Ok(kept)
    }

    fn make_if_absent(&mut self, page_size: u32) -> Result<(), ReplicaError> {
        if self.open.is_none() {
            match Database::create(&self.options, page_size).map_err(failed)? {
                Opened::Ready(database) => self.hold(*database).map_err(ReplicaError::Failed)?,
                Opened::NotYet(reason) => return Err(ReplicaError::Unfit(reason.to_string())),
            }
        }
        let fenced = self.fence().map_err(ReplicaError::Failed)?;
        if fenced && self.turn_to_apply().map_err(ReplicaError::Failed)? {
            Ok(())
        } else {
            Err(not_following())
        }
    }

    pub(super) fn hashes(&self, first: u32) -> Result<Vec<u64>, ReplicaError> {
        let (Some(resync), Some(open)) = (self.resync(), &self.open) else {
            return Err(no_resync());
        };
        let mut hashes = open.database.hashes().range(first, HASHES_AT_ONCE);
        for (number, hash) in (first..).zip(&mut hashes) {
            if let Some(staged) = resync.stage.hash(number) {
                *hash = staged;
            }
        }
        Ok(hashes)
    }

    pub(super) fn stage(&mut self, pages: &[(u32, Bytes)]) -> Result<(), ReplicaError> {
        let Some(resync) = &mut self.pending.resync else {
            return Err(no_resync());
        };
        for (number, page) in pages {
            resync.stage.put(*number, page).map_err(failed)?;
        }
        let bytes = |pages: usize| pages as u64 * u64::from(resync.order.base.page_size);
        self.board.progress = Some((
            bytes(resync.stage.len()),
            bytes(resync.order.base.pages as usize),
        ));
        Ok(())
    }

    pub(super) fn end_pages(&mut self, seq: u64) -> Result<Turn, ReplicaError> {
        let turn = Turn(self.shared.next_turn());
        let Some(resync) = &mut self.pending.resync else {
            return Err(no_resync());
        };
        let (base, forks) = (resync.order.base.point, resync.order.lineage.clone());
        resync.until = Some(seq);
        self.pending.spooled = None;
        let point = Point {
            position: base.position,
            content: base.content,
        };
        self.shared.log().reset(point).map_err(failed)?;
        self.shared.sync_log().map_err(ReplicaError::Failed)?;
        self.adopt_lineage(forks)?;
        Ok(turn)
    }

    fn resync_is_complete(&self) -> bool {
        let Some(until) = self.resync().and_then(|resync| resync.until) else {
            return false;
        };
        self.point_at_end()
            .is_some_and(|end| end.position.seq >= until)
    }

    /// All pages and the increments since, in one transaction that is proved before it is committed.
    fn finish_resync(&mut self) -> Result<bool, String> {
        let Some(resync) = self.pending.resync.take() else {
            return Ok(false);
        };
        let Some(Open {
            work: Doing::Apply(apply),
            database,
            ..
        }) = &mut self.open
        else {
            return Ok(false);
        };
        let base = *resync.stage.base();
        let mut reader = self
            .shared
            .log()
            .reader(base.position)
            .map_err(|error| error.to_string())?;
        let end = reader
            .last_head()
            .map_err(|error| error.to_string())?
            .map_or(
                End {
                    position: base.position,
                    pages: base.pages,
                    content: base.content,
                },
                |head| End::from(&head),
            );
        let done = apply_resync(apply, database, &resync.stage, end, &mut reader);
        if let Err(error) = resync.stage.remove() {
            tracing::warn!(source = self.shared.name, %error, "could not remove the staging file");
        }
        self.board.progress = None;
        match done {
            Ok(position) => {
                tracing::info!(source = self.shared.name, %position, "resync is complete");
                self.board.error = None;
                if let Some(keepsake) = resync.keepsake {
                    keepsake.explain(self.options.path.clone());
                }
                Ok(true)
            }
            Err(error) => self.doubt(&error),
        }
    }

    /// Reads the whole content anew.
    pub(super) fn verify(&mut self) -> Result<Option<Point>, ReplicaError> {
        let Some(open) = &mut self.open else {
            return Ok(None);
        };
        if let Doing::Capture(_) = open.work {
            return Ok(self.board.tip);
        }
        if let Doing::Apply(apply) = std::mem::replace(&mut open.work, Doing::Nothing) {
            apply.release(&mut open.database);
        }
        let expected = self.board.content;
        self.turn_to_apply().map_err(ReplicaError::Failed)?;
        self.show_follower();
        let point = self
            .board
            .applied
            .zip(self.board.content)
            .map(|(position, content)| Point { position, content });
        if self.board.content == expected {
            return Ok(point);
        }
        let (found, expected) = (
            self.board.content.unwrap_or_default(),
            expected.unwrap_or_default(),
        );
        Err(ReplicaError::Failed(format!(
            "the content of source \"{}\" is {found:016x}, but should be {expected:016x}: it was changed behind syncd's back, \
             or the disk has damaged it; a resync follows",
            self.shared.name
        )))
    }

    fn stage_path(&self) -> std::path::PathBuf {
        self.shared.store.source(&self.shared.name).join("stage")
    }
}

/// What is applied next in one transaction.
enum Batch {
    Nothing,
    /// Several whole transactions.
    Several(Vec<Increment>),
    /// The first part of one that does not fit into memory.
    Large(Increment),
}

impl Spooled {
    fn next_batch(&mut self) -> Result<Batch, LogError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_COUNT && bytes < BATCH_BYTES {
            let next = match self.ahead.take() {
                Some(increment) => Some(increment),
                None => self.reader.poll()?,
            };
            let Some(increment) = next else { break };
            if !increment.last {
                if batch.is_empty() {
                    return Ok(Batch::Large(increment));
                }
                self.ahead = Some(increment);
                break;
            }
            bytes += increment.body.len();
            batch.push(increment);
        }
        Ok(if batch.is_empty() {
            Batch::Nothing
        } else {
            Batch::Several(batch)
        })
    }
}

impl Batch {
    /// Applies it as one transaction; the bytes of it.
    fn apply(
        self,
        apply: &mut Apply,
        database: &mut Database,
        reader: &mut Reader,
    ) -> Result<u64, ApplyError> {
        match self {
            Self::Nothing => Ok(0),
            Self::Several(batch) => {
                apply.apply(database, &batch)?;
                Ok(batch
                    .iter()
                    .map(|increment| increment.encoded_len() as u64)
                    .sum())
            }
            Self::Large(first) => {
                let mut bytes = first.encoded_len() as u64;
                let mut batch = apply.begin(database, End::of(&first))?;
                batch.push(&first)?;
                loop {
                    let Some(part) = reader.poll().ok().flatten() else {
                        return Err(ApplyError::Part {
                            position: first.position,
                            part: first.part + 1,
                        });
                    };
                    bytes += part.encoded_len() as u64;
                    batch.push(&part)?;
                    if part.last {
                        batch.commit()?;
                        return Ok(bytes);
                    }
                }
            }
        }
    }
}

fn apply_resync(
    apply: &mut Apply,
    database: &mut Database,
    stage: &Stage,
    end: End,
    reader: &mut Reader,
) -> Result<Position, ApplyError> {
    let mut batch = apply.resync(database, stage, end)?;
    while reader.position().seq < end.position.seq {
        let Some(increment) = reader.poll().ok().flatten() else {
            return Err(ApplyError::End {
                want: end.position,
                got: Some(reader.position()),
            });
        };
        batch.push(&increment)?;
    }
    batch.commit()
}

const fn stage_base(base: Base) -> StageBase {
    StageBase {
        lineage: base.lineage,
        position: base.point.position,
        content: base.point.content,
        pages: base.pages,
        page_size: base.page_size,
    }
}

const fn base_of(base: StageBase) -> Base {
    let point = crate::wire::message::Point {
        position: base.position,
        content: base.content,
    };
    Base {
        lineage: base.lineage,
        point,
        pages: base.pages,
        page_size: base.page_size,
    }
}

fn not_following() -> ReplicaError {
    ReplicaError::Unfit(
        "the source does not follow, or its application holds the write lock".to_owned(),
    )
}

fn no_resync() -> ReplicaError {
    ReplicaError::Unfit("no resync is under way".to_owned())
}

pub(super) fn failed(error: impl std::fmt::Display) -> ReplicaError {
    ReplicaError::Failed(error.to_string())
}
