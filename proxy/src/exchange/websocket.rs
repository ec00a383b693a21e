//! As much of the WebSocket protocol as it takes to end one in good order (RFC 6455 §5.2, §5.5.1): where its frames end, and
//! what a Close frame looks like. What is in the frames is nobody's business here.

/// The longest header: two bytes, eight of a length, four of a mask.
const HEADER_MOST: usize = 14;
const OPCODE: u8 = 0x0f;
const CLOSE: u8 = 0x8;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Why a connection is ended by a proxy (RFC 6455 §7.4, and its registry).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// 1001 Going Away: the proxy stops, or nothing was said for too long.
    GoingAway = 1001,
    /// 1012 Service Restart: another node serves from now on; come again.
    ServiceRestart = 1012,
}

/// Follows one direction of a connection from frame to frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    header: [u8; HEADER_MOST],
    /// How much of the header has come; 0 within a payload, and between frames.
    have: u8,
    /// How much of the payload is to come.
    left: u64,
    closing: bool,
    lost: bool,
}

impl Frames {
    /// Takes in what comes next.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.lost {
            if self.left > 0 {
                let here =
                    usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.left -= here as u64;
                bytes = &bytes[here..];
                continue;
            }
            let (first, rest) = (bytes[0], &bytes[1..]);
            self.header[usize::from(self.have)] = first;
            self.have += 1;
            bytes = rest;
            if usize::from(self.have) == self.header_length() {
                self.begin_payload();
            }
        }
    }

    /// The length of the present header, as far as it can be told.
    const fn header_length(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let second = self.header[1];
        let length = match second & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if second & MASKED == 0 { 0 } else { 4 };
        2 + length + mask
    }

    fn begin_payload(&mut self) {
        let long = |bytes: &[u8]| {
            let all = bytes.iter();
            all.fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte))
        };
        self.left = match self.header[1] & !MASKED {
            126 => long(&self.header[2..4]),
            127 => long(&self.header[2..10]),
            length => u64::from(length),
        };
        // The highest bit must be 0 (RFC 6455 §5.2): these are no frames.
        self.lost = self.left >> 63 != 0;
        self.closing |= self.header[0] & OPCODE == CLOSE;
        self.have = 0;
    }

    /// At least so many bytes are missing to the end of the present frame; 0 between frames. `None` when these are no frames,
    /// so that it cannot be told.
    #[must_use]
    pub fn owed(&self) -> Option<u64> {
        if self.lost {
            return None;
        }
        Some(match usize::from(self.have) {
            0 => self.left,
            have => (self.header_length() - have) as u64,
        })
    }

    /// Whether a Close frame may be said now: between frames, and if none was said before.
    #[must_use]
    pub fn may_close(&self) -> bool {
        self.owed() == Some(0) && !self.closing
    }
}

/// A Close frame as a server says it.
#[must_use]
pub const fn close(code: Code) -> [u8; 4] {
    let [high, low] = (code as u16).to_be_bytes();
    [FINAL | CLOSE, 2, high, low]
}

