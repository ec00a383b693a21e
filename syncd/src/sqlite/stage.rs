//! Pages that a resync has fetched so far, in a file of their own: kept over a crash, applied all at once at the end.
//!
//! The file begins with a header that says which resync it belongs to; records follow, each with its own checksum. A later record of the
//! same page wins. Opening it again reads what is whole and cuts off what is not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use shared::model::{Epoch, Position};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::failure::Failure;
use crate::wire::checksum::page_hash;

const MAGIC: &[u8; 8] = b"hwstage1";
const HEADER: usize = 64;
/// In front of each page: its number, and a checksum of both.
const RECORD: usize = 12;

/// What a resync starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageBase {
    /// Whose history it is: anything that tells one primary's history from another's.
    pub lineage: u64,
    /// The position at which fetching began; the increments after it complete the pages.
    pub position: Position,
    /// Checksum of the content there.
    pub content: u64,
    /// Size of the database there, in pages.
    pub pages: u32,
    /// In bytes.
    pub page_size: u32,
}

/// The staging file of one resync. Needs 24 bytes of memory for each staged page.
#[derive(Debug)]
pub struct Stage {
    path: PathBuf,
    file: File,
    base: StageBase,
    end: u64,
    staged: BTreeMap<u32, Staged>,
}

#[derive(Clone, Copy, Debug)]
struct Staged {
    offset: u64,
    hash: u64,
}

impl Stage {
    /// Goes on with the file at `path` if it belongs to the same resync, else begins anew.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(path: &Path, base: StageBase) -> Result<Self, Failure> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Failure::io("open", path))?;
        let mut stage = Self {
            path: path.into(),
            file,
            base,
            end: HEADER as u64,
            staged: BTreeMap::new(),
        };
        stage.recover().map_err(Failure::io("read", path))?;
        Ok(stage)
    }

    /// What the file at `path` was begun with, if there is a whole one.
    ///
    /// # Errors
    /// The system refuses.
    pub fn base_at(path: &Path) -> Result<Option<StageBase>, Failure> {
        let mut header = [0; HEADER];
        let read = File::open(path).and_then(|file| file.read_exact_at(&mut header, 0));
        match read {
            Ok(()) => Ok(decode(&header)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(Failure::io("read", path)(error)),
        }
    }

    /// What it was begun with.
    #[must_use]
    pub const fn base(&self) -> &StageBase {
        &self.base
    }

    /// How many pages are staged.
    #[must_use]
    pub fn len(&self) -> usize {
        self.staged.len()
    }

    /// Whether no page is staged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.staged.is_empty()
    }

    /// The hash of page `number` as staged.
    #[must_use]
    pub fn hash(&self, number: u32) -> Option<u64> {
        self.staged.get(&number).map(|staged| staged.hash)
    }

    /// Stages a page, in place of an earlier image of it. Not synced.
    ///
    /// # Errors
    /// The system refuses; the page is then not staged, and nothing else is lost.
    pub fn put(&mut self, number: u32, page: &[u8]) -> Result<(), Failure> {
        if number == 0 || page.len() != self.base.page_size as usize {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "a page of another size");
            return Err(Failure::io("add to", &self.path)(error));
        }
        let mut record = [0; RECORD];
        record[..4].copy_from_slice(&number.to_le_bytes());
        record[4..].copy_from_slice(&check(number, page).to_le_bytes());
        let written = self
            .file
            .write_all_at(page, self.end + RECORD as u64)
            .and_then(|()| self.file.write_all_at(&record, self.end));
        written.map_err(Failure::io("add to", &self.path))?;
        self.staged.insert(
            number,
            Staged {
                offset: self.end + RECORD as u64,
                hash: page_hash(number, page),
            },
        );
        self.end += (RECORD + page.len()) as u64;
        Ok(())
    }

    /// Makes what is staged survive a loss of power.
    ///
    /// # Errors
    /// The system refuses.
    pub fn sync(&self) -> Result<(), Failure> {
        self.file
            .sync_data()
            .map_err(Failure::io("sync", &self.path))
    }

    /// Removes the file, after its pages were applied or given up.
    ///
    /// # Errors
    /// The system refuses.
    pub fn remove(self) -> Result<(), Failure> {
        std::fs::remove_file(&self.path).map_err(Failure::io("remove", &self.path))
    }

    /// The numbers of the staged pages, in order.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.staged.keys().copied()
    }

    /// Reads page `number` into `page`, and checks it.
    pub(super) fn read(&self, number: u32, page: &mut [u8]) -> Result<u64, Failure> {
        let missing = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "a staged page is missing or damaged",
            )
        };
        let staged = self
            .staged
            .get(&number)
            .ok_or_else(|| Failure::io("read", &self.path)(missing()))?;
        self.file
            .read_exact_at(page, staged.offset)
            .map_err(Failure::io("read", &self.path))?;
        if page_hash(number, page) != staged.hash {
            return Err(Failure::io("read", &self.path)(missing()));
        }
        Ok(staged.hash)
    }

    fn recover(&mut self) -> io::Result<()> {
        let mut header = [0; HEADER];
        let length = self.file.metadata()?.len();
        let is_ours = length >= HEADER as u64 && {
            self.file.read_exact_at(&mut header, 0)?;
            decode(&header) == Some(self.base)
        };
        if !is_ours {
            self.file.set_len(0)?;
            self.file.write_all_at(&encode(&self.base), 0)?;
            return Ok(());
        }
        let mut record = vec![0; RECORD + self.base.page_size as usize];
        while self.end + record.len() as u64 <= length {
            self.file.read_exact_at(&mut record, self.end)?;
            let (head, page) = record.split_at(RECORD);
            let number = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
            if number == 0 || head[4..] != check(number, page).to_le_bytes() {
                break;
            }
            let staged = Staged {
                offset: self.end + RECORD as u64,
                hash: page_hash(number, page),
            };
            self.staged.insert(number, staged);
            self.end += record.len() as u64;
        }
        self.file.set_len(self.end)
    }
}

