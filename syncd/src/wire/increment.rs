//! One committed transaction as bytes: the last image of every page that it changed, in order of their numbers, between two checksums.
//!
//! One transaction is one seq. One that is larger than [`PART_LIMIT`] comes in several parts of the same seq, so that memory stays
//! bounded whatever the application does. Layout, all little-endian:
//!
//! ```text
//!  0 magic u32      8 epoch u64       24 seq u64    40 post u64           56 page_size u32   64 flags u32 (1 = last part)
//!  4 body bytes u32 16 generation u32 32 pre u64    48 committed_at u64   60 pages u32       68 xxh3 of bytes 0..68, low half
//!                   20 part u32
//! 72 body: (page number u32, page)*   then xxh3 of the body u64, seeded by the head
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use shared::model::{Epoch, Position};
use thiserror::Error;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::wire::checksum::{is_page_size, lock_page};

/// At most this many bytes of pages are in one part.
pub const PART_LIMIT: usize = 1 << 20;
/// Bytes before the body.
pub const HEAD: usize = 72;
/// Bytes after the body.
pub const TAIL: usize = 8;
/// No encoded part is longer, whatever its page size.
pub const ENCODED_LIMIT: usize = HEAD + PART_LIMIT + PART_LIMIT / 512 * 4 + TAIL;

const MAGIC: u32 = u32::from_le_bytes(*b"hwi1");
const LAST: u32 = 1;

/// A committed transaction, or one part of a large one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Increment {
    /// Where the history stands after it; the same in all its parts.
    pub position: Position,
    /// Checksum of the content before it, the same in all its parts; see [`crate::wire::checksum`].
    pub pre: u64,
    /// Checksum of the content after it, the same in all its parts.
    pub post: u64,
    /// In bytes.
    pub page_size: u32,
    /// Size of the database after it, in pages.
    pub pages: u32,
    /// When it was noticed, in nanoseconds since 1970 by the primary's clock. For people, never for decisions.
    pub committed_at: u64,
    /// Which part this is, from 0.
    pub part: u32,
    /// Whether it is the last part, so that the transaction is whole.
    pub last: bool,
    /// Page numbers and pages, in ascending order over all parts; see [`Increment::images`].
    pub body: Bytes,
}

/// What an [`Increment`]'s first [`HEAD`] bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// As in [`Increment`].
    pub position: Position,
    /// As in [`Increment`].
    pub pre: u64,
    /// As in [`Increment`].
    pub post: u64,
    /// As in [`Increment`].
    pub page_size: u32,
    /// As in [`Increment`].
    pub pages: u32,
    /// As in [`Increment`].
    pub committed_at: u64,
    /// As in [`Increment`].
    pub part: u32,
    /// As in [`Increment`].
    pub last: bool,
    /// Length of the body in bytes.
    pub body: u32,
}

/// Why bytes are not an increment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// They begin with something else.
    #[error("not an increment: it begins with {0:#010x}")]
    Magic(u32),
    /// A checksum does not match.
    #[error("damaged: the checksum of the {0} does not match")]
    Checksum(&'static str),
    /// It says what cannot be.
    #[error("malformed: {0}")]
    Malformed(&'static str),
}

impl Increment {
    /// The pages that it sets, by number.
    pub fn images(&self) -> impl DoubleEndedIterator<Item = (u32, &[u8])> + ExactSizeIterator {
        self.body
            .chunks_exact(4 + self.page_size as usize)
            .map(|image| {
                let (number, page) = image.split_at(4);
                let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
                (number, page)
            })
    }

    /// Its length as bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        HEAD + self.body.len() + TAIL
    }

    /// What goes before the body and what goes after it.
    #[must_use]
    pub fn frame(&self) -> ([u8; HEAD], [u8; TAIL]) {
        let mut head = [0; HEAD];
        let mut out = &mut head[..];
        out.put_u32_le(MAGIC);
        out.put_u32_le(u32::try_from(self.body.len()).unwrap_or(u32::MAX));
        out.put_u64_le(self.position.epoch.0);
        out.put_u32_le(self.position.generation);
        out.put_u32_le(self.part);
        out.put_u64_le(self.position.seq);
        out.put_u64_le(self.pre);
        out.put_u64_le(self.post);
        out.put_u64_le(self.committed_at);
        out.put_u32_le(self.page_size);
        out.put_u32_le(self.pages);
        out.put_u32_le(if self.last { LAST } else { 0 });
        let check = low_half(xxh3_64(&head[..68]));
        head[68..].copy_from_slice(&check.to_le_bytes());
        let check = xxh3_64_with_seed(&self.body, xxh3_64(&head));
        (head, check.to_le_bytes())
    }

    /// Appends its bytes to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        let (head, tail) = self.frame();
        out.reserve(self.encoded_len());
        out.put_slice(&head);
        out.put_slice(&self.body);
        out.put_slice(&tail);
    }

    /// Takes one increment off the front of `buffer`; `None`, and nothing taken, while it is not all there.
    ///
    /// # Errors
    /// The bytes at the front can never become an increment. Nothing is taken.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, DecodeError> {
        let Some(head) = Head::read(buffer)? else {
            return Ok(None);
        };
        if buffer.len() < head.encoded_len() {
            return Ok(None);
        }
        head.check_body(buffer)?;
        let mut bytes = buffer.split_to(head.encoded_len());
        bytes.advance(HEAD);
        bytes.truncate(head.body as usize);
        Ok(Some(head.with_body(bytes.freeze())))
    }
}

