//! Increments on disk: a primary's history and a standby's spool are the same thing.
//!
//! One folder of segments. Every segment begins with the point that it continues; the increments follow, each checked by its own
//! checksum and by the content's (`pre` is what the one before left). Opening takes the longest prefix that is whole, and says what it
//! cut off. Writing and syncing are apart, so that several commits share a sync, also from another thread. A transaction of several
//! parts counts once its last part is there.

mod index;
mod pin;
mod reader;
mod recover;
mod room;
mod segment;
mod state;
mod sync;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shared::clock;
use shared::durable::sync_folder;
use shared::model::Position;
use thiserror::Error;

pub use self::pin::Pin;
pub use self::reader::Reader;
use self::segment::{Segment, SegmentHeader, encode_mark};
use self::state::{Shared, State};
pub use self::sync::Syncer;
use crate::wire::increment::{DecodeError, Increment};

/// No mark is longer.
pub const MARK_LIMIT: usize = 256;

/// A point in a history: a position and the checksum of the content there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// The position.
    pub position: Position,
    /// The checksum.
    pub content: u64,
}

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A segment that is longer is followed by the next, in bytes. What is not needed any more is given back segment by segment. On a
    /// small disk segments are shorter.
    pub segment_bytes: u64,
    /// How many bytes of the newest increments are kept in memory, so that whoever follows closely does not read the disk.
    pub ring_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            ring_bytes: 16 << 20,
        }
    }
}

/// How much of the past is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// At most this many bytes, in whole segments.
    pub bytes: u64,
    /// Nothing older than this.
    pub age: Duration,
}

/// What opening a log had to cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub path: PathBuf,
    /// From here on.
    pub offset: u64,
    /// How many bytes, there and in later segments.
    pub bytes: u64,
    /// Why.
    pub why: String,
}

/// Why a log cannot do what it should.
#[derive(Debug, Error)]
pub enum LogError {
    /// The disk is full, and nothing could be dropped to make room. Nothing half-written is left.
    #[error("the disk that {} is on is full, and the log there holds nothing that could be dropped; make room on that disk", path.display())]
    Full {
        /// The folder.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A write failed and could not be undone so far; nothing can be appended until it is.
    #[error(
        "a write to the log failed and could not be taken back; its disk refuses to work: see the log of the system"
    )]
    Broken,
    /// The log has no beginning yet.
    #[error("the log has no beginning yet")]
    NoBase,
    /// The increment does not continue the log.
    #[error("increment {got} (part {part}, on content {pre:016x}) does not continue the log, which ends at {} with {:016x}", end.position, end.content)]
    NotNext {
        /// Where the log ends.
        end: Point,
        /// The increment.
        got: Position,
        /// Its part.
        part: u32,
        /// The content that it applies to.
        pre: u64,
    },
    /// The log does not contain the position.
    #[error("the log does not contain {0}")]
    Unknown(Position),
    /// What comes after the position is not kept any more.
    #[error("the log does not go back to {wanted} any more; it begins after {}", start.position)]
    Gone {
        /// The position asked for.
        wanted: Position,
        /// Where the log begins.
        start: Point,
    },
    /// The log was cut back or begun anew while it was read.
    #[error("the log was cut back or begun anew while it was being read")]
    Moved,
    /// Bytes on disk are not what was written.
    #[error("{} is damaged at byte {offset}: {why}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What does not fit.
        why: DecodeError,
    },
}

impl LogError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            doing,
            path: path.into(),
            source,
        }
    }

    fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// A log, as its one writer has it.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    limits: Limits,
    cut: Option<Cut>,
    /// Bytes in the last segment's file, with parts of a transaction that is not whole yet.
    written: u64,
    /// A last segment of this length is followed by the next, in bytes.
    roll_at: u64,
    open: Option<Open>,
    buffer: Vec<u8>,
    is_broken: bool,
}

