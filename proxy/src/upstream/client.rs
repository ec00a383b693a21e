//! An HTTP/1.1 connection to a node, without channels and without a task of its own: whoever waits for the response drives
//! the writing of the request, too.
//!
//! Bytes handed to the system are counted, so that "never sent" is a fact and not a guess. A response may arrive while the
//! request is still being written (an early 413); a connection is used again only if both messages have ended for certain.

pub(super) mod encode;
pub mod parse;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use self::encode::Sending;
use self::parse::{Asked, Found};
use crate::exchange::appetite::Appetite;
use crate::exchange::decode::{Decoder, Framing, Malformed, Piece};
use crate::exchange::encode::{LAST_CHUNK, chunk};
use crate::exchange::fields::FieldId;
use crate::exchange::{
    Body, Cause, Deadline, Deadlines, Fault, Head, Reach, Response, Trail, Tunnel, Upload,
    UpstreamFault,
};
use crate::logic::NodeId;

/// A request's body up to this size goes out together with the head, in one call.
const SMALL_BODY: u64 = 16 << 10;
/// The buffers are written when they have this much, in bytes.
const WRITE_AT_ONCE: usize = 16 << 10;
/// Room for reading a head and what may come with it.
const READ_HEAD: usize = 8 << 10;
/// More interim responses than this are not honest.
const INTERIM_MOST: u32 = 16;
/// How long a node may take to say `100 Continue` before the body is sent without (RFC 9110 §10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);
/// How long the head of a response waits for the first of its body, if that has a length. Most nodes send the two apart, a
/// moment after each other; joined they are one write, and a node that breaks off between them has failed an attempt and not
/// a response that the client has seen the beginning of. (One without a length may be a stream of events.)
const BODY_WAIT: Duration = Duration::from_millis(100);

/// An open connection.
#[derive(Debug)]
pub struct Connection<T> {
    /// The socket.
    pub io: T,
    /// The tick at which it was last put aside.
    pub idle_since: u32,
    /// For how long the node keeps it, as it said last.
    pub keep_for: Option<Duration>,
    incoming: BytesMut,
    outgoing: Vec<u8>,
}

impl<T> Connection<T> {
    /// Wraps a socket.
    #[must_use]
    pub fn new(io: T) -> Self {
        Self {
            io,
            idle_since: 0,
            keep_for: None,
            incoming: BytesMut::new(),
            outgoing: Vec::new(),
        }
    }
}

/// Where a connection goes when it can be used again.
pub trait Home<T>: Clone + Unpin + 'static {
    /// Takes it back, and notes when.
    fn take_back(&self, connection: Connection<T>);

    /// It speaks another protocol from now on, and is none of these connections any more.
    fn let_go(&self, _: &mut T) {}
    /// Takes one whose request was given up before it was answered; the node may still be at it.
    fn abandon(&self, connection: Connection<T>);
}

/// What an exchange needs to know of its surroundings.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The node, for errors.
    pub node: NodeId,
    /// How long a body may pause.
    pub idle: Duration,
    /// The worker's deadlines.
    pub deadlines: Deadlines,
}

/// One request and its response on a connection, until the response's head is there.
#[derive(Debug)]
pub struct Transfer<T, H: Home<T>> {
    connection: Option<Connection<T>>,
    outflow: Outflow,
    seen: usize,
    interim: u32,
    said: Vec<Response<()>>,
    to_head: bool,
    found: Option<parse::Head>,
    begins: Option<Deadline>,
    upgrade: Option<Arc<str>>,
    home: H,
    terms: Terms,
}

impl<T, H> Transfer<T, H>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Home<T>,
{
    /// Begins an exchange.
    #[must_use]
    pub fn new(
        mut connection: Connection<T>,
        head: &Head,
        upload: Upload,
        trail: &Trail,
        home: H,
        terms: Terms,
    ) -> Self {
        connection.outgoing.clear();
        let sending = encode::request(&mut connection.outgoing, head, &upload, trail);
        let stage = match sending {
            Sending::Nothing => Stage::Last,
            _ if head.fields.has(FieldId::Expect) => {
                Stage::Waiting(terms.deadlines.after(CONTINUE_WAIT))
            }
            Sending::Plain | Sending::Chunked => Stage::Body,
        };
        Self {
            connection: Some(connection),
            outflow: Outflow {
                upload,
                sending,
                stage,
                at: 0,
                piece: Bytes::new(),
                sent: 0,
            },
            seen: 0,
            interim: 0,
            said: Vec::new(),
            to_head: head.method == Method::HEAD,
            found: None,
            begins: None,
            upgrade: head.upgrade.clone(),
            home,
            terms,
        }
    }

