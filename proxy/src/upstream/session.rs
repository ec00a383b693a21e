//! An HTTP/2 connection to a node, shared by many requests: made, watched, and let go.
//!
//! The requests of a session are streams of their own (see `stream`); a task drives the connection under them. A session that
//! ended, or whose node said that it will take no more (GOAWAY), is not given out again.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use shared::clock;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::client::parse::HEAD_MOST;
use super::link::Link;
use crate::exchange::{Cause, Deadlines, TICK};

/// Streams of a session at once, at most; fewer if the node says so.
const STREAMS_MOST: u32 = 100;
/// What a node may send of a body before it is asked for, in bytes: it bounds what a slow client keeps in memory.
const WINDOW: u32 = 256 << 10;
/// Sessions of one worker with one node at once.
const SESSIONS_MOST: usize = 32;
/// How long a session is kept that nobody uses.
const IDLE_MOST: Duration = Duration::from_secs(60);
/// How often a node is asked whether it is still there while requests are under way.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long it may take to say so.
const PING_WITHIN: Duration = Duration::from_secs(20);

/// Shakes hands: returns once the node has told its settings, so that whatever does not speak HTTP/2 was never sent anything.
///
/// # Errors
/// It speaks something else, or closed.
pub(super) async fn handshake(
    link: Link,
) -> Result<(SendRequest<Bytes>, Connection<Link, Bytes>), Cause> {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(WINDOW)
        // As much as all streams together, so that one that nobody reads never holds up the others.
        .initial_connection_window_size(WINDOW * STREAMS_MOST)
        .max_header_list_size(u32::try_from(HEAD_MOST).unwrap_or(u32::MAX))
        // None before the node has said how many.
        .initial_max_send_streams(0);
    let (send, mut connection) = builder.handshake(link).await.map_err(|e| strange(&e))?;
    poll_fn(|context| {
        let polled = Pin::new(&mut connection).poll(context);
        if connection.max_concurrent_send_streams() > 0 {
            return Poll::Ready(Ok(()));
        }
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(Err(Cause::NotHttp2)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(strange(&error))),
        }
    })
    .await?;
    Ok((send, connection))
}

fn strange(error: &h2::Error) -> Cause {
    error.get_io().map_or(Cause::NotHttp2, Cause::io)
}

/// A connection that requests can share.
pub(super) struct Session {
    send: SendRequest<Bytes>,
    /// A handle of the socket's own, to look at it without the connection.
    socket: Option<socket2::Socket>,
    state: Rc<State>,
}

