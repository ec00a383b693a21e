//! Stretches of the log, and the chain of checksums that runs through them.

use std::os::unix::fs::FileExt;

use super::{CaptureError, Lost};
use crate::sqlite::database::Database;
use crate::sqlite::failure::Failure;
use crate::sqlite::wal::{
    Checksum, FRAME_HEADER, Frame, HEADER, Header, Order, Salts, frame_offset,
};

/// Some consecutive frames of the log, in memory. Committed frames do not change, so it stays right until the log begins anew.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    first: u32,
    frame_size: usize,
    bytes: Vec<u8>,
}

impl Stretch {
    /// Makes sure that the frames from `first` to `last` are in memory.
    pub(super) fn cover(
        &mut self,
        database: &Database,
        first: u32,
        last: u32,
    ) -> Result<(), CaptureError> {
        if self.first <= first
            && !self.bytes.is_empty()
            && (self.last() >= last || self.find_commit(first).is_some())
        {
            return Ok(());
        }
        self.load(database, first, last)
    }

    /// Reads the frames from `first` to `last`.
    pub(super) fn load(
        &mut self,
        database: &Database,
        first: u32,
        last: u32,
    ) -> Result<(), CaptureError> {
        self.first = first;
        self.frame_size = database.page_size() as usize + FRAME_HEADER;
        self.bytes
            .resize((last + 1 - first) as usize * self.frame_size, 0);
        let read = database
            .log()
            .read_exact_at(&mut self.bytes, frame_offset(first, database.page_size()));
        match read {
            Ok(()) => Ok(()),
            Err(error) => {
                self.clear();
                if error.kind() == std::io::ErrorKind::UnexpectedEof {
                    return Err(Lost::Truncated { frame: last }.into());
                }
                Err(Failure::io("read the log of", database.path())(error).into())
            }
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// The last frame in memory.
    pub(super) fn last(&self) -> u32 {
        let count = self.bytes.len().checked_div(self.frame_size).unwrap_or(0);
        self.first
            .saturating_add(u32::try_from(count).unwrap_or(0))
            .saturating_sub(1)
    }

    /// Frame `number` with its header, if it is in memory.
    pub(super) fn frame(&self, number: u32) -> Option<&[u8]> {
        let at = number.checked_sub(self.first)? as usize * self.frame_size;
        self.bytes
            .get(at..at + self.frame_size)
            .filter(|frame| !frame.is_empty())
    }

    /// The first frame from `first` on that commits.
    pub(super) fn find_commit(&self, first: u32) -> Option<u32> {
        (first..=self.last()).find(|number| {
            self.frame(*number)
                .is_some_and(|bytes| Frame::parse(bytes).commit != 0)
        })
    }
}

/// The cumulative checksum as far as it has been followed.
#[derive(Debug)]
pub(super) struct Chain {
    order: Order,
    salts: Salts,
    checksum: Option<Checksum>,
    unsealed: u64,
    expected: Option<(u32, Checksum)>,
}

impl Chain {
    /// In front of the first frame of the generation with `salts`.
    pub(super) fn begin(database: &Database, salts: Salts) -> Result<Self, CaptureError> {
        let mut bytes = [0; HEADER];
        database
            .log()
            .read_exact_at(&mut bytes, 0)
            .map_err(Failure::io("read the log of", database.path()))?;
        let header = Header::parse(&bytes).filter(|header| header.salts == salts);
        let Some(header) = header else {
            return Err(Lost::Frame {
                frame: 0,
                what: "a header that does not belong to it",
            }
            .into());
        };
        if header.page_size != database.page_size() {
            return Err(Lost::PageSize.into());
        }
        Ok(Self {
            order: header.order,
            salts,
            checksum: Some(header.checksum),
            unsealed: 0,
            expected: None,
        })
    }

    /// Behind a frame with this checksum.
    pub(super) const fn at(mut self, checksum: Checksum) -> Self {
        self.checksum = Some(checksum);
        self
    }

    /// Nowhere yet: the log is empty.
    pub(super) const fn nowhere(salts: Salts) -> Self {
        Self {
            order: Order::Little,
            salts,
            checksum: Some((0, 0)),
            unsealed: 0,
            expected: None,
        }
    }

    /// Up to the last frame that was followed; `None` when it is not known.
    pub(super) const fn checksum(&self) -> Option<Checksum> {
        self.checksum
    }

    /// The wal-index says that the checksum up to `frame` is this.
    pub(super) const fn expect_at(&mut self, frame: u32, checksum: Checksum) {
        self.expected = Some((frame, checksum));
    }

    /// Follows frame `number`.
    pub(super) fn follow(&mut self, number: u32, bytes: &[u8]) -> Result<(), Lost> {
        let frame = Frame::parse(bytes);
        if frame.is_unsealed() {
            // The index says that it is committed, so it is; but there is nothing to check it by, nor what comes right after it.
            self.unsealed += 1;
            self.checksum = None;
            return Ok(());
        }
        if frame.salts != self.salts {
            return Err(Lost::Frame {
                frame: number,
                what: "the salts of another generation",
            });
        }
        if let Some(before) = self.checksum
            && self.order.frame(bytes, before) != frame.checksum
        {
            return Err(Lost::Frame {
                frame: number,
                what: "a checksum that does not match",
            });
        }
        self.checksum = Some(frame.checksum);
        Ok(())
    }

    /// Frame `number` ends a transaction. Returns how many frames of it had no checksum.
    pub(super) fn end_commit(&mut self, number: u32) -> Result<u64, Lost> {
        let unsealed = std::mem::take(&mut self.unsealed);
        if unsealed > 0 {
            // Its writer may have gone on from a wrong checksum; the next frame's is believed.
            self.checksum = None;
            return Ok(unsealed);
        }
        match (self.expected, self.checksum) {
            (Some((frame, expected)), Some(checksum))
                if frame == number && expected != checksum =>
            {
                Err(Lost::Frame {
                    frame: number,
                    what: "a checksum that the index of the log does not confirm",
                })
            }
            _ => Ok(0),
        }
    }
}