impl Head {
    /// Reads the head at the front of `bytes`; `None` while it is not all there.
    ///
    /// # Errors
    /// The bytes can never become an increment.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, DecodeError> {
        let Some(magic) = bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let magic = u32::from_le_bytes(*magic);
        if magic != MAGIC {
            return Err(DecodeError::Magic(magic));
        }
        let Some(bytes) = bytes.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let mut rest = &bytes[4..];
        let body = rest.get_u32_le();
        let epoch = Epoch(rest.get_u64_le());
        let generation = rest.get_u32_le();
        let part = rest.get_u32_le();
        let seq = rest.get_u64_le();
        let (pre, post) = (rest.get_u64_le(), rest.get_u64_le());
        let committed_at = rest.get_u64_le();
        let (page_size, pages) = (rest.get_u32_le(), rest.get_u32_le());
        let flags = rest.get_u32_le();
        if rest.get_u32_le() != low_half(xxh3_64(&bytes[..68])) {
            return Err(DecodeError::Checksum("head"));
        }
        let head = Self {
            position: Position {
                epoch,
                generation,
                seq,
            },
            pre,
            post,
            page_size,
            pages,
            committed_at,
            part,
            last: flags == LAST,
            body,
        };
        head.check(flags).map(|()| Some(head))
    }

    /// The length of the whole increment as bytes.
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        HEAD + self.body as usize + TAIL
    }

    /// The increment that this is the head of. The body is believed.
    #[must_use]
    pub const fn with_body(self, body: Bytes) -> Increment {
        Increment {
            position: self.position,
            pre: self.pre,
            post: self.post,
            page_size: self.page_size,
            pages: self.pages,
            committed_at: self.committed_at,
            part: self.part,
            last: self.last,
            body,
        }
    }

    /// Checks the body in `bytes`, a whole encoded increment.
    ///
    /// # Errors
    /// It is damaged, or what it says cannot be.
    ///
    /// # Panics
    /// When `bytes` is shorter than [`Head::encoded_len`].
    pub fn check_body(&self, bytes: &[u8]) -> Result<(), DecodeError> {
        let body = &bytes[HEAD..HEAD + self.body as usize];
        let check = xxh3_64_with_seed(body, xxh3_64(&bytes[..HEAD]));
        if bytes[HEAD + body.len()..][..TAIL] != check.to_le_bytes() {
            return Err(DecodeError::Checksum("body"));
        }
        let lock = lock_page(self.page_size);
        let mut before = 0;
        for image in body.chunks_exact(4 + self.page_size as usize) {
            let number = u32::from_le_bytes([image[0], image[1], image[2], image[3]]);
            if number <= before || number > self.pages || number == lock {
                return Err(DecodeError::Malformed("a page number is out of place"));
            }
            before = number;
        }
        Ok(())
    }

    const fn check(&self, flags: u32) -> Result<(), DecodeError> {
        if flags & !LAST != 0 {
            return Err(DecodeError::Malformed("flags of another version"));
        }
        if !is_page_size(self.page_size) {
            return Err(DecodeError::Malformed(
                "a page size that SQLite does not know",
            ));
        }
        if self.pages == 0 || self.pages == u32::MAX {
            return Err(DecodeError::Malformed(
                "a database cannot have that many pages",
            ));
        }
        let body = self.body as usize;
        if !body.is_multiple_of(4 + self.page_size as usize) {
            return Err(DecodeError::Malformed("the body is not whole pages"));
        }
        if HEAD + body + TAIL > ENCODED_LIMIT {
            return Err(DecodeError::Malformed("the body is too long"));
        }
        Ok(())
    }
}

const fn low_half(hash: u64) -> u32 {
    (hash & 0xffff_ffff) as u32
}

