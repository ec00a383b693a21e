//! A socket towards a node, whatever kind it is, and how one is made.
//!
//! Which kind it is costs a comparison for each call and nothing else: the bytes of plain connections pass no pointer to code.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use shared::clock;
use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::client::TlsStream;

use crate::config::{Address, Endpoint};
use crate::exchange::Cause;
use crate::tls::outgoing::{Refusal, refusal};

/// How many addresses of a name are tried.
const ADDRESSES_MOST: usize = 8;
/// How long to wait before a socket whose queue is full is tried again: unlike TCP's, it does not wait by itself.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// A connected socket.
#[derive(Debug)]
pub enum Link {
    /// Over the network.
    Tcp(TcpStream),
    /// Within the machine.
    Unix(UnixStream),
    /// Over the network, encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Link {
    /// Whether nothing is to be read, and the node has not closed. The runtime knows of whatever it has been told; `careful`
    /// asks the system, too.
    #[must_use]
    pub fn is_silent(&mut self, careful: bool) -> bool {
        let silent = match self {
            Self::Tcp(stream) => would_block(&stream.try_read(&mut [0])),
            Self::Unix(stream) => would_block(&stream.try_read(&mut [0])),
            // What comes may be a ticket for the next session, which is nothing to read.
            Self::Tls(stream) => {
                let mut context = Context::from_waker(Waker::noop());
                let mut byte = [0];
                let mut buffer = ReadBuf::new(&mut byte);
                Pin::new(stream)
                    .poll_read(&mut context, &mut buffer)
                    .is_pending()
            }
        };
        silent && (!careful || would_block(&self.peek()))
    }

    fn peek(&self) -> io::Result<usize> {
        self.socket().peek(&mut [MaybeUninit::uninit()])
    }

    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Unix(stream) => SockRef::from(stream),
            Self::Tls(stream) => SockRef::from(stream.get_ref().0),
        }
    }

    /// Tells the node that nothing more will come. It can still say something.
    ///
    /// # Errors
    /// It is closed already.
    pub fn end(&self) -> io::Result<()> {
        self.socket().shutdown(Shutdown::Write)
    }

    /// Another handle of the same socket, to look at it; `None` if the system has no more.
    #[must_use]
    pub fn duplicate(&self) -> Option<Socket> {
        self.socket().try_clone().ok()
    }

    /// Whether the node at `endpoint` speaks HTTP/2 here: by its URL, or because it chose to.
    #[must_use]
    pub fn is_http2(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            Self::Tcp(_) | Self::Unix(_) => matches!(endpoint, Endpoint::H2c(_)),
        }
    }
}

fn would_block(result: &io::Result<usize>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub enum DialError {
    /// The name could not be looked up.
    Lookup(io::Error),
    /// The system said no.
    Connect(io::Error),
    /// There is a connection, but it cannot be encrypted.
    Handshake(io::Error),
}

impl DialError {
    /// Whether nobody listens there: a node's process that has ended.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.cause() == Cause::Refused
    }

    /// The same as what a request fails of.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::Lookup(_) => Cause::NameLookup,
            Self::Connect(error) => Cause::connecting(error),
            Self::Handshake(error) => match refusal(error) {
                Refusal::Certificate(why) => Cause::Certificate(why),
                Refusal::Handshake(why) => Cause::Handshake(why),
            },
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup(error) => write!(f, "look up the name: {error}"),
            Self::Connect(error) => write!(f, "connect: {error}"),
            Self::Handshake(error) => write!(f, "{}: {error}", self.cause()),
        }
    }
}

impl std::error::Error for DialError {}

/// Connects, and shakes hands if the node speaks TLS. `last_good` is where a name led last time: it is used while the name cannot be looked up, and renewed.
///
/// # Errors
/// See [`DialError`]; of several addresses, the last one's. It has no limit of time.
pub async fn dial(
    endpoint: &Endpoint,
    last_good: &mut Option<SocketAddr>,
) -> Result<Link, DialError> {
    match endpoint {
        Endpoint::Tcp(address) | Endpoint::H2c(address) => {
            over_network(address, last_good).await.map(Link::Tcp)
        }
        Endpoint::Unix(path) => to_socket(path).await.map(Link::Unix),
        Endpoint::Tls(address, outgoing) => {
            let stream = over_network(address, last_good).await?;
            let stream = outgoing.connect(stream).await;
            let stream = stream.map_err(DialError::Handshake)?;
            Ok(Link::Tls(Box::new(stream)))
        }
    }
}

/// Whether something accepts connections: connects, and closes again without a word.
///
/// # Errors
/// As [`dial`].
pub async fn knock(
    endpoint: &Endpoint,
    last_good: &mut Option<SocketAddr>,
) -> Result<(), DialError> {
    match endpoint {
        Endpoint::Tcp(address) | Endpoint::H2c(address) | Endpoint::Tls(address, _) => {
            over_network(address, last_good).await.map(drop)
        }
        Endpoint::Unix(path) => to_socket(path).await.map(drop),
    }
}

async fn over_network(
    address: &Address,
    last_good: &mut Option<SocketAddr>,
) -> Result<TcpStream, DialError> {
    let nothing = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut last = DialError::Lookup(nothing);
    for address in addresses(address, *last_good).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // A socket that cannot be set up is broken, and the first write will say so.
                let _ = stream.set_nodelay(true);
                *last_good = Some(address);
                return Ok(stream);
            }
            Err(error) => last = DialError::Connect(error),
        }
    }
    Err(last)
}

/// Where to connect. A name that cannot be looked up at this moment is where it was last.
async fn addresses(
    address: &Address,
    last_good: Option<SocketAddr>,
) -> Result<Vec<SocketAddr>, DialError> {
    if let Some(literal) = address.literal() {
        return Ok(vec![literal]);
    }
    let host = (address.host.as_str(), address.port);
    match (lookup_host(host).await, last_good) {
        (Ok(found), _) => Ok(found.take(ADDRESSES_MOST).collect()),
        (Err(_), Some(last)) => Ok(vec![last]),
        (Err(error), None) => Err(DialError::Lookup(error)),
    }
}

async fn to_socket(path: &Path) -> Result<UnixStream, DialError> {
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                clock::sleep(FULL_PAUSE).await;
            }
            Err(error) => return Err(DialError::Connect(error)),
        }
    }
}
