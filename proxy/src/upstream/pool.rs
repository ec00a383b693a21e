//! One worker's connections to one node: kept while the node is sure to keep them, given out last in, first out.
//!
//! Application servers close idle connections without a word (gunicorn after 2 s). A request that is written at that moment
//! is lost, and nobody knows whether it was processed. So connections are put away well before, looked at before they are
//! given out, and requests that must not be made twice only get one that was in use a moment ago, or a new one.

#[cfg(test)]
mod tests;
mod waiting;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::spawn_local;
use tokio::time::timeout;
use tower::Service;

use self::waiting::{Abandoned, Queue, Waited};
use super::client::{Connection, Home, Terms, Transfer};
use super::link::{self, Link, dial};
use super::places::{Cap, Claim};
use super::session::{self, Session, Sessions};
use super::stream::message::Authority;
use super::stream::{self, Streaming};
use crate::config::Endpoint;
use crate::exchange::{Attempt, Cause, Fault, Reach, Response, TICK, Trail, UpstreamFault};

/// How long an idle connection is kept when the node does not say: gunicorn closes after 2 s.
const IDLE_MOST: Duration = Duration::from_millis(1500);
/// How long one is kept whatever the node says.
const IDLE_EVER: Duration = Duration::from_secs(60);
/// How much earlier than the node we let go of a connection.
const AHEAD: Duration = Duration::from_millis(500);
/// How long a connection may have been idle to carry a request that must not be made twice.
const RECENT: Duration = Duration::from_millis(200);
/// What one pool may do.
#[derive(Clone, Debug)]
pub struct PoolLimits {
    /// The node's places, shared with other workers.
    pub cap: Arc<Cap>,
    /// Which worker this is, from 0.
    pub lane: usize,
    /// How long connecting may take.
    pub connect: Duration,
    /// How long a request waits for a place when all are taken.
    pub wait: Duration,
}

/// One worker's connections to one node.
#[derive(Debug)]
pub struct Pool {
    endpoint: Endpoint,
    authority: Authority,
    last_good: Cell<Option<SocketAddr>>,
    limits: PoolLimits,
    terms: Terms,
    idle: RefCell<Vec<Connection<Counted>>>,
    /// Places that this worker has taken.
    taken: Rc<Cell<usize>>,
    queue: Queue,
    abandoned: RefCell<Vec<Abandoned>>,
    /// Whether the node speaks HTTP/2, as far as is known.
    multiplexes: Cell<bool>,
    sessions: Sessions,
}

/// A socket that has a place for as long as it lives, or until it leaves.
#[derive(Debug)]
pub struct Counted {
    link: Link,
    claim: Option<Claim>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.link).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_shutdown(context)
    }
}

impl Home<Counted> for Rc<Pool> {
    fn take_back(&self, mut connection: Connection<Counted>) {
        connection.idle_since = self.terms.deadlines.ticks();
        if self.limits.cap.waiting() == 0 {
            self.idle.borrow_mut().push(connection);
        } else {
            self.pass_on(connection);
        }
    }

    fn let_go(&self, io: &mut Counted) {
        io.claim = None;
    }

    fn abandon(&self, connection: Connection<Counted>) {
        self.leave(connection.io);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The steward ends when it finds out.
        self.limits.cap.news().notify_waiters();
    }
}

/// Which connections will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Any that works.
    Any,
    /// One that was in use a moment ago.
    Recent,
    /// A new one.
    Fresh,
}

impl Pool {
    /// An empty pool for the node at `endpoint`. Made inside of the worker's runtime.
    #[must_use]
    pub fn new(endpoint: Endpoint, limits: PoolLimits, terms: Terms) -> Rc<Self> {
        let pool = Rc::new(Self {
            authority: Authority {
                name: endpoint.authority(),
                scheme: match &endpoint {
                    Endpoint::Tls(..) => Scheme::HTTPS,
                    Endpoint::Tcp(_) | Endpoint::Unix(_) | Endpoint::H2c(_) => Scheme::HTTP,
                },
            },
            multiplexes: Cell::new(matches!(endpoint, Endpoint::H2c(_))),
            endpoint,
            last_good: Cell::new(None),
            sessions: Sessions::new(terms.deadlines.clone()),
            queue: Queue::default(),
            abandoned: RefCell::default(),
            taken: Rc::default(),
            idle: RefCell::default(),
            limits,
            terms,
        });
        spawn_local(waiting::steward(Rc::downgrade(&pool)));
        pool
    }

