//! What two syncds say to each other in a session: one session a source, frames with a length, a kind and a checksum.
//!
//! ```text
//! 0 length of the body u32   4 kind u8   5 zero u8*3   8 xxh3 of kind and body u64   16 body
//! ```
//!
//! All little-endian. Increments and pages are binary, the rest is JSON, because it is rare and should be easy to extend.
//! The follower speaks first. A frame that is damaged, too long or of an unknown kind ends the session.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use shared::api::{Fork, Refused};
use shared::model::{ClusterId, Epoch, Position};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::wire::checksum::is_page_size;
use crate::wire::increment::{DecodeError, ENCODED_LIMIT, Increment};

/// Which protocol this is; a peer that speaks another is refused.
pub const VERSION: u32 = 1;
/// The word of the HTTP upgrade.
pub const PROTOCOL: &str = "syncd";
/// Bytes before a frame's body.
pub const HEAD: usize = 16;
/// No body is longer.
pub const BODY_LIMIT: usize = ENCODED_LIMIT;
/// How many page hashes are sent at once.
pub const HASHES_AT_ONCE: usize = 8192;

/// A point in a history, as a peer tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The position.
    pub position: Position,
    /// The checksum of the content there.
    pub content: u64,
}

/// The follower's greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// The newest epoch that the follower has seen. A session is of one epoch.
    pub epoch: Epoch,
    /// Its name.
    pub node: String,
    /// Where it believes to stand.
    pub position: Option<Position>,
    /// What its content is; `None` without a database.
    pub content: Option<u64>,
    /// An unfinished resync that it could go on with.
    pub stage: Option<Base>,
    /// Where epochs and gens began in its own history, oldest first.
    #[serde(default)]
    pub lineage: Vec<Fork>,
}

/// Where a resync begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Whose history it is.
    pub lineage: u64,
    /// The point after which increments complete the pages.
    pub point: Point,
    /// Size of the database there, in pages.
    pub pages: u32,
    /// In bytes.
    pub page_size: u32,
}

/// The primary's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// What the follower gets.
    pub plan: Plan,
    /// The primary's history.
    pub lineage: Vec<Fork>,
    /// Where it stands.
    pub tip: Point,
    /// It has led and is fenced: `tip` is final.
    pub ended: bool,
}

/// What the follower gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plan {
    /// Nothing yet: the primary has no database itself.
    Nothing,
    /// Increments after this point.
    Stream(Point),
    /// Pages that differ, then increments after the base.
    Resync {
        /// Where it begins.
        base: Base,
        /// Why, as users see it.
        reason: Reason,
        /// What the follower has is not in the primary's history: it must be kept first.
        preserve: bool,
    },
}

/// Why a resync is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The follower has nothing yet.
    Empty,
    /// The log does not reach back far enough.
    LogTooShort,
    /// The primary could not prove continuity since.
    NewGeneration,
    /// The follower has increments that the primary's history does not have.
    Ahead,
    /// Its content is not that of the position it claims.
    Altered,
    /// It has no history in common with the primary.
    Unrelated,
}

impl Reason {
    /// The word that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::LogTooShort => "log-too-short",
            Self::NewGeneration => "new-generation",
            Self::Ahead => "ahead",
            Self::Altered => "altered",
            Self::Unrelated => "unrelated",
        }
    }
}

/// The primary cannot serve this follower now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Farewell {
    /// Which refusal, if it is one that means something to the follower's own role.
    pub refused: Option<Refused>,
    /// The newest epoch that the primary has seen.
    pub epoch: Epoch,
    /// For a person.
    pub message: String,
}

/// A sign of life, and where the primary stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Where it stands.
    pub tip: Point,
    /// It has led and is fenced: `tip` is final.
    pub ended: bool,
}

/// What the follower has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// On disk.
    pub durable: Position,
    /// Visible to its readers.
    pub applied: Position,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Follower: begins the session.
    Hello(Hello),
    /// Primary: accepts it.
    Welcome(Welcome),
    /// Either: ends it, and why.
    Farewell(Farewell),
    /// Primary: every quarter of a second, also when there is nothing to say.
    Heartbeat(Heartbeat),
    /// Primary: the next increment, or part of one.
    Increment(Increment),
    /// Follower: what it has.
    Ack(Ack),
    /// Follower: hashes of its pages from this one on; fewer than [`HASHES_AT_ONCE`] are the last.
    Hashes(u32, Vec<u64>),
    /// Primary: pages that differ.
    Pages(u32, Vec<(u32, Bytes)>),
    /// Primary: no more pages. The increments up to here complete them.
    PagesEnd(Point),
    /// Primary: of so many bytes of pages, so many were looked at.
    Progress(u64, u64),
}

