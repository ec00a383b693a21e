//! A message's body on the wire: bytes → pieces of it, until its end is proved (RFC 9112 §6.2, §7.1). The same for requests
//! and responses, and strict for both.

use bytes::{Bytes, BytesMut};

use http::HeaderMap;

use super::fields::is_value_byte;
use super::trailers;

/// The longest line of a chunk's size and extensions, or of a trailer, in bytes.
const LINE_MOST: usize = 4 << 10;
/// All extensions and trailers of one body together, in bytes.
const EXTRA_MOST: usize = 16 << 10;
/// Old servers pad a chunk's size to a fixed width; so much of it does not count as extra.
const PADDING: usize = 8;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none, whatever the fields say.
    None,
    /// After this many bytes.
    Length(u64),
    /// By its last chunk.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A piece of the body, not empty.
    Data(Bytes),
    /// Its end.
    End,
}

/// Decodes one body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    extra: usize,
    trailers: Option<Box<HeaderMap>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    Close,
    Size,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Ended,
}

impl Decoder {
    /// Begins a body.
    #[must_use]
    pub const fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Ended,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size,
            Framing::Close => State::Close,
        };
        Self {
            state,
            extra: 0,
            trailers: None,
        }
    }

    /// Takes what it can from the front of `bytes`; `None` when more is needed.
    ///
    /// # Errors
    /// The body is not one; what was decoded before must not be taken for all of it.
    pub fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Piece>, Malformed> {
        loop {
            match self.state {
                State::Ended => return Ok(Some(Piece::End)),
                State::Close if bytes.is_empty() => return Ok(None),
                State::Close => return Ok(Some(Piece::Data(bytes.split().freeze()))),
                State::Length(left) => {
                    let data = take(bytes, left);
                    if let Some(data) = &data {
                        self.state = match left - data.len() as u64 {
                            0 => State::Ended,
                            left => State::Length(left),
                        };
                    }
                    return Ok(data.map(Piece::Data));
                }
                State::Chunk(left) => {
                    let data = take(bytes, left);
                    if let Some(data) = &data {
                        self.state = match left - data.len() as u64 {
                            0 => State::ChunkEnd,
                            left => State::Chunk(left),
                        };
                    }
                    return Ok(data.map(Piece::Data));
                }
                State::ChunkEnd => {
                    if bytes.len() < 2 {
                        return Ok(None);
                    }
                    if bytes.split_to(2) != "\r\n" {
                        return Err(Malformed("chunk longer than its size"));
                    }
                    self.state = State::Size;
                }
                State::Size => {
                    let Some(line) = self.line(bytes)? else {
                        return Ok(None);
                    };
                    self.state = match self.size(&line)? {
                        0 => State::Trailers,
                        size => State::Chunk(size),
                    };
                }
                State::Trailers => {
                    let Some(line) = self.line(bytes)? else {
                        return Ok(None);
                    };
                    if line.is_empty() {
                        self.state = State::Ended;
                    } else {
                        self.spend(line.len())?;
                        trailers::take(&line, &mut self.trailers)?;
                    }
                }
            }
        }
    }

    /// The connection has ended: whether the body has, too.
    ///
    /// # Errors
    /// It has not: it is truncated.
    pub const fn handle_close(&mut self) -> Result<(), Malformed> {
        match self.state {
            State::Close | State::Ended => {
                self.state = State::Ended;
                Ok(())
            }
            State::Length(_)
            | State::Size
            | State::Chunk(_)
            | State::ChunkEnd
            | State::Trailers => Err(Malformed("truncated body")),
        }
    }

    /// The trailers that came behind it, if they may be passed on. Once, after its end.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take().map(|trailers| *trailers)
    }

    /// Whether its end is proved.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// How many bytes are left, if that is known.
    #[must_use]
    pub const fn left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Ended => Some(0),
            State::Close | State::Size | State::Chunk(_) | State::ChunkEnd | State::Trailers => {
                None
            }
        }
    }

    /// Ends a chunked body whose last chunk is at the front of `bytes` already, so that nobody has to ask again.
    pub fn end_early(&mut self, bytes: &mut BytesMut) {
        let last: &[u8] = match self.state {
            State::ChunkEnd => b"\r\n0\r\n\r\n",
            State::Size => b"0\r\n\r\n",
            State::Length(_) | State::Close | State::Chunk(_) | State::Trailers | State::Ended => {
                return;
            }
        };
        if bytes.starts_with(last) {
            let _ = bytes.split_to(last.len());
            self.state = State::Ended;
        }
    }

    /// A line without its end, which must be CRLF.
    fn line(&self, bytes: &mut BytesMut) -> Result<Option<BytesMut>, Malformed> {
        let Some(end) = bytes.iter().take(LINE_MOST).position(|b| *b == b'\n') else {
            if bytes.len() >= LINE_MOST {
                return Err(Malformed("line too long"));
            }
            return Ok(None);
        };
        let mut line = bytes.split_to(end + 1);
        line.truncate(end);
        if line.last() != Some(&b'\r') {
            return Err(Malformed("line end without CR"));
        }
        line.truncate(end - 1);
        if !line.iter().all(|byte| is_value_byte(*byte)) {
            return Err(Malformed("control character in a line"));
        }
        Ok(Some(line))
    }

    fn size(&mut self, line: &[u8]) -> Result<u64, Malformed> {
        let digits = line
            .iter()
            .position(|b| !b.is_ascii_hexdigit())
            .unwrap_or(line.len());
        let (digits, extension) = line.split_at(digits);
        if digits.is_empty() || digits.len() > 16 {
            return Err(Malformed("invalid chunk size"));
        }
        self.spend(extension.len().saturating_sub(PADDING))?;
        let extension = extension.trim_ascii();
        if !extension.is_empty() && extension[0] != b';' {
            return Err(Malformed("invalid chunk size"));
        }
        Ok(digits
            .iter()
            .fold(0, |sum, digit| sum << 4 | u64::from(hex(*digit))))
    }

    const fn spend(&mut self, bytes: usize) -> Result<(), Malformed> {
        self.extra += bytes;
        if self.extra > EXTRA_MOST {
            return Err(Malformed("too many extensions or trailers"));
        }
        Ok(())
    }
}

