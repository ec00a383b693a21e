//! A connection to a node that speaks another protocol from now on: what a response with status 101 carries (RFC 9110 §7.8).

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Trail;

/// Any connection.
pub trait Wire: AsyncRead + AsyncWrite {}

impl<T: AsyncRead + AsyncWrite> Wire for T {}

/// One that was opened. Dropped, it is closed.
pub struct Tunnel {
    /// The connection to the node.
    pub node: Pin<Box<dyn Wire>>,
    /// What the node said behind its answer.
    pub early: Bytes,
    /// The protocol, as it was asked for.
    pub protocol: Arc<str>,
    /// What it depends on; given by whoever knows why the node was asked.
    pub bond: Option<Bond>,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("protocol", &self.protocol)
            .field("early", &self.early.len())
            .finish_non_exhaustive()
    }
}

/// What a tunnel depends on, for as long as it lives.
pub struct Bond {
    /// For how long nothing may pass.
    pub idle: Duration,
    /// Where what passes is counted.
    pub trail: Rc<Trail>,
    /// Whether its node is still the one to talk to.
    pub leash: Box<dyn Leash>,
}

impl fmt::Debug for Bond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bond")
            .field("idle", &self.idle)
            .finish_non_exhaustive()
    }
}

/// Says whether a tunnel may go on. Everybody who waits for a deadline is woken when that may have changed.
pub trait Leash {
    /// Whether it may.
    fn holds(&self) -> bool;
}

/// A response's body that may have become a tunnel.
pub trait Opens {
    /// The tunnel, if it has; once.
    fn take_tunnel(&mut self) -> Option<Box<Tunnel>>;
}