/// Why bytes are not a message.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The length is beyond the limit.
    #[error("a frame of {0} bytes is longer than any that is sent")]
    TooLong(usize),
    /// The kind is unknown.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// The checksum does not match.
    #[error("a frame was damaged on the way")]
    Damaged,
    /// It says what cannot be.
    #[error("a {0} frame is malformed: {1}")]
    Malformed(&'static str, String),
    /// The increment in it is not one.
    #[error("increment: {0}")]
    Increment(#[from] DecodeError),
}

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const FAREWELL: u8 = 3;
const HEARTBEAT: u8 = 4;
const INCREMENT: u8 = 5;
const ACK: u8 = 6;
const HASHES: u8 = 7;
const PAGES: u8 = 8;
const PAGES_END: u8 = 9;
const PROGRESS: u8 = 10;

/// Appends `message` as a frame to `out`.
pub fn encode(message: &Message, out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, HEAD);
    let kind = match message {
        Message::Hello(hello) => json(HELLO, hello, out),
        Message::Welcome(welcome) => json(WELCOME, welcome, out),
        Message::Farewell(farewell) => json(FAREWELL, farewell, out),
        Message::Heartbeat(heartbeat) => json(HEARTBEAT, heartbeat, out),
        Message::Ack(ack) => json(ACK, ack, out),
        Message::PagesEnd(point) => json(PAGES_END, point, out),
        Message::Progress(done, all) => json(PROGRESS, &(done, all), out),
        Message::Increment(increment) => {
            increment.encode(out);
            INCREMENT
        }
        Message::Hashes(first, hashes) => {
            out.put_u32_le(*first);
            hashes.iter().for_each(|hash| out.put_u64_le(*hash));
            HASHES
        }
        Message::Pages(page_size, pages) => {
            out.put_u32_le(*page_size);
            for (number, page) in pages {
                out.put_u32_le(*number);
                out.put_slice(page);
            }
            PAGES
        }
    };
    let length = out.len() - start - HEAD;
    let check = xxh3_64_with_seed(&out[start + HEAD..], u64::from(kind));
    let mut head = &mut out[start..start + HEAD];
    head.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
    head.put_u8(kind);
    head.put_bytes(0, 3);
    head.put_u64_le(check);
}

fn json<T: Serialize>(kind: u8, value: &T, out: &mut BytesMut) -> u8 {
    // Writing plain structs of ours to memory cannot fail; if it ever did, the peer would refuse the frame.
    let _ = serde_json::to_writer(out.writer(), value);
    kind
}

/// Takes one message off the front of `buffer`; `None`, and nothing taken, while it is not all there.
///
/// # Errors
/// The bytes can never become a message; the session is over.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Message>, WireError> {
    if buffer.len() < HEAD {
        return Ok(None);
    }
    let mut head = &buffer[..HEAD];
    let length = head.get_u32_le() as usize;
    let kind = head.get_u8();
    head.advance(3);
    let check = head.get_u64_le();
    if !(HELLO..=PROGRESS).contains(&kind) {
        return Err(WireError::Kind(kind));
    }
    if length > BODY_LIMIT {
        return Err(WireError::TooLong(length));
    }
    if buffer.len() < HEAD + length {
        buffer.reserve(HEAD + length - buffer.len());
        return Ok(None);
    }
    let mut frame = buffer.split_to(HEAD + length);
    frame.advance(HEAD);
    if check != xxh3_64_with_seed(&frame, u64::from(kind)) {
        return Err(WireError::Damaged);
    }
    body(kind, frame).map(Some)
}

fn body(kind: u8, mut frame: BytesMut) -> Result<Message, WireError> {
    Ok(match kind {
        HELLO => Message::Hello(parse("greeting", &frame)?),
        WELCOME => Message::Welcome(parse("welcome", &frame)?),
        FAREWELL => Message::Farewell(parse("farewell", &frame)?),
        HEARTBEAT => Message::Heartbeat(parse("heartbeat", &frame)?),
        ACK => Message::Ack(parse("acknowledgement", &frame)?),
        PAGES_END => Message::PagesEnd(parse("end of pages", &frame)?),
        PROGRESS => {
            let (done, all) = parse("progress", &frame)?;
            Message::Progress(done, all)
        }
        HASHES => hashes(&frame)?,
        PAGES => pages(frame.freeze())?,
        _ => {
            let increment = Increment::decode(&mut frame)?;
            let whole = increment.filter(|_| frame.is_empty());
            Message::Increment(
                whole.ok_or_else(|| {
                    malformed("increment", "it has another length than its frame")
                })?,
            )
        }
    })
}

fn parse<'b, T: Deserialize<'b>>(what: &'static str, bytes: &'b [u8]) -> Result<T, WireError> {
    serde_json::from_slice(bytes).map_err(|error| WireError::Malformed(what, error.to_string()))
}

