//! The position that a standby's database holds, written into reserved bytes of page 1 in the transaction that reaches it: so that what
//! it holds and what it says it holds cannot disagree, whatever crashes.
//!
//! Bytes 72 to 91 are reserved (SQLite file format, §1.3): SQLite neither reads nor changes them. A check over position and content tells
//! whether the content still is the one that was written, for the application may have written since.

use shared::model::{Epoch, Position};
use xxhash_rust::xxh3::xxh3_64;

const FROM: usize = 72;
const LENGTH: usize = 20;

/// A position as page 1 tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    position: Position,
    check: u32,
}

impl Stored {
    /// What `page` (page 1) tells; `None` if nothing was ever written there.
    pub(super) fn read(page: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = page.get(FROM..FROM + LENGTH)?.try_into().ok()?;
        if bytes == &[0; LENGTH] {
            return None;
        }
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Some(Self {
            position: Position {
                epoch: Epoch(word(0).into()),
                generation: word(4),
                seq: u64::from(word(8)) | u64::from(word(12)) << 32,
            },
            check: word(16),
        })
    }

    /// The position, if `content` is the checksum of the content there.
    pub(super) fn confirm(self, content: u64) -> Option<Position> {
        (check(self.position, content) == self.check).then_some(self.position)
    }
}

/// Writes into `page` (page 1) that `position` is reached with this content. False if such an epoch cannot be written.
pub(super) fn write(page: &mut [u8], position: Position, content: u64) -> bool {
    let (Ok(epoch), Some(bytes)) = (
        u32::try_from(position.epoch.0),
        page.get_mut(FROM..FROM + LENGTH),
    ) else {
        return false;
    };
    bytes[..4].copy_from_slice(&epoch.to_le_bytes());
    bytes[4..8].copy_from_slice(&position.generation.to_le_bytes());
    bytes[8..16].copy_from_slice(&position.seq.to_le_bytes());
    bytes[16..].copy_from_slice(&check(position, content).to_le_bytes());
    true
}

fn check(position: Position, content: u64) -> u32 {
    let mut bytes = [0; 28];
    bytes[..8].copy_from_slice(&position.epoch.0.to_le_bytes());
    bytes[8..12].copy_from_slice(&position.generation.to_le_bytes());
    bytes[12..20].copy_from_slice(&position.seq.to_le_bytes());
    bytes[20..].copy_from_slice(&content.to_le_bytes());
    let [a, b, c, d, ..] = xxh3_64(&bytes).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_believed_only_with_its_content() {
        let position = Position {
            epoch: Epoch(7),
            generation: 3,
            seq: u64::from(u32::MAX) + 9,
        };
        let mut page = vec![0; 512];
        assert_eq!(Stored::read(&page), None);
        assert!(write(&mut page, position, 42));
        let stored = Stored::read(&page).unwrap();
        assert_eq!(stored.confirm(42), Some(position));
        assert_eq!(stored.confirm(43), None);
        page[80] ^= 1;
        assert_eq!(Stored::read(&page).unwrap().confirm(42), None);
    }

    #[test]
    fn an_epoch_too_large_for_its_place_is_not_written() {
        let position = Position {
            epoch: Epoch(1 << 32),
            ..Position::default()
        };
        let mut page = vec![0; 512];
        assert!(!write(&mut page, position, 1));
        assert_eq!(page, vec![0; 512]);
    }
}
