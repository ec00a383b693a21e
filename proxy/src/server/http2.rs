//! HTTP/2 with clients (RFC 9113): one task per connection, and a small one per stream.
//!
//! Frames, header compression and the states of streams are the library's (`h2`). What is ours: heads and bodies in the form
//! that the stack knows; what a client may take in time, in memory, and in frames that carry nothing; and an end that loses
//! nothing.

mod body;
mod flow;
mod frames;
mod head;
mod stream;
mod tunnel;
mod wire;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use h2::Reason;
use h2::server::{Builder, Connection};
use tokio::task::spawn_local;

use self::flow::{Flow, Piece};
use self::wire::Wire;
use super::line::{Carrier, Line};
use super::{Front, Guest, LINGER, Serves, linger};
use crate::config::Limits;
use crate::exchange::{Deadline, Peer};

/// The beginning of the preface that every client sends; the library checks the rest.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// What a client is told that is turned away: settings, and GOAWAY (ENHANCE_YOUR_CALM) before its first stream.
pub(super) const TOO_MANY: &[u8] = &[
    0, 0, 0, 4, 0, 0, 0, 0, 0, //
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11,
];

/// No busy connection waits this long without a deadline of its streams'.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);
/// What a client may send of one body before a node has taken it, in bytes: 5 MB/s at 50 ms.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all bodies of a connection: one slow body does not stop the others, and a connection has a price.
const CONNECTION_WINDOW: u32 = 512 << 10;
/// What the library may hold of one response, in bytes.
const SEND_MOST: usize = 64 << 10;
/// What the library counts for a field besides its bytes (RFC 9113 §6.5.2).
const FIELD_COST: usize = 32;
/// Streams that a client may cut short at once, at least; a browser that leaves a page cuts dozens.
const CUTS_LEAST: u32 = 100;
/// Ticks for one more.
const TICKS_EACH_CUT: u32 = 1;

/// What the streams of a connection share with it.
#[derive(Debug)]
struct Connected<S> {
    front: Rc<Front<S>>,
    peer: Rc<Peer>,
    reader: head::Reader,
    flow: Rc<Flow>,
    open: Cell<usize>,
    cuts: Cuts,
    waker: RefCell<Option<Waker>>,
}

/// How many streams a client may still cut short: each may have cost a node a connection.
#[derive(Debug)]
struct Cuts {
    most: u32,
    left: Cell<u32>,
    tick: Cell<u32>,
    too_many: Cell<bool>,
}

impl Cuts {
    const fn new(most: u32) -> Self {
        Self {
            most,
            left: Cell::new(most),
            tick: Cell::new(0),
            too_many: Cell::new(false),
        }
    }

    /// A stream came to its end: `cut` says that the client did not wait for it.
    fn handle_end(&self, cut: bool) {
        match (cut, self.left.get().checked_sub(1)) {
            (true, Some(left)) => self.left.set(left),
            (true, None) => self.too_many.set(true),
            (false, _) => self.give(1),
        }
    }

    fn handle_tick(&self, tick: u32) {
        let passed = tick.saturating_sub(self.tick.replace(tick));
        self.give(passed / TICKS_EACH_CUT);
    }

    fn give(&self, more: u32) {
        let left = self.left.get().saturating_add(more).min(self.most);
        self.left.set(left);
    }
}

/// A stream's place in the count.
struct Guard<S> {
    ours: Rc<Connected<S>>,
    cut: Cell<bool>,
}

impl<S> Connected<S> {
    fn enter(self: &Rc<Self>) -> Guard<S> {
        self.open.set(self.open.get() + 1);
        Guard {
            ours: Rc::clone(self),
            cut: Cell::new(false),
        }
    }

    /// Lets the connection look again.
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl<S> Guard<S> {
    /// The client did not wait for the end.
    fn cut(&self) {
        self.cut.set(true);
    }
}

impl<S> Drop for Guard<S> {
    fn drop(&mut self) {
        let open = self.ours.open.get().saturating_sub(1);
        self.ours.open.set(open);
        self.ours.cuts.handle_end(self.cut.get());
        if open == 0 || self.ours.cuts.too_many.get() {
            self.ours.wake();
        }
    }
}

/// Serves one connection to its end. `before` was read from it already.
pub(super) async fn serve<S: Serves, T: Carrier>(
    stream: T,
    before: BytesMut,
    peer: Rc<Peer>,
    front: Rc<Front<S>>,
    guest: Guest,
) {
    let wire = Wire::new(stream, before);
    if let Some(session) = shake(&wire, peer, front).await {
        let mut session = session;
        let end = poll_fn(|context| session.poll(context)).await;
        // Streams that are still open learn of it by this.
        drop(session);
        if end == End::Linger {
            linger(&Line::new(wire)).await;
        }
    }
    drop(guest);
}

/// Exchanges the prefaces; `None` if nothing came of it.
async fn shake<S: Serves, T: Carrier>(
    wire: &Wire<T>,
    peer: Rc<Peer>,
    front: Rc<Front<S>>,
) -> Option<Session<S, T>> {
    let deadline = front.deadlines.after(front.limits.header_timeout);
    let mut shaking = pin!(settings(&front.limits).handshake(wire.clone()));
    let shaken = poll_fn(|context| {
        let shaken = shaking.as_mut().poll(context);
        let pressed = wire.poll_press(context);
        match (shaken, pressed) {
            (Poll::Ready(shaken), _) => Poll::Ready(shaken.ok()),
            (_, Poll::Ready(Err(_))) => Poll::Ready(None),
            _ if front.house.ends_idle() || deadline.has_passed(context) => Poll::Ready(None),
            _ => Poll::Pending,
        }
    });
    let connection = shaken.await?;
    let cuts = Cuts::new(CUTS_LEAST.max(front.limits.max_streams.saturating_mul(2)));
    let ours = Connected {
        front,
        peer,
        reader: head::Reader::default(),
        flow: Rc::default(),
        open: Cell::new(0),
        cuts,
        waker: RefCell::default(),
    };
    Some(Session {
        connection,
        wire: wire.clone(),
        ours: Rc::new(ours),
        deadline,
        waiting: None,
        leaving: false,
        calm: true,
    })
}

fn settings(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    let fields = limits.max_headers.saturating_mul(FIELD_COST);
    // Beyond what we answer ourselves, with reasons.
    let list = limits
        .max_header_bytes
        .saturating_mul(2)
        .saturating_add(fields);
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_MOST)
        .enable_connect_protocol()
        .max_header_list_size(u32::try_from(list).unwrap_or(u32::MAX))
        .max_concurrent_streams(limits.max_streams)
        .max_local_error_reset_streams(Some(limits.max_streams.saturating_mul(2) as usize));
    builder
}