fn malformed(what: &'static str, why: &str) -> WireError {
    WireError::Malformed(what, why.to_owned())
}

fn hashes(mut bytes: &[u8]) -> Result<Message, WireError> {
    if bytes.len() < 4
        || !(bytes.len() - 4).is_multiple_of(8)
        || bytes.len() > 4 + 8 * HASHES_AT_ONCE
    {
        return Err(malformed(
            "hashes",
            "not a whole number of them, or too many",
        ));
    }
    let first = bytes.get_u32_le();
    let hashes = bytes
        .chunks_exact(8)
        .map(|mut hash| hash.get_u64_le())
        .collect();
    Ok(Message::Hashes(first, hashes))
}

fn pages(mut bytes: Bytes) -> Result<Message, WireError> {
    if bytes.len() < 4 {
        return Err(malformed("pages", "no page size"));
    }
    let page_size = bytes.get_u32_le();
    let record = 4 + page_size as usize;
    if !is_page_size(page_size) || !bytes.len().is_multiple_of(record) {
        return Err(malformed("pages", "not a whole number of pages"));
    }
    let mut pages = Vec::with_capacity(bytes.len() / record);
    while !bytes.is_empty() {
        let number = bytes.get_u32_le();
        pages.push((number, bytes.split_to(page_size as usize)));
    }
    Ok(Message::Pages(page_size, pages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::rng::Rng;

    fn position(seq: u64) -> Position {
        Position {
            epoch: Epoch(2),
            generation: 1,
            seq,
        }
    }

    fn point(seq: u64) -> Point {
        Point {
            position: position(seq),
            content: seq * 3,
        }
    }

    fn samples() -> Vec<Message> {
        let base = Base {
            lineage: 9,
            point: point(4),
            pages: 7,
            page_size: 512,
        };
        let lineage = vec![Fork {
            start: position(1),
            checksum: 8,
        }];
        let hello = Hello {
            version: VERSION,
            cluster: ClusterId(5),
            epoch: Epoch(2),
            node: "b".into(),
            position: Some(position(3)),
            content: None,
            stage: Some(base),
            lineage,
        };
        let plan = Plan::Resync {
            base,
            reason: Reason::Ahead,
            preserve: true,
        };
        let lineage = vec![Fork {
            start: position(1),
            checksum: u64::MAX,
        }];
        let farewell = Farewell {
            refused: Some(Refused::StaleEpoch),
            epoch: Epoch(3),
            message: "no".into(),
        };
        vec![
            Message::Hello(hello),
            Message::Welcome(Welcome {
                plan,
                lineage,
                tip: point(9),
                ended: true,
            }),
            Message::Farewell(farewell),
            Message::Heartbeat(Heartbeat {
                tip: point(9),
                ended: false,
            }),
            Message::Ack(Ack {
                durable: position(9),
                applied: position(8),
            }),
            Message::Hashes(1, vec![1, 2, u64::MAX]),
            Message::Hashes(8193, Vec::new()),
            Message::Pages(
                512,
                vec![
                    (1, Bytes::from(vec![7; 512])),
                    (9, Bytes::from(vec![8; 512])),
                ],
            ),
            Message::PagesEnd(point(12)),
            Message::Progress(3, 10),
        ]
    }

    #[test]
    fn every_message_survives_the_way_in_any_pieces() {
        let mut bytes = BytesMut::new();
        samples()
            .iter()
            .for_each(|message| encode(message, &mut bytes));
        let mut rng = Rng::with_seed(3);
        let mut buffer = BytesMut::new();
        let mut heard = Vec::new();
        while !bytes.is_empty() {
            let piece = bytes.split_to(rng.usize(1..=bytes.len().min(100)));
            buffer.extend_from_slice(&piece);
            while let Some(message) = decode(&mut buffer).unwrap() {
                heard.push(message);
            }
        }
        assert_eq!(heard, samples());
        assert!(buffer.is_empty());
    }

    #[test]
    fn any_damage_is_noticed() {
        for message in samples() {
            let mut bytes = BytesMut::new();
            encode(&message, &mut bytes);
            for at in (0..bytes.len()).filter(|at| !(5..8).contains(at)) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x10;
                assert!(
                    !matches!(decode(&mut damaged), Ok(Some(_))),
                    "byte {at} of {message:?}"
                );
            }
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_not_yet_or_an_error() {
        let seed = 11;
        let mut rng = Rng::with_seed(seed);
        for round in 0..10_000 {
            let mut bytes = BytesMut::new();
            let messages = samples();
            encode(&messages[rng.usize(..messages.len())], &mut bytes);
            for _ in 0..rng.usize(..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            if rng.bool() {
                bytes.truncate(rng.usize(..=bytes.len()));
            }
            // Only that it ends without a panic is claimed; the seed and round name the input.
            let _ = (seed, round, decode(&mut bytes));
        }
    }
}
