//! One file of a log: a header that says what it continues, then increments, each perhaps followed by a mark, and a seal once it is
//! complete and synced.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut};
use shared::clock;
use shared::model::{Epoch, Position};
use xxhash_rust::xxh3::xxh3_64;

use super::{LogError, MARK_LIMIT, Point};
use crate::wire::increment::{DecodeError, HEAD, Head};

/// Length of a segment's header.
pub(super) const HEADER: usize = 64;
const MAGIC: &[u8; 8] = b"hwlog001";
const MARK: u32 = u32::from_le_bytes(*b"hwm1");
const SEAL: u32 = u32::from_le_bytes(*b"hws1");
/// Around a mark or a seal: magic, length, seq; checksum.
const NOTE_HEAD: usize = 16;
const NOTE: usize = NOTE_HEAD + 8;
/// The index has an entry for about every so many bytes.
const INDEX_EVERY: u64 = 64 << 10;

/// A segment as the log knows it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) ordinal: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) base: Point,
    pub(super) end: Point,
    /// Up to the end of the last whole transaction, in bytes.
    pub(super) length: u64,
    /// When something was last appended, in nanoseconds since 1970.
    pub(super) touched_at: u64,
    pub(super) is_sealed: bool,
    /// Where some of the transactions begin: seq and offset, in order.
    index: Vec<(u64, u64)>,
}

/// What a segment begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) ordinal: u64,
    pub(super) base: Point,
    /// Whether it does not continue the segment before it.
    pub(super) is_fresh: bool,
}

impl Segment {
    /// Makes a new file.
    pub(super) fn make(folder: &Path, header: &SegmentHeader) -> Result<Self, LogError> {
        let path = path_of(folder, header.ordinal);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(LogError::io("make", &path))?;
        if let Err(error) = file.write_all_at(&header.encode(), 0) {
            // An empty file would be found again when opening, and passed over.
            let _ = std::fs::remove_file(&path);
            return Err(LogError::io("write", &path)(error));
        }
        Ok(Self::of(header, path, file))
    }

    /// A segment with nothing in it but its header.
    pub(super) fn of(header: &SegmentHeader, path: PathBuf, file: File) -> Self {
        Self {
            ordinal: header.ordinal,
            path,
            file: Arc::new(file),
            base: header.base,
            end: header.base,
            length: HEADER as u64,
            touched_at: clock::unix_nanos(),
            is_sealed: false,
            index: Vec::new(),
        }
    }

    /// Notes that the transaction `seq` begins at `offset`.
    pub(super) fn note(&mut self, seq: u64, offset: u64) {
        if self
            .index
            .last()
            .is_none_or(|(_, last)| offset >= last + INDEX_EVERY)
        {
            self.index.push((seq, offset));
        }
    }

    /// A seq not after `seq` and where it begins.
    pub(super) fn near(&self, seq: u64) -> u64 {
        let after = self.index.partition_point(|(noted, _)| *noted <= seq);
        after
            .checked_sub(1)
            .and_then(|at| self.index.get(at))
            .map_or(HEADER as u64, |(_, offset)| *offset)
    }

    /// Whether the transaction `seq` is in this segment.
    pub(super) const fn contains(&self, seq: u64) -> bool {
        seq > self.base.position.seq && seq <= self.end.position.seq
    }

    /// The transactions after `length` bytes are gone; the last that is left ends at `end`.
    pub(super) fn cut_back(&mut self, length: u64, end: Point) {
        self.length = length;
        self.end = end;
        self.is_sealed = false;
        self.index.retain(|(_, offset)| *offset < length);
    }
}