/// A transaction of which not all parts were appended yet.
#[derive(Clone, Copy, Debug)]
struct Open {
    position: Position,
    next_part: u32,
    /// Where it begins in the segment.
    offset: u64,
}

impl Log {
    /// Opens the log in `folder`, which is made if need be.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(folder: &Path, limits: Limits) -> Result<Self, LogError> {
        fs::create_dir_all(folder).map_err(LogError::io("make", folder))?;
        let mut found = recover::recover(folder)?;
        if let Some(last) = found.segments.back_mut() {
            last.is_sealed = false;
        }
        let written = found.segments.back().map_or(0, |segment| segment.length);
        let state = State {
            dirty: former_files(&found.segments),
            segments: found.segments,
            mark: found.mark,
            ..State::default()
        };
        let roll_at = room::share(
            room::free_on_disk(folder),
            state.bytes(),
            limits.segment_bytes,
        );
        Ok(Self {
            shared: Arc::new(Shared {
                folder: folder.into(),
                state: Mutex::new(state),
            }),
            limits,
            cut: found.cut,
            written,
            roll_at,
            open: None,
            buffer: Vec::new(),
            is_broken: false,
        })
    }

    /// What opening it cut off, if anything: after a crash the torn end, else damage.
    #[must_use]
    pub const fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }

    /// The point after which it begins; `None` before there is one.
    #[must_use]
    pub fn start(&self) -> Option<Point> {
        self.shared.state().start()
    }

    /// The point at which it ends.
    #[must_use]
    pub fn end(&self) -> Option<Point> {
        self.shared.state().end()
    }

    /// Its size on disk in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.state().bytes()
    }

    /// The mark that was appended with the last increment, if one was.
    #[must_use]
    pub fn mark(&self) -> Option<Vec<u8>> {
        self.shared.state().mark.clone()
    }

    /// Appends an increment, or the next part of one, with a mark if it is the last part. Not synced.
    ///
    /// # Errors
    /// Nothing half-written is left, unless it is [`LogError::Broken`]. A full disk is an error only after dropping old segments did not
    /// help, first those that nobody needs, then those that are pinned: whoever reads them finds them gone. After an error in the middle of a transaction, begin it again with part 0.
    pub fn append(&mut self, increment: &Increment, mark: Option<&[u8]>) -> Result<(), LogError> {
        if self.is_broken {
            // Whoever writes tries again after a while; then the disk may let us.
            self.drop_open_parts()?;
            self.is_broken = false;
        }
        self.check_next(increment)?;
        if increment.part == 0 {
            if self.open.is_some() {
                self.drop_open_parts()?;
            }
            if self.written >= self.roll_at {
                self.roll()?;
            }
        }
        let offset = self.open.map_or(self.written, |open| open.offset);
        let mark = mark.filter(|mark| increment.last && mark.len() <= MARK_LIMIT);
        let length = match self.write(increment, mark) {
            Ok(length) => length,
            Err(error) => {
                self.drop_open_parts()?;
                return Err(error);
            }
        };
        self.written += length;
        self.open = (!increment.last).then_some(Open {
            position: increment.position,
            next_part: increment.part + 1,
            offset,
        });
        let mut state = self.shared.state();
        if increment.last
            && let Some(segment) = state.segments.back_mut()
        {
            segment.note(increment.position.seq, offset);
            segment.length = self.written;
            segment.end = Point {
                position: increment.position,
                content: increment.post,
            };
            segment.touched_at = clock::unix_nanos();
            state.mark = mark.map(<[u8]>::to_vec);
        }
        state.keep_in_ring(increment, self.limits.ring_bytes);
        Ok(())
    }

    /// Makes what was appended survive a loss of power, and returns its end.
    ///
    /// # Errors
    /// The system refuses; nothing can be said about what is on disk then.
    pub fn sync(&self) -> Result<Option<Point>, LogError> {
        self.syncer().sync()
    }

    /// Syncs from any thread.
    #[must_use]
    pub fn syncer(&self) -> Syncer {
        Syncer(Arc::clone(&self.shared))
    }

    /// The point with this seq, if the log contains it.
    ///
    /// # Errors
    /// The system refuses, or the log is damaged.
    pub fn point_at(&self, seq: u64) -> Result<Option<Point>, LogError> {
        index::point_at(&self.shared, seq)
    }

    /// The newest point whose content has this checksum, if the log contains one.
    ///
    /// # Errors
    /// The system refuses, or the log is damaged.
    pub fn find_content(&self, content: u64) -> Result<Option<Point>, LogError> {
        index::find_content(&self.shared, content)
    }

    /// Reads what comes after `position`, also while more is appended, from any thread.
    ///
    /// # Errors
    /// The log does not contain the position, or not any more.
    pub fn reader(&self, after: Position) -> Result<Reader, LogError> {
        Reader::open(&self.shared, after)
    }

    /// Keeps what comes after `seq` until the pin is dropped, or the disk is full.
    pub fn pin(&self, after_seq: u64) -> Pin {
        let mut state = self.shared.state();
        let id = state.next_pin;
        state.next_pin += 1;
        state.pins.insert(id, after_seq);
        Pin {
            shared: Arc::clone(&self.shared),
            id,
        }
    }

    /// Keeps what comes after `seq` until another is said: what a standby's database has not on disk itself.
    pub fn keep_after(&self, seq: Option<u64>) {
        self.shared.state().keep_after = seq;
    }

    /// Drops whole segments that are beyond `retention` and that nobody needs. Returns how many.
    ///
    /// # Errors
    /// The system refuses.
    pub fn retain(&mut self, retention: &Retention) -> Result<usize, LogError> {
        self.retain_at(retention, clock::unix_nanos())
    }

    /// As [`Log::retain`], at a time in nanoseconds since 1970.
    ///
    /// # Errors
    /// The system refuses.
    pub fn retain_at(&mut self, retention: &Retention, now: u64) -> Result<usize, LogError> {
        let age = u64::try_from(retention.age.as_nanos()).unwrap_or(u64::MAX);
        let mut dropped = 0;
        loop {
            let state = self.shared.state();
            let excess = state.bytes() > retention.bytes;
            let Some(oldest) = state.segments.front() else {
                break;
            };
            let is_old = oldest.touched_at.saturating_add(age) < now;
            drop(state);
            if !(excess || is_old) || !self.drop_oldest()? {
                break;
            }
            dropped += 1;
        }
        Ok(dropped)
    }

    /// Cuts off everything after `position`: a tail that is not part of the history any more.
    ///
    /// # Errors
    /// The log does not contain the position, or the system refuses.
    pub fn truncate_after(&mut self, position: Position) -> Result<(), LogError> {
        let (ordinal, length, end) = index::locate_end(&self.shared, position)?;
        self.open = None;
        let mut state = self.shared.state();
        state.turns += 1;
        state.clear_ring();
        state.mark = None;
        while state
            .segments
            .back()
            .is_some_and(|segment| segment.ordinal > ordinal)
        {
            if let Some(segment) = state.segments.pop_back() {
                fs::remove_file(&segment.path).map_err(LogError::io("remove", &segment.path))?;
            }
        }
        state.dirty = former_files(&state.segments);
        if let Some(segment) = state.segments.back_mut() {
            segment.cut_back(length, end);
            segment
                .file
                .set_len(length)
                .map_err(LogError::io("shorten", &segment.path))?;
            segment
                .file
                .sync_all()
                .map_err(LogError::io("sync", &segment.path))?;
        }
        drop(state);
        self.written = length;
        sync_folder(&self.shared.folder).map_err(LogError::io("sync", &self.shared.folder))
    }

    /// Forgets everything and begins anew after `base`. After a crash it is as before or as after, not between.
    ///
    /// # Errors
    /// The system refuses.
    pub fn reset(&mut self, base: Point) -> Result<(), LogError> {
        let segment = self.add_segment(base, true)?;
        segment
            .file
            .sync_all()
            .map_err(LogError::io("sync", &segment.path))?;
        sync_folder(&self.shared.folder).map_err(LogError::io("sync", &self.shared.folder))?;
        self.written = segment.length;
        self.open = None;
        self.is_broken = false;
        let mut state = self.shared.state();
        state.turns += 1;
        state.clear_ring();
        state.mark = None;
        state.dirty.clear();
        let former = std::mem::take(&mut state.segments);
        state.segments.push_back(segment);
        drop(state);
        for segment in former {
            fs::remove_file(&segment.path).map_err(LogError::io("remove", &segment.path))?;
        }
        Ok(())
    }

    fn check_next(&self, increment: &Increment) -> Result<(), LogError> {
        let end = self.end().ok_or(LogError::NoBase)?;
        let got = increment.position;
        let continues = match self.open {
            Some(open) if increment.part != 0 => {
                open.position == got && open.next_part == increment.part
            }
            _ => {
                increment.part == 0
                    && got.seq == end.position.seq + 1
                    && got.generation == end.position.generation
                    && got.epoch >= end.position.epoch
            }
        };
        if continues && increment.pre == end.content {
            return Ok(());
        }
        Err(LogError::NotNext {
            end,
            got,
            part: increment.part,
            pre: increment.pre,
        })
    }

    /// Writes an increment and a mark at the end; makes room if there is none.
    fn write(&mut self, increment: &Increment, mark: Option<&[u8]>) -> Result<u64, LogError> {
        let (head, tail) = increment.frame();
        self.buffer.clear();
        self.buffer.extend_from_slice(&head);
        self.buffer.extend_from_slice(&increment.body);
        self.buffer.extend_from_slice(&tail);
        if let Some(mark) = mark {
            encode_mark(increment.position.seq, mark, &mut self.buffer);
        }
        loop {
            let written = self.write_buffer();
            match written {
                Err(error) if error.is_disk_full() => {
                    self.drop_open_parts_after(self.written)?;
                    if !self.drop_oldest()? && !self.drop_pinned()? {
                        return Err(self.or_full(error));
                    }
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(self.buffer.len() as u64),
            }
        }
    }

    fn or_full(&self, error: LogError) -> LogError {
        if error.is_disk_full() {
            return LogError::Full {
                path: self.shared.folder.clone(),
            };
        }
        error
    }

    fn write_buffer(&self) -> Result<(), LogError> {
        let state = self.shared.state();
        let segment = state.segments.back().ok_or(LogError::NoBase)?;
        let (file, path) = (Arc::clone(&segment.file), segment.path.clone());
        drop(state);
        file.write_all_at(&self.buffer, self.written)
            .map_err(LogError::io("append to", &path))
    }

    /// Forgets the parts of a transaction that will not become whole.
    fn drop_open_parts(&mut self) -> Result<(), LogError> {
        let mut state = self.shared.state();
        let whole = state.segments.back().map_or(0, |segment| segment.length);
        let end = state.end().map_or(0, |end| end.position.seq);
        while state
            .ring
            .back()
            .is_some_and(|last| last.position.seq > end)
        {
            if let Some(part) = state.ring.pop_back() {
                state.ring_bytes -= part.encoded_len();
            }
        }
        drop(state);
        self.open = None;
        self.written = whole;
        self.drop_open_parts_after(whole)
    }

    fn drop_open_parts_after(&mut self, length: u64) -> Result<(), LogError> {
        let state = self.shared.state();
        let Some(segment) = state.segments.back() else {
            return Ok(());
        };
        let shortened = match segment.file.metadata() {
            Ok(now) if now.len() <= length => Ok(()),
            _ => segment.file.set_len(length),
        };
        if shortened.is_err() {
            drop(state);
            self.is_broken = true;
            return Err(LogError::Broken);
        }
        Ok(())
    }

    /// Begins the next segment, and leaves room for others on the disk as far as the log does not need it itself.
    fn roll(&mut self) -> Result<(), LogError> {
        let Some(end) = self.end() else {
            return Err(LogError::NoBase);
        };
        let segment = self.add_segment(end, false)?;
        self.written = segment.length;
        let mut state = self.shared.state();
        if let Some(former) = state.segments.back().map(|former| Arc::clone(&former.file)) {
            state.dirty.push(former);
        }
        state.segments.push_back(segment);
        drop(state);
        while room::free_on_disk(&self.shared.folder) < self.roll_at {
            if !self.drop_oldest()? && !self.drop_pinned()? {
                break;
            }
        }
        Ok(())
    }

    /// Makes the file of the next segment, which is not a part of the log yet.
    fn add_segment(&mut self, base: Point, is_fresh: bool) -> Result<Segment, LogError> {
        let ordinal = self.next_ordinal();
        let free = room::free_on_disk(&self.shared.folder);
        self.roll_at = room::share(free, self.bytes(), self.limits.segment_bytes);
        let mut segment = self.make_segment(ordinal, base, is_fresh);
        while segment.as_ref().is_err_and(LogError::is_disk_full)
            && (self.drop_oldest()? || self.drop_pinned()?)
        {
            segment = self.make_segment(ordinal, base, is_fresh);
        }
        segment.map_err(|error| self.or_full(error))
    }

    fn next_ordinal(&self) -> u64 {
        self.shared
            .state()
            .segments
            .back()
            .map_or(1, |segment| segment.ordinal + 1)
    }

    fn make_segment(&self, ordinal: u64, base: Point, is_fresh: bool) -> Result<Segment, LogError> {
        let header = SegmentHeader {
            ordinal,
            base,
            is_fresh,
        };
        Segment::make(&self.shared.folder, &header)
    }

    /// Drops the oldest segment, if nobody needs it and it is not the last. What follows it is on disk then.
    fn drop_oldest(&self) -> Result<bool, LogError> {
        self.drop_oldest_up_to(State::needed_after)
    }

    /// Drops the oldest segment although somebody may be reading it, if it is not the last: rather than the disk, history is given up.
    fn drop_pinned(&self) -> Result<bool, LogError> {
        let dropped = self.drop_oldest_up_to(State::kept_after)?;
        if dropped {
            let start = self.start().map(|start| start.position);
            tracing::warn!(
                path = %self.shared.folder.display(),
                start = start.map(tracing::field::display),
                "the disk is full: history that a standby was still to get is dropped; it will be resynced"
            );
        }
        Ok(dropped)
    }

    fn drop_oldest_up_to(&self, needed_after: fn(&State) -> u64) -> Result<bool, LogError> {
        let is_droppable = |state: &State| state.is_droppable(needed_after(state));
        if !is_droppable(&self.shared.state()) {
            return Ok(false);
        }
        self.sync()?;
        let mut state = self.shared.state();
        if !is_droppable(&state) {
            return Ok(false);
        }
        let Some(oldest) = state.segments.front() else {
            return Ok(false);
        };
        fs::remove_file(&oldest.path).map_err(LogError::io("remove", &oldest.path))?;
        if let Some(oldest) = state.segments.pop_front() {
            // An open file keeps its place on the disk.
            state.dirty.retain(|file| !Arc::ptr_eq(file, &oldest.file));
        }
        Ok(true)
    }
}

/// The files of all segments but the last that are not known to be on disk.
fn former_files(segments: &VecDeque<Segment>) -> Vec<Arc<File>> {
    let former = segments.len().saturating_sub(1);
    let unsealed = segments
        .iter()
        .take(former)
        .filter(|segment| !segment.is_sealed);
    unsealed.map(|segment| Arc::clone(&segment.file)).collect()
}