/// A Close frame as a client says it, masked.
#[must_use]
pub const fn masked_close(code: Code, mask: [u8; 4]) -> [u8; 8] {
    let [high, low] = (code as u16).to_be_bytes();
    let [a, b, c, d] = mask;
    [FINAL | CLOSE, MASKED | 2, a, b, c, d, high ^ a, low ^ b]
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::rng::Rng;

    /// A frame of the simplest writer: opcode, payload, mask.
    fn frame(opcode: u8, payload: usize, mask: Option<[u8; 4]>, rng: &mut Rng) -> Vec<u8> {
        let mut text = vec![FINAL | opcode];
        let masked = if mask.is_some() { MASKED } else { 0 };
        match payload {
            0..126 => text.push(masked | u8::try_from(payload).unwrap()),
            126..65_536 => {
                text.push(masked | 126);
                let length = u16::try_from(payload).unwrap();
                text.extend_from_slice(&length.to_be_bytes());
            }
            _ => {
                text.push(masked | 127);
                text.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        text.extend(mask.into_iter().flatten());
        text.extend((0..payload).map(|_| rng.u8(..)));
        text
    }

    #[test]
    fn frames_are_followed_however_they_are_cut() {
        let seed = 0x0e55_0c3a_u64;
        let mut rng = Rng::with_seed(seed);
        for round in 0..2_000 {
            let mut text = Vec::new();
            let mut ends = vec![0];
            for _ in 0..rng.usize(1..6) {
                let payload = [0, 1, 125, 126, 127, 300, 65_535, 65_536][rng.usize(..8)];
                let mask = rng
                    .bool()
                    .then(|| [rng.u8(..), rng.u8(..), rng.u8(..), rng.u8(..)]);
                let opcode = [0, 1, 2, 9, 10][rng.usize(..5)];
                text.extend(frame(opcode, payload, mask, &mut rng));
                ends.push(text.len());
            }
            let (mut frames, mut at) = (Frames::default(), 0);
            while at < text.len() {
                let to = (at + rng.usize(1..2_000)).min(text.len());
                let to = if rng.u8(..4) == 0 { at + 1 } else { to };
                frames.follow(&text[at..to]);
                at = to;
                assert_eq!(
                    frames.may_close(),
                    ends.contains(&at),
                    "seed {seed}, round {round}, at {at}"
                );
                let owed = usize::try_from(frames.owed().unwrap()).unwrap();
                let end = ends.iter().find(|end| **end >= at).unwrap();
                assert!(
                    at + owed <= *end,
                    "seed {seed}, round {round}: {owed} at {at}"
                );
                assert!(
                    owed > 0 || at == *end,
                    "seed {seed}, round {round}: nothing at {at}"
                );
            }
        }
    }

    #[test]
    fn reading_what_is_owed_comes_to_the_end_of_the_frame_and_never_beyond() {
        let mut rng = Rng::with_seed(7);
        for payload in [0, 1, 200, 70_000] {
            let text = frame(2, payload, None, &mut rng);
            let (mut frames, mut at) = (Frames::default(), 1);
            frames.follow(&text[..1]);
            while let Some(owed @ 1..) = frames.owed() {
                let to = at + usize::try_from(owed).unwrap();
                frames.follow(&text[at..to]);
                at = to;
            }
            assert_eq!(at, text.len());
        }
    }

    #[test]
    fn ten_thousand_seeded_streams_never_end_it_badly() {
        for seed in 0..10_000 {
            let mut rng = Rng::with_seed(seed);
            let text: Vec<u8> = (0..rng.usize(..200)).map(|_| rng.u8(..)).collect();
            let (mut whole, mut single) = (Frames::default(), Frames::default());
            whole.follow(&text);
            text.chunks(1).for_each(|byte| single.follow(byte));
            assert_eq!(whole, single, "seed {seed}");
        }
    }

    #[test]
    fn nothing_is_said_behind_a_close_frame_or_amid_what_is_none() {
        let mut frames = Frames::default();
        assert!(frames.may_close());
        frames.follow(&close(Code::ServiceRestart));
        assert_eq!((frames.owed(), frames.may_close()), (Some(0), false));
        let mut endless = Frames::default();
        endless.follow(&[0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((endless.owed(), endless.may_close()), (None, false));
    }

    #[test]
    fn close_frames_are_as_the_rfc_has_them() {
        assert_eq!(close(Code::ServiceRestart), [0x88, 0x02, 0x03, 0xf4]);
        assert_eq!(close(Code::GoingAway), [0x88, 0x02, 0x03, 0xe9]);
        let masked = masked_close(Code::GoingAway, [1, 2, 3, 4]);
        assert_eq!(masked, [0x88, 0x82, 1, 2, 3, 4, 0x03 ^ 1, 0xe9 ^ 2]);
    }
}
