//! A response on its way to the client: head and body as bytes, joined while they are small, never copied when they are
//! large.

use std::cell::RefCell;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body::Body as HttpBody;
use shared::clock;
use tokio::io::{AsyncRead, AsyncWrite};

use super::line::Line;
use crate::exchange::encode::{LAST_CHUNK, chunk, decimal};
use crate::exchange::fields::{FieldId, FieldSet};
use crate::exchange::{Fault, Response, trailers};

/// Up to this size pieces are joined with what is before them; larger ones are written from where they are.
const JOINED: usize = 16 << 10;

/// Ours to say, or of no meaning here.
const OURS: FieldSet = FieldSet::of(&[
    FieldId::Connection,
    FieldId::ContentLength,
    FieldId::TransferEncoding,
    FieldId::KeepAlive,
    FieldId::ProxyConnection,
    FieldId::Upgrade,
]);
/// The same, where no trailers are sent.
const OURS_WITHOUT_TRAILERS: FieldSet = OURS.with(FieldSet::of(&[FieldId::Trailer]));

/// What a response depends on besides itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Whether the request was HEAD.
    pub(super) head: bool,
    /// The version that the client speaks.
    pub(super) version: Version,
    /// Whether the connection shall go on.
    pub(super) persistent: bool,
    /// Whether the client takes trailers.
    pub(super) trailers: bool,
}

impl Asked {
    pub(super) fn new(method: &Method, version: Version, persistent: bool) -> Self {
        Self {
            head: *method == Method::HEAD,
            version,
            persistent,
            trailers: false,
        }
    }
}

/// How the end of the body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// There is no body.
    None,
    /// By this many bytes, still to come.
    Length(u64),
    Chunked,
    Close,
}

/// What becomes of what follows the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trailers {
    Sent,
    Dropped,
}

/// A response being written.
#[derive(Debug)]
pub(super) struct Outgoing<B> {
    body: B,
    ending: Ending,
    ended: bool,
    trailers: Trailers,
    /// How much of the buffer is written.
    at: usize,
    /// A large piece, behind the buffer.
    piece: Bytes,
    /// Whether everything is handed over and the line has not yet passed it on.
    flushing: bool,
    /// Whether the connection can go on after this.
    pub(super) persistent: bool,
}

/// Why a response was not written whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The client does not take it.
    Client,
    /// Its source broke off: the client must not take it for whole.
    Source {
        /// Whether only a reset tells the client so.
        silent: bool,
    },
}

