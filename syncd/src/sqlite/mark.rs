//! Where in the log the last captured commit ended, so that a later process can prove that it goes on from there.

use super::wal::{Checksum, Salts};

/// Goes into syncd's log with the increment that it belongs to. To everybody else it is [`Mark::LENGTH`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub(super) salts: Salts,
    pub(super) frame: u32,
    pub(super) checksum: Checksum,
    pub(super) page_size: u32,
    pub(super) content: u64,
}

impl Mark {
    /// Its length as bytes.
    pub const LENGTH: usize = 32;

    /// Checksum of the content at this point.
    #[must_use]
    pub const fn content(&self) -> u64 {
        self.content
    }

    /// As bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&self.salts);
        bytes[8..12].copy_from_slice(&self.frame.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.checksum.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.checksum.1.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.page_size.to_le_bytes());
        bytes[24..].copy_from_slice(&self.content.to_le_bytes());
        bytes
    }

    /// From what [`Mark::to_bytes`] gave; `None` for anything of another length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LENGTH] = bytes.try_into().ok()?;
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut salts = [0; 8];
        salts.copy_from_slice(&bytes[..8]);
        Some(Self {
            salts,
            frame: word(8),
            checksum: (word(12), word(16)),
            page_size: word(20),
            content: u64::from(word(24)) | u64::from(word(28)) << 32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_as_bytes() {
        let mark = Mark {
            salts: *b"saltsalt",
            frame: 7,
            checksum: (1, u32::MAX),
            page_size: 65536,
            content: 0x0123_4567_89ab_cdef,
        };
        assert_eq!(Mark::from_bytes(&mark.to_bytes()), Some(mark));
        assert_eq!(Mark::from_bytes(&mark.to_bytes()[1..]), None);
    }
}
