//! A transaction too large for memory: its frames are checked and listed first, and its pages handed out in parts.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;

use bytes::{BufMut, Bytes, BytesMut};
use shared::clock;

use super::frames::{Chain, Stretch};
use super::{CaptureError, Lost};
use crate::sqlite::database::Database;
use crate::sqlite::failure::Failure;
use crate::sqlite::wal::{FRAME_HEADER, Frame, frame_offset};
use crate::wire::checksum::{lock_page, page_hash};
use crate::wire::increment::PART_LIMIT;

/// What is left to hand out: 16 bytes for each page of the transaction.
#[derive(Debug)]
pub(super) struct Large {
    images: Vec<Image>,
    next: usize,
    part: u32,
    /// The frame that commits it.
    pub(super) last: u32,
    /// Size of the database after it, in pages.
    pub(super) pages: u32,
    /// Checksums of the content before and after it.
    pub(super) sums: (u64, u64),
    /// How many of its frames had no checksum.
    pub(super) unsealed: u64,
    /// When it was noticed.
    pub(super) committed_at: u64,
}

#[derive(Clone, Copy, Debug)]
struct Image {
    page: u32,
    /// 0: all zeroes.
    frame: u32,
    hash: u64,
}

impl Large {
    /// Reads the transaction that begins with frame `first` once, checks it, and enters it into the page hashes.
    pub(super) fn read(
        database: &Database,
        stretch: &mut Stretch,
        chain: &mut Chain,
        first: u32,
        limit: u32,
    ) -> Result<Self, CaptureError> {
        let mut newest = HashMap::new();
        let at_once = u32::try_from(PART_LIMIT / (database.page_size() as usize + FRAME_HEADER))
            .unwrap_or(1)
            .max(1);
        let mut number = first;
        let pages = loop {
            if number > limit {
                return Err(Lost::Frame {
                    frame: limit,
                    what: "no commit, although the index of the log says so",
                }
                .into());
            }
            if stretch.frame(number).is_none() {
                stretch.load(
                    database,
                    number,
                    limit.min(number.saturating_add(at_once - 1)),
                )?;
            }
            let bytes = stretch
                .frame(number)
                .ok_or(Lost::Truncated { frame: number })?;
            chain.follow(number, bytes)?;
            let frame = Frame::parse(bytes);
            newest.insert(
                frame.page,
                (number, page_hash(frame.page, &bytes[FRAME_HEADER..])),
            );
            if frame.commit != 0 {
                break frame.commit;
            }
            number += 1;
        };
        let unsealed = chain.end_commit(number)?;
        let images = sorted(newest, pages, database.page_size());
        let mut sums = database.sums();
        let pre = sums.checksum();
        sums.resize(pages);
        for image in &images {
            sums.set(image.page, image.hash);
        }
        let post = sums.checksum();
        Ok(Self::of(images, number, pages, (pre, post), unsealed))
    }

    /// Everything from frame `first` to `last` as one transaction: what was committed while nobody was reading. The page hashes are those
    /// of the end already, and `pre` is the checksum of the beginning.
    pub(super) fn of_gap(
        database: &Database,
        chain: &mut Chain,
        first: u32,
        last: u32,
        pre: u64,
    ) -> Result<Self, CaptureError> {
        let mut stretch = Stretch::default();
        let at_once = u32::try_from(PART_LIMIT / (database.page_size() as usize + FRAME_HEADER))
            .unwrap_or(1)
            .max(1);
        let mut newest = HashMap::new();
        let mut unsealed = 0;
        let mut pages = 0;
        let mut least = u32::MAX;
        for number in first..=last {
            if stretch.frame(number).is_none() {
                stretch.load(
                    database,
                    number,
                    last.min(number.saturating_add(at_once - 1)),
                )?;
            }
            let bytes = stretch
                .frame(number)
                .ok_or(Lost::Truncated { frame: number })?;
            chain.follow(number, bytes)?;
            let frame = Frame::parse(bytes);
            newest.insert(
                frame.page,
                (number, page_hash(frame.page, &bytes[FRAME_HEADER..])),
            );
            if frame.commit != 0 {
                pages = frame.commit;
                unsealed += chain.end_commit(number)?;
                if pages < least {
                    newest.retain(|page, _| *page <= pages);
                    least = pages;
                }
            }
        }
        let sums = database.sums();
        for page in least.saturating_add(1)..=pages {
            // Cut off and added again, but never written: zeroes.
            newest
                .entry(page)
                .or_insert_with(|| (0, sums.zero_hash(page)));
        }
        drop(sums);
        let images = sorted(newest, pages, database.page_size());
        let post = database.sums().checksum();
        Ok(Self::of(images, last, pages, (pre, post), unsealed))
    }

    fn of(images: Vec<Image>, last: u32, pages: u32, sums: (u64, u64), unsealed: u64) -> Self {
        Self {
            images,
            next: 0,
            part: 0,
            last,
            pages,
            sums,
            unsealed,
            committed_at: clock::unix_nanos(),
        }
    }

    /// Whether every page has been handed out.
    pub(super) const fn is_done(&self) -> bool {
        self.next >= self.images.len()
    }

    /// The number of the next part, and its pages.
    pub(super) fn next_body(&mut self, database: &Database) -> Result<(u32, Bytes), CaptureError> {
        let page_size = database.page_size() as usize;
        let count = (PART_LIMIT / page_size).min(self.images.len() - self.next);
        let mut body = BytesMut::zeroed(count * (page_size + 4));
        let images = &self.images[self.next..self.next + count];
        for (image, out) in images.iter().zip(body.chunks_exact_mut(page_size + 4)) {
            let (mut number, page) = out.split_at_mut(4);
            number.put_u32_le(image.page);
            if image.frame == 0 {
                continue;
            }
            database
                .log()
                .read_exact_at(
                    page,
                    frame_offset(image.frame, database.page_size()) + FRAME_HEADER as u64,
                )
                .map_err(Failure::io("read the log of", database.path()))?;
            if page_hash(image.page, page) != image.hash {
                return Err(Lost::Frame {
                    frame: image.frame,
                    what: "changed while it was read",
                }
                .into());
            }
        }
        let part = self.part;
        self.next += count;
        self.part += 1;
        Ok((part, body.freeze()))
    }
}

fn sorted(newest: HashMap<u32, (u32, u64)>, pages: u32, page_size: u32) -> Vec<Image> {
    let mut images: Vec<_> = newest
        .into_iter()
        .filter(|(page, _)| *page != 0 && *page <= pages && *page != lock_page(page_size))
        .map(|(page, (frame, hash))| Image { page, frame, hash })
        .collect();
    images.sort_unstable_by_key(|image| image.page);
    images
}
