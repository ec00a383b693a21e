//! Capturing on a primary, and on a former one up to its end.

use std::time::Duration;

use shared::api::Fork;
use shared::clock;
use shared::model::{Epoch, Position};

use super::keeper::{Doing, Keeper, Open};
use super::{Wanted, Work};
use crate::log::Point;
use crate::logic::rejoin;
use crate::sqlite::{CaptureError, Continuity, Mark, Tail};
use crate::store;
use crate::wire::increment::Increment;

/// At most this much is captured before others are heard.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_COUNT: usize = 512;
/// A checkpoint of the application's own, or a header being written: look again after this.
const SOON: Duration = Duration::from_millis(1);
/// So many beginnings of epochs and gens are remembered.
pub(super) const LINEAGE_MOST: usize = 256;

/// An increment, and how to know after a restart that it was captured, if it ends a transaction.
type Captured = (Increment, Option<Mark>);

impl Keeper {
    /// The work of a node that leads, or that has led and is sealed.
    pub(super) fn capture_or_lead(&mut self) -> Result<Duration, String> {
        self.pending.clear();
        let leads = matches!(self.wanted, Wanted::Lead { .. });
        let fenced = leads || self.fence()?;
        if !self.turn_to_capture(leads)? {
            return Ok(SOON);
        }
        let more = self.capture()?;
        if leads && self.is_drained {
            self.begin_epoch()?;
            self.open_for_writes();
        }
        Ok(if more {
            Duration::ZERO
        } else if !fenced {
            Self::fence_rest()
        } else {
            Self::idle_rest()
        })
    }

    /// Lets the application write, once everything it wrote so far is captured.
    fn open_for_writes(&mut self) {
        let Some(open) = &mut self.open else { return };
        if open.database.is_fenced() {
            open.database.lift_fence();
        }
        self.board.is_fenced = false;
        self.board.state = "leading";
    }

    fn turn_to_capture(&mut self, leads: bool) -> Result<bool, String> {
        if matches!(
            self.open,
            Some(Open {
                work: Doing::Capture(_),
                ..
            })
        ) {
            return self.go_on_unproved(leads).map(|()| true);
        }
        if leads && !self.has_applied_all()? {
            return Ok(false);
        }
        let Some(open) = &mut self.open else {
            return Ok(false);
        };
        if let Doing::Apply(apply) = std::mem::replace(&mut open.work, Doing::Nothing) {
            apply.detach(&mut open.database);
        }
        let mark = self
            .shared
            .log()
            .mark()
            .and_then(|mark| Mark::from_bytes(&mark));
        let (tail, continuity) = match Tail::attach(&mut open.database, mark.as_ref()) {
            Ok(attached) => attached,
            Err(CaptureError::CheckpointLock | CaptureError::Unreadable) => return Ok(false),
            Err(error) => return Err(error.to_string()),
        };
        open.work = Doing::Capture(Box::new(tail));
        self.board.work = Work::Capture;
        self.board.error = None;
        self.is_drained = false;
        self.establish(continuity, leads).map(|()| true)
    }

    /// Finds out where the content stands in the history that the log knows, or begins a new stretch of it.
    fn establish(&mut self, continuity: Continuity, leads: bool) -> Result<(), String> {
        let end = self.point_at_end();
        let content = self
            .open
            .as_ref()
            .and_then(|open| open.database.checksum())
            .unwrap_or_default();
        let goes_on =
            continuity == Continuity::Kept || end.is_some_and(|end| end.content == content);
        let captured_in = self.shared.lineage().captured_in.clone();
        let same_boot =
            captured_in.is_empty() || captured_in == store::CLEAN || captured_in == store::boot();
        self.board.is_proved = same_boot;
        match end.filter(|_| goes_on) {
            Some(end) => {
                self.stand_at(end);
                Ok(())
            }
            None if leads || same_boot => self.begin_stretch(content, continuity),
            None => {
                // Nobody knows what was lost with the machine. Somebody else may have more; the arbiter decides.
                self.board.state = "unproved after an unclean end of the machine";
                self.board.tip = None;
                self.board.durable = None;
                self.board.content = Some(content);
                Ok(())
            }
        }
    }

