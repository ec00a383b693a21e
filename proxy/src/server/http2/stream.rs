//! One stream: a request, given to the stack, and its response on its way out.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::EXPECT;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use http_body::Body as HttpBody;
use shared::clock;

use super::body::{Uploading, Word};
use super::flow::{self, Piece, Turn};
use super::{Connected, Guard, head, tunnel};
use crate::exchange::{Body, Deadline, Fault, Opens, Request, Response, Trail, trailers};
use crate::server::Serves;
use crate::server::tunnel::Opened;

/// A request that came.
pub(super) type Incoming = (http::Request<RecvStream>, SendResponse<Piece>);

/// Why a response was not sent whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// The client does not want it any more, or is gone.
    Client,
    /// The client does not take it.
    Stuck,
    /// Its source broke off: the client must not take it for whole.
    Source,
}

/// Serves one stream to its end.
pub(super) async fn serve<S: Serves>((request, respond): Incoming, guard: Guard<S>) {
    let ours = &guard.ours;
    let (parts, stream) = request.into_parts();
    let switches = tunnel::wanted(&parts).is_some();
    if parts.uri.path_and_query().is_none() && (switches || parts.method != Method::CONNECT) {
        // Malformed (RFC 9113 §8.3.1), and the library lets it pass.
        let mut respond = respond;
        respond.send_reset(Reason::PROTOCOL_ERROR);
        return guard.cut();
    }
    let is_head = parts.method == Method::HEAD;
    let (request, mut respond, stream) = receive(parts, stream, respond, ours);
    // The stack is always ready, so one of them serves all connections.
    let trail = Rc::clone(&request.trail);
    let mut call = ours.front.service.borrow_mut().call(request);
    let response = poll_fn(|context| {
        let response = Pin::new(&mut call).poll(context);
        if trail.has_interim() {
            for interim in trail.take_interim() {
                let interim = head::interim(interim);
                // A client that is gone is found below.
                let _ = respond.with(|respond| respond.send_informational(interim));
            }
        }
        if let Poll::Ready(Ok(response)) = response {
            return Poll::Ready(Some(response));
        }
        respond
            .with(|respond| respond.poll_reset(context))
            .map(|_| None)
    });
    let response = response.await;
    drop(call);
    let Some(response) = response else {
        return guard.cut();
    };
    if let Some(stream) = stream {
        return switch(respond, response, stream, ours).await;
    }
    let Some((mut sending, body)) = respond.with(|respond| begin(respond, response, is_head, ours))
    else {
        return guard.cut();
    };
    let Some(body) = body else {
        return;
    };
    drop(respond);
    let mut outgoing = Outgoing {
        left: body.size_hint().exact(),
        body,
        piece: Bytes::new(),
        ended: false,
        turn: Turn::default(),
        stuck: None,
        moved: 0,
    };
    match poll_fn(|context| outgoing.poll(&mut sending, ours, context)).await {
        Ok(()) => (),
        Err(Broken::Client) => guard.cut(),
        Err(Broken::Stuck) => sending.send_reset(Reason::CANCEL),
        Err(Broken::Source) => sending.send_reset(Reason::INTERNAL_ERROR),
    }
}

/// Makes a request of it.
fn receive<S>(
    parts: Parts,
    stream: RecvStream,
    respond: SendResponse<Piece>,
    ours: &Connected<S>,
) -> (Request, Word, Option<RecvStream>) {
    let (head, fault) = ours.reader.request(&parts, &ours.front.limits);
    let switches = head.upgrade.is_some();
    let ended = stream.is_end_stream() || switches;
    let waits = !ended && parts.headers.contains_key(EXPECT);
    let respond = if waits {
        Word::shared(respond)
    } else {
        Word::Own(respond)
    };
    let (body, kept) = match (switches, ended) {
        (true, _) => (Body::Empty, Some(stream)),
        (false, true) => (Body::Empty, None),
        (false, false) => {
            let body = Uploading::new(stream, &parts.headers, respond.share());
            (Body::Stream(Box::pin(body)), None)
        }
    };
    let request = Request {
        head,
        body,
        fault,
        trail: Rc::new(Trail::new(clock::now(), Rc::clone(&ours.peer))),
    };
    (request, respond, kept)
}

/// Answers a request for another protocol, and speaks it if the node does.
async fn switch<S: Serves>(
    mut respond: Word,
    mut response: Response<S::Body>,
    stream: RecvStream,
    ours: &Rc<Connected<S>>,
) {
    let Some(to_node) = response.body.take_tunnel() else {
        // The reason is in the log; a body would be more than a client that wants a tunnel looks at.
        let status = response.status;
        let head = if status.is_success() || status.is_informational() {
            tunnel::declined()
        } else {
            head::response(response, Some(0), &ours.front.dates).0
        };
        let _ = respond.with(|respond| respond.send_response(head, true));
        return;
    };
    response.status = StatusCode::OK;
    response.reason = None;
    response.fields.remove_named(tunnel::ACCEPT);
    let (head, record) = head::response(response, None, &ours.front.dates);
    let Ok(sending) = respond.with(|respond| respond.send_response(head, false)) else {
        return;
    };
    let opened = Opened {
        tunnel: to_node,
        head: Vec::new(),
        _record: record,
    };
    tunnel::run(stream, sending, opened, ours).await;
}