    /// Connections that are idle, and all places that are taken, by this worker.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        (self.idle.borrow().len(), self.taken.get())
    }

    /// Closes connections that have been idle for long enough, or that the node has closed.
    pub fn reap(&self) {
        // Dropped after the borrow is over: closing rings a bell.
        let gone: Vec<_> = self
            .idle
            .borrow_mut()
            .extract_if(.., |connection| {
                self.is_stale(connection) || !is_silent(connection, false)
            })
            .collect();
        drop(gone);
        self.sessions.reap();
    }

    fn take(&self, wanted: Wanted) -> Option<Connection<Counted>> {
        if wanted == Wanted::Fresh {
            return None;
        }
        loop {
            let mut idle = self.idle.borrow_mut();
            let last = idle.last()?;
            let careful = wanted == Wanted::Recent;
            if careful && self.idle_for(last) > RECENT {
                return None;
            }
            let mut connection = idle.pop()?;
            drop(idle);
            if !self.is_stale(&connection) && is_silent(&mut connection, careful) {
                return Some(connection);
            }
        }
    }

    /// For how long a connection has been idle, at most.
    fn idle_for(&self, connection: &Connection<Counted>) -> Duration {
        let ticks = self
            .terms
            .deadlines
            .ticks()
            .saturating_sub(connection.idle_since);
        TICK * (ticks + 1)
    }

    fn is_stale(&self, connection: &Connection<Counted>) -> bool {
        let most = connection
            .keep_for
            .map_or(IDLE_MOST, |said| said.saturating_sub(AHEAD).min(IDLE_EVER));
        self.idle_for(connection) > most
    }

    /// A place for one more connection, if there is one and nobody waits; makes one by closing an idle connection that will
    /// not do.
    fn place(&self) -> Option<Claim> {
        let cap = &self.limits.cap;
        if cap.waiting() > 0 {
            return None;
        }
        if let Some(claim) = cap.claim(&self.taken) {
            return Some(claim);
        }
        self.close_oldest().then(|| cap.claim(&self.taken))?
    }

    /// Closes the connection that has been idle for longest; `false` if none is.
    fn close_oldest(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        let oldest = (!idle.is_empty()).then(|| idle.remove(0));
        drop(idle);
        oldest.is_some()
    }

    async fn connect(self: Rc<Self>, wanted: Wanted) -> Result<Found, UpstreamFault> {
        let claim = match self.place() {
            Some(claim) => claim,
            None => match self.wait(wanted).await? {
                Waited::Idle(connection) => return Ok(Found::Connection(connection)),
                Waited::Place(claim) => claim,
            },
        };
        if self.multiplexes.get() {
            self.share(claim, wanted).await
        } else {
            self.make(claim).await
        }
    }

    /// Makes a connection. A session that others can share is left where they look for one.
    async fn make(&self, claim: Claim) -> Result<Found, UpstreamFault> {
        let made = async {
            let link = self.dial().await?;
            self.multiplexes.set(link.is_http2(&self.endpoint));
            if !self.multiplexes.get() {
                let counted = Counted {
                    link,
                    claim: Some(claim),
                };
                return Ok(Found::Connection(Connection::new(counted)));
            }
            let socket = link.duplicate();
            let shaken = session::handshake(link).await;
            self.sessions
                .add(shaken.map_err(|cause| self.fault(cause))?, socket);
            let session = self.sessions.find(false);
            let session = session.ok_or_else(|| self.fault(Cause::Closed))?;
            Ok(Found::Session(session, claim))
        };
        let made = timeout(self.limits.connect, made).await;
        made.map_err(|_| self.fault(Cause::ConnectTimeout))?
    }

    /// Finds a session with room for another request, or makes one, one at a time.
    async fn share(&self, claim: Claim, wanted: Wanted) -> Result<Found, UpstreamFault> {
        let found = async {
            loop {
                if let Some(session) = self.sessions.find(wanted != Wanted::Any) {
                    return Ok(Found::Session(session, claim));
                }
                if let Some(making) = self.sessions.begin() {
                    let made = self.make(claim).await;
                    drop(making);
                    return made;
                }
                self.sessions.changed().await;
            }
        };
        let found = timeout(self.limits.wait, found).await;
        found.map_err(|_| self.fault(Cause::Full))?
    }

    async fn dial(&self) -> Result<Link, UpstreamFault> {
        let mut last_good = self.last_good.get();
        let dialed = dial(&self.endpoint, &mut last_good).await;
        self.last_good.set(last_good);
        dialed.map_err(|error| self.fault(error.cause()))
    }

    const fn fault(&self, cause: Cause) -> UpstreamFault {
        UpstreamFault {
            node: self.terms.node,
            reach: Reach::Connect,
            cause,
        }
    }

    /// Begins one exchange.
    pub fn exchange(self: &Rc<Self>, attempt: Attempt) -> Exchanging {
        let wanted = match attempt.head.method.is_idempotent() {
            _ if attempt.fresh => Wanted::Fresh,
            true => Wanted::Any,
            false => Wanted::Recent,
        };
        let trail = Rc::clone(&attempt.trail);
        trail.set_sent(false);
        let state = if self.multiplexes.get() {
            self.begin_stream(wanted, attempt)
        } else {
            match self.take(wanted) {
                Some(connection) => State::Talking(self.talk(connection, attempt)),
                None => self.begin_connecting(wanted, attempt),
            }
        };
        Exchanging {
            state,
            trail,
            pool: Rc::clone(self),
        }
    }

    fn begin_connecting(self: &Rc<Self>, wanted: Wanted, attempt: Attempt) -> State {
        let connecting = Box::pin(Rc::clone(self).connect(wanted));
        State::Connecting(connecting, Some(attempt))
    }

    fn begin_stream(self: &Rc<Self>, wanted: Wanted, mut attempt: Attempt) -> State {
        let session = self.sessions.find(wanted != Wanted::Any);
        match session.and_then(|session| Some((session, self.place()?))) {
            Some((session, claim)) => self.open(&session, claim, &mut attempt),
            None => self.begin_connecting(wanted, attempt),
        }
    }

    fn open(&self, session: &Rc<Session>, claim: Claim, attempt: &mut Attempt) -> State {
        match stream::open(session, claim, attempt, &self.authority, &self.terms) {
            Ok(streaming) => State::Streaming(Box::new(streaming)),
            Err(fault) => State::Failed(fault),
        }
    }

    fn talk(
        self: &Rc<Self>,
        connection: Connection<Counted>,
        attempt: Attempt,
    ) -> Transfer<Counted, Rc<Self>> {
        let (home, terms) = (Rc::clone(self), self.terms.clone());
        let trail = &*attempt.trail;
        Transfer::new(
            connection,
            &attempt.head,
            attempt.upload,
            trail,
            home,
            terms,
        )
    }
}