impl SegmentHeader {
    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut out = &mut bytes[..];
        out.put_slice(MAGIC);
        out.put_u64_le(self.ordinal);
        out.put_u64_le(self.base.position.epoch.0);
        out.put_u64_le(self.base.position.seq);
        out.put_u64_le(self.base.content);
        out.put_u32_le(self.base.position.generation);
        out.put_u32_le(self.is_fresh.into());
        let check = xxh3_64(&bytes[..56]);
        bytes[56..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads the header of a file; `None` if it is not one, or damaged.
    pub(super) fn read(file: &File) -> std::io::Result<Option<Self>> {
        let mut bytes = [0; HEADER];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => (),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut rest = &bytes[8..];
        let ordinal = rest.get_u64_le();
        let (epoch, seq, content) = (
            Epoch(rest.get_u64_le()),
            rest.get_u64_le(),
            rest.get_u64_le(),
        );
        let (generation, fresh) = (rest.get_u32_le(), rest.get_u32_le());
        let is_whole = &bytes[..8] == MAGIC && bytes[56..] == xxh3_64(&bytes[..56]).to_le_bytes();
        Ok(is_whole.then_some(Self {
            ordinal,
            base: Point {
                position: Position {
                    epoch,
                    generation,
                    seq,
                },
                content,
            },
            is_fresh: fresh != 0,
        }))
    }
}

/// What stands at one place of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// An increment with this head; its body was not looked at.
    Increment(Head),
    /// The mark of an increment.
    Mark { seq: u64, mark: Vec<u8> },
    /// Everything before is on disk.
    Seal { seq: u64 },
}

impl Record {
    /// Its length in bytes.
    pub(super) const fn len(&self) -> u64 {
        match self {
            Self::Increment(head) => head.encoded_len() as u64,
            Self::Mark { mark, .. } => (NOTE + mark.len()) as u64,
            Self::Seal { .. } => NOTE as u64,
        }
    }

    /// Reads what stands at `offset`, of which only an increment's body is not checked. `None` where the file ends.
    pub(super) fn read(
        file: &File,
        offset: u64,
    ) -> std::io::Result<Result<Option<Self>, DecodeError>> {
        let mut bytes = [0; NOTE + MARK_LIMIT];
        let length = read_up_to(file, &mut bytes, offset)?;
        let bytes = &bytes[..length];
        let Some(magic) = bytes.first_chunk::<4>() else {
            return Ok(if length == 0 {
                Ok(None)
            } else {
                Err(DecodeError::Malformed("cut off"))
            });
        };
        Ok(match u32::from_le_bytes(*magic) {
            MARK | SEAL => Self::decode_note(bytes).map(Some),
            _ => match Head::read(&bytes[..length.min(HEAD)]) {
                Ok(Some(head)) => Ok(Some(Self::Increment(head))),
                Ok(None) => Err(DecodeError::Malformed("cut off")),
                Err(error) => Err(error),
            },
        })
    }

    fn decode_note(bytes: &[u8]) -> Result<Self, DecodeError> {
        let cut = DecodeError::Malformed("cut off");
        let mut head = bytes.get(..NOTE_HEAD).ok_or(cut)?;
        let magic = head.get_u32_le();
        let length = head.get_u32_le() as usize;
        let seq = head.get_u64_le();
        let mark = bytes
            .get(NOTE_HEAD..)
            .and_then(|rest| rest.get(..length))
            .ok_or(cut)?;
        let check = bytes
            .get(NOTE_HEAD + length..)
            .and_then(|rest| rest.first_chunk::<8>())
            .ok_or(cut)?;
        if *check != xxh3_64(&bytes[..NOTE_HEAD + length]).to_le_bytes() {
            return Err(DecodeError::Checksum("mark"));
        }
        Ok(if magic == SEAL {
            Self::Seal { seq }
        } else {
            Self::Mark {
                seq,
                mark: mark.to_vec(),
            }
        })
    }
}

/// Appends the mark of the increment `seq` to `out`.
pub(super) fn encode_mark(seq: u64, mark: &[u8], out: &mut Vec<u8>) {
    encode_note(MARK, seq, mark, out);
}

/// What goes behind the last transaction, `seq`, of a segment that is on disk.
pub(super) fn encode_seal(seq: u64) -> Vec<u8> {
    let mut out = Vec::new();
    encode_note(SEAL, seq, &[], &mut out);
    out
}

fn encode_note(magic: u32, seq: u64, bytes: &[u8], out: &mut Vec<u8>) {
    let from = out.len();
    out.put_u32_le(magic);
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(0));
    out.put_u64_le(seq);
    out.put_slice(bytes);
    let check = xxh3_64(&out[from..]);
    out.put_u64_le(check);
}

/// The file of the segment with this number.
pub(super) fn path_of(folder: &Path, ordinal: u64) -> PathBuf {
    folder.join(format!("{ordinal:010}.seg"))
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
