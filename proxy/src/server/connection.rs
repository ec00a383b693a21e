//! One client's connection: its requests one after another, and the time it may take for each thing.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use shared::clock;
use tokio::time::timeout;

use super::head::{self, Parsed, Refused};
use super::line::{Bare, Carrier, Line};
use super::outgoing::{Asked, Broken, Outgoing, switching, write_interim};
use super::tunnel::{self, Opened};
use super::{Front, Guest, LINGER, http2, linger};
use crate::exchange::{
    Body, Deadline, Fault, Head, Opens, Peer, Rate, Request, Response, TICK, Trail, trailers,
};

/// No request waits this long without a deadline of its own inside.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);
/// An idle connection gives its memory back after this long.
const REST_AFTER: Duration = Duration::from_secs(1);
/// A buffer that has grown beyond this is not kept for the next response, in bytes.
const KEPT_MOST: usize = 32 << 10;

/// What the server wants of a service, in one word.
pub trait Serves:
    tower::Service<
        Request,
        Response = Response<Self::Body>,
        Error = Infallible,
        Future = Self::Call,
    > + 'static
{
    /// The response's body.
    type Body: http_body::Body<Data = Bytes, Error = Fault> + Opens + Unpin + 'static;
    /// The response on its way.
    type Call: Future<Output = Result<Response<Self::Body>, Infallible>> + Unpin + 'static;
}

impl<S, B, F> Serves for S
where
    S: tower::Service<Request, Response = Response<B>, Error = Infallible, Future = F> + 'static,
    B: http_body::Body<Data = Bytes, Error = Fault> + Opens + Unpin + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Unpin + 'static,
{
    type Body = B;
    type Call = F;
}

/// What follows a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// Another, now or later.
    Again,
    /// Nothing: the connection is closed in good order.
    Close,
    /// Nothing: the connection is dropped in the middle of something.
    Abort,
    /// Nothing, but the client may still be sending, and must get to read the answer.
    Linger,
    /// Nothing, and the client must not take what it got for whole.
    Reset,
    /// Another protocol.
    Http2,
    /// No request: the connection speaks another protocol.
    Tunnel,
}

/// One connection.
struct Session<S: Serves, T> {
    front: Rc<Front<S>>,
    line: Rc<Line<T>>,
    peer: Rc<Peer>,
    deadline: Deadline,
    out: Vec<u8>,
    /// Whether nothing has come yet.
    new: bool,
    /// When it was found idle. Bytes that say nothing (a piece of a TLS record, say) do not make it busy.
    idle_since: Option<Instant>,
    /// What the connection is for now, if not for requests.
    opened: Option<Box<Opened<S::Body>>>,
}

/// Serves one connection to its end.
pub(super) async fn serve<S: Serves, T: Carrier>(
    stream: T,
    peer: Rc<Peer>,
    front: Rc<Front<S>>,
    guest: Guest,
) {
    let limits = front.limits;
    let mut session = Session {
        line: Line::new(stream),
        peer,
        deadline: front.deadlines.after(limits.header_timeout),
        front,
        out: Vec::new(),
        new: true,
        idle_since: None,
        opened: None,
    };
    let after = loop {
        // On the heap, so that an idle connection does not carry the size of a busy one.
        match Box::pin(session.work()).await {
            After::Again if session.rest().await => (),
            After::Again => break After::Close,
            After::Http2 => {
                let Session {
                    line, peer, front, ..
                } = session;
                if let Some((stream, before)) = line.give_up() {
                    // On the heap, so that others do not carry its size.
                    Box::pin(http2::serve(stream, before, peer, front, guest)).await;
                }
                return;
            }
            After::Tunnel => break Box::pin(session.tunnel()).await,
            after @ (After::Close | After::Abort | After::Linger | After::Reset) => break after,
        }
    };
    // On the heap for the same reason.
    Box::pin(session.end(after)).await;
    drop(guest);
}

impl<S: Serves, T: Carrier> Session<S, T> {
    /// Serves requests until the connection has been idle for a while or must end.
    async fn work(&mut self) -> After {
        loop {
            let after = match self.next().await {
                Next::Request(parsed) => {
                    self.idle_since = None;
                    self.exchange(parsed).await
                }
                Next::Refused(refused) => self.refuse(refused).await,
                Next::Idle => return After::Again,
                Next::End => return After::Close,
                Next::Http2 => return After::Http2,
            };
            if after != After::Again {
                return after;
            }
        }
    }