fn check(number: u32, page: &[u8]) -> u64 {
    xxh3_64_with_seed(page, !u64::from(number))
}

fn encode(base: &StageBase) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&base.lineage.to_le_bytes());
    bytes[16..24].copy_from_slice(&base.position.epoch.0.to_le_bytes());
    bytes[24..32].copy_from_slice(&base.position.seq.to_le_bytes());
    bytes[32..40].copy_from_slice(&base.content.to_le_bytes());
    bytes[40..44].copy_from_slice(&base.position.generation.to_le_bytes());
    bytes[44..48].copy_from_slice(&base.pages.to_le_bytes());
    bytes[48..52].copy_from_slice(&base.page_size.to_le_bytes());
    let sum = xxh3_64(&bytes[..56]);
    bytes[56..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8; HEADER]) -> Option<StageBase> {
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    if &bytes[..8] != MAGIC || long(56) != xxh3_64(&bytes[..56]) {
        return None;
    }
    Some(StageBase {
        lineage: long(8),
        position: Position {
            epoch: Epoch(long(16)),
            generation: word(40),
            seq: long(24),
        },
        content: long(32),
        pages: word(44),
        page_size: word(48),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> StageBase {
        StageBase {
            lineage: 1,
            position: Position {
                epoch: Epoch(2),
                generation: 3,
                seq: 4,
            },
            content: 5,
            pages: 6,
            page_size: 512,
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("syncd-stage-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn what_was_staged_is_there_after_a_crash_up_to_the_torn_end() {
        let path = scratch("torn");
        let mut stage = Stage::open(&path, base()).unwrap();
        for number in 1..=4_u8 {
            stage.put(number.into(), &[number; 512]).unwrap();
        }
        stage.put(2, &[9; 512]).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        for (cut, pages, second) in [(0, 4, 9), (1, 4, 2), (525, 3, 2)] {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(length - cut).unwrap();
            let again = Stage::open(&path, base()).unwrap();
            assert_eq!(again.len(), pages, "cut {cut}");
            let mut page = [0; 512];
            assert_eq!(again.read(2, &mut page).unwrap(), page_hash(2, &page));
            assert_eq!(page, [second; 512]);
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn another_resync_begins_anew() {
        let path = scratch("other");
        Stage::open(&path, base())
            .unwrap()
            .put(1, &[1; 512])
            .unwrap();
        assert_eq!(Stage::base_at(&path).unwrap(), Some(base()));
        let other = StageBase {
            content: 6,
            ..base()
        };
        assert!(Stage::open(&path, other).unwrap().is_empty());
        assert_eq!(Stage::base_at(&path).unwrap(), Some(other));
        std::fs::remove_file(path).unwrap();
    }
}