    fn stand_at(&mut self, point: Point) {
        if let Some(Open {
            work: Doing::Capture(tail),
            ..
        }) = &mut self.open
        {
            tail.stand_at(point.position);
        }
        self.show(point);
    }

    /// Continuity cannot be proved: a new gen begins with the content as it is.
    fn begin_stretch(&mut self, content: u64, continuity: Continuity) -> Result<(), String> {
        let end = self.point_at_end();
        let epoch = self.capture_epoch();
        let position = match end {
            None => Position {
                epoch,
                generation: 0,
                seq: 1,
            },
            Some(end) => Position {
                epoch,
                generation: end.position.generation + 1,
                seq: end.position.seq + 1,
            },
        };
        if let (Some(end), Continuity::Lost(why)) = (end, continuity) {
            tracing::warn!(source = self.shared.name, %why, from = %end.position, to = %position, "continuity is lost; standbys will be resynced");
        }
        let point = Point { position, content };
        self.add_fork(Fork {
            start: position,
            checksum: content,
        })?;
        self.shared
            .log()
            .reset(point)
            .map_err(|error| error.to_string())?;
        self.shared.meter.reset();
        self.board.is_proved = true;
        self.stand_at(point);
        Ok(())
    }

    /// The epoch that is stamped on what is captured: the one that is led, or was led last.
    fn capture_epoch(&self) -> Epoch {
        match self.wanted {
            Wanted::Lead { epoch, .. } => epoch,
            Wanted::Free | Wanted::Seal { .. } | Wanted::Follow => self
                .shared
                .lineage()
                .forks
                .last()
                .map_or(Epoch(0), |fork| fork.start.epoch),
        }
    }

    /// The arbiter has decided to go on with a content that nobody could vouch for.
    fn go_on_unproved(&mut self, leads: bool) -> Result<(), String> {
        if leads && self.board.tip.is_none() {
            let content = self.board.content.unwrap_or_default();
            return self.begin_stretch(content, Continuity::Begun);
        }
        Ok(())
    }

    /// On taking the lead, with all captured that came before: notes where the epoch begins, and stamps it on what comes.
    fn begin_epoch(&mut self) -> Result<(), String> {
        let (Wanted::Lead { epoch, .. }, Some(end)) = (self.wanted, self.point_at_end()) else {
            return Ok(());
        };
        let Some(Open {
            work: Doing::Capture(tail),
            ..
        }) = &mut self.open
        else {
            return Ok(());
        };
        if tail.position().epoch == epoch {
            return Ok(());
        }
        let start = Position {
            epoch,
            ..end.position
        };
        tail.stand_at(start);
        let last = self.shared.lineage().forks.last().copied();
        if last.is_some_and(|last| {
            (last.start.epoch, last.start.generation) == (epoch, start.generation)
        }) {
            return Ok(());
        }
        self.add_fork(Fork {
            start,
            checksum: end.content,
        })
    }

    fn add_fork(&self, fork: Fork) -> Result<(), String> {
        let mut lineage = self.shared.lineage().clone();
        rejoin::extend(&mut lineage.forks, fork, LINEAGE_MOST);
        lineage.captured_in = store::boot();
        self.shared
            .set_lineage(lineage)
            .map_err(|error| error.to_string())
    }

    /// Captures what is committed, a bounded piece at a time. True if there is more at once.
    fn capture(&mut self) -> Result<bool, String> {
        let durable = matches!(self.wanted, Wanted::Lead { durable: true, .. });
        self.take_samples()?;
        let (batch, outcome) = self.poll_batch();
        if durable && !batch.is_empty() {
            let Some(open) = &self.open else {
                return Ok(false);
            };
            open.database
                .sync_log()
                .map_err(|error| error.to_string())?;
        }
        self.log_batch(&batch)?;
        let drained = matches!(outcome, Ok(true));
        match outcome {
            Ok(_) => (),
            Err(CaptureError::CheckpointLock | CaptureError::Unreadable) => return Ok(false),
            Err(CaptureError::Replaced) => {
                self.let_go("the database file was replaced");
                return Ok(true);
            }
            Err(error @ CaptureError::Lost(_)) => {
                tracing::warn!(source = self.shared.name, %error, "capturing begins anew");
                self.drop_capture();
                return Ok(true);
            }
            Err(error @ CaptureError::Failure(_)) => return Err(error.to_string()),
        }
        self.is_drained = drained;
        self.finish_samples();
        Ok(!drained)
    }