/// What a request can go out on.
enum Found {
    Connection(Connection<Counted>),
    Session(Rc<Session>, Claim),
}

/// Whether an idle connection is as it should be: open, and nothing to read.
fn is_silent(connection: &mut Connection<Counted>, careful: bool) -> bool {
    connection.io.link.is_silent(careful)
}

type Connecting = Pin<Box<dyn Future<Output = Result<Found, UpstreamFault>>>>;

#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and nearly every request is in it from the start"
)]
enum State {
    Connecting(Connecting, Option<Attempt>),
    Talking(Transfer<Counted, Rc<Pool>>),
    Streaming(Box<Streaming>),
    Failed(Fault),
    Over,
}

/// One attempt under way. A future for the response.
#[must_use]
pub struct Exchanging {
    state: State,
    trail: Rc<Trail>,
    pool: Rc<Pool>,
}

impl std::fmt::Debug for Exchanging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchanging").finish_non_exhaustive()
    }
}

impl Future for Exchanging {
    type Output = Result<Response, Fault>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Talking(transfer) => {
                    let response = transfer.poll_response(context);
                    this.trail.set_sent(transfer.has_sent());
                    transfer.take_said().for_each(|said| this.trail.say(said));
                    return response;
                }
                State::Connecting(connecting, attempt) => {
                    let found = ready!(connecting.as_mut().poll(context))?;
                    let Some(mut attempt) = attempt.take() else {
                        return Poll::Pending;
                    };
                    this.state = match found {
                        Found::Connection(connection) => {
                            State::Talking(this.pool.talk(connection, attempt))
                        }
                        Found::Session(session, claim) => {
                            this.pool.open(&session, claim, &mut attempt)
                        }
                    };
                }
                State::Streaming(streaming) => {
                    let answered = ready!(streaming.poll_response(context));
                    let State::Streaming(streaming) = this.take() else {
                        return Poll::Pending;
                    };
                    return Poll::Ready(answered.and_then(|response| streaming.finish(response)));
                }
                State::Failed(_) => {
                    let State::Failed(fault) = this.take() else {
                        return Poll::Pending;
                    };
                    return Poll::Ready(Err(fault));
                }
                State::Over => return Poll::Pending,
            }
        }
    }
}

impl Exchanging {
    const fn take(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Over)
    }
}

/// The innermost service: every node's pool.
#[derive(Clone, Debug)]
pub struct Pools(Rc<[Rc<Pool>]>);

impl Pools {
    /// The pools of one service's nodes, in the order of their ids.
    #[must_use]
    pub fn new(pools: impl IntoIterator<Item = Rc<Pool>>) -> Self {
        Self(pools.into_iter().collect())
    }

    /// Looks at each.
    pub fn iter(&self) -> impl Iterator<Item = &Rc<Pool>> {
        self.0.iter()
    }
}

impl Service<Attempt> for Pools {
    type Response = Response;
    type Error = Fault;
    type Future = Exchanging;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, attempt: Attempt) -> Exchanging {
        self.0[attempt.node.index()].exchange(attempt)
    }
}

/// Whether something accepts connections at the node: connects and closes again. `None` when neither a yes nor a refusal was
/// heard in time.
pub async fn knock(pool: &Pool, within: Duration) -> Option<bool> {
    let mut last_good = pool.last_good.get();
    match timeout(within, link::knock(&pool.endpoint, &mut last_good))
        .await
        .ok()?
    {
        Ok(()) => Some(true),
        Err(error) if error.is_refusal() => Some(false),
        Err(_) => None,
    }
}