    /// Waits with next to no memory for something to come; false when nothing will.
    async fn rest(&mut self) -> bool {
        self.line.rest();
        self.out = Vec::new();
        let (now, idle) = (clock::now(), self.front.limits.idle_timeout);
        let again = self.idle_since.is_some();
        let since = *self.idle_since.get_or_insert(now);
        let left = idle.saturating_sub(REST_AFTER + now.duration_since(since));
        if again && left.is_zero() {
            return false;
        }
        self.deadline.move_to(left);
        poll_fn(|context| {
            let readable = self
                .line
                .with_socket(|socket| socket.poll_read_ready(context));
            if readable.is_ready() {
                return Poll::Ready(true);
            }
            if self.front.house.ends_idle() || self.deadline.has_passed(context) {
                return Poll::Ready(false);
            }
            Poll::Pending
        })
        .await
    }

    /// Waits for the next request's head.
    async fn next(&mut self) -> Next {
        let owed = self.front.limits.header_timeout;
        let new = std::mem::take(&mut self.new);
        let mut waiting = Waiting {
            seen: 0,
            // A new connection owes a request; later ones may be idle.
            begun: new,
            new,
        };
        self.deadline
            .move_to(if waiting.begun { owed } else { REST_AFTER });
        poll_fn(|context| self.poll_next(&mut waiting, context)).await
    }

    fn poll_next(&self, waiting: &mut Waiting, context: &mut Context<'_>) -> Poll<Next> {
        let limits = &self.front.limits;
        loop {
            let mut incoming = self.line.incoming.borrow_mut();
            // Whatever comes is the beginning of a head, also the empty lines that are skipped before it.
            if !incoming.is_empty() && !waiting.begun {
                waiting.begun = true;
                self.deadline.move_to(limits.header_timeout);
            }
            if incoming.len() > waiting.seen {
                if T::SAYS_PROTOCOL && waiting.new && incoming.starts_with(http2::PREFACE) {
                    return Poll::Ready(Next::Http2);
                }
                match head::request(&mut incoming, waiting.seen, limits) {
                    Ok(None) => waiting.seen = incoming.len(),
                    Ok(Some(parsed)) => return Poll::Ready(Next::Request(parsed)),
                    Err(refused) => return Poll::Ready(Next::Refused(refused)),
                }
            }
            let has_begun = !incoming.is_empty();
            drop(incoming);
            if !has_begun && self.front.house.ends_idle() {
                return Poll::Ready(Next::End);
            }
            match self.line.poll_head(context) {
                Poll::Ready(Ok(read)) if read > 0 => continue,
                Poll::Ready(_) => return Poll::Ready(Next::End),
                Poll::Pending if !self.deadline.has_passed(context) => return Poll::Pending,
                Poll::Pending => (),
            }
            return Poll::Ready(match (has_begun, waiting.begun) {
                (true, _) => Next::Refused(Refused {
                    head: None,
                    fault: Fault::HeadTooSlow,
                }),
                (false, true) => Next::End,
                (false, false) => Next::Idle,
            });
        }
    }

    async fn refuse(&mut self, refused: Refused) -> After {
        let head = refused.head;
        let head = head.unwrap_or_else(|| Rc::new(Head::plain(Method::GET, "")));
        let asked = Asked::new(&head.method, Version::HTTP_11, false);
        let request = self.request(head, Body::Empty, Some(refused.fault));
        self.answer(request, asked).await;
        After::Linger
    }

    async fn exchange(&mut self, parsed: Parsed) -> After {
        let Parsed {
            head,
            framing,
            persistent,
            expects,
        } = parsed;
        let asked = Asked {
            trailers: trailers::are_wanted(&head.fields),
            ..Asked::new(&head.method, head.version, persistent)
        };
        let body = self.line.begin_body(framing, expects);
        let request = self.request(head, body, None);
        self.answer(request, asked).await
    }

    fn request(&self, head: Rc<Head>, body: Body, fault: Option<Fault>) -> Request {
        Request {
            head,
            body,
            fault,
            trail: Rc::new(Trail::new(clock::now(), Rc::clone(&self.peer))),
        }
    }

    async fn answer(&mut self, request: Request, asked: Asked) -> After {
        // Whoever has the request keeps the time.
        self.deadline.move_to(NO_LIMIT);
        // The stack is always ready, so one of them serves all connections.
        let trail = Rc::clone(&request.trail);
        let mut call = self.front.service.borrow_mut().call(request);
        let line = Rc::clone(&self.line);
        let response = poll_fn(|context| {
            let response = Pin::new(&mut call).poll(context);
            if trail.has_interim() {
                for interim in trail.take_interim() {
                    line.say(|words| write_interim(words, &interim));
                }
            }
            if let Poll::Ready(Ok(response)) = response {
                return Poll::Ready(Some(response));
            }
            let said = line.poll_say(context);
            if matches!(said, Poll::Ready(Err(_))) || line.is_gone(context) {
                return Poll::Ready(None);
            }
            Poll::Pending
        });
        match response.await {
            Some(response) => self.respond(response, asked).await,
            None => After::Abort,
        }
    }

