//! What can go wrong with a request: whose fault it is, and how far things came, so that retrying needs no guess.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::logic::NodeId;
use crate::logic::retry::Class;

/// Why a request is not answered by a node.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The client's request breaks a rule.
    Request {
        /// The answer.
        status: StatusCode,
        /// Which rule.
        why: &'static str,
    },
    /// The client's head was not complete in time.
    HeadTooSlow,
    /// The client's body ended before its end, or is malformed.
    BodyBroken,
    /// The client's body made no progress for as long as it may.
    BodyTooSlow,
    /// No service answers for this host.
    NoService,
    /// Nobody may take the request now.
    Unavailable(Unavailable),
    /// A node failed.
    Upstream(UpstreamFault),
    /// The node answered, but it is not certain that the answer will stand.
    Unconfirmed(Unconfirmed),
}

/// Why nobody takes a request.
#[derive(Clone, Debug)]
pub enum Unavailable {
    /// It has waited as long as it may.
    Waited {
        /// How long it waited.
        waited: Duration,
        /// What it waited for.
        why: Option<Arc<str>>,
    },
    /// Too many wait already.
    TooMany {
        /// What they wait for.
        why: Option<Arc<str>>,
    },
    /// There is too much to do, and this can be done without.
    Shed,
    /// The listener's connections are all taken.
    Connections,
}

/// Why the answer to a write is withheld.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unconfirmed {
    /// No standby confirmed it in time.
    Unreplicated,
    /// The epoch in which it was admitted has ended before it was confirmed.
    Outdated,
}

/// How a node failed.
#[derive(Clone, Debug)]
pub struct UpstreamFault {
    /// Which node.
    pub node: NodeId,
    /// How far the attempt came.
    pub reach: Reach,
    /// What happened.
    pub cause: Cause,
}

/// How far an attempt came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// There was no connection.
    Connect,
    /// There was one, and the system took not a byte of the request.
    Unsent,
    /// It was sent, and the node says that it did nothing with it (RFC 9113 §8.7).
    Declined,
    /// At least a byte was sent; nothing is known of what the node did with it.
    Sent,
    /// The response began, but its head is not one.
    Head,
    /// The response's body broke off.
    Body,
}

/// What happened to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The port refused the connection.
    Refused,
    /// The connection was not accepted in time.
    ConnectTimeout,
    /// The node's name could not be looked up.
    NameLookup,
    /// It does not speak HTTP/2, as its URL says it does.
    NotHttp2,
    /// The node would not take the request.
    Declined,
    /// The node reset the request's stream, with this code (RFC 9113 §7).
    Reset(u32),
    /// The node's certificate is not accepted, and why.
    Certificate(&'static str),
    /// The handshake of TLS failed, and why.
    Handshake(&'static str),
    /// The node closed the connection.
    Closed,
    /// The system reported another error.
    Io(io::ErrorKind),
    /// The response did not begin in time.
    ResponseTimeout,
    /// The body made no progress in time.
    IdleTimeout,
    /// The response is not HTTP as it should be.
    Malformed(&'static str),
    /// The node's breaker lets nothing through until then.
    Broken(Instant),
    /// All connections that the node may have are taken.
    Full,
    /// The node is no longer the one to ask.
    Abandoned,
}

impl UpstreamFault {
    /// What is known about whether the request was carried out.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self.reach {
            Reach::Connect | Reach::Unsent => Class::NeverSent,
            Reach::Declined => Class::KnownUnprocessed,
            Reach::Sent | Reach::Head | Reach::Body => Class::MaybeProcessed,
        }
    }

    /// Whether it says that the node is in trouble.
    #[must_use]
    pub const fn blames_node(&self) -> bool {
        !matches!(
            self.cause,
            Cause::Broken(_) | Cause::Full | Cause::Declined | Cause::Abandoned
        )
    }

    /// Whether the node is likely to be gone: it dropped a request, or the way to it is cut.
    #[must_use]
    pub const fn is_loss(&self) -> bool {
        matches!(self.cause, Cause::Closed | Cause::Io(_))
    }

    /// Whether the node's side ended the connection of a request that it had not begun to answer, as it does when its process
    /// dies. A request that we gave up, or that the network swallowed, may still be carried out by a node that never knew.
    #[must_use]
    pub const fn is_dropped(&self) -> bool {
        matches!(self.reach, Reach::Sent) && self.cause.is_of_the_node()
    }
}

