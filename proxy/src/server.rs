//! Towards clients: accept, shake hands if the connection is encrypted, one task per connection, drain.
//!
//! Which protocol a connection speaks is negotiated (ALPN) if it is encrypted; otherwise its first bytes say so.
//!
//! HTTP/1.1 is spoken by a codec of our own, for two reasons: what can be read in two ways is refused where it is read (both
//! framings at once, say, which a library has resolved before we see it), and fields that nobody looks at are passed on as
//! bytes, which is most of what a proxy does.
//!
//! Time is kept here for a head that does not come, a connection that is idle, and a response that is not read. (A body that
//! does not come is noticed where it is read, see `exchange::Replay`.)

mod connection;
mod failures;
mod handshake;
pub mod head;
mod http2;
mod introduction;
mod line;
mod outgoing;
pub mod proxy_protocol;
#[cfg(test)]
mod tests;
mod tunnel;

use std::cell::{Cell, RefCell, RefMut};
use std::fmt;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use shared::clock;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub use self::connection::Serves;
pub use self::failures::Failures;
use self::line::{Carrier, Line};
pub use self::outgoing::Dates;
use crate::config::{Limits, Network};
use crate::exchange::{Deadlines, Peer};

/// Rest when the system has no more sockets to give.
const REST: Duration = Duration::from_millis(50);
/// Connections of one worker that are turned away with words at once; more are turned away without.
const POLITE_MOST: usize = 64;
/// How long that may take, handshake included.
const POLITE_WITHIN: Duration = Duration::from_secs(4);
/// How long a connection that was answered for the last time may still send.
const LINGER: Duration = Duration::from_secs(2);
/// How much it may send, in bytes.
const LINGER_BYTES: usize = 1 << 20;

/// What HTTP/2 is called when protocols are negotiated.
const HTTP2: &[u8] = b"h2";

/// What one worker needs to serve clients of one listener.
pub struct Front<S> {
    /// What requests are given to.
    pub service: Rc<RefCell<S>>,
    /// What clients may take.
    pub limits: Limits,
    /// The worker's deadlines.
    pub deadlines: Deadlines,
    /// The listener's connections, over all workers.
    pub connected: Arc<AtomicUsize>,
    /// What a client is told when there are too many.
    pub too_many: Bytes,
    /// The present second, as responses say it.
    pub dates: Dates,
    /// The worker's connections and whether they shall end.
    pub house: Rc<House>,
    /// What encrypts the connections, if anything does.
    pub tls: Option<TlsAcceptor>,
    /// Whether clients are asked for certificates.
    pub asks_certificates: bool,
    /// Who may say for whom its connections are, by the PROXY protocol, which everybody must speak then; anybody, if there is
    /// no network.
    pub introducers: Option<Vec<Network>>,
    /// Connections that came to nothing.
    pub failures: Failures,
}

impl<S> fmt::Debug for Front<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<S> Front<S> {
    /// Writes down who is connected, whatever is spoken then.
    fn meet<T: Carrier>(&self, stream: &T, client: IpAddr) -> Rc<Peer> {
        let peer = Peer::new(client, T::SCHEME, self.limits.body_idle_timeout);
        Rc::new(Peer {
            least_rate: self.limits.min_body_rate,
            encryption: stream.encryption(self.asks_certificates),
            ..Rc::unwrap_or_clone(peer)
        })
    }
}

/// One worker's connections.
#[derive(Debug, Default)]
pub struct House {
    closing: Cell<bool>,
    inherited: Cell<bool>,
    ending: Cell<bool>,
    guests: Cell<usize>,
    polite: Cell<usize>,
    changed: Notify,
    /// Through which tunnels pass what they read.
    piece: RefCell<Vec<u8>>,
}

impl House {
    /// No connection takes another request after the one it is at. Wake the deadlines after this.
    pub fn close(&self) {
        self.closing.set(true);
        self.changed.notify_waiters();
    }

    /// Whether it is closing.
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Somebody else listens on the same sockets: when this house closes, whoever is in their queues is left to them, and idle
    /// connections stay until they have asked once more, or all is over. Before [`House::close`].
    pub fn bequeath(&self) {
        self.inherited.set(true);
    }

    /// Whether nobody waits for clients any more that have not asked for anything.
    #[must_use]
    pub const fn ends_idle(&self) -> bool {
        self.closing.get() && (!self.inherited.get() || self.ending.get())
    }

    /// Waits until it is closing.
    pub async fn closing(&self) {
        while !self.closing.get() {
            self.changed.notified().await;
        }
    }

    /// Tunnels are ended, too. Wake the deadlines after this.
    pub fn end(&self) {
        self.ending.set(true);
    }

    /// Whether tunnels are ended.
    #[must_use]
    pub const fn is_ending(&self) -> bool {
        self.ending.get()
    }

    fn piece(&self) -> RefMut<'_, Vec<u8>> {
        let mut piece = self.piece.borrow_mut();
        if piece.is_empty() {
            piece.resize(tunnel::PIECE, 0);
        }
        piece
    }

    /// Whether every connection has ended.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.guests.get() == 0
    }

    /// Waits until every connection has ended.
    pub async fn empty(&self) {
        while self.guests.get() > 0 {
            self.changed.notified().await;
        }
    }
}

/// A connection's place in the counts.
struct Guest {
    house: Rc<House>,
    connected: Arc<AtomicUsize>,
}