/// What a connection waits for, as far as that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// Its streams, which have deadlines of their own.
    Streams,
    /// Another request.
    Idle,
    /// The end of a header block.
    Block(u32),
    /// The client to read what was written so far.
    Reader(u32),
    /// The client to let go.
    Leave,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Everything was said, or nobody is there any more.
    Close,
    /// The client may still be sending, and must get to read why it is sent away.
    Linger,
    /// In the middle of something.
    Abort,
}

/// One connection.
struct Session<S, T> {
    connection: Connection<Wire<T>, Piece>,
    wire: Wire<T>,
    ours: Rc<Connected<S>>,
    deadline: Deadline,
    waiting: Option<Waiting>,
    leaving: bool,
    /// Whether the client did nothing that it is sent away for.
    calm: bool,
}

impl<S: Serves, T: Carrier> Session<S, T> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        self.note_time();
        loop {
            if let Poll::Ready(end) = self.poll_streams(context) {
                return Poll::Ready(end);
            }
            if !self.leaving
                && (self.wire.with_frames(|frames| frames.are_too_many())
                    || self.ours.cuts.too_many.get())
            {
                self.leave_at_once();
                continue;
            }
            if let Poll::Ready(Err(_)) = self.wire.poll_press(context) {
                return Poll::Ready(End::Abort);
            }
            self.ours.flow.wake();
            if self.ours.front.house.is_closing() && !self.leaving {
                self.leave();
                continue;
            }
            self.look_ahead();
            if !self.deadline.has_passed(context) {
                break;
            }
            match self.waiting {
                Some(Waiting::Idle) => self.leave(),
                Some(Waiting::Block(_)) => self.leave_at_once(),
                Some(Waiting::Reader(_) | Waiting::Leave) => return Poll::Ready(End::Abort),
                Some(Waiting::Streams) | None => break,
            }
        }
        self.remember(context.waker());
        Poll::Pending
    }

    /// Takes new streams and moves all of them; ready when the connection has ended.
    fn poll_streams(&mut self, context: &mut Context<'_>) -> Poll<End> {
        loop {
            match self.connection.poll_accept(context) {
                Poll::Ready(Some(Ok(incoming))) => {
                    // Counted from now on, not from when its task has its first turn.
                    spawn_local(stream::serve(incoming, self.ours.enter()));
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(End::Linger),
                Poll::Ready(None) if self.calm => return Poll::Ready(End::Close),
                Poll::Ready(None) => return Poll::Ready(End::Linger),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn note_time(&self) {
        let tick = self.ours.front.deadlines.ticks();
        self.wire.with_frames(|frames| frames.handle_tick(tick));
        self.ours.cuts.handle_tick(tick);
    }

    /// Takes no more streams, and ends when those that are open have.
    fn leave(&mut self) {
        self.leaving = true;
        self.connection.graceful_shutdown();
    }

    /// Tells the client why and ends.
    fn leave_at_once(&mut self) {
        self.leaving = true;
        self.calm = false;
        self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    }

    /// Sets the deadline for what is waited for now.
    fn look_ahead(&mut self) {
        let limits = &self.ours.front.limits;
        let block = self.wire.with_frames(|frames| frames.open_block());
        let (waiting, span) = if let Some(writes) = self.wire.stuck_at() {
            (Waiting::Reader(writes), limits.body_idle_timeout)
        } else if let Some(block) = block {
            (Waiting::Block(block), limits.header_timeout)
        } else if self.ours.open.get() > 0 {
            (Waiting::Streams, NO_LIMIT)
        } else if self.leaving {
            (Waiting::Leave, LINGER)
        } else {
            (Waiting::Idle, limits.idle_timeout)
        };
        if self.waiting != Some(waiting) {
            self.waiting = Some(waiting);
            self.deadline.move_to(span);
        }
    }

    fn remember(&self, waker: &Waker) {
        let mut known = self.ours.waker.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }
}