    fn poll_batch(&mut self) -> (Vec<Captured>, Result<bool, CaptureError>) {
        let mut batch = Vec::new();
        let Some(Open {
            work: Doing::Capture(tail),
            database,
            ..
        }) = &mut self.open
        else {
            return (batch, Ok(true));
        };
        if self.board.tip.is_none() {
            return (batch, Ok(true));
        }
        let mut bytes = 0;
        while batch.len() < BATCH_COUNT && bytes < BATCH_BYTES {
            match tail.poll(database) {
                Ok(Some(increment)) => {
                    bytes += increment.body.len();
                    let mark = if increment.last {
                        tail.mark(database)
                    } else {
                        None
                    };
                    batch.push((increment, mark));
                }
                Ok(None) => return (batch, Ok(true)),
                Err(error) => return (batch, Err(error)),
            }
        }
        (batch, Ok(false))
    }

    fn log_batch(&mut self, batch: &[Captured]) -> Result<(), String> {
        let now = clock::now();
        let mut last = None;
        {
            let mut log = self.shared.log();
            for (increment, mark) in batch {
                let mark = mark.as_ref().map(Mark::to_bytes);
                let appended =
                    log.append(increment, mark.as_ref().map(<[u8; Mark::LENGTH]>::as_slice));
                appended.map_err(|error| error.to_string())?;
                let bytes = increment.encoded_len() as u64;
                self.shared
                    .meter
                    .capture(increment.position, bytes, now, increment.last);
                if increment.last {
                    last = Some(Point {
                        position: increment.position,
                        content: increment.post,
                    });
                }
            }
        }
        if let Some(point) = last {
            self.show(point);
            self.publish();
        }
        Ok(())
    }

    pub(super) fn show(&mut self, point: Point) {
        self.board.tip = Some(point);
        self.board.durable = Some(point.position);
        self.board.applied = Some(point.position);
        self.board.content = Some(point.content);
    }

    fn drop_capture(&mut self) {
        if let Some(open) = &mut self.open
            && let Doing::Capture(tail) = std::mem::replace(&mut open.work, Doing::Nothing)
        {
            tail.release(&mut open.database);
        }
        self.board.work = Work::Nothing;
    }

    // ---- barriers --------------------------------------------------------------------------------------------------

    /// Notes for each new barrier what is committed now.
    fn take_samples(&mut self) -> Result<(), String> {
        let Some(Open {
            work: Doing::Capture(tail),
            database,
            ..
        }) = &mut self.open
        else {
            return Ok(());
        };
        if self.sampling.iter().all(|one| one.sample.is_some()) {
            return Ok(());
        }
        if let Some(sample) = tail.sample(database).map_err(|error| error.to_string())? {
            for one in self.sampling.iter_mut().filter(|one| one.sample.is_none()) {
                one.sample = Some(sample);
            }
        }
        Ok(())
    }

    /// Answers barriers whose commits are captured.
    fn finish_samples(&mut self) {
        let Some(Open {
            work: Doing::Capture(tail),
            ..
        }) = &self.open
        else {
            return;
        };
        let tip = self.board.tip.map(|tip| tip.position);
        let mut waiting = Vec::new();
        for one in self.sampling.drain(..) {
            if one.sample.is_some_and(|sample| tail.has_reached(&sample)) {
                let _ = one.reply.send(Ok(tip));
            } else {
                waiting.push(one);
            }
        }
        self.sampling = waiting;
    }
}