impl Cause {
    /// What happened to an attempt to connect.
    #[must_use]
    pub fn connecting(error: &io::Error) -> Self {
        let kind = error.kind();
        // A socket in the file system that is not there is a port where nobody listens.
        if kind == io::ErrorKind::ConnectionRefused || kind == io::ErrorKind::NotFound {
            Self::Refused
        } else if kind == io::ErrorKind::TimedOut {
            Self::ConnectTimeout
        } else {
            Self::Io(kind)
        }
    }

    /// Whether it tells that the node's side ended a connection; other errors only tell that nothing was heard of it.
    #[must_use]
    pub const fn is_of_the_node(self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        matches!(
            self,
            Self::Closed | Self::Io(ConnectionReset | ConnectionAborted | BrokenPipe)
        )
    }

    /// The word in the access log.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::ConnectTimeout => "connect-timeout",
            Self::NameLookup => "name-not-found",
            Self::NotHttp2 => "not-http2",
            Self::Declined => "declined",
            Self::Reset(_) => "reset",
            Self::Certificate(_) => "certificate",
            Self::Handshake(_) => "handshake",
            Self::Closed => "closed",
            Self::Io(_) => "io",
            Self::ResponseTimeout => "response-timeout",
            Self::IdleTimeout => "idle-timeout",
            Self::Malformed(_) => "malformed",
            Self::Broken(_) => "breaker-open",
            Self::Full => "full",
            Self::Abandoned => "abandoned",
        }
    }

    /// What happened on a connection.
    #[must_use]
    pub fn io(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Closed
        } else {
            Self::Io(error.kind())
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::ConnectTimeout => f.write_str("connection not accepted in time"),
            Self::NameLookup => f.write_str("name not found"),
            Self::NotHttp2 => f.write_str("the node does not speak HTTP/2"),
            Self::Declined => f.write_str("the node would not take the request"),
            Self::Reset(code) => write!(f, "stream reset by the node with code {code}"),
            Self::Certificate(why) => write!(f, "the node's certificate is refused: {why}"),
            Self::Handshake(why) => write!(f, "no TLS with the node: {why}"),
            Self::Closed => f.write_str("connection closed by the node"),
            Self::Io(kind) => write!(f, "{kind}"),
            Self::ResponseTimeout => f.write_str("no response in time"),
            Self::IdleTimeout => f.write_str("no progress in time"),
            Self::Malformed(why) => write!(f, "malformed response: {why}"),
            Self::Broken(_) => f.write_str("circuit breaker open"),
            Self::Full => f.write_str("all connections taken"),
            Self::Abandoned => f.write_str("the node lost its role"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request { why, .. } => f.write_str(why),
            Self::HeadTooSlow => f.write_str("the request's head is too slow"),
            Self::BodyBroken => f.write_str("the request's body is broken"),
            Self::BodyTooSlow => f.write_str("the request's body is too slow"),
            Self::NoService => f.write_str("no service for this host"),
            Self::Unavailable(_) => f.write_str("nobody may take the request"),
            Self::Upstream(fault) => fault.cause.fmt(f),
            Self::Unconfirmed(_) => f.write_str("the write is not confirmed"),
        }
    }
}

impl std::error::Error for Fault {}

impl From<UpstreamFault> for Fault {
    fn from(fault: UpstreamFault) -> Self {
        Self::Upstream(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_node_s_own_end_of_an_unanswered_request_is_a_drop() {
        let fault = |reach, cause| UpstreamFault {
            node: NodeId(0),
            reach,
            cause,
        };
        let (reset, silence) = (io::ErrorKind::ConnectionReset, io::ErrorKind::TimedOut);
        for cause in [Cause::Closed, Cause::Io(reset)] {
            assert!(fault(Reach::Sent, cause).is_dropped(), "{cause}");
            assert!(!fault(Reach::Head, cause).is_dropped(), "{cause}");
            assert!(!fault(Reach::Body, cause).is_dropped(), "{cause}");
        }
        for cause in [
            Cause::Io(silence),
            Cause::Io(io::ErrorKind::HostUnreachable),
            Cause::ResponseTimeout,
            Cause::IdleTimeout,
            Cause::Malformed("odd"),
            Cause::Abandoned,
        ] {
            assert!(!fault(Reach::Sent, cause).is_dropped(), "{cause}");
        }
    }
}