    async fn respond(&mut self, response: Response<S::Body>, asked: Asked) -> After {
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(response);
        }
        let unread = !self.line.has_body_ended();
        // A client that is refused may go on sending what nobody reads; one that was not asked for its body may do either.
        let unasked = self.line.is_awaited() || !response.status.is_success();
        let last = response.last || unread && unasked;
        let words = self.line.keep_words();
        let asked = Asked {
            persistent: asked.persistent && !last && !self.front.house.is_closing(),
            ..asked
        };
        let mut out = std::mem::take(&mut self.out);
        out.extend_from_slice(&words);
        let mut outgoing = Outgoing::new(response, asked, &self.front.dates, &mut out);
        let mut taking = None;
        let written = poll_fn(|context| {
            if let Poll::Ready(written) = outgoing.poll(&self.line, &mut out, context) {
                return Poll::Ready(written);
            }
            let blocked = outgoing.is_blocked(&out);
            let stuck = self.is_stuck(&mut taking, blocked, context);
            if stuck || self.line.is_gone(context) {
                return Poll::Ready(Err(Broken::Client));
            }
            Poll::Pending
        });
        let written = written.await;
        if out.capacity() <= KEPT_MOST {
            out.clear();
            self.out = out;
        }
        match written {
            Ok(()) if !self.line.has_body_ended() => After::Linger,
            Ok(()) if outgoing.persistent => After::Again,
            Ok(()) if last => After::Linger,
            Ok(()) => After::Close,
            Err(Broken::Client | Broken::Source { silent: false }) => After::Abort,
            Err(Broken::Source { silent: true }) => After::Reset,
        }
    }

    fn switch(&mut self, mut response: Response<S::Body>) -> After {
        let Some(tunnel) = response.body.take_tunnel() else {
            return After::Abort;
        };
        let mut head = self.line.keep_words();
        switching(&mut head, &response, &tunnel.protocol);
        self.opened = Some(Box::new(Opened {
            head,
            tunnel,
            _record: response.body,
        }));
        After::Tunnel
    }

    async fn tunnel(&mut self) -> After {
        self.out = Vec::new();
        match self.opened.take() {
            Some(opened) => {
                let said = self.line.take_incoming();
                let (client, house) = (Bare(&self.line), &self.front.house);
                tunnel::run(client, &said, *opened, &self.deadline, house).await
            }
            None => After::Abort,
        }
    }

    fn taking(&self) -> Taking {
        let limits = &self.front.limits;
        Taking {
            written: self.line.written.get(),
            since: None,
            rate: Rate::new(limits.min_body_rate, limits.body_idle_timeout),
        }
    }

    /// Whether the client has not taken anything for as long as it may, or takes too little. `blocked` is whether there is
    /// something to take.
    fn is_stuck(&self, taking: &mut Option<Taking>, blocked: bool, context: &Context<'_>) -> bool {
        let taking = taking.get_or_insert_with(|| self.taking());
        let (written, now) = (self.line.written.get(), self.front.deadlines.ticks());
        let moved = written.wrapping_sub(taking.written);
        let waited = taking.since.filter(|_| moved > 0 || !blocked);
        if let Some(since) = waited {
            taking.rate.handle_wait(TICK * now.saturating_sub(since));
            taking.since = None;
        }
        taking.written = written;
        let too_few = moved > 0 && taking.rate.handle_bytes(moved);
        if !blocked {
            return false;
        }
        if taking.since.is_none() {
            taking.since = Some(now);
            self.deadline.move_to(self.front.limits.body_idle_timeout);
        }
        too_few || self.deadline.has_passed(context)
    }

    async fn end(self, after: After) {
        let line = self.line;
        match after {
            After::Again | After::Close if T::SAYS_GOODBYE => {
                let goodbye = poll_fn(|context| line.poll_shutdown(context));
                // Whoever does not take it is gone without it.
                let _ = timeout(LINGER, goodbye).await;
            }
            After::Again | After::Close | After::Abort | After::Http2 | After::Tunnel => (),
            After::Linger => linger(&line).await,
            After::Reset => line.with_socket(|socket| {
                // Without it the client would see an orderly end.
                let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
            }),
        }
    }
}

/// What comes next on a connection.
enum Next {
    Request(Parsed),
    Refused(Refused),
    /// Nothing for a while.
    Idle,
    /// Nothing any more.
    End,
    /// The beginning of another protocol.
    Http2,
}

/// The wait for a head.
struct Waiting {
    /// How many bytes were looked at.
    seen: usize,
    /// Whether the head's deadline runs.
    begun: bool,
    /// Whether the connection is new.
    new: bool,
}

/// How a client takes a response.
struct Taking {
    /// How much it had taken when somebody last looked.
    written: u64,
    /// Since which tick there is something to take.
    since: Option<u32>,
    rate: Rate,
}
