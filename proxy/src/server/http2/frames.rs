//! The frames that a client sends, seen from outside: how many there are of those that cost work and carry nothing, and
//! whether one is in the middle of a header block (RFC 9113 §4, §10.5).
//!
//! The library itself bounds CONTINUATION frames, small DATA frames, and streams that are reset before anybody has seen them.

/// The client's preface before the first frame.
const PREFACE: usize = 24;
/// What a connection may spend on frames that carry nothing, at once.
const PATIENCE: u32 = 1000;
/// What it gets back in a tick: a hundred such frames a second are no burden.
const BACK_EACH_TICK: u32 = 10;
/// What is sent to a client makes it answer with WINDOW_UPDATE: it gets one frame for so many bytes.
const BYTES_EACH: usize = 512;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What is known of the frames so far.
#[derive(Debug)]
pub(super) struct Frames {
    head: [u8; 9],
    /// How much of a frame's head is there.
    known: usize,
    /// What is left to pass of the preface or of a frame's payload.
    left: usize,
    /// The present frame's type and flags.
    kind: u8,
    flags: u8,
    in_block: bool,
    blocks: u32,
    patience: u32,
    too_many: bool,
    tick: u32,
    written: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            head: [0; 9],
            known: 0,
            left: PREFACE,
            kind: DATA,
            flags: 0,
            in_block: false,
            blocks: 0,
            patience: PATIENCE,
            too_many: false,
            tick: 0,
            written: 0,
        }
    }
}

impl Frames {
    /// Whether the connection has sent more frames that carry nothing than anybody needs.
    pub(super) const fn are_too_many(&self) -> bool {
        self.too_many
    }

    /// The number of the header block that has begun and not ended.
    pub(super) fn open_block(&self) -> Option<u32> {
        self.in_block.then_some(self.blocks)
    }

    /// Bytes went to the client.
    pub(super) fn handle_written(&mut self, bytes: usize) {
        self.written += bytes;
        let worth = u32::try_from(self.written / BYTES_EACH).unwrap_or(u32::MAX);
        self.written %= BYTES_EACH;
        self.give(worth);
    }

    /// Time passes: `tick` counts up.
    pub(super) fn handle_tick(&mut self, tick: u32) {
        let passed = tick.saturating_sub(self.tick);
        if passed > 0 {
            self.tick = tick;
            self.give(passed.saturating_mul(BACK_EACH_TICK));
        }
    }

    fn give(&mut self, worth: u32) {
        self.patience = self.patience.saturating_add(worth).min(PATIENCE);
    }

    /// Bytes came from the client.
    pub(super) fn handle_read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                self.left -= passed;
                bytes = &bytes[passed..];
                if self.left == 0 {
                    self.handle_end();
                }
                continue;
            }
            let wanted = (self.head.len() - self.known).min(bytes.len());
            self.head[self.known..self.known + wanted].copy_from_slice(&bytes[..wanted]);
            self.known += wanted;
            bytes = &bytes[wanted..];
            if self.known == self.head.len() {
                self.known = 0;
                self.handle_frame();
            }
        }
    }

    fn handle_frame(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        (self.kind, self.flags) = (kind, flags);
        if kind == HEADERS {
            self.in_block = true;
            self.blocks = self.blocks.wrapping_add(1);
        }
        let carries = match kind {
            DATA => self.left > 0 || flags & END_STREAM != 0,
            HEADERS | CONTINUATION => true,
            _ => false,
        };
        if !carries {
            let left = self.patience.checked_sub(1);
            self.too_many |= left.is_none();
            self.patience = left.unwrap_or(0);
        }
        if self.left == 0 {
            self.handle_end();
        }
    }

    fn handle_end(&mut self) {
        if matches!(self.kind, HEADERS | CONTINUATION) && self.flags & END_HEADERS != 0 {
            self.in_block = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(9 + payload, 0);
        bytes
    }

    fn begun() -> Frames {
        let mut frames = Frames::default();
        frames.handle_read(&[0; PREFACE]);
        frames
    }

    #[test]
    fn a_block_is_open_from_its_first_frame_s_head_to_its_last_byte_however_it_is_cut() {
        let parts = [frame(HEADERS, 0, 5), frame(CONTINUATION, 0, 0)];
        let open = parts.concat();
        let last = frame(CONTINUATION, END_HEADERS, 3);
        for step in 1..=open.len() {
            let mut frames = begun();
            for piece in open.chunks(step) {
                frames.handle_read(piece);
            }
            assert_eq!(frames.open_block(), Some(1), "{step}");
            frames.handle_read(&last[..last.len() - 1]);
            assert_eq!(frames.open_block(), Some(1));
            frames.handle_read(&last[last.len() - 1..]);
            assert_eq!(frames.open_block(), None);
            frames.handle_read(&frame(HEADERS, 0, 0));
            assert_eq!(frames.open_block(), Some(2));
        }
    }

    #[test]
    fn frames_that_carry_nothing_are_borne_for_a_while_and_others_for_ever() {
        for (kind, flags, payload) in [
            (2, 0, 5),
            (3, 0, 4),
            (4, 0, 6),
            (6, 0, 8),
            (8, 0, 4),
            (99, 0, 0),
        ] {
            let mut frames = begun();
            let one = frame(kind, flags, payload);
            (0..PATIENCE).for_each(|_| frames.handle_read(&one));
            assert!(!frames.are_too_many(), "{kind}");
            frames.handle_tick(1);
            (0..BACK_EACH_TICK).for_each(|_| frames.handle_read(&one));
            frames.handle_written(BYTES_EACH * 2);
            (0..2).for_each(|_| frames.handle_read(&one));
            assert!(!frames.are_too_many(), "{kind}");
            frames.handle_read(&one);
            assert!(frames.are_too_many(), "{kind}");
        }
        for (kind, flags, payload) in [
            (DATA, 0, 1),
            (DATA, END_STREAM, 0),
            (HEADERS, END_HEADERS, 9),
        ] {
            let mut frames = begun();
            let one = frame(kind, flags, payload);
            (0..PATIENCE * 2).for_each(|_| frames.handle_read(&one));
            assert!(!frames.are_too_many(), "{kind}");
        }
    }
}
