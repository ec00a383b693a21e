//! One worker's connections to one node: kept while the node is sure to keep them, given out last in, first out.
//!
//! Application servers close idle connections without a word (gunicorn after 2 s). A request that is written at that moment
//! is lost, and nobody knows whether it was processed. So connections are put away well before, looked at before they are
//! given out, and requests that must not be made twice only get one that was in use a moment ago, or a new one.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::timeout;
use tower::Service;

use super::client::{Connection, Home, Terms, Transfer};
use super::link::{self, Link, dial};
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
/// How many requests of one worker wait for a connection to one node.
const WAITING_MOST: usize = 1024;

/// What one pool may do.
#[derive(Clone, Debug)]
pub struct PoolLimits {
    /// Connections at once; at least 1.
    pub connections: usize,
    /// How long connecting may take.
    pub connect: Duration,
    /// How long a request waits for a connection when all are taken.
    pub wait: Duration,
}

/// One worker's connections to one node.
#[derive(Debug)]
pub struct Pool {
    endpoint: Endpoint,
    last_good: Cell<Option<SocketAddr>>,
    limits: PoolLimits,
    terms: Terms,
    idle: RefCell<Vec<Connection<Counted>>>,
    places: Rc<Places>,
    waiting: Cell<usize>,
}

/// How many connections there are, and a bell for when there is one fewer.
#[derive(Debug, Default)]
struct Places {
    open: Cell<usize>,
    free: Notify,
}

/// A socket that counts as one of the pool's as long as it lives, or until it leaves.
#[derive(Debug)]
pub struct Counted {
    link: Link,
    place: Option<Rc<Places>>,
}

impl Counted {
    /// Gives its place to another.
    fn leave(&mut self) {
        if let Some(place) = self.place.take() {
            place.open.set(place.open.get().saturating_sub(1));
            place.free.notify_one();
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.leave();
    }
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
        self.idle.borrow_mut().push(connection);
        if self.waiting.get() > 0 {
            self.places.free.notify_one();
        }
    }

    fn let_go(&self, io: &mut Counted) {
        io.leave();
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
    /// An empty pool for the node at `endpoint`.
    #[must_use]
    pub fn new(endpoint: Endpoint, limits: PoolLimits, terms: Terms) -> Rc<Self> {
        Rc::new(Self {
            endpoint,
            last_good: Cell::new(None),
            limits,
            terms,
            idle: RefCell::default(),
            places: Rc::default(),
            waiting: Cell::new(0),
        })
    }

    /// Connections that are idle, and all that are open.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        (self.idle.borrow().len(), self.places.open.get())
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

    /// A place for one more connection, if there is one; makes one by closing an idle connection that will not do.
    fn place(&self) -> Option<Rc<Places>> {
        if self.places.open.get() >= self.limits.connections {
            let mut idle = self.idle.borrow_mut();
            let oldest = (!idle.is_empty()).then(|| idle.remove(0));
            drop(idle);
            oldest?;
        }
        self.places.open.set(self.places.open.get() + 1);
        Some(Rc::clone(&self.places))
    }

    async fn connect(self: Rc<Self>, wanted: Wanted) -> Result<Connection<Counted>, UpstreamFault> {
        let place = match self.place() {
            Some(place) => place,
            None => match self.wait(wanted).await? {
                Waited::Idle(connection) => return Ok(connection),
                Waited::Place(place) => place,
            },
        };
        // Counted from here on, so that the place is given back however this ends.
        let mut claim = Claim(Some(place));
        let link = timeout(self.limits.connect, self.dial()).await;
        let link = link.map_err(|_| self.fault(Cause::ConnectTimeout))??;
        match claim.0.take() {
            Some(place) => Ok(Connection::new(Counted {
                link,
                place: Some(place),
            })),
            None => Err(self.fault(Cause::Full)),
        }
    }

    /// Waits for a connection to be given back, or closed.
    async fn wait(self: &Rc<Self>, wanted: Wanted) -> Result<Waited, UpstreamFault> {
        if self.waiting.get() >= WAITING_MOST {
            return Err(self.fault(Cause::Full));
        }
        let waiting = Waiting::new(self);
        let freed = async {
            loop {
                self.places.free.notified().await;
                if let Some(connection) = self.take(wanted) {
                    return Waited::Idle(connection);
                }
                if let Some(place) = self.place() {
                    return Waited::Place(place);
                }
            }
        };
        let freed = timeout(self.limits.wait, freed).await;
        drop(waiting);
        freed.map_err(|_| self.fault(Cause::Full))
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
        let state = match self.take(wanted) {
            Some(connection) => State::Talking(self.talk(connection, attempt)),
            None => State::Connecting(Box::pin(Rc::clone(self).connect(wanted)), Some(attempt)),
        };
        Exchanging {
            state,
            trail,
            pool: Rc::clone(self),
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

enum Waited {
    Idle(Connection<Counted>),
    Place(Rc<Places>),
}

/// A place that is given back unless a connection takes it over.
struct Claim(Option<Rc<Places>>);

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(places) = &self.0 {
            places.open.set(places.open.get().saturating_sub(1));
            places.free.notify_one();
        }
    }
}

/// Counts as waiting for as long as it lives.
struct Waiting<'p>(&'p Pool);

impl<'p> Waiting<'p> {
    fn new(pool: &'p Pool) -> Self {
        pool.waiting.set(pool.waiting.get() + 1);
        Self(pool)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get().saturating_sub(1));
        // If the bell was rung for this one and it left, the next must hear it.
        self.0.places.free.notify_one();
    }
}

