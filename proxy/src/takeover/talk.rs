//! Lines over a Unix socket, some with a descriptor.

use std::io::{self, Error, ErrorKind, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use shared::clock;

/// The longest line, in bytes.
const LINE_MOST: usize = 2048;
/// Lines are short: they are written at once, or the other side hangs.
const SAY_WITHIN: Duration = Duration::from_secs(2);

/// A conversation.
#[derive(Debug)]
pub(super) struct Talk(UnixStream);

impl Talk {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(SAY_WITHIN))?;
        Ok(Self(stream))
    }

    /// Says a line.
    pub(super) fn say(&self, line: &str) -> io::Result<()> {
        (&self.0).write_all(format!("{}\n", line.replace('\n', "; ")).as_bytes())
    }

    /// Says a line that a socket comes with.
    pub(super) fn say_with_socket(&self, line: &str, socket: &OwnedFd) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        let sockets = [socket.as_fd()];
        with.push(SendAncillaryMessage::ScmRights(&sockets));
        let line = format!("{line}\n");
        let words = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg(&self.0, &words, &mut with, SendFlags::NOSIGNAL)?;
        (&self.0).write_all(&line.as_bytes()[sent..])
    }

    /// The next line, which no socket comes with.
    pub(super) fn hear(&self, within: Duration) -> io::Result<String> {
        self.hear_with_socket(within).map(|(line, _)| line)
    }

    /// The next line, and what comes with it.
    pub(super) fn hear_with_socket(
        &self,
        within: Duration,
    ) -> io::Result<(String, Option<OwnedFd>)> {
        let until = clock::now() + within;
        let (mut line, mut socket) = (Vec::new(), None);
        loop {
            let left = until.saturating_duration_since(clock::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.0.set_read_timeout(Some(left))?;
            match self.hear_byte(&mut socket)? {
                b'\n' => break,
                _ if line.len() >= LINE_MOST => return Err(ErrorKind::InvalidData.into()),
                byte => line.push(byte),
            }
        }
        let line = String::from_utf8(line).map_err(|_| Error::from(ErrorKind::InvalidData))?;
        Ok((line, socket))
    }

    fn hear_byte(&self, socket: &mut Option<OwnedFd>) -> io::Result<u8> {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let heard = rustix::io::retry_on_intr(|| {
            recvmsg(&self.0, &mut bytes, &mut with, RecvFlags::CMSG_CLOEXEC)
        });
        if heard?.bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        for message in with.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                *socket = sockets.last().or_else(|| socket.take());
            }
        }
        Ok(byte[0])
    }

    /// Whether the other side has closed it and has said nothing before.
    pub(super) fn is_over(&self) -> bool {
        let mut byte = [0_u8];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&self.0, &mut byte, flags) {
            Ok((_, read)) => read == 0,
            Err(error) => error != rustix::io::Errno::AGAIN && error != rustix::io::Errno::INTR,
        }
    }
}
