//! One number that stands for the whole content of a database, kept up to date at the cost of the pages that change.
//!
//! Every page has a hash seeded by its number; the checksum is their wrapping sum plus the page count. A sum and not an XOR, because
//! two equal changes cancel out in an XOR. Bytes that differ between instances of the same content are hashed as zero: the file format
//! version and the change counters of page 1, which the pager rewrites on its own, and its reserved bytes, where a standby keeps its
//! position. The page that holds the file's lock bytes never has content and is left out.

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

/// Offset of the bytes that SQLite locks; the page that contains it is never used (SQLite file format, §1.4).
const LOCK_BYTES_AT: u32 = 0x4000_0000;
const ZEROES: [u8; 28] = [0; 28];

/// The number of the page that holds the lock bytes in a database of this page size.
#[must_use]
pub const fn lock_page(page_size: u32) -> u32 {
    LOCK_BYTES_AT / page_size + 1
}

/// Whether SQLite knows this page size: a power of two from 512 to 65536.
#[must_use]
pub const fn is_page_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && bytes >= 512 && bytes <= 65536
}

/// The hash of one page. Of page 1, bytes 18–19, 24–27 and 72–99 count as zero.
#[must_use]
pub fn page_hash(number: u32, page: &[u8]) -> u64 {
    if number != 1 || page.len() < 100 {
        return xxh3_64_with_seed(page, u64::from(number));
    }
    let mut hash = Xxh3::with_seed(1);
    hash.update(&page[..18]);
    hash.update(&ZEROES[..2]);
    hash.update(&page[20..24]);
    hash.update(&ZEROES[..4]);
    hash.update(&page[28..72]);
    hash.update(&ZEROES);
    hash.update(&page[100..]);
    hash.digest()
}

/// The hashes of all pages of a database, and their checksum.
///
/// Between [`Sums::begin`] and [`Sums::keep`] every change is remembered and [`Sums::undo`] takes it back.
#[derive(Clone, Debug)]
pub struct Sums {
    page_size: u32,
    hashes: Vec<u64>,
    total: u64,
    changes: Option<Vec<Change>>,
}

#[derive(Clone, Debug)]
enum Change {
    Set(usize, u64),
    Grew(usize),
    Cut(Vec<u64>),
}

impl Sums {
    /// Of a database without pages. `page_size` in bytes.
    #[must_use]
    pub const fn new(page_size: u32) -> Self {
        Self {
            page_size,
            hashes: Vec::new(),
            total: 0,
            changes: None,
        }
    }

    /// In bytes.
    #[must_use]
    pub const fn page_size(&self) -> u32 {
        self.page_size
    }

    /// How many pages the database has.
    #[must_use]
    pub fn pages(&self) -> u32 {
        u32::try_from(self.hashes.len()).unwrap_or(u32::MAX)
    }

    /// The checksum of the content.
    #[must_use]
    pub fn checksum(&self) -> u64 {
        self.total.wrapping_add(u64::from(self.pages()))
    }

    /// The hash of page `number` (from 1); 0 for the lock page; `None` past the end.
    #[must_use]
    pub fn hash(&self, number: u32) -> Option<u64> {
        let at = usize::try_from(number.checked_sub(1)?).ok()?;
        self.hashes.get(at).copied()
    }

    /// The hashes of at most `count` pages from page `first` (from 1); shorter at the end of the database.
    #[must_use]
    pub fn range(&self, first: u32, count: usize) -> &[u64] {
        let from = (first.saturating_sub(1) as usize).min(self.hashes.len());
        &self.hashes[from..from.saturating_add(count).min(self.hashes.len())]
    }

    /// The hash that page `number` has while it is all zeroes, as a page is that was added but never written.
    #[must_use]
    pub fn zero_hash(&self, number: u32) -> u64 {
        if number == lock_page(self.page_size) {
            return 0;
        }
        static ZERO_PAGE: [u8; 65536] = [0; 65536];
        page_hash(number, &ZERO_PAGE[..(self.page_size as usize).min(65536)])
    }

    /// Notes that page `number` now hashes to `hash`. Pages past the end and the lock page are ignored.
    pub fn set(&mut self, number: u32, hash: u64) {
        if number == 0 || number == lock_page(self.page_size) {
            return;
        }
        self.put(number as usize - 1, hash);
    }