/// Whether an idle connection is as it should be: open, and nothing to read.
fn is_silent(connection: &mut Connection<Counted>, careful: bool) -> bool {
    connection.io.link.is_silent(careful)
}

type Connecting = Pin<Box<dyn Future<Output = Result<Connection<Counted>, UpstreamFault>>>>;

#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and nearly every request is in it from the start"
)]
enum State {
    Connecting(Connecting, Option<Attempt>),
    Talking(Transfer<Counted, Rc<Pool>>),
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
                    let connection = ready!(connecting.as_mut().poll(context))?;
                    let Some(attempt) = attempt.take() else {
                        return Poll::Pending;
                    };
                    this.state = State::Talking(this.pool.talk(connection, attempt));
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Address;
    use crate::exchange::{Body, Deadlines, Head, Upload};
    use crate::logic::NodeId;
    use http_body_util::BodyExt;
    use shared::clock;
    use std::cell::Cell;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::spawn_local;

    /// A node that counts connections and answers every request with a few fields and "ok".
    struct Node {
        address: SocketAddr,
        accepted: Rc<Cell<usize>>,
    }

    async fn node(fields: &'static str, close_after: Option<usize>) -> Node {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, accepted) = (listener.local_addr().unwrap(), Rc::new(Cell::new(0)));
        let count = Rc::clone(&accepted);
        spawn_local(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.set(count.get() + 1);
                spawn_local(async move {
                    let mut served = 0;
                    let mut request = [0; 1024];
                    while stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                        let answer =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nok");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        served += 1;
                        if close_after == Some(served) {
                            return;
                        }
                    }
                });
            }
        });
        Node { address, accepted }
    }

    fn pool(address: SocketAddr, connections: usize) -> Rc<Pool> {
        let endpoint = Endpoint::Tcp(Address {
            host: address.ip().to_string(),
            port: address.port(),
        });
        let limits = PoolLimits {
            connections,
            connect: Duration::from_secs(1),
            wait: Duration::from_millis(200),
        };
        let terms = Terms {
            node: NodeId(0),
            idle: Duration::from_secs(1),
            deadlines: Deadlines::default(),
        };
        Pool::new(endpoint, limits, terms)
    }

    /// Lets time pass, as far as the pool is concerned.
    fn pass(pool: &Pool, span: Duration) {
        for _ in 0..span.as_millis() / TICK.as_millis() {
            pool.terms.deadlines.tick();
        }
    }

    fn attempt(method: &str) -> Attempt {
        Attempt {
            head: Rc::new(Head::plain(method.parse().unwrap(), "/")),
            upload: Upload::none(),
            node: NodeId(0),
            began: clock::now(),
            fresh: false,
            trail: Rc::new(Trail::for_test()),
        }
    }

    async fn ask(pool: &Rc<Pool>, method: &str) -> Result<Body, Fault> {
        pool.exchange(attempt(method))
            .await
            .map(|response| response.body)
    }

    fn local(test: impl Future<Output = ()> + 'static) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default());
        runtime.unwrap().block_on(test);
    }

    #[test]
    fn a_connection_is_used_again_until_it_has_been_idle_for_too_long() {
        local(async {
            let node = node("", None).await;
            let pool = pool(node.address, 8);
            for _ in 0..3 {
                let body = ask(&pool, "GET").await.unwrap();
                assert_eq!(body.collect().await.unwrap().to_bytes(), "ok");
            }
            assert_eq!((node.accepted.get(), pool.count()), (1, (1, 1)));
            pass(&pool, Duration::from_secs(3));
            ask(&pool, "GET").await.unwrap();
            assert_eq!((node.accepted.get(), pool.count()), (2, (1, 1)));
            pass(&pool, Duration::from_secs(3));
            pool.reap();
            assert_eq!(pool.count(), (0, 0));
        });
    }

    #[test]
    fn what_must_not_be_made_twice_gets_a_recent_connection_or_a_new_one() {
        local(async {
            let node = node("", None).await;
            let pool = pool(node.address, 8);
            ask(&pool, "GET").await.unwrap();
            pass(&pool, Duration::from_millis(100));
            ask(&pool, "POST").await.unwrap();
            assert_eq!(node.accepted.get(), 1);
            pass(&pool, Duration::from_secs(1));
            ask(&pool, "POST").await.unwrap();
            assert_eq!((node.accepted.get(), pool.count().0), (2, 2));
            let fresh = Attempt {
                fresh: true,
                ..attempt("GET")
            };
            pool.exchange(fresh).await.unwrap();
            assert_eq!(node.accepted.get(), 3);
        });
    }

    #[test]
    fn the_node_s_own_word_on_keeping_connections_counts() {
        local(async {
            for (fields, later, again) in [
                ("Keep-Alive: timeout=5\r\n", 3, true),
                ("Keep-Alive: timeout=5\r\n", 6, false),
                ("Keep-Alive: timeout=1\r\n", 1, false),
            ] {
                let node = node(fields, None).await;
                let pool = pool(node.address, 8);
                ask(&pool, "GET").await.unwrap();
                pass(&pool, Duration::from_secs(later));
                ask(&pool, "GET").await.unwrap();
                assert_eq!(node.accepted.get() == 1, again, "{fields} after {later} s");
            }
        });
    }

    #[test]
    fn a_connection_that_the_node_has_closed_is_not_given_out() {
        local(async {
            let node = node("", Some(1)).await;
            let pool = pool(node.address, 8);
            for n in 1..=20 {
                ask(&pool, "POST").await.unwrap();
                assert_eq!(node.accepted.get(), n);
                // The node's end is seen by the system before it is seen by the runtime; a careful look finds it.
                while is_silent(&mut pool.idle.borrow_mut()[0], true) {
                    tokio::task::yield_now().await;
                }
            }
        });
    }

    #[test]
    fn connections_are_bounded_and_those_who_wait_get_them_in_turn() {
        local(async {
            let node = node("", None).await;
            let pool = pool(node.address, 2);
            let tasks: Vec<_> = (0..50)
                .map(|_| {
                    let pool = Rc::clone(&pool);
                    spawn_local(async move { ask(&pool, "GET").await.is_ok() })
                })
                .collect();
            for task in tasks {
                assert!(task.await.unwrap());
            }
            assert_eq!((node.accepted.get(), pool.count().1), (2, 2));
            // Both taken by requests that nobody finishes: the third is told so in time.
            let _held = [pool.place().unwrap(), pool.place().unwrap()];
            let refused = ask(&pool, "GET").await;
            let full = matches!(refused, Err(Fault::Upstream(fault)) if fault.cause == Cause::Full);
            assert!(full && pool.waiting.get() == 0);
        });
    }

    #[test]
    fn a_refused_connection_was_never_sent_and_gives_its_place_back() {
        local(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            drop(listener);
            let pool = pool(address, 1);
            for _ in 0..3 {
                let Err(Fault::Upstream(fault)) = ask(&pool, "POST").await else {
                    panic!("answered");
                };
                assert_eq!((fault.reach, fault.cause), (Reach::Connect, Cause::Refused));
            }
            assert_eq!(pool.count(), (0, 0));
            assert_eq!(knock(&pool, Duration::from_secs(1)).await, Some(false));
        });
    }
}
