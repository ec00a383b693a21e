//! The beginning of an encrypted connection, in bounded time.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustls::{Error as TlsError, InvalidMessage};
use shared::clock;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Front;

/// One failure is told in this time; the others are counted.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Shakes hands; `None` if nothing came of it, which is told.
pub(super) async fn shake<S>(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: &TlsAcceptor,
    front: &Front<S>,
) -> Option<TlsStream<TcpStream>> {
    let deadline = front.deadlines.after(front.limits.header_timeout);
    let mut accepting = pin!(acceptor.accept(stream));
    let shaken = poll_fn(|context| {
        if let Poll::Ready(shaken) = accepting.as_mut().poll(context) {
            return Poll::Ready(shaken.map_err(|error| why(&error)));
        }
        // Its request would not be taken any more.
        if front.house.is_closing() {
            return Poll::Ready(Err(None));
        }
        if deadline.has_passed(context) {
            return Poll::Ready(Err(Some(
                "the client did not finish its handshake within header_timeout".to_owned(),
            )));
        }
        Poll::Pending
    });
    match shaken.await {
        Ok(stream) => Some(stream),
        Err(why) => {
            if let Some(why) = why {
                front.failures.tell(peer, &why);
            }
            None
        }
    }
}

/// What went wrong, and what to do if anything can be done; `None` if the client only went away.
fn why(error: &io::Error) -> Option<String> {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    let words = match tls {
        Some(TlsError::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "the client does not speak TLS; if it speaks plain HTTP, let it use https:// or another port"
        }
        Some(TlsError::NoApplicationProtocol) => {
            "the client speaks no protocol that is offered (http/1.1)"
        }
        Some(other) => return Some(other.to_string()),
        None => return None,
    };
    Some(words.to_owned())
}

/// Failed handshakes on their way to the log: anybody can cause any number of them.
#[derive(Debug, Default)]
pub struct Failures {
    told: Cell<Option<Instant>>,
    untold: Cell<u64>,
}

impl Failures {
    fn tell(&self, peer: SocketAddr, why: &str) {
        if let Some(untold) = self.handle_failure(clock::now()) {
            tracing::info!(%peer, why, untold, "a TLS handshake failed");
        }
    }

    /// Whether to tell this one, and how many were not told since the last one that was.
    fn handle_failure(&self, now: Instant) -> Option<u64> {
        let told = self.told.get();
        if told.is_some_and(|told| now.duration_since(told) < TELL_EVERY) {
            self.untold.set(self.untold.get().saturating_add(1));
            return None;
        }
        self.told.set(Some(now));
        Some(self.untold.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_once_a_second_and_none_is_left_uncounted() {
        let (failures, began) = (Failures::default(), clock::now());
        let at = |millis| failures.handle_failure(began + Duration::from_millis(millis));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(10), at(999)), (None, None));
        assert_eq!(at(1000), Some(2));
        assert_eq!(at(2500), Some(0));
    }
}
