//! A client that says what it is told, byte for byte, and reads one answer at a time.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::PATIENCE;

/// An answer, as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its proper end.
    pub(crate) whole: bool,
}

impl Answer {
    /// The value of a field; `None` when it is not there.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub(crate) struct Client {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            bytes: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    /// Sends, whether or not somebody still listens.
    pub(crate) fn try_send(&mut self, text: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(text.as_ref()).is_ok()
    }

    pub(crate) fn ask(&mut self, text: impl AsRef<[u8]>) -> Answer {
        self.send(text);
        self.answer()
    }

    /// Reads one answer, also to a HEAD request if `text` began with it.
    pub(crate) fn answer(&mut self) -> Answer {
        self.answer_to(false)
    }

    pub(crate) fn answer_to(&mut self, head: bool) -> Answer {
        let end = loop {
            if let Some(at) = find(&self.bytes, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more() {
                return Answer::default();
            }
        };
        let head_text = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
        self.bytes.drain(..end);
        let status = head_text
            .get(9..12)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        let mut answer = Answer {
            status,
            head: head_text,
            ..Answer::default()
        };
        self.read_body(&mut answer, head || matches!(status, 100..=199 | 204 | 304));
        answer
    }

    fn read_body(&mut self, answer: &mut Answer, none: bool) {
        let length = answer
            .field("content-length")
            .and_then(|text| text.parse().ok());
        if none {
            answer.whole = true;
        } else if answer.field("transfer-encoding").is_some() {
            answer.whole = self.read_chunks(&mut answer.body);
        } else if let Some(length) = length {
            answer.whole = self.take(length, &mut answer.body);
        } else {
            while self.more() {}
            answer.body = std::mem::take(&mut self.bytes);
            answer.whole = true;
        }
    }

    /// Reads so many bytes, or up to the end.
    pub(crate) fn exactly(&mut self, length: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        self.take(length, &mut taken);
        taken
    }

    fn take(&mut self, length: usize, into: &mut Vec<u8>) -> bool {
        while self.bytes.len() < length {
            if !self.more() {
                into.append(&mut self.bytes);
                return false;
            }
        }
        into.extend(self.bytes.drain(..length));
        true
    }

    fn read_chunks(&mut self, into: &mut Vec<u8>) -> bool {
        loop {
            let end = loop {
                if let Some(at) = find(&self.bytes, b"\r\n") {
                    break at;
                }
                if !self.more() {
                    return false;
                }
            };
            let line = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
            self.bytes.drain(..end + 2);
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut piece = Vec::new();
            let whole = self.take(size, &mut piece) && self.take(2, &mut Vec::new());
            into.extend(piece);
            if !whole || size == 0 {
                return whole;
            }
        }
    }

    fn more(&mut self) -> bool {
        let mut piece = [0; 64 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => false,
            Ok(read) => {
                self.bytes.extend_from_slice(&piece[..read]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!(
                    "nothing came; so far {:?}",
                    String::from_utf8_lossy(&self.bytes)
                )
            }
            Err(_) => false,
        }
    }

    /// Whether the other side ends the connection without another word.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.bytes.is_empty() && !self.more()
    }

    /// Whether nothing comes for a while.
    pub(crate) fn is_silent(&mut self, span: Duration) -> bool {
        self.stream.set_read_timeout(Some(span)).unwrap();
        let silent = self.stream.peek(&mut [0]).is_err_and(|error| {
            matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
        });
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        silent
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