fn take(bytes: &mut BytesMut, most: u64) -> Option<Bytes> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let length = bytes.len().min(most);
    let all = length == bytes.len();
    (length > 0).then(|| {
        // Taking all of it leaves the buffer's room to be used again.
        let data = if all {
            bytes.split()
        } else {
            bytes.split_to(length)
        };
        data.freeze()
    })
}

/// Digits and nothing else, as RFC 9110 §8.6 wants a length. More than fits a signed number of 64 bits is none: the next
/// reader may take it for a negative one.
#[must_use]
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let number = text.iter().try_fold(0_u64, |sum, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    });
    number.filter(|number| *number <= u64::MAX >> 1)
}

/// Where the head at the front of `bytes` ends, with its empty line, if that is there; `seen` bytes were looked at before.
#[must_use]
pub fn end_of_head(bytes: &[u8], seen: usize) -> Option<usize> {
    let start = seen.saturating_sub(2).min(bytes.len());
    memchr::memchr_iter(b'\n', &bytes[start..]).find_map(|at| match &bytes[start + at + 1..] {
        [b'\n', ..] => Some(start + at + 2),
        [b'\r', b'\n', ..] => Some(start + at + 3),
        _ => None,
    })
}

const fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::rng::Rng;

    /// Decodes `text` given in pieces of `step` bytes; what follows the body is returned too.
    fn decode(
        framing: Framing,
        text: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, bool, Vec<u8>), Malformed> {
        let mut decoder = Decoder::new(framing);
        let (mut bytes, mut body) = (BytesMut::new(), Vec::new());
        let mut rest = text;
        loop {
            match decoder.decode(&mut bytes)? {
                Some(Piece::Data(data)) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Some(Piece::End) => {
                    bytes.extend_from_slice(rest);
                    return Ok((body, true, bytes.to_vec()));
                }
                None if rest.is_empty() => return Ok((body, false, bytes.to_vec())),
                None => {
                    let (next, later) = rest.split_at(step.min(rest.len()));
                    bytes.extend_from_slice(next);
                    rest = later;
                }
            }
        }
    }

    #[test]
    fn chunks_are_joined_however_they_arrive() {
        let text =
            b"5;a=b\r\nhello\r\n00006 \r\n world\r\nA\r\n0123456789\r\n0;x\r\nX: y\r\n\r\nnext";
        for step in 1..=text.len() {
            let decoded = decode(Framing::Chunked, text, step).unwrap();
            let expected = (b"hello world0123456789".to_vec(), true, b"next".to_vec());
            assert_eq!(decoded, expected, "{step}");
        }
    }

    #[test]
    fn what_is_not_chunked_is_refused() {
        for text in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b"1 2\r\n",
            b"11111111111111111\r\n",
            b"1\na\r\n",
            b"1\r\nab\r\n",
            b"1\r\na\nx",
            b"1;\r\r\n",
            b"0\r\nX y\r\n\r\n",
            b"0\r\n: y\r\n\r\n",
            b"0\r\nX : y\r\n\r\n",
            b"0\r\n\n",
            b"1\x0c\r\na\r\n",
            b"1 \x0b;x\r\na\r\n",
            b"\t1\r\na\r\n",
        ] {
            let shown = String::from_utf8_lossy(text);
            assert!(decode(Framing::Chunked, text, 1).is_err(), "{shown:?}");
        }
        let long = [b"1;".as_slice(), &[b'x'; LINE_MOST]].concat();
        assert!(decode(Framing::Chunked, &long, 100).is_err());
        let extensions = format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(20);
        assert!(decode(Framing::Chunked, extensions.as_bytes(), 4096).is_err());
        let blanks = format!("1{}\r\na\r\n", " ".repeat(1000)).repeat(20);
        assert!(decode(Framing::Chunked, blanks.as_bytes(), 4096).is_err());
    }

    #[test]
    fn a_length_is_counted_and_a_truncated_body_is_not_a_whole_one() {
        let (body, ended, rest) = decode(Framing::Length(5), b"hello!", 2).unwrap();
        assert_eq!(
            (&body[..], ended, &rest[..]),
            (&b"hello"[..], true, &b"!"[..])
        );
        let mut decoder = Decoder::new(Framing::Length(5));
        let mut bytes = BytesMut::from("hell");
        assert!(matches!(
            decoder.decode(&mut bytes),
            Ok(Some(Piece::Data(_)))
        ));
        assert_eq!(
            (decoder.left(), decoder.decode(&mut bytes)),
            (Some(1), Ok(None))
        );
        assert!(decoder.handle_close().is_err());
        assert!(Decoder::new(Framing::Chunked).handle_close().is_err());
        assert!(Decoder::new(Framing::Close).handle_close().is_ok());
        assert!(Decoder::new(Framing::Length(0)).has_ended());
    }

    /// A chunked body, with changes here and there.
    fn seasoned(rng: &mut Rng) -> Vec<u8> {
        let spices: [&[u8]; 14] = [
            b"\r\n",
            b"\n",
            b"\r",
            b"\0",
            b" ",
            b"\x0c",
            b";",
            b"0\r\n\r\n",
            b"0\r\n",
            b"-",
            b"ffff",
            b"_",
            b"X: y\r\n",
            b"\xff",
        ];
        let mut text = Vec::new();
        for _ in 0..rng.usize(..5) {
            let size = rng.usize(1..40);
            let padding = ["", " ", ";a", " ;a=\"b\""][rng.usize(..4)];
            text.extend_from_slice(format!("{size:x}{padding}\r\n").as_bytes());
            text.extend((0..size).map(|_| rng.u8(..)));
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(if rng.bool() {
            b"0\r\n\r\n"
        } else {
            b"0\r\nX: y\r\n\r\n"
        });
        for _ in 0..rng.usize(..3) {
            let at = rng.usize(..=text.len());
            match rng.u8(..3) {
                0 => drop(text.splice(at..at, spices[rng.usize(..spices.len())].iter().copied())),
                1 if at < text.len() => text[at] = rng.u8(..),
                _ => text.truncate(at),
            }
        }
        text
    }

    #[test]
    fn ten_thousand_seeded_bodies_mean_the_same_however_they_are_cut() {
        let seed = 0x000d_ec0d_e000_u64;
        let (mut whole, mut refused) = (0, 0);
        for round in 0..10_000 {
            let mut rng = Rng::with_seed(seed + round);
            let mut text = seasoned(&mut rng);
            text.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let at_once = decode(Framing::Chunked, &text, text.len());
            let step = rng.usize(1..20);
            let in_pieces = decode(Framing::Chunked, &text, step);
            let shown = || {
                let text = String::from_utf8_lossy(&text);
                format!("seed {}, {step} at once: {text:?}", seed + round)
            };
            assert_eq!(at_once, in_pieces, "{}", shown());
            match at_once {
                Ok((body, true, rest)) => {
                    whole += 1;
                    assert!(body.len() + rest.len() < text.len(), "{}", shown());
                    assert!(text.ends_with(&rest), "{}", shown());
                }
                Ok((_, false, _)) => (),
                Err(_) => refused += 1,
            }
        }
        assert!(whole > 3000 && refused > 1000, "{whole} {refused}");
    }

    #[test]
    fn a_length_is_digits_and_fits_a_signed_number_of_64_bits() {
        assert_eq!(decimal(b"0012"), Some(12));
        assert_eq!(decimal(b"9223372036854775807"), Some(i64::MAX as u64));
        for text in [
            "",
            "+1",
            "-1",
            "1_000",
            "0x1",
            "1 ",
            " 1",
            "1,1",
            "\u{0661}",
            "9223372036854775808",
            "18446744073709551615",
            "18446744073709551617",
        ] {
            assert_eq!(decimal(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn the_last_chunk_is_taken_with_the_data_before_it() {
        let mut bytes = BytesMut::from("2\r\nab\r\n0\r\n\r\n");
        let mut decoder = Decoder::new(Framing::Chunked);
        assert!(matches!(
            decoder.decode(&mut bytes),
            Ok(Some(Piece::Data(_)))
        ));
        decoder.end_early(&mut bytes);
        assert!(decoder.has_ended() && bytes.is_empty());
    }
}