impl Guest {
    fn enter<S>(front: &Front<S>) -> (Self, usize) {
        front.house.guests.set(front.house.guests.get() + 1);
        let others = front.connected.fetch_add(1, Relaxed);
        let guest = Self {
            house: Rc::clone(&front.house),
            connected: Arc::clone(&front.connected),
        };
        (guest, others)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.connected.fetch_sub(1, Relaxed);
        self.house
            .guests
            .set(self.house.guests.get().saturating_sub(1));
        if self.house.guests.get() == 0 {
            self.house.changed.notify_waiters();
        }
    }
}

/// How a listener's next connections are served. It can be changed at any time; the house stays.
#[derive(Debug)]
pub struct Entrance<S>(RefCell<Rc<Front<S>>>);

impl<S> Entrance<S> {
    /// Served like this.
    #[must_use]
    pub fn new(front: Front<S>) -> Rc<Self> {
        Rc::new(Self(RefCell::new(Rc::new(front))))
    }

    /// Served like this from now on.
    pub fn change(&self, front: Front<S>) {
        let former = self.0.replace(Rc::new(front));
        drop(former);
    }

    fn front(&self) -> Rc<Front<S>> {
        Rc::clone(&self.0.borrow())
    }
}

/// Accepts until the house closes; then what is already in the queue, because those clients think they are connected. (Unless
/// there is an heir, who serves the same queue.)
pub async fn accept<S: Serves>(listener: Rc<TcpListener>, entrance: Rc<Entrance<S>>) {
    let house = Rc::clone(&entrance.front().house);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => receive(stream, peer, &entrance.front()),
                Err(error) if is_momentary(&error) => (),
                Err(error) => {
                    tracing::warn!(%error, "accept a connection");
                    clock::sleep(REST).await;
                }
            },
            () = house.closing() => break,
        }
    }
    while !house.inherited.get() {
        let queued = poll_fn(|context| match listener.poll_accept(context) {
            Poll::Ready(accepted) => Poll::Ready(accepted.ok()),
            Poll::Pending => Poll::Ready(None),
        });
        match queued.await {
            Some((stream, peer)) => receive(stream, peer, &entrance.front()),
            None => return,
        }
    }
}

/// Whether the fault was with one client and is over.
fn is_momentary(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::ConnectionAborted
            | std::io::ErrorKind::ConnectionReset
            | std::io::ErrorKind::Interrupted
            | std::io::ErrorKind::WouldBlock
    )
}

fn receive<S: Serves>(stream: TcpStream, peer: SocketAddr, front: &Rc<Front<S>>) {
    let (guest, others) = Guest::enter(front);
    let ours = Rc::clone(front);
    if others >= front.limits.max_connections {
        front.failures.too_many("too-many");
        if front.house.polite.get() < POLITE_MOST {
            front.house.polite.set(front.house.polite.get() + 1);
            spawn_local(async move {
                let _ = timeout(POLITE_WITHIN, turn_away(stream, peer, &ours)).await;
                ours.house.polite.set(ours.house.polite.get() - 1);
                drop(guest);
            });
        }
    } else if front.tls.is_none() && front.introducers.is_none() {
        let peer = ours.meet(&stream, peer.ip());
        spawn_local(connection::serve(stream, peer, ours, guest));
    } else {
        spawn_local(begin(stream, peer, ours, guest));
    }
}

/// Serves a connection that does not begin with a request.
async fn begin<S: Serves>(stream: TcpStream, peer: SocketAddr, front: Rc<Front<S>>, guest: Guest) {
    let Some(client) = introduction::client(&stream, peer, &front).await else {
        return;
    };
    let Some(acceptor) = front.tls.clone() else {
        let client = front.meet(&stream, client);
        return connection::serve(stream, client, front, guest).await;
    };
    // On the heap, so that an established connection does not carry the size of a handshake.
    let shaken = Box::pin(handshake::shake(stream, peer, &acceptor, &front)).await;
    let Some(stream) = shaken else {
        return;
    };
    let client = front.meet(&stream, client);
    if stream.get_ref().1.alpn_protocol() == Some(HTTP2) {
        Box::pin(http2::serve(stream, BytesMut::new(), client, front, guest)).await;
    } else {
        connection::serve(stream, client, front, guest).await;
    }
}

/// Tells a client that there are too many, in its own way of speaking.
async fn turn_away<S>(stream: TcpStream, peer: SocketAddr, front: &Front<S>) {
    if introduction::client(&stream, peer, front).await.is_none() {
        return;
    }
    match &front.tls {
        None => say(stream, &front.too_many).await,
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
                let words = if is_http2 {
                    http2::TOO_MANY
                } else {
                    &front.too_many
                };
                say(stream, words).await;
            }
        }
    }
}

async fn say<T: Carrier>(mut stream: T, words: &[u8]) {
    // Whoever does not take the words is gone without them.
    if timeout(LINGER, stream.write_all(words)).await.is_ok() {
        linger(&Line::new(stream)).await;
    }
}

/// Ends a connection whose client may still be sending: closing it at once would destroy the response on its way.
async fn linger<T: AsyncRead + AsyncWrite + Unpin + 'static>(line: &Line<T>) {
    let mut left = LINGER_BYTES;
    let _ = timeout(
        LINGER,
        poll_fn(|context| line.poll_linger(&mut left, context)),
    )
    .await;
}