    /// Drives both directions until the response's head is there. Not to be asked again after it was.
    ///
    /// # Errors
    /// How far it came and what happened; or the client's body is at fault. The connection is closed.
    pub fn poll_response(&mut self, context: &mut Context<'_>) -> Poll<Result<Response, Fault>> {
        if self.found.is_none() {
            let head = ready!(self.poll_head(context));
            self.found = Some(head.inspect_err(|_| self.connection = None)?);
        }
        let begun = ready!(self.poll_begin(context));
        let connection = self.connection.take();
        Poll::Ready(match (begun, self.found.take(), connection) {
            (Ok(()), Some(head), Some(connection))
                if head.status == StatusCode::SWITCHING_PROTOCOLS =>
            {
                self.open(head, connection)
            }
            (Ok(()), Some(head), Some(connection)) => Ok(self.finish(head, connection)),
            (Err(cause), ..) => Err(self.terms.fault(Reach::Head, cause)),
            (Ok(()), ..) => Err(self.terms.fault(Reach::Sent, Cause::Closed)),
        })
    }

    /// Waits a moment for the first of the body.
    fn poll_begin(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        let framing = self.found.as_ref().map(|head| head.framing);
        let (Some(connection), Some(Framing::Length(1..))) = (&mut self.connection, framing) else {
            return Poll::Ready(Ok(()));
        };
        // A node that answers before it has read everything may wait for the rest.
        while connection.incoming.is_empty() && self.outflow.is_done() {
            match poll_more(connection, context, READ_HEAD) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Cause::Closed)),
                Poll::Ready(Ok(_)) => (),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Cause::io(&error))),
                Poll::Pending => {
                    let Terms { deadlines, .. } = &self.terms;
                    let begins = self
                        .begins
                        .get_or_insert_with(|| deadlines.after(BODY_WAIT));
                    if begins.has_passed(context) {
                        break;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What the node has said before its answer, besides `100 Continue`, since this was asked last.
    pub fn take_said(&mut self) -> impl Iterator<Item = Response<()>> {
        self.said.drain(..)
    }

    /// Whether the system has taken a byte of the request.
    #[must_use]
    pub const fn has_sent(&self) -> bool {
        self.outflow.sent > 0
    }

    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<parse::Head, Fault>> {
        let fault = |reach, cause| Poll::Ready(Err(self.terms.fault(reach, cause)));
        let Some(connection) = &mut self.connection else {
            return fault(Reach::Sent, Cause::Closed);
        };
        let asked = Asked {
            head: self.to_head,
            upgrade: self.upgrade.as_deref(),
        };
        loop {
            match self.outflow.poll_send(connection, context) {
                Poll::Pending | Poll::Ready(Ok(())) => (),
                Poll::Ready(Err(SendError::Client(fault))) => return Poll::Ready(Err(fault)),
                Poll::Ready(Err(SendError::Io(cause))) if self.outflow.sent == 0 => {
                    return fault(Reach::Unsent, cause);
                }
                // The node reads no more, but it may have said why before it closed.
                Poll::Ready(Err(SendError::Io(cause))) if cause.is_of_the_node() => {
                    self.outflow.stage = Stage::Stopped;
                }
                // Reading would find a mere end now, and take it for the node's.
                Poll::Ready(Err(SendError::Io(cause))) => return fault(Reach::Sent, cause),
            }
            let read = ready!(poll_more(connection, context, READ_HEAD));
            let reach = match connection.incoming.is_empty() {
                _ if self.outflow.sent == 0 => Reach::Unsent,
                true => Reach::Sent,
                false => Reach::Head,
            };
            match read {
                Err(error) => return fault(reach, Cause::io(&error)),
                Ok(0) => return fault(reach, Cause::Closed),
                Ok(_) if reach == Reach::Unsent => {
                    return fault(reach, Cause::Malformed("answered before it was asked"));
                }
                Ok(_) => (),
            }
            loop {
                match parse::response(&mut connection.incoming, self.seen, asked) {
                    Ok(Some(Found::Final(head))) => return Poll::Ready(Ok(head)),
                    Ok(Some(Found::Interim(interim))) => {
                        self.seen = 0;
                        self.interim += 1;
                        if self.interim > INTERIM_MOST {
                            return fault(reach, Cause::Malformed("too many interim responses"));
                        }
                        if interim.status == StatusCode::CONTINUE {
                            self.outflow.go_ahead();
                        } else {
                            self.said.push(interim);
                        }
                    }
                    Ok(None) => break,
                    Err(Malformed(why)) => return fault(Reach::Head, Cause::Malformed(why)),
                }
            }
            self.seen = connection.incoming.len();
        }
    }

    /// What follows is no HTTP.
    fn open(&mut self, head: parse::Head, connection: Connection<T>) -> Result<Response, Fault> {
        let Connection {
            mut io, incoming, ..
        } = connection;
        let protocol = self.upgrade.take().filter(|_| self.outflow.is_done());
        let Some(protocol) = protocol else {
            let why = "switches protocols before it was asked";
            return Err(self.terms.fault(Reach::Head, Cause::Malformed(why)));
        };
        self.home.let_go(&mut io);
        Ok(Response {
            status: head.status,
            reason: head.reason,
            fields: head.fields,
            declared: None,
            last: false,
            body: Body::Tunnel(Box::new(Tunnel {
                node: Box::pin(io),
                early: if incoming.is_empty() {
                    Bytes::new()
                } else {
                    incoming.freeze()
                },
                protocol,
                bond: None,
            })),
        })
    }

    fn finish(&mut self, head: parse::Head, mut connection: Connection<T>) -> Response {
        connection.keep_for = head.keep_for;
        let all_sent = self.outflow.is_done();
        // A node that was offered another protocol and declined may yet take what comes next for that.
        let mut reusable = head.reusable && all_sent && self.upgrade.is_none();
        let whole = match head.framing {
            Framing::None | Framing::Length(0) => Some(Body::Empty),
            Framing::Length(length) => whole(&mut connection.incoming, length),
            Framing::Chunked | Framing::Close => None,
        };
        let body = match whole {
            Some(body) => {
                give_back(&self.home, connection, reusable);
                body
            }
            None => {
                // A node that answers while it still reads may want the rest; one that answers with an error does not.
                let goes_on = !all_sent && head.status.is_success() && !self.outflow.is_waiting();
                reusable |= goes_on && head.reusable;
                let outflow = std::mem::take(&mut self.outflow);
                Body::Stream(Box::pin(Download {
                    connection: Some(connection),
                    decoder: Decoder::new(head.framing),
                    outflow: goes_on.then_some(outflow),
                    reusable,
                    appetite: Appetite::default(),
                    waiting: None,
                    moved: false,
                    home: self.home.clone(),
                    terms: self.terms.clone(),
                }))
            }
        };
        let bodiless = head.framing == Framing::None;
        Response {
            status: head.status,
            reason: head.reason,
            fields: head.fields,
            declared: head.length.filter(|_| bodiless),
            last: false,
            body,
        }
    }
}

impl<T, H: Home<T>> Drop for Transfer<T, H> {
    fn drop(&mut self) {
        if self.outflow.sent > 0
            && let Some(connection) = self.connection.take()
        {
            self.home.abandon(connection);
        }
    }
}

/// A body that came with its head.
fn whole(incoming: &mut BytesMut, length: u64) -> Option<Body> {
    let length = usize::try_from(length).ok()?;
    let bytes = match incoming.len() {
        there if there == length => incoming.split(),
        there if there > length => incoming.split_to(length),
        _ => return None,
    };
    Some(Body::Full(bytes.freeze()))
}

fn give_back<T, H: Home<T>>(home: &H, connection: Connection<T>, reusable: bool) {
    // Bytes that nobody asked for would be taken for the next response.
    if reusable && connection.incoming.is_empty() {
        home.take_back(connection);
    }
}

/// The request's way out.
#[derive(Debug, Default)]
struct Outflow {
    upload: Upload,
    sending: Sending,
    stage: Stage,
    at: usize,
    piece: Bytes,
    sent: u64,
}

#[derive(Debug, Default)]
enum Stage {
    /// The head is written; the body waits for the node's word.
    Waiting(Deadline),
    /// The body is written as it comes.
    Body,
    /// Everything is in the buffers.
    Last,
    /// Everything is written.
    Done,
    /// Nothing more is written: the node has answered, or does not read any more.
    #[default]
    Stopped,
}

enum SendError {
    Client(Fault),
    Io(Cause),
}

impl Outflow {
    const fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// Whether nothing of the body was asked for.
    const fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting(_))
    }

    fn go_ahead(&mut self) {
        if matches!(self.stage, Stage::Waiting(_)) {
            self.stage = Stage::Body;
        }
    }

    /// Writes as much as the system takes; ready when all is written.
    fn poll_send<T: AsyncWrite + Unpin>(
        &mut self,
        connection: &mut Connection<T>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        let Connection { io, outgoing, .. } = connection;
        while self.may_join() {
            match self.poll_pull(outgoing, context) {
                Poll::Ready(Ok(())) => (),
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(SendError::Client(fault))),
                Poll::Pending => break,
            }
        }
        loop {
            while self.at < outgoing.len() {
                self.at += ready!(self.poll_write(io, &outgoing[self.at..], context))?;
            }
            outgoing.clear();
            self.at = 0;
            if !self.piece.is_empty() {
                let piece = self.piece.clone();
                let taken = ready!(self.poll_write(io, &piece, context))?;
                self.piece.advance(taken);
                if self.piece.is_empty() && self.sending == Sending::Chunked {
                    outgoing.extend_from_slice(b"\r\n");
                }
                continue;
            }
            match &self.stage {
                Stage::Done | Stage::Stopped => return Poll::Ready(Ok(())),
                Stage::Last => {
                    let flushed = ready!(Pin::new(&mut *io).poll_flush(context));
                    flushed.map_err(|error| SendError::Io(Cause::io(&error)))?;
                    self.stage = Stage::Done;
                }
                Stage::Waiting(deadline) if deadline.has_passed(context) => self.go_ahead(),
                Stage::Waiting(_) => return poll_linger(io, context),
                Stage::Body => match self.poll_fill(outgoing, context) {
                    Poll::Ready(filled) => filled.map_err(SendError::Client)?,
                    Poll::Pending => return poll_linger(io, context),
                },
            }
        }
    }

    /// Whether the body may be put behind the head before anything is written: it is small, and kept, should not a byte
    /// be taken.
    fn may_join(&self) -> bool {
        self.sent == 0
            && matches!(self.stage, Stage::Body)
            && self.piece.is_empty()
            && self
                .upload
                .length()
                .is_some_and(|length| length <= SMALL_BODY)
            && self.upload.is_kept()
    }

    fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        bytes: &[u8],
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, SendError>> {
        let written = match ready!(Pin::new(io).poll_write(context, bytes)) {
            Ok(0) => Err(SendError::Io(Cause::Closed)),
            Ok(taken) => {
                self.sent += taken as u64;
                Ok(taken)
            }
            Err(error) => Err(SendError::Io(Cause::io(&error))),
        };
        Poll::Ready(written)
    }

    /// Moves what there is of the body into the buffers, up to what is written at once: tiny pieces must not be a write each.
    fn poll_fill(
        &mut self,
        outgoing: &mut Vec<u8>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        ready!(self.poll_pull(outgoing, context))?;
        while matches!(self.stage, Stage::Body)
            && self.piece.is_empty()
            && outgoing.len() < WRITE_AT_ONCE
        {
            match self.poll_pull(outgoing, context) {
                Poll::Ready(Ok(())) => (),
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Moves the next piece of the body into the buffers.
    fn poll_pull(
        &mut self,
        outgoing: &mut Vec<u8>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        let chunked = self.sending == Sending::Chunked;
        match ready!(self.upload.poll_data(context)) {
            Some(Ok(data)) => {
                if chunked {
                    chunk(outgoing, data.len());
                }
                if data.len() as u64 > SMALL_BODY {
                    self.piece = data;
                } else {
                    outgoing.extend_from_slice(&data);
                    if chunked {
                        outgoing.extend_from_slice(b"\r\n");
                    }
                }
            }
            Some(Err(fault)) => return Poll::Ready(Err(fault)),
            None => {
                if chunked {
                    outgoing.extend_from_slice(LAST_CHUNK);
                }
                self.stage = Stage::Last;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Pending, but with nothing left on this side that the node could be waiting for: what encrypts may have kept something.
fn poll_linger<T: AsyncWrite + Unpin>(
    io: &mut T,
    context: &mut Context<'_>,
) -> Poll<Result<(), SendError>> {
    match Pin::new(io).poll_flush(context) {
        Poll::Ready(Err(error)) => Poll::Ready(Err(SendError::Io(Cause::io(&error)))),
        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
    }
}

/// A response's body, read as it is asked for.
struct Download<T, H: Home<T>> {
    connection: Option<Connection<T>>,
    decoder: Decoder,
    outflow: Option<Outflow>,
    reusable: bool,
    appetite: Appetite,
    waiting: Option<Deadline>,
    moved: bool,
    home: H,
    terms: Terms,
}

impl<T: AsyncRead + AsyncWrite + Unpin, H: Home<T>> Download<T, H> {
    /// The body is whole: the connection may be used again.
    fn end(&mut self) {
        if let Some(connection) = self.connection.take() {
            give_back(
                &self.home,
                connection,
                self.reusable && self.outflow.is_none(),
            );
        }
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(None);
        };
        if let Some(outflow) = &mut self.outflow {
            match outflow.poll_send(connection, context) {
                Poll::Pending => (),
                Poll::Ready(Ok(())) => self.outflow = None,
                Poll::Ready(Err(_)) => {
                    self.outflow = None;
                    self.reusable = false;
                }
            }
        }
        let fault = |cause| Poll::Ready(Some(Err(self.terms.fault(Reach::Body, cause))));
        loop {
            match self.decoder.decode(&mut connection.incoming) {
                Err(Malformed(why)) => return fault(Cause::Malformed(why)),
                Ok(Some(Piece::End)) => return Poll::Ready(None),
                Ok(Some(Piece::Data(data))) => {
                    self.moved = true;
                    self.decoder.end_early(&mut connection.incoming);
                    return Poll::Ready(Some(Ok(data)));
                }
                Ok(None) => (),
            }
            let room = self.appetite.room(self.decoder.left());
            match poll_more(connection, context, room) {
                Poll::Ready(Ok(0)) => match self.decoder.handle_close() {
                    Ok(()) => return Poll::Ready(None),
                    Err(_) => return fault(Cause::Closed),
                },
                Poll::Ready(Ok(read)) => self.appetite.handle_read(read),
                Poll::Ready(Err(error)) => return fault(Cause::io(&error)),
                Poll::Pending => {
                    let Terms {
                        deadlines, idle, ..
                    } = &self.terms;
                    let waiting = self.waiting.get_or_insert_with(|| deadlines.after(*idle));
                    if std::mem::take(&mut self.moved) {
                        waiting.move_to(*idle);
                    }
                    if waiting.has_passed(context) {
                        return fault(Cause::IdleTimeout);
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

impl<T, H> HttpBody for Download<T, H>
where
    T: AsyncRead + AsyncWrite + Unpin,
    H: Home<T>,
{
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = self.get_mut();
        let piece = ready!(this.poll_piece(context));
        match &piece {
            Some(Err(_)) => this.connection = None,
            _ if this.decoder.has_ended() => this.end(),
            _ => (),
        }
        Poll::Ready(match piece {
            Some(piece) => Some(piece.map(Frame::data)),
            None => {
                let trailers = this.decoder.take_trailers();
                trailers.map(|trailers| Ok(Frame::trailers(trailers)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.decoder
            .left()
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Reads once, with room for `room` bytes if the buffer has next to none.
fn poll_more<T: AsyncRead + Unpin>(
    connection: &mut Connection<T>,
    context: &mut Context<'_>,
    room: usize,
) -> Poll<std::io::Result<usize>> {
    let Connection { io, incoming, .. } = connection;
    if incoming.capacity() - incoming.len() < (room / 8).max(1) {
        incoming.reserve(room);
    }
    std::pin::pin!(io.read_buf(incoming)).poll(context)
}

impl Terms {
    pub(super) fn fault(&self, reach: Reach, cause: Cause) -> Fault {
        Fault::Upstream(UpstreamFault {
            node: self.node,
            reach,
            cause,
        })
    }
}
