//! The beginning of a connection through another proxy, in bounded time: for whom it was made.
//!
//! What is behind the header belongs to TLS or to HTTP, so nothing is taken from the socket that may not belong to it: bytes
//! are looked at first and taken when they are known to be the header's.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::Front;
use super::proxy_protocol::{Introduction, LONGEST, parse};
use crate::exchange::Deadline;

/// Room for what most headers are; longer ones are read in several steps.
const STEP: usize = 256;

/// How a connection came to nothing.
enum Ended {
    /// It was only opened and closed again, as load balancers do to see whether somebody listens.
    Left,
    /// It broke the rule.
    Wrong(&'static str),
}

/// Returns who the client is: the peer itself, or whom it names. `None` if nothing came of the connection, which is told.
pub(super) async fn client<S>(
    stream: &TcpStream,
    peer: SocketAddr,
    front: &Front<S>,
) -> Option<IpAddr> {
    let Some(believed) = &front.introducers else {
        return Some(peer.ip());
    };
    let failures = &front.failures;
    let known = |network: &crate::config::Network| network.contains(peer.ip());
    if !believed.is_empty() && !believed.iter().any(known) {
        let why = "only addresses in proxy_protocol_from may speak the PROXY protocol here";
        failures.refused(peer, "untrusted-proxy", why);
        return None;
    }
    let deadline = front.deadlines.after(front.limits.header_timeout);
    let mut header = Vec::new();
    let read = poll_fn(|context| {
        let read = poll_header(stream, &mut header, &deadline, context);
        // Its request would not be taken any more.
        if read.is_pending() && front.house.is_closing() {
            return Poll::Ready(Err(Ended::Left));
        }
        read
    });
    match read.await {
        Ok(Introduction::Itself) => Some(peer.ip()),
        Ok(Introduction::Client { from, .. }) => Some(from.ip()),
        Err(Ended::Left) => None,
        Err(Ended::Wrong(why)) => {
            let why = format!("the PROXY protocol is expected: {why}");
            failures.refused(peer, "proxy-protocol", &why);
            None
        }
    }
}

fn poll_header(
    stream: &TcpStream,
    header: &mut Vec<u8>,
    deadline: &Deadline,
    context: &mut Context<'_>,
) -> Poll<Result<Introduction, Ended>> {
    loop {
        let Poll::Ready(seen) = poll_look(stream, header, context) else {
            if deadline.has_passed(context) {
                let why = "it did not come within header_timeout";
                return Poll::Ready(Err(Ended::Wrong(why)));
            }
            return Poll::Pending;
        };
        let taken = header.len() - seen;
        let (said, length) = match parse(header) {
            _ if seen == 0 => return Poll::Ready(Err(Ended::Left)),
            Ok(Some((said, length))) => (Some(said), length),
            Ok(None) => (None, header.len()),
            Err(wrong) => return Poll::Ready(Err(Ended::Wrong(wrong.0))),
        };
        // All that was looked at belongs to the header, up to its end.
        header.truncate(length);
        match stream.try_read(&mut header[taken..]) {
            Ok(read) if taken + read == length => (),
            Ok(_) | Err(_) => return Poll::Ready(Err(Ended::Left)),
        }
        if let Some(said) = said {
            return Poll::Ready(Ok(said));
        }
    }
}

/// Appends what has come to `header` without taking it; how much that is. Errors are as good as an end.
fn poll_look(stream: &TcpStream, header: &mut Vec<u8>, context: &mut Context<'_>) -> Poll<usize> {
    let taken = header.len();
    header.resize((taken + STEP).min(LONGEST), 0);
    let mut room = ReadBuf::new(&mut header[taken..]);
    let looked = stream.poll_peek(context, &mut room);
    let seen = room.filled().len();
    header.truncate(taken + seen);
    let _ = ready!(looked);
    Poll::Ready(seen)
}