    /// Cuts off the pages past `pages`, or adds pages of zeroes up to there.
    pub fn resize(&mut self, pages: u32) {
        let want = pages as usize;
        let have = self.hashes.len();
        if want < have {
            let cut = self.hashes.split_off(want);
            for hash in &cut {
                self.total = self.total.wrapping_sub(*hash);
            }
            if let Some(changes) = &mut self.changes {
                changes.push(Change::Cut(cut));
            }
        } else if want > have {
            self.hashes.reserve(want - have);
            for number in self.pages() + 1..=pages {
                let hash = self.zero_hash(number);
                self.hashes.push(hash);
                self.total = self.total.wrapping_add(hash);
            }
            if let Some(changes) = &mut self.changes {
                changes.push(Change::Grew(have));
            }
        }
    }

    /// From here on changes can be undone.
    pub fn begin(&mut self) {
        self.changes = Some(Vec::new());
    }

    /// The changes since [`Sums::begin`] stand.
    pub fn keep(&mut self) {
        self.changes = None;
    }

    /// Takes back every change since [`Sums::begin`].
    pub fn undo(&mut self) {
        for change in self.changes.take().unwrap_or_default().into_iter().rev() {
            match change {
                Change::Set(at, hash) => self.put(at, hash),
                Change::Grew(have) => {
                    for hash in self.hashes.split_off(have.min(self.hashes.len())) {
                        self.total = self.total.wrapping_sub(hash);
                    }
                }
                Change::Cut(hashes) => {
                    for hash in &hashes {
                        self.total = self.total.wrapping_add(*hash);
                    }
                    self.hashes.extend(hashes);
                }
            }
        }
    }

    fn put(&mut self, at: usize, hash: u64) {
        let Some(slot) = self.hashes.get_mut(at) else {
            return;
        };
        if let Some(changes) = &mut self.changes {
            changes.push(Change::Set(at, *slot));
        }
        self.total = self.total.wrapping_sub(*slot).wrapping_add(hash);
        *slot = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::rng::Rng;

    #[test]
    fn bytes_that_differ_between_instances_do_not_count() {
        let page = vec![7_u8; 4096];
        let hash = page_hash(1, &page);
        for at in 0..4096 {
            let mut other = page.clone();
            other[at] ^= 1;
            let masked = matches!(at, 18..=19 | 24..=27 | 72..=99);
            assert_eq!(page_hash(1, &other) == hash, masked, "byte {at}");
        }
    }

    #[test]
    fn the_masked_hash_is_that_of_zeroes_in_those_places() {
        let mut page: Vec<u8> = (0..512_u32).map(|n| n.to_le_bytes()[0]).collect();
        let hash = page_hash(1, &page);
        page[18..20].fill(0);
        page[24..28].fill(0);
        page[72..100].fill(0);
        assert_eq!(hash, xxh3_64_with_seed(&page, 1));
    }

    #[test]
    fn equal_pages_in_other_places_and_equal_changes_do_not_cancel_out() {
        let (a, b) = (vec![1_u8; 512], vec![2_u8; 512]);
        assert_ne!(page_hash(2, &a), page_hash(3, &a));
        let mut sums = Sums::new(512);
        sums.resize(3);
        sums.set(2, page_hash(2, &a));
        sums.set(3, page_hash(3, &b));
        let one = sums.checksum();
        sums.set(2, page_hash(2, &b));
        sums.set(3, page_hash(3, &a));
        assert_ne!(sums.checksum(), one);
    }

    #[test]
    fn the_lock_page_never_counts() {
        assert_eq!(lock_page(4096), 262_145);
        assert_eq!(lock_page(65536), 16385);
        let mut sums = Sums::new(65536);
        sums.resize(16385);
        let before = sums.checksum();
        sums.set(16385, 99);
        assert_eq!(sums.checksum(), before);
        assert_eq!(sums.hash(16385), Some(0));
    }

    #[test]
    fn any_history_of_changes_gives_the_sum_of_the_end_and_can_be_undone() {
        let mut rng = Rng::with_seed(11);
        for _ in 0..50 {
            let mut sums = Sums::new(512);
            sums.resize(rng.u32(1..40));
            for number in 1..=sums.pages() {
                sums.set(number, rng.u64(..));
            }
            let before = (sums.hashes.clone(), sums.checksum());
            sums.begin();
            for _ in 0..rng.u32(0..60) {
                if rng.bool() {
                    sums.resize(rng.u32(1..60));
                } else {
                    sums.set(rng.u32(1..=sums.pages()), rng.u64(..));
                }
            }
            let fresh: u64 = sums
                .hashes
                .iter()
                .fold(0, |sum, hash| sum.wrapping_add(*hash));
            assert_eq!(
                sums.checksum(),
                fresh.wrapping_add(sums.hashes.len() as u64)
            );
            sums.undo();
            assert_eq!((sums.hashes.clone(), sums.checksum()), before);
        }
    }
}
