//! A client's socket and what was read from it, shared by whoever reads the request's body and whoever writes the response.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use rustls::ProtocolVersion;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::exchange::appetite::Appetite;
use crate::exchange::decode::{Decoder, Framing, Malformed, Piece};
use crate::exchange::{Body, Certified, Encryption, Fault};
use crate::tls;

/// Room for reading a head and what may come with it.
const READ_HEAD: usize = 4 << 10;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a line runs over.
pub(super) trait Carrier: AsyncRead + AsyncWrite + Unpin + 'static {
    /// What clients call it.
    const SCHEME: &'static str;
    /// Whether an orderly end is told by a message of its own. A connection that ends without it was cut off.
    const SAYS_GOODBYE: bool;
    /// Whether the protocol is told by the client's first bytes. Otherwise it was negotiated.
    const SAYS_PROTOCOL: bool;

    /// The socket below.
    fn socket(&self) -> &TcpStream;

    /// How it is encrypted, if it is; `asks` if clients were asked for certificates.
    fn encryption(&self, asks: bool) -> Option<Encryption>;
}

impl Carrier for TcpStream {
    const SCHEME: &'static str = "http";
    const SAYS_GOODBYE: bool = false;
    const SAYS_PROTOCOL: bool = true;

    fn socket(&self) -> &TcpStream {
        self
    }

    fn encryption(&self, _: bool) -> Option<Encryption> {
        None
    }
}

impl Carrier for TlsStream<TcpStream> {
    const SCHEME: &'static str = "https";
    const SAYS_GOODBYE: bool = true;
    const SAYS_PROTOCOL: bool = false;

    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }

    fn encryption(&self, asks: bool) -> Option<Encryption> {
        let session = self.get_ref().1;
        let shown = session.peer_certificates().and_then(<[_]>::first);
        Some(Encryption {
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            name: session.server_name().unwrap_or_default().into(),
            certified: match shown.map(tls::identity) {
                Some(tls::Identity { cert, subject }) => Certified::As {
                    cert: cert.into(),
                    subject: subject.into(),
                },
                None if asks => Certified::Nobody,
                None => Certified::NotAsked,
            },
        })
    }
}

/// One client's line.
#[derive(Debug)]
pub(super) struct Line<T> {
    io: RefCell<T>,
    /// What was read and not taken yet.
    pub(super) incoming: RefCell<BytesMut>,
    body: RefCell<Inbound>,
    words: RefCell<Words>,
    /// How many bytes were written, as a measure of progress.
    pub(super) written: Cell<u64>,
}

/// The body of the request under way.
#[derive(Debug)]
struct Inbound {
    decoder: Decoder,
    appetite: Appetite,
    /// Whether the client waits for a word before it sends it.
    awaited: bool,
}

/// What is said before the response.
#[derive(Debug, Default)]
struct Words {
    /// What is left to write of it.
    left: Vec<u8>,
    /// Whether something is written that may still be held back on its way.
    unflushed: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Line<T> {
    pub(super) fn new(io: T) -> Rc<Self> {
        Rc::new(Self {
            io: RefCell::new(io),
            incoming: RefCell::default(),
            body: RefCell::new(Inbound {
                decoder: Decoder::new(Framing::None),
                appetite: Appetite::default(),
                awaited: false,
            }),
            words: RefCell::default(),
            written: Cell::new(0),
        })
    }

    /// Gives it up to somebody who speaks another protocol on it, with what was read and not taken.
    pub(super) fn give_up(self: Rc<Self>) -> Option<(T, BytesMut)> {
        let line = Rc::into_inner(self)?;
        Some((line.io.into_inner(), line.incoming.into_inner()))
    }

    /// Begins the body of a request.
    pub(super) fn begin_body(self: &Rc<Self>, framing: Framing, expects: bool) -> Body {
        let mut body = self.body.borrow_mut();
        body.decoder = Decoder::new(framing);
        body.appetite = Appetite::default();
        body.awaited = expects;
        if body.decoder.has_ended() {
            return Body::Empty;
        }
        Body::Stream(Box::pin(ClientBody(Rc::clone(self))))
    }

    /// Whether all of the request's body was read.
    pub(super) fn has_body_ended(&self) -> bool {
        self.body.borrow().decoder.has_ended()
    }

    /// Whether the client waits for the word to go on, and was not given it.
    pub(super) fn is_awaited(&self) -> bool {
        self.body.borrow().awaited
    }

    /// The response begins: a client that still waits for the word to go on will not get it any more. What is left of the words
    /// that were begun must be written before the response.
    #[must_use]
    pub(super) fn keep_words(&self) -> Vec<u8> {
        self.body.borrow_mut().awaited = false;
        std::mem::take(&mut self.words.borrow_mut().left)
    }

    /// Puts something behind what is to be said before the response.
    pub(super) fn say(&self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.words.borrow_mut().left);
    }