/// Sends the head of a response; the body is what is left to send, if anything is. `None` if the client is gone.
fn begin<S: Serves>(
    respond: &mut SendResponse<Piece>,
    response: Response<S::Body>,
    is_head: bool,
    ours: &Connected<S>,
) -> Option<(SendStream<Piece>, Option<S::Body>)> {
    let status = response.status;
    let without = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let exact = response.body.size_hint().exact();
    let length = match exact {
        _ if without => response.declared,
        _ if is_head => response.declared.or_else(|| exact.filter(|size| *size > 0)),
        exact => exact,
    };
    let ends = without || is_head || response.body.is_end_stream();
    let (head, body) = head::response(response, length, &ours.front.dates);
    let sending = respond.send_response(head, ends).ok()?;
    Some((sending, (!ends).then_some(body)))
}

/// A body on its way.
struct Outgoing<B> {
    body: B,
    /// How much is to come, if that was said.
    left: Option<u64>,
    /// What the client has not yet made room for.
    piece: Bytes,
    ended: bool,
    turn: Turn,
    stuck: Option<Deadline>,
    /// How far the connection was when this stream was last seen waiting for its turn.
    moved: u64,
}

impl<B: HttpBody<Data = Bytes, Error = Fault> + Unpin> Outgoing<B> {
    /// Moves the body to the client; ready when everything is handed over.
    fn poll<S>(
        &mut self,
        sending: &mut SendStream<Piece>,
        ours: &Connected<S>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if !self.piece.is_empty() {
                ready!(self.poll_send(sending, ours, context))?;
                continue;
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.take(data)?,
                    Err(frame) => {
                        let came = frame.into_trailers().ok().and_then(trailers::allowed);
                        return Poll::Ready(self.last(came, sending, ours));
                    }
                },
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Broken::Source)),
                Poll::Ready(None) => return Poll::Ready(self.last(None, sending, ours)),
                Poll::Pending => return poll_gone(sending, context),
            }
        }
    }

    /// Ends the stream.
    fn last<S>(
        &mut self,
        trailers: Option<HeaderMap>,
        sending: &mut SendStream<Piece>,
        ours: &Connected<S>,
    ) -> Result<(), Broken> {
        self.end()?;
        let sent = match trailers {
            Some(trailers) => sending.send_trailers(trailers),
            None => sending.send_data(Piece::new(Bytes::new(), &ours.flow), true),
        };
        sent.map_err(|_| Broken::Client)
    }

    fn take(&mut self, data: Bytes) -> Result<(), Broken> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(data.len() as u64).ok_or(Broken::Source)?;
        }
        self.ended = self.body.is_end_stream();
        self.piece = data;
        if self.ended {
            self.end()?;
            // An empty piece would never be sent, and with it the end.
            self.ended = !self.piece.is_empty();
        }
        Ok(())
    }

    /// The body says that it is over: it must be as long as was said.
    fn end(&mut self) -> Result<(), Broken> {
        self.ended = true;
        match self.left {
            Some(left) if left > 0 => Err(Broken::Source),
            Some(_) | None => Ok(()),
        }
    }

    /// Hands over as much of the piece as the client has made room for.
    fn poll_send<S>(
        &mut self,
        sending: &mut SendStream<Piece>,
        ours: &Connected<S>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        if !ours.flow.has_room(&mut self.turn, context) {
            // As long as the others move, its turn will come.
            if std::mem::replace(&mut self.moved, ours.flow.moved()) != ours.flow.moved() {
                self.stuck = None;
            }
            return self.poll_patience(sending, ours, context);
        }
        sending.reserve_capacity(self.piece.len().min(flow::PIECE_MOST));
        let mut room = sending.capacity();
        while room == 0 {
            match sending.poll_capacity(context) {
                Poll::Ready(Some(Ok(now))) => room = now,
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Broken::Client)),
                Poll::Pending => return self.poll_patience(sending, ours, context),
            }
        }
        self.stuck = None;
        let piece = self.piece.split_to(room.min(self.piece.len()));
        let last = self.ended && self.piece.is_empty();
        let sent = sending.send_data(Piece::new(piece, &ours.flow), last);
        Poll::Ready(sent.map_err(|_| Broken::Client))
    }

    fn poll_patience<S>(
        &mut self,
        sending: &mut SendStream<Piece>,
        ours: &Connected<S>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        let most = ours.front.limits.body_idle_timeout;
        let stuck = &mut self.stuck;
        let deadline = stuck.get_or_insert_with(|| ours.front.deadlines.after(most));
        if deadline.has_passed(context) {
            return Poll::Ready(Err(Broken::Stuck));
        }
        poll_gone(sending, context)
    }
}

/// Pending until the client does not want the rest.
fn poll_gone(
    sending: &mut SendStream<Piece>,
    context: &mut Context<'_>,
) -> Poll<Result<(), Broken>> {
    sending.poll_reset(context).map(|_| Err(Broken::Client))
}