impl<B: HttpBody<Data = Bytes, Error = Fault> + Unpin> Outgoing<B> {
    /// Writes the head into `out`.
    pub(super) fn new(
        response: Response<B>,
        asked: Asked,
        dates: &Dates,
        out: &mut Vec<u8>,
    ) -> Self {
        let status = response.status;
        let without = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        let exact = response.body.size_hint().exact();
        let (ending, length) = match exact {
            _ if without => (Ending::None, response.declared),
            _ if asked.head => (
                Ending::None,
                response.declared.or_else(|| exact.filter(|size| *size > 0)),
            ),
            Some(size) => (Ending::Length(size), Some(size)),
            None if asked.version == Version::HTTP_10 => (Ending::Close, None),
            None => (Ending::Chunked, None),
        };
        let persistent = asked.persistent && ending != Ending::Close;
        out.reserve(response.fields.raw().len() + 256);
        start_line(out, &response);
        let (trailers, skip) = if asked.trailers && ending == Ending::Chunked {
            (Trailers::Sent, OURS)
        } else {
            (Trailers::Dropped, OURS_WITHOUT_TRAILERS)
        };
        response.fields.write(out, skip);
        if !response.fields.has(FieldId::Date) {
            dates.write(out);
        }
        if let Some(length) = length {
            out.extend_from_slice(b"Content-Length: ");
            decimal(out, length);
            out.extend_from_slice(b"\r\n");
        } else if ending == Ending::Chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        if !persistent {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if asked.version == Version::HTTP_10 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        Self {
            body: response.body,
            ended: matches!(ending, Ending::None | Ending::Length(0)),
            ending,
            trailers,
            at: 0,
            piece: Bytes::new(),
            flushing: false,
            persistent,
        }
    }

    /// Moves the body to the client; ready when everything is written.
    pub(super) fn poll<T: AsyncRead + AsyncWrite + Unpin + 'static>(
        &mut self,
        line: &Line<T>,
        out: &mut Vec<u8>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            while !self.ended && self.piece.is_empty() && out.len() - self.at < JOINED {
                match self.poll_pull(out, context) {
                    Poll::Ready(Ok(())) => (),
                    Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                    Poll::Pending => break,
                }
            }
            let left = out.len() - self.at;
            if left == 0 && self.piece.is_empty() {
                out.clear();
                self.at = 0;
                // What is encrypted may still wait for room, also when the body's next piece is long in coming.
                let flushed = line.poll_flush(context);
                self.flushing = flushed.is_pending();
                return match ready!(flushed) {
                    Err(_) => Poll::Ready(Err(Broken::Client)),
                    Ok(()) if self.ended => Poll::Ready(Ok(())),
                    Ok(()) => Poll::Pending,
                };
            }
            let written = ready!(line.poll_write(context, &out[self.at..], &self.piece));
            let Ok(written) = written else {
                return Poll::Ready(Err(Broken::Client));
            };
            self.at += written.min(left);
            if written > left {
                self.piece.advance(written - left);
            }
            if self.at == out.len() {
                out.clear();
                self.at = 0;
                if self.piece.is_empty() && written > left && self.ending == Ending::Chunked {
                    out.extend_from_slice(b"\r\n");
                }
            }
        }
    }

    /// Whether something waits for the client to take it.
    pub(super) fn is_blocked(&self, out: &[u8]) -> bool {
        out.len() > self.at || !self.piece.is_empty() || self.flushing
    }

    /// Takes the next piece of the body.
    fn poll_pull(
        &mut self,
        out: &mut Vec<u8>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        let broken = Broken::Source {
            silent: self.ending == Ending::Close,
        };
        let frame = ready!(std::pin::Pin::new(&mut self.body).poll_frame(context));
        let data = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(frame) => {
                    self.end_with(frame.into_trailers().ok(), out);
                    return Poll::Ready(Ok(()));
                }
            },
            Some(Err(_)) => return Poll::Ready(Err(broken)),
            None => return Poll::Ready(self.end(out).ok_or(broken)),
        };
        if data.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if let Ending::Length(left) = &mut self.ending {
            let Some(rest) = left.checked_sub(data.len() as u64) else {
                return Poll::Ready(Err(broken));
            };
            *left = rest;
            self.ended = rest == 0;
        }
        if self.ending == Ending::Chunked {
            chunk(out, data.len());
        }
        if data.len() > JOINED {
            self.piece = data;
        } else {
            out.extend_from_slice(&data);
            if self.ending == Ending::Chunked {
                out.extend_from_slice(b"\r\n");
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Trailers came, and so the end; if nobody wants them, the end is still to come.
    fn end_with(&mut self, came: Option<HeaderMap>, out: &mut Vec<u8>) {
        if self.trailers == Trailers::Sent
            && let Some(came) = came.and_then(trailers::allowed)
        {
            self.ended = true;
            out.extend_from_slice(b"0\r\n");
            trailers::write(&came, out);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// The body says that it is over; `None` if it is too early.
    fn end(&mut self, out: &mut Vec<u8>) -> Option<()> {
        self.ended = true;
        match self.ending {
            Ending::Chunked => out.extend_from_slice(LAST_CHUNK),
            Ending::Length(left) if left > 0 => return None,
            Ending::None | Ending::Length(_) | Ending::Close => (),
        }
        Some(())
    }
}

/// The head of an answer behind which the connection speaks `protocol`.
pub(super) fn switching<B>(out: &mut Vec<u8>, response: &Response<B>, protocol: &str) {
    start_line(out, response);
    response.fields.write(out, OURS);
    out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: ");
    out.extend_from_slice(protocol.as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
}

/// What is said before an answer.
pub(super) fn write_interim(out: &mut Vec<u8>, interim: &Response<()>) {
    start_line(out, interim);
    interim.fields.write(out, OURS);
    out.extend_from_slice(b"\r\n");
}

fn start_line<B>(out: &mut Vec<u8>, response: &Response<B>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(response.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(response.reason());
    out.extend_from_slice(b"\r\n");
}

/// The present second as a `Date` field, formatted once a second.
#[derive(Debug, Default)]
pub struct Dates(RefCell<Option<(u64, HeaderValue)>>);

impl Dates {
    fn write(&self, out: &mut Vec<u8>) {
        self.with(|date| {
            out.extend_from_slice(b"Date: ");
            out.extend_from_slice(date.as_bytes());
            out.extend_from_slice(b"\r\n");
        });
    }

    /// The field's value.
    pub(super) fn value(&self) -> HeaderValue {
        self.with(HeaderValue::clone)
    }

    fn with<R>(&self, take: impl FnOnce(&HeaderValue) -> R) -> R {
        let second = clock::unix_nanos() / 1_000_000_000;
        let mut known = self.0.borrow_mut();
        match &*known {
            Some((of, date)) if *of == second => take(date),
            _ => {
                let date = HeaderValue::try_from(imf_fixdate(second));
                let date =
                    date.unwrap_or(HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"));
                take(&known.insert((second, date)).1)
            }
        }
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7).
fn imf_fixdate(second: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let text = clock::rfc3339_at(second.saturating_mul(1_000_000_000));
    let part = |from, to| text.get(from..to).unwrap_or_default();
    let day = usize::try_from(second / 86_400 % 7).unwrap_or(0);
    let month: usize = part(5, 7).parse().unwrap_or(1);
    let month = MONTHS.get(month.saturating_sub(1)).unwrap_or(&"Jan");
    format!(
        "{}, {} {month} {} {} GMT",
        DAYS[day],
        part(8, 10),
        part(0, 4),
        part(11, 19)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Frame;
    use std::cell::Cell;
    use std::io;
    use std::pin::Pin;
    use std::rc::Rc;
    use std::task::Waker;
    use tokio::io::ReadBuf;

    /// Takes everything and passes nothing on.
    #[derive(Debug, Default)]
    struct Holding {
        asked: Rc<Cell<u32>>,
    }

    impl AsyncRead for Holding {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Holding {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.asked.set(self.asked.get() + 1);
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A body that may have more to say, later.
    struct Later(Option<Bytes>, bool);

    impl HttpBody for Later {
        type Data = Bytes;
        type Error = Fault;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
            match self.0.take() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                None if self.1 => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }

    #[test]
    fn what_the_line_holds_back_is_pressed_for_and_counts_as_waiting_for_the_client() {
        for ends in [true, false] {
            let holding = Holding::default();
            let asked = Rc::clone(&holding.asked);
            let line = Line::new(holding);
            let mut context = Context::from_waker(Waker::noop());
            let body = Later(Some(Bytes::from_static(b"piece")), ends);
            let response = Response::new(StatusCode::OK, body);
            let asks = Asked::new(&Method::GET, Version::HTTP_11, true);
            let mut out = Vec::new();
            let mut outgoing = Outgoing::new(response, asks, &Dates::default(), &mut out);
            assert!(outgoing.poll(&line, &mut out, &mut context).is_pending());
            assert_eq!(asked.get(), 1);
            assert!(outgoing.is_blocked(&out));
        }
    }

    #[test]
    fn dates_are_written_as_the_rfc_wants_them() {
        assert_eq!(imf_fixdate(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(imf_fixdate(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(imf_fixdate(1_709_164_800), "Thu, 29 Feb 2024 00:00:00 GMT");
    }
}