    /// Says it; ready when the client can hear all of it.
    pub(super) fn poll_say(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut words = self.words.borrow_mut();
        while !words.left.is_empty() {
            let written = ready!(self.poll_write(context, &words.left, b""))?;
            words.left.drain(..written);
            words.unflushed = true;
        }
        if words.unflushed {
            ready!(self.poll_flush(context))?;
            words.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads the next bytes of a head; 0 is the end.
    pub(super) fn poll_head(&self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_read(context, READ_HEAD)
    }

    /// Looks whether the client has gone, while nothing is awaited from it. One that has sent the next request already will
    /// be there for its answer.
    pub(super) fn is_gone(&self, context: &mut Context<'_>) -> bool {
        let ahead = !self.incoming.borrow().is_empty();
        if ahead || !self.has_body_ended() {
            return false;
        }
        match self.poll_read(context, 1) {
            Poll::Pending => false,
            Poll::Ready(read) => !matches!(read, Ok(read) if read > 0),
        }
    }

    /// Shuts down the writing side.
    pub(super) fn poll_shutdown(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(context)
    }

    /// Shuts down the writing side, then reads and forgets up to `most` bytes; ready at the end.
    pub(super) fn poll_linger(&self, left: &mut usize, context: &mut Context<'_>) -> Poll<()> {
        if ready!(self.poll_shutdown(context)).is_err() {
            return Poll::Ready(());
        }
        while *left > 0 {
            self.incoming.borrow_mut().clear();
            match ready!(self.poll_read(context, READ_HEAD)) {
                Ok(read) if read > 0 => *left = left.saturating_sub(read),
                Ok(_) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }

    fn poll_read(&self, context: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        let mut incoming = self.incoming.borrow_mut();
        if incoming.capacity() - incoming.len() < (room / 8).max(1) {
            incoming.reserve(room);
        }
        let mut io = self.io.borrow_mut();
        std::pin::pin!(io.read_buf(&mut *incoming)).poll(context)
    }

    /// Writes some of `first` and, behind it, of `second`.
    pub(super) fn poll_write(
        &self,
        context: &mut Context<'_>,
        first: &[u8],
        second: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut io = self.io.borrow_mut();
        let io = Pin::new(&mut *io);
        let written = if second.is_empty() {
            io.poll_write(context, first)
        } else {
            let both = [io::IoSlice::new(first), io::IoSlice::new(second)];
            io.poll_write_vectored(context, if first.is_empty() { &both[1..] } else { &both })
        };
        let written = ready!(written)?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let all = self.written.get().wrapping_add(written as u64);
        self.written.set(all);
        Poll::Ready(Ok(written))
    }

    pub(super) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_flush(context)
    }

    /// What was read and not taken yet.
    pub(super) fn take_incoming(&self) -> BytesMut {
        std::mem::take(&mut self.incoming.borrow_mut())
    }

    /// Gives back the memory of an idle connection.
    pub(super) fn rest(&self) {
        let mut incoming = self.incoming.borrow_mut();
        if incoming.is_empty() {
            *incoming = BytesMut::new();
        }
    }
}

impl<T: Carrier> Line<T> {
    /// Looks at the socket.
    pub(super) fn with_socket<R>(&self, look: impl FnOnce(&TcpStream) -> R) -> R {
        look(self.io.borrow().socket())
    }
}

/// The connection itself, for whoever speaks another protocol on it.
#[derive(Debug)]
pub(super) struct Bare<'l, T>(pub(super) &'l Line<T>);

impl<T: AsyncRead + Unpin> AsyncRead for Bare<'_, T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_read(context, into)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Bare<'_, T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_shutdown(context)
    }
}

