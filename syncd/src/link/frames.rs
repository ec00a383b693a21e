//! Messages over a byte stream.

use std::io;

use bytes::BytesMut;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::wire::message::{Message, WireError, decode, encode};

/// What is read at once, at least.
const READ_ROOM: usize = 256 << 10;

/// Why a session's connection is of no more use.
#[derive(Debug, Error)]
pub(super) enum LinkError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer sent something else than was agreed: {0}")]
    Wire(#[from] WireError),
}

/// The side that hears. [`Hearing::next`] may be dropped at any point without losing anything.
#[derive(Debug)]
pub(super) struct Hearing<S> {
    half: ReadHalf<S>,
    buffer: BytesMut,
}

/// The side that speaks.
#[derive(Debug)]
pub(super) struct Speaking<S> {
    half: WriteHalf<S>,
    buffer: BytesMut,
}

pub(super) fn frames<S: AsyncRead + AsyncWrite>(stream: S) -> (Hearing<S>, Speaking<S>) {
    let (read, write) = tokio::io::split(stream);
    (
        Hearing {
            half: read,
            buffer: BytesMut::new(),
        },
        Speaking {
            half: write,
            buffer: BytesMut::new(),
        },
    )
}

impl<S: AsyncRead> Hearing<S> {
    pub(super) async fn next(&mut self) -> Result<Message, LinkError> {
        loop {
            if let Some(message) = decode(&mut self.buffer)? {
                return Ok(message);
            }
            self.buffer.reserve(READ_ROOM);
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return Err(LinkError::Closed);
            }
        }
    }

    /// The next message, if it is here already.
    pub(super) fn ready(&mut self) -> Result<Option<Message>, LinkError> {
        Ok(decode(&mut self.buffer)?)
    }
}

impl<S: AsyncWrite> Speaking<S> {
    /// Adds a message to what is sent next; the bytes that wait then.
    pub(super) fn add(&mut self, message: &Message) -> usize {
        encode(message, &mut self.buffer);
        self.buffer.len()
    }

    /// Sends what was added; how many bytes that were.
    pub(super) async fn flush(&mut self) -> Result<u64, LinkError> {
        let bytes = self.buffer.len() as u64;
        self.half.write_all(&self.buffer).await?;
        self.half.flush().await?;
        self.buffer.clear();
        Ok(bytes)
    }

    /// Sends one message.
    pub(super) async fn say(&mut self, message: &Message) -> Result<u64, LinkError> {
        self.add(message);
        self.flush().await
    }
}