/// Decodes `bytes` in pieces of at most `piece` bytes and checks that whatever comes out is consistent and encodes to itself.
/// The body of the fuzz target, and of a test that runs it on seeded inputs.
///
/// # Panics
/// When the codec is at fault.
pub fn fuzz(bytes: &[u8], piece: usize) {
    let mut buffer = BytesMut::new();
    let mut taken = 0;
    for chunk in bytes.chunks(piece.max(1)) {
        buffer.extend_from_slice(chunk);
        loop {
            match Increment::decode(&mut buffer) {
                Ok(Some(increment)) => {
                    let mut again = BytesMut::new();
                    increment.encode(&mut again);
                    assert_eq!(again, bytes[taken..taken + again.len()]);
                    assert_eq!(again.len(), increment.encoded_len());
                    taken += again.len();
                    let numbers: Vec<_> = increment.images().map(|(number, _)| number).collect();
                    assert!(numbers.is_sorted() && numbers.iter().all(|n| *n <= increment.pages));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(
            buffer.len() < ENCODED_LIMIT + piece,
            "more is kept than any increment needs"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::rng::Rng;

    fn random(rng: &mut Rng) -> Increment {
        let page_size = 512 << rng.u32(0..4);
        let mut body = BytesMut::new();
        let mut number = 0;
        for _ in 0..rng.u32(0..6) {
            number += rng.u32(1..5);
            body.put_u32_le(number);
            body.extend((0..page_size).map(|_| rng.u8(..)));
        }
        Increment {
            position: Position {
                epoch: Epoch(rng.u64(..)),
                generation: rng.u32(..),
                seq: rng.u64(..),
            },
            pre: rng.u64(..),
            post: rng.u64(..),
            page_size,
            pages: number + rng.u32(1..3),
            committed_at: rng.u64(..),
            part: rng.u32(..),
            last: rng.bool(),
            body: body.freeze(),
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_however_it_arrives() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..200 {
            let sent: Vec<_> = (0..rng.usize(1..4)).map(|_| random(&mut rng)).collect();
            let mut wire = BytesMut::new();
            sent.iter()
                .for_each(|increment| increment.encode(&mut wire));
            let mut received = Vec::new();
            let mut buffer = BytesMut::new();
            for chunk in wire.chunks(rng.usize(1..3000)) {
                buffer.extend_from_slice(chunk);
                while let Some(increment) = Increment::decode(&mut buffer).unwrap() {
                    received.push(increment);
                }
            }
            assert_eq!(received, sent);
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn any_single_change_is_an_error_or_not_yet() {
        let mut rng = Rng::with_seed(2);
        let mut wire = BytesMut::new();
        random(&mut rng).encode(&mut wire);
        for at in 0..wire.len() {
            let mut damaged = wire.clone();
            damaged[at] ^= 1 << rng.u32(0..8);
            assert!(
                !matches!(Increment::decode(&mut damaged), Ok(Some(_))),
                "byte {at}"
            );
        }
    }

    #[test]
    fn pages_out_of_order_past_the_end_or_on_the_lock_page_are_refused() {
        let page = [0_u8; 65536];
        for (pages, numbers) in [
            (3, vec![2, 1]),
            (3, vec![2, 2]),
            (3, vec![0]),
            (3, vec![4]),
            (20000, vec![16385]),
        ] {
            let mut body = BytesMut::new();
            for number in numbers {
                body.put_u32_le(number);
                body.put_slice(&page);
            }
            let increment = Increment {
                position: Position::default(),
                pre: 0,
                post: 0,
                page_size: 65536,
                pages,
                committed_at: 0,
                part: 0,
                last: true,
                body: body.freeze(),
            };
            let mut wire = BytesMut::new();
            increment.encode(&mut wire);
            assert!(matches!(
                Increment::decode(&mut wire),
                Err(DecodeError::Malformed(_))
            ));
        }
    }

    #[test]
    fn ten_thousand_seeded_inputs_never_surprise_the_codec() {
        for seed in 0..10_000 {
            let mut rng = Rng::with_seed(seed);
            let mut wire = BytesMut::new();
            for _ in 0..rng.usize(0..3) {
                random(&mut rng).encode(&mut wire);
            }
            for _ in 0..rng.usize(0..4) {
                if wire.is_empty() {
                    break;
                }
                let at = rng.usize(..wire.len());
                match rng.u32(0..3) {
                    0 => wire[at] = rng.u8(..),
                    1 => wire.truncate(at),
                    _ => wire.extend(
                        (0..rng.usize(0..100))
                            .map(|_| rng.u8(..))
                            .collect::<Vec<_>>(),
                    ),
                }
            }
            fuzz(&wire, rng.usize(1..5000));
        }
    }
}