/// A request's body, read as it is asked for.
struct ClientBody<T>(Rc<Line<T>>);

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> ClientBody<T> {
    /// Says the word that the client waits for.
    fn poll_word(&self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let awaited = std::mem::take(&mut self.0.body.borrow_mut().awaited);
        // One that has begun to send needs no word any more.
        if awaited && self.0.incoming.borrow().is_empty() {
            self.0.say(|words| words.extend_from_slice(CONTINUE));
        }
        self.0.poll_say(context).map_err(|_| Fault::BodyBroken)
    }

    fn poll_piece(&self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        if let Err(fault) = ready!(self.poll_word(context)) {
            return Poll::Ready(Some(Err(fault)));
        }
        loop {
            let mut body = self.0.body.borrow_mut();
            let mut incoming = self.0.incoming.borrow_mut();
            match body.decoder.decode(&mut incoming) {
                Ok(Some(Piece::End)) => return Poll::Ready(None),
                Ok(Some(Piece::Data(data))) => {
                    body.decoder.end_early(&mut incoming);
                    return Poll::Ready(Some(Ok(data)));
                }
                Err(Malformed(_)) => return Poll::Ready(Some(Err(Fault::BodyBroken))),
                Ok(None) => (),
            }
            let room = body.appetite.room(body.decoder.left());
            drop((body, incoming));
            match ready!(self.0.poll_read(context, room)) {
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(Fault::BodyBroken))),
                Ok(read) => self.0.body.borrow_mut().appetite.handle_read(read),
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> HttpBody for ClientBody<T> {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let piece = ready!(self.poll_piece(context));
        Poll::Ready(match piece {
            Some(piece) => Some(piece.map(Frame::data)),
            None => {
                let trailers = self.0.body.borrow_mut().decoder.take_trailers();
                trailers.map(|trailers| Ok(Frame::trailers(trailers)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.has_body_ended()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.0.body.borrow().decoder.left();
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn a_word_that_was_begun_is_finished_before_anything_else_is_said() {
        for (room, rest) in [(10, &CONTINUE[10..]), (64, b"")] {
            let (client, _other) = tokio::io::duplex(room);
            let line = Line::new(client);
            let mut context = Context::from_waker(Waker::noop());
            let Body::Stream(mut body) = line.begin_body(Framing::Length(5), true) else {
                panic!("no body");
            };
            assert!(body.as_mut().poll_frame(&mut context).is_pending());
            assert_eq!(line.keep_words(), rest);
            assert_eq!(line.keep_words(), b"");
        }
        let line = Line::new(tokio::io::duplex(64).0);
        let _body = line.begin_body(Framing::Length(5), true);
        assert!(line.is_awaited());
        assert_eq!(line.keep_words(), b"", "one that was not begun is not said");
        let line = Line::new(tokio::io::duplex(64).0);
        let Body::Stream(mut body) = line.begin_body(Framing::Length(5), true) else {
            panic!("no body");
        };
        line.incoming.borrow_mut().extend_from_slice(b"hello");
        let mut context = Context::from_waker(Waker::noop());
        assert!(body.as_mut().poll_frame(&mut context).is_ready());
        assert!(!line.is_awaited(), "one that sends already needs none");
        assert_eq!(line.keep_words(), b"");
    }
}
