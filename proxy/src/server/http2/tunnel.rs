//! A stream that speaks another protocol (RFC 8441): a client that has HTTP/2 asks for a WebSocket by CONNECT, its node
//! by an `Upgrade`. Here the two forms meet, and a stream is made a connection like others.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};
use shared::clock;
use shared::rng::Rng;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Connected;
use super::flow::{PIECE_MOST, Piece, Turn};
use crate::server::connection::After;
use crate::server::tunnel::{self, Opened};

/// What a node is asked with (RFC 6455 §4.1); the answer to it is between the two of us.
pub(super) const KEY: &[u8] = b"sec-websocket-key";
/// The node's answer to the key.
pub(super) const ACCEPT: &[u8] = b"sec-websocket-accept";

/// The protocol that a CONNECT asks for, if it is of that kind.
pub(super) fn wanted(parts: &Parts) -> Option<&str> {
    let protocol = parts.extensions.get::<Protocol>()?;
    (parts.method == Method::CONNECT).then(|| protocol.as_str())
}

/// Whether it says that it has a body, which could mean two things behind us.
pub(super) fn has_body(parts: &Parts) -> bool {
    parts.headers.contains_key(CONTENT_LENGTH)
}

/// 16 bytes at random in base64: 21 digits of 6 bits, one of 2, and what fills it up.
pub(super) fn key() -> [u8; 24] {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut rng = Rng::with_seed(clock::unix_nanos());
    let mut key = [b'='; 24];
    key[..21].fill_with(|| DIGITS[rng.usize(..64)]);
    key[21] = b"AQgw"[rng.usize(..4)];
    key
}

/// The answer when a node took a request for another protocol for a usual one: a success would mean that it is spoken.
pub(super) fn declined() -> http::Response<()> {
    let mut head = http::Response::new(());
    *head.status_mut() = StatusCode::BAD_GATEWAY;
    let why =
        "hotwarm; error=http_upgrade_failed; details=\"the node does not speak the protocol\"";
    let fields = head.headers_mut();
    fields.insert("proxy-status", HeaderValue::from_static(why));
    head
}

/// Joins a stream to a node until the end.
pub(super) async fn run<S, B>(
    receiving: RecvStream,
    sending: SendStream<Piece>,
    opened: Opened<B>,
    ours: &Rc<Connected<S>>,
) {
    let mut end = End {
        receiving,
        sending,
        piece: Bytes::new(),
        shut: false,
        turn: Turn::default(),
        ours,
    };
    let front = &ours.front;
    let deadline = front.deadlines.after(front.limits.header_timeout);
    match tunnel::run(&mut end, b"", opened, &deadline, &front.house).await {
        After::Abort | After::Reset => end.sending.send_reset(Reason::CONNECT_ERROR),
        After::Again | After::Close | After::Linger | After::Http2 | After::Tunnel => {
            end.finish();
        }
    }
}

/// A stream as a connection.
struct End<'s, S> {
    receiving: RecvStream,
    sending: SendStream<Piece>,
    /// What came and was not read yet.
    piece: Bytes,
    shut: bool,
    turn: Turn,
    ours: &'s Rc<Connected<S>>,
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl<S> End<'_, S> {
    fn finish(&mut self) {
        if !std::mem::replace(&mut self.shut, true) {
            let last = Piece::new(Bytes::new(), &self.ours.flow);
            // A client that is gone need not be told.
            let _ = self.sending.send_data(last, true);
        }
    }
}

impl<S> AsyncRead for End<'_, S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.piece.is_empty() {
            match ready!(this.receiving.poll_data(context)) {
                Some(Ok(piece)) => this.piece = piece,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = this.piece.len().min(into.remaining());
        into.put_slice(&this.piece[..taken]);
        this.piece.advance(taken);
        // What is read may be replaced: whoever reads writes it on before it reads again.
        let _ = this.receiving.flow_control().release_capacity(taken);
        Poll::Ready(Ok(()))
    }
}

impl<S> AsyncWrite for End<'_, S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.ours.flow.has_room(&mut this.turn, context) {
            return Poll::Pending;
        }
        this.sending.reserve_capacity(bytes.len().min(PIECE_MOST));
        let mut room = this.sending.capacity();
        while room == 0 {
            match ready!(this.sending.poll_capacity(context)) {
                Some(Ok(now)) => room = now,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let taken = room.min(bytes.len());
        let piece = Piece::new(Bytes::copy_from_slice(&bytes[..taken]), &this.ours.flow);
        this.sending.send_data(piece, false).map_err(broken)?;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().finish();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sixteen_bytes_in_base64() {
        for _ in 0..100 {
            let key = String::from_utf8(key().to_vec()).unwrap();
            assert!(
                key.len() == 24 && key.ends_with("==") && !key[..22].contains('='),
                "{key}"
            );
            assert!("AQgw".contains(&key[21..22]), "{key}");
        }
    }
}
