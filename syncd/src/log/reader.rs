//! Reading a log while it is written: from memory what is new, from the disk what is not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use shared::model::Position;

use super::segment::Record;
use super::{LogError, Shared, index};
use crate::wire::increment::{HEAD, Head, Increment};

/// Reads increments in order, from any thread. It does not pin what it reads: see [`Log::pin`](super::Log::pin).
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    after: Position,
    /// Which part of the transaction after that is next.
    part: u32,
    turns: u64,
    place: Option<Place>,
}

/// Where on disk the next part is to be looked for.
#[derive(Debug)]
struct Place {
    file: Arc<File>,
    path: PathBuf,
    offset: u64,
}

/// What the log says about the next increment.
enum Next {
    Nothing,
    InMemory(Increment),
    OnDisk,
}

impl Reader {
    pub(super) fn open(shared: &Arc<Shared>, after: Position) -> Result<Self, LogError> {
        let turns = {
            let state = shared.state();
            let start = state.start().ok_or(LogError::NoBase)?;
            if after.seq < start.position.seq {
                return Err(LogError::Gone {
                    wanted: after,
                    start,
                });
            }
            state.turns
        };
        let point = index::point_at(shared, after.seq)?;
        if point.is_none_or(|point| point.position != after) {
            return Err(LogError::Unknown(after));
        }
        Ok(Self {
            shared: Arc::clone(shared),
            after,
            part: 0,
            turns,
            place: None,
        })
    }

    /// The position of the last transaction that was read whole, or the one that reading began after.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.after
    }

    /// The next increment, or the next part of one; `None` when there is none yet.
    ///
    /// # Errors
    /// [`LogError::Gone`] and [`LogError::Moved`]: open another reader, or resync.
    pub fn poll(&mut self) -> Result<Option<Increment>, LogError> {
        let increment = match self.look()? {
            Next::Nothing => return Ok(None),
            Next::InMemory(increment) => {
                self.place = None;
                increment
            }
            Next::OnDisk => self.read()?,
        };
        if increment.last {
            self.after = increment.position;
            self.part = 0;
        } else {
            self.part += 1;
        }
        Ok(Some(increment))
    }

    /// What is the head of the last increment there is, if there is one after what was read: the end of a batch of everything.
    ///
    /// # Errors
    /// As [`Reader::poll`].
    pub fn last_head(&self) -> Result<Option<Head>, LogError> {
        let seq = {
            let state = self.shared.state();
            let Some(end) = state.end().filter(|end| end.position.seq > self.after.seq) else {
                return Ok(None);
            };
            end.position.seq
        };
        let Some((file, path, mut offset)) = index::locate(&self.shared, seq - 1) else {
            return Err(LogError::Moved);
        };
        loop {
            let record = read_record(&file, &path, offset)?.ok_or(LogError::Moved)?;
            offset += record.len();
            if let Record::Increment(head) = record
                && head.position.seq == seq
            {
                return Ok(Some(head));
            }
        }
    }

    fn look(&self) -> Result<Next, LogError> {
        let state = self.shared.state();
        if state.turns != self.turns {
            return Err(LogError::Moved);
        }
        let (Some(start), Some(end)) = (state.start(), state.end()) else {
            return Err(LogError::NoBase);
        };
        if self.after.seq >= end.position.seq {
            return Ok(Next::Nothing);
        }
        let wanted = (self.after.seq + 1, self.part);
        let at = state
            .ring
            .partition_point(|kept| (kept.position.seq, kept.part) < wanted);
        if let Some(kept) = state.ring.get(at)
            && (kept.position.seq, kept.part) == wanted
        {
            return Ok(Next::InMemory(kept.clone()));
        }
        // A segment that was dropped while it is being read stays readable to its end.
        if self.after.seq < start.position.seq && self.place.is_none() {
            return Err(LogError::Gone {
                wanted: self.after,
                start,
            });
        }
        Ok(Next::OnDisk)
    }

    /// Reads the next part from the disk.
    fn read(&mut self) -> Result<Increment, LogError> {
        let found = self.find();
        if found.is_err() && self.shared.state().turns != self.turns {
            // What was read was being overwritten.
            return Err(LogError::Moved);
        }
        found
    }

    fn find(&mut self) -> Result<Increment, LogError> {
        let wanted = (self.after.seq + 1, self.part);
        // At the end of one segment the next is looked up, and no more than that.
        let mut lookups = 2;
        loop {
            let place = self.place()?;
            let (file, path, offset) = (Arc::clone(&place.file), place.path.clone(), place.offset);
            let record = match read_record(&file, &path, offset)? {
                None | Some(Record::Seal { .. }) if lookups > 0 => {
                    lookups -= 1;
                    self.place = None;
                    continue;
                }
                None => return Err(LogError::Moved),
                Some(record) => record,
            };
            if let Some(place) = &mut self.place {
                place.offset += record.len();
            }
            if let Record::Increment(head) = record
                && (head.position.seq, head.part) == wanted
            {
                return read_increment(&file, path, offset, &head);
            }
        }
    }

    fn place(&mut self) -> Result<&Place, LogError> {
        if self.place.is_none() {
            let Some((file, path, offset)) = index::locate(&self.shared, self.after.seq) else {
                return Err(match self.shared.state().start() {
                    Some(start) if start.position.seq > self.after.seq => LogError::Gone {
                        wanted: self.after,
                        start,
                    },
                    _ => LogError::Moved,
                });
            };
            self.place = Some(Place { file, path, offset });
        }
        self.place.as_ref().ok_or(LogError::Moved)
    }
}

/// Reads what stands at `offset`; `None` at the end of the file.
fn read_record(file: &File, path: &Path, offset: u64) -> Result<Option<Record>, LogError> {
    let read = Record::read(file, offset).map_err(LogError::io("read", path))?;
    read.map_err(|why| LogError::Damaged {
        path: path.into(),
        offset,
        why,
    })
}

fn read_increment(
    file: &File,
    path: PathBuf,
    offset: u64,
    head: &Head,
) -> Result<Increment, LogError> {
    let mut bytes = BytesMut::zeroed(head.encoded_len());
    file.read_exact_at(&mut bytes, offset)
        .map_err(LogError::io("read", &path))?;
    head.check_body(&bytes)
        .map_err(|why| LogError::Damaged { path, offset, why })?;
    let body: Bytes = bytes.freeze().slice(HEAD..HEAD + head.body as usize);
    Ok(head.with_body(body))
}
