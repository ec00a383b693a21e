//! The beginning of an encrypted connection, in bounded time.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;

use rustls::{Error as TlsError, InvalidMessage};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Front;

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
            let why = "the client did not finish its handshake within header_timeout";
            return Poll::Ready(Err(Some(("timeout", why.to_owned()))));
        }
        Poll::Pending
    });
    match shaken.await {
        Ok(stream) => Some(stream),
        Err(why) => {
            if let Some((reason, why)) = why {
                front.failures.handshake(peer, reason, &why);
            }
            None
        }
    }
}

/// What went wrong, as a word for numbers and as a sentence that says what to do if anything can be done; `None` if the
/// client only went away.
fn why(error: &io::Error) -> Option<(&'static str, String)> {
    let tls: &TlsError = error.get_ref().and_then(|inner| inner.downcast_ref())?;
    let (reason, words) = match Some(tls) {
        Some(TlsError::InvalidMessage(InvalidMessage::InvalidContentType)) => (
            "not-tls",
            "the client does not speak TLS; if it speaks plain HTTP, let it use https:// or another port",
        ),
        Some(TlsError::NoApplicationProtocol) => (
            "no-common-protocol",
            "the client speaks no protocol that is offered (h2, http/1.1)",
        ),
        Some(TlsError::NoCertificatesPresented | TlsError::InvalidCertificate(_)) => {
            return Some(("client-certificate", tls.to_string()));
        }
        Some(TlsError::PeerIncompatible(_)) => return Some(("incompatible", tls.to_string())),
        Some(TlsError::AlertReceived(_)) => return Some(("refused-by-client", tls.to_string())),
        _ => return Some(("protocol-error", tls.to_string())),
    };
    Some((reason, words.to_owned()))
}
