//! The bytes of SQLite's write-ahead log and of its shared index, as values (<https://sqlite.org/fileformat2.html>, §4; <https://sqlite.org/walformat.html>).

use super::door::INDEX_WORDS;

/// Bytes before the first frame.
pub(super) const HEADER: usize = 32;
/// Bytes before a frame's page.
pub(super) const FRAME_HEADER: usize = 24;
/// The read mark of a slot that nobody uses.
const UNUSED: u32 = u32::MAX;
const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;

/// The two halves of a cumulative checksum.
pub(super) type Checksum = (u32, u32);

/// What distinguishes one generation of the log from the one that it overwrites.
pub(super) type Salts = [u8; 8];

/// What the wal-index says is committed. It alone is the truth: the file may hold frames that are not, and may lack checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Committed {
    /// Grows by one with every transaction.
    pub(super) change: u32,
    /// In bytes; 0 before the first transaction.
    pub(super) page_size: u32,
    /// The last valid frame; 0 if there is none.
    pub(super) frame: u32,
    /// Size of the database in pages; 0 while the log has none.
    pub(super) pages: u32,
    /// Cumulative up to `frame`; stale when that is 0.
    pub(super) checksum: Checksum,
    /// Of the generation.
    pub(super) salts: Salts,
}

/// The wal-index as read at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Index {
    /// `None` while the header is being written, or for good if its writer died over it.
    pub(super) committed: Option<Committed>,
    /// How many frames are in the database file already.
    pub(super) backfilled: u32,
    marks: [u32; 5],
}

impl Index {
    /// Takes the words apart.
    pub(super) fn parse(words: &[u32; INDEX_WORDS]) -> Self {
        let mut marks = [0; 5];
        marks.copy_from_slice(&words[25..30]);
        Self {
            committed: committed(&words[..12], &words[12..24]),
            backfilled: words[24],
            marks,
        }
    }

    /// Whether read slot `slot` limits nothing.
    pub(super) fn is_unused(&self, slot: u8) -> bool {
        self.marks.get(usize::from(slot)) == Some(&UNUSED)
    }
}

fn committed(first: &[u32], second: &[u32]) -> Option<Committed> {
    let flags = first[3].to_ne_bytes();
    let mut sum = (0_u32, 0_u32);
    for pair in first[..10].chunks_exact(2) {
        add(&mut sum, pair[0], pair[1]);
    }
    if first != second || flags[0] == 0 || sum != (first[10], first[11]) {
        return None;
    }
    let size = u32::from(u16::from_ne_bytes([flags[2], flags[3]]));
    let mut salts = [0; 8];
    salts[..4].copy_from_slice(&first[8].to_ne_bytes());
    salts[4..].copy_from_slice(&first[9].to_ne_bytes());
    Some(Committed {
        change: first[2],
        page_size: (size & 0xfe00) + ((size & 1) << 16),
        frame: first[4],
        pages: first[5],
        checksum: (first[6], first[7]),
        salts,
    })
}

/// The header of the log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// In which order checksums take their words.
    pub(super) order: Order,
    /// In bytes.
    pub(super) page_size: u32,
    /// Of the generation.
    pub(super) salts: Salts,
    /// With which the cumulative checksum of the frames begins.
    pub(super) checksum: Checksum,
}

impl Header {
    /// Takes the header apart; `None` if it is not one, or damaged.
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Option<Self> {
        let magic = word(bytes, 0);
        let order = match magic.checked_sub(MAGIC) {
            Some(0) => Order::Little,
            Some(1) => Order::Big,
            _ => return None,
        };
        let checksum = (word(bytes, 24), word(bytes, 28));
        if word(bytes, 4) != VERSION || order.sum(&bytes[..24], (0, 0)) != checksum {
            return None;
        }
        let mut salts = [0; 8];
        salts.copy_from_slice(&bytes[16..24]);
        Some(Self {
            order,
            page_size: word(bytes, 8),
            salts,
            checksum,
        })
    }
}

/// The bytes in front of a page in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The page's number.
    pub(super) page: u32,
    /// Size of the database in pages if this frame commits, else 0.
    pub(super) commit: u32,
    /// Of the generation.
    pub(super) salts: Salts,
    /// Of everything up to and including this frame.
    pub(super) checksum: Checksum,
}

impl Frame {
    /// Takes the first [`FRAME_HEADER`] bytes apart.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut salts = [0; 8];
        salts.copy_from_slice(&bytes[8..16]);
        Self {
            page: word(bytes, 0),
            commit: word(bytes, 4),
            salts,
            checksum: (word(bytes, 16), word(bytes, 20)),
        }
    }

    /// Whether salts and checksum were never filled in: what SQLite up to 3.50.1 leaves behind, in committed transactions, after
    /// `ROLLBACK TO` of a savepoint that had spilled its cache.
    pub(super) fn is_unsealed(&self) -> bool {
        self.salts == [0; 8] && self.checksum == (0, 0)
    }
}

/// In which order the words of a checksum are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As on most machines.
    Little,
    /// As in a log that was begun on a machine of the other kind.
    Big,
}

impl Order {
    /// The checksum of a frame whose bytes these are, after `before`.
    pub(super) fn frame(self, bytes: &[u8], before: Checksum) -> Checksum {
        self.sum(&bytes[FRAME_HEADER..], self.sum(&bytes[..8], before))
    }

    fn sum(self, bytes: &[u8], before: Checksum) -> Checksum {
        let mut sum = before;
        match self {
            Self::Little => {
                for pair in bytes.as_chunks::<8>().0 {
                    let [a, b, c, d, e, f, g, h] = *pair;
                    add(
                        &mut sum,
                        u32::from_le_bytes([a, b, c, d]),
                        u32::from_le_bytes([e, f, g, h]),
                    );
                }
            }
            Self::Big => {
                for pair in bytes.as_chunks::<8>().0 {
                    let [a, b, c, d, e, f, g, h] = *pair;
                    add(
                        &mut sum,
                        u32::from_be_bytes([a, b, c, d]),
                        u32::from_be_bytes([e, f, g, h]),
                    );
                }
            }
        }
        sum
    }
}

/// Where frame `frame` (from 1) begins in the log file.
pub(super) const fn frame_offset(frame: u32, page_size: u32) -> u64 {
    HEADER as u64 + (frame as u64).saturating_sub(1) * (page_size as u64 + FRAME_HEADER as u64)
}

/// Length of a log of `frames` frames, in bytes.
pub(super) const fn log_length(frames: u32, page_size: u32) -> u64 {
    frame_offset(frames, page_size)
        + if frames == 0 {
            0
        } else {
            page_size as u64 + FRAME_HEADER as u64
        }
}

/// The big-endian word at `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

const fn add(sum: &mut Checksum, first: u32, second: u32) {
    sum.0 = sum.0.wrapping_add(first).wrapping_add(sum.1);
    sum.1 = sum.1.wrapping_add(second).wrapping_add(sum.0);
}