struct State {
    open: Cell<usize>,
    /// Why it is not given out any more.
    ended: Cell<Option<Cause>>,
    idle_since: Cell<u32>,
    bell: Rc<Notify>,
    deadlines: Deadlines,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("open", &self.state.open)
            .field("ended", &self.state.ended)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A way to open a stream.
    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.send.clone()
    }

    /// What we know of its end that its streams do not.
    pub(super) fn verdict(&self) -> Option<Cause> {
        self.state.ended.get()
    }

    /// No stream can be opened any more.
    pub(super) fn retire(&self, cause: Cause) {
        if self.state.ended.get().is_none() {
            self.state.ended.set(Some(cause));
        }
    }

    /// Counts a stream for as long as the answer lives.
    pub(super) fn enter(self: &Rc<Self>) -> Entered {
        self.state.open.set(self.state.open.get() + 1);
        Entered(Rc::clone(self))
    }

    fn has_room(&self) -> bool {
        let most = self.send.current_max_send_streams();
        self.state.open.get() < most.min(STREAMS_MOST as usize)
    }

    /// Whether the node has not closed it: the system knows before the task does.
    fn is_alive(&self) -> bool {
        let Some(socket) = &self.socket else {
            return true;
        };
        match socket.peek(&mut [MaybeUninit::uninit()]) {
            Ok(read) => read > 0,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    fn is_useless(&self) -> bool {
        let State {
            open,
            ended,
            idle_since,
            deadlines,
            ..
        } = &*self.state;
        let idle = TICK * deadlines.ticks().saturating_sub(idle_since.get());
        ended.get().is_some() || (open.get() == 0 && idle > IDLE_MOST)
    }
}

/// A stream's place in its session.
#[derive(Debug)]
pub(super) struct Entered(Rc<Session>);

impl Entered {
    pub(super) fn session(&self) -> &Session {
        &self.0
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let state = &self.0.state;
        state.open.set(state.open.get().saturating_sub(1));
        state.idle_since.set(state.deadlines.ticks());
        state.bell.notify_one();
    }
}

/// One worker's sessions with one node.
#[derive(Debug)]
pub(super) struct Sessions {
    all: RefCell<Vec<Rc<Session>>>,
    making: Cell<bool>,
    bell: Rc<Notify>,
    deadlines: Deadlines,
}

impl Sessions {
    pub(super) fn new(deadlines: Deadlines) -> Self {
        Self {
            all: RefCell::default(),
            making: Cell::new(false),
            bell: Rc::default(),
            deadlines,
        }
    }

    /// One with room for another stream; `careful` asks the system whether it is still open.
    pub(super) fn find(&self, careful: bool) -> Option<Rc<Session>> {
        let mut all = self.all.borrow_mut();
        all.retain(|session| {
            if careful && !session.is_alive() {
                session.retire(Cause::Closed);
            }
            session.verdict().is_none()
        });
        all.iter().find(|session| session.has_room()).map(Rc::clone)
    }

    /// Permission to make another; `None` while somebody else does, or when there are too many.
    pub(super) fn begin(&self) -> Option<Making<'_>> {
        if self.making.get() || self.all.borrow().len() >= SESSIONS_MOST {
            return None;
        }
        self.making.set(true);
        Some(Making(self))
    }

    /// Waits until something has changed.
    pub(super) async fn changed(&self) {
        self.bell.notified().await;
    }

    /// Takes in a connection that has shaken hands.
    pub(super) fn add(
        &self,
        (send, connection): (SendRequest<Bytes>, Connection<Link, Bytes>),
        socket: Option<socket2::Socket>,
    ) {
        let state = Rc::new(State {
            open: Cell::new(0),
            ended: Cell::new(None),
            idle_since: Cell::new(self.deadlines.ticks()),
            bell: Rc::clone(&self.bell),
            deadlines: self.deadlines.clone(),
        });
        spawn_local(drive(connection, Rc::clone(&state)));
        self.all.borrow_mut().push(Rc::new(Session {
            send,
            socket,
            state,
        }));
        self.bell.notify_waiters();
    }

    /// Lets go of what has ended, or that nobody has used for long.
    pub(super) fn reap(&self) {
        self.all
            .borrow_mut()
            .retain(|session| !session.is_useless());
    }
}

/// Somebody makes a session.
pub(super) struct Making<'s>(&'s Sessions);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.making.set(false);
        self.0.bell.notify_waiters();
    }
}

/// Drives a connection to its end, and finds out if nobody is at the other end any more.
async fn drive(mut connection: Connection<Link, Bytes>, state: Rc<State>) {
    let pings = connection.ping_pong();
    // Dropped after its end is on record: its streams ask why.
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => match ended {
            Err(error) => error.get_io().map(Cause::io),
            Ok(()) => None,
        },
        () = silence(pings, &state) => Some(Cause::Io(std::io::ErrorKind::TimedOut)),
    };
    state.ended.set(Some(ended.unwrap_or(Cause::Closed)));
    state.bell.notify_waiters();
}

/// Returns when a node that has requests does not answer a ping.
async fn silence(pings: Option<PingPong>, state: &State) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        clock::sleep(PING_EVERY).await;
        if state.open.get() == 0 {
            continue;
        }
        match timeout(PING_WITHIN, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => (),
            // The connection has ended, which is seen elsewhere.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
