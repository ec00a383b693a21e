//! Where a node's application listens: what a node's URL says.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::tls::outgoing::Outgoing;

/// The longest path that a socket's address can hold, in bytes (`sun_path`, with the zero behind it).
const PATH_MOST: usize = 107;

/// Something to connect to.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// Over the network.
    Tcp(Address),
    /// A socket in this machine's file system.
    Unix(PathBuf),
    /// Over the network, in HTTP/2 without being asked.
    H2c(Address),
    /// Over the network, with TLS, in what the node chooses of HTTP/2 and HTTP/1.1.
    Tls(Address, Arc<Outgoing>),
}

impl Endpoint {
    /// Whom to ask for when a request does not say. A socket has no name.
    #[must_use]
    pub fn authority(&self) -> String {
        match self {
            Self::Tcp(address) | Self::H2c(address) | Self::Tls(address, _) => address.to_string(),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) | Self::H2c(address) | Self::Tls(address, _) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<Address> for Endpoint {
    fn from(address: Address) -> Self {
        Self::Tcp(address)
    }
}

/// Host and port of something to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// The socket address, when the host is not a name that must be looked up.
    #[must_use]
    pub fn literal(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(ip, self.port))
    }

    /// Whether it is certain to be this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self
                .literal()
                .is_some_and(|address| address.ip().to_canonical().is_loopback())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Reads `HOST[:PORT]`, nothing after it but one slash; `port` is the one that is meant when none is named.
pub(super) fn address(rest: &str, port: u16) -> Result<Address, &'static str> {
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err("nothing may follow the port: requests keep their own path");
    }
    let parsed: http::uri::Authority = authority.parse().map_err(|_| "the host is not valid")?;
    if authority.contains('@') {
        return Err("no user may be named");
    }
    let host = parsed.host();
    let inside = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if inside.is_some_and(|inside| inside.parse::<IpAddr>().is_err()) {
        return Err("the address in brackets is not valid");
    }
    let port = match parsed.port() {
        None if authority == host => Some(port),
        None => None,
        Some(port) => Some(port.as_u16()).filter(|port| *port != 0),
    };
    let port = port.ok_or("the port is not valid")?;
    let host = inside.unwrap_or(host).to_owned();
    if host.is_empty() {
        return Err("the host is missing");
    }
    Ok(Address { host, port })
}

/// Reads the path of a socket.
pub(super) fn socket(path: &str) -> Result<PathBuf, &'static str> {
    if !path.starts_with('/') {
        return Err("the path of a socket begins with '/'");
    }
    if path.len() > PATH_MOST || path.contains('\0') {
        return Err("the path of a socket has at most 107 bytes, and no zero among them");
    }
    if Path::new(path).is_dir() {
        return Err("that is a folder");
    }
    Ok(path.into())
}
