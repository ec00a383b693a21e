//! The operator's HTTP door, and syncd's door for its peers: a small HTTP/1.1 server with bounded everything.
//!
//! It knows no routes. Each program hands it one function from request to answer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use crate::drain::Watch;

/// Connections at one time; more wait in the kernel's queue.
const CONNECTIONS_MOST: usize = 1024;
/// The largest request body that is read.
const BODY_LIMIT: usize = 1 << 20;
/// How long a client may take over its request head.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// The body of an answer: all of it, or pieces as they come.
#[derive(Debug)]
pub enum Payload {
    /// Everything at once; `None` once handed out.
    Whole(Option<Bytes>),
    /// Piece by piece until the sender is dropped.
    Pieces(mpsc::Receiver<Bytes>),
}

/// What a handler returns.
pub type Answer = Response<Payload>;

impl Body for Payload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Pieces(pieces) => pieces
                .poll_recv(cx)
                .map(|piece| piece.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Pieces(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}

/// An answer of any media type.
pub fn answer(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    with_payload(status, media_type, Payload::Whole(Some(body.into())))
}

/// An answer whose pieces come over time.
#[must_use]
pub fn pieces(media_type: &'static str, pieces: mpsc::Receiver<Bytes>) -> Answer {
    with_payload(StatusCode::OK, media_type, Payload::Pieces(pieces))
}

fn with_payload(status: StatusCode, media_type: &'static str, payload: Payload) -> Answer {
    let mut answer = Response::new(payload);
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// `value` as a JSON answer.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => answer(status, "application/json", body),
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("encode answer: {error}"),
        ),
    }
}

/// A line of plain text as an answer.
pub fn text(status: StatusCode, line: impl Into<String>) -> Answer {
    let mut line: String = line.into();
    line.push('\n');
    answer(status, "text/plain; charset=utf-8", line)
}

/// The answer to a caller without the right token.
#[must_use]
pub fn unauthorized() -> Answer {
    let mut answer = text(
        StatusCode::UNAUTHORIZED,
        "this call needs the bearer token of the token_file",
    );
    answer
        .headers_mut()
        .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer
}

/// Whether the request shows `token`; always when there is none to show. Compares in constant time.
#[must_use]
pub fn is_authorized(headers: &HeaderMap, token: Option<&str>) -> bool {
    let Some(token) = token else { return true };
    let shown = headers
        .get(AUTHORIZATION)
        .map(HeaderValue::as_bytes)
        .and_then(|value| value.strip_prefix(b"Bearer "));
    shown.is_some_and(|shown| {
        shown.len() == token.len()
            && shown
                .iter()
                .zip(token.as_bytes())
                .fold(0, |diff, (a, b)| diff | (a ^ b))
                == 0
    })
}

/// Reads the request's body as a `T`; an empty body reads as `{}`.
///
/// # Errors
/// The ready-made 4xx answer.
pub async fn read_json<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Answer> {
    let body = Limited::new(request.into_body(), BODY_LIMIT)
        .collect()
        .await;
    let body = body
        .map_err(|error| {
            text(
                StatusCode::BAD_REQUEST,
                format!("read request body: {error}"),
            )
        })?
        .to_bytes();
    let body = if body.is_empty() {
        Bytes::from_static(b"{}")
    } else {
        body
    };
    serde_json::from_slice(&body)
        .map_err(|error| text(StatusCode::BAD_REQUEST, format!("request body: {error}")))
}

/// The value of `name` in the request's query, undecoded: our own parameters are words and numbers.
#[must_use]
pub fn query<'r>(request: &'r Request<Incoming>, name: &str) -> Option<&'r str> {
    let pairs = request.uri().query()?.split('&');
    pairs
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

/// Opens the door at `address`.
///
/// # Errors
/// With the address and, for a port in use, what to do.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = if error.kind() == io::ErrorKind::AddrInUse {
            "; another program listens there: stop it, or choose another port"
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            "; ports below 1024 need the right to bind them"
        } else if error.kind() == io::ErrorKind::AddrNotAvailable {
            "; this machine does not have that address"
        } else {
            ""
        };
        io::Error::new(
            error.kind(),
            format!("listen on {address}: {error}{advice}"),
        )
    })
}

/// Answers requests with `handle` until the drain begins, then finishes those under way.
pub async fn serve<H, F>(listener: TcpListener, mut drain: Watch, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let handle = Arc::new(handle);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MOST));
    loop {
        let accepted = tokio::select! {
            () = drain.begun() => return,
            accepted = async {
                let room = Arc::clone(&room).acquire_owned().await;
                (listener.accept().await, room)
            } => accepted,
        };
        let (Ok((socket, _)), Ok(room)) = accepted else {
            // Out of descriptors or a connection that died in the queue: give others a moment to finish.
            crate::clock::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = socket.set_nodelay(true);
        let handle = Arc::clone(&handle);
        let mut drain = drain.clone();
        tokio::spawn(async move {
            let _room = room;
            let service = service_fn(move |request| {
                let answered = handle(request);
                async move { Ok::<_, std::convert::Infallible>(answered.await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .serve_connection(TokioIo::new(socket), service)
                .with_upgrades();
            tokio::pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = drain.begun() => {
                    connection.as_mut().graceful_shutdown();
                    drop(drain);
                    connection.await
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "admin connection ended");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{CallError, Peer};
    use crate::drain;

    #[test]
    fn a_token_must_match_whole() {
        let mut headers = HeaderMap::new();
        assert!(is_authorized(&headers, None));
        assert!(!is_authorized(&headers, Some("secret")));
        for (shown, fits) in [
            ("Bearer secret", true),
            ("Bearer secre", false),
            ("Bearer secretx", false),
            ("secret", false),
        ] {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(shown));
            assert_eq!(is_authorized(&headers, Some("secret")), fits, "{shown}");
        }
    }

    #[tokio::test]
    async fn a_call_reaches_the_handler_and_a_drain_ends_the_server() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (signal, watch) = drain::channel();
        let server = tokio::spawn(serve(
            listener,
            watch,
            |request: Request<Incoming>| async move {
                match request.uri().path() {
                    "/echo" => match read_json::<serde_json::Value>(request).await {
                        Ok(value) => json(StatusCode::OK, &value),
                        Err(answer) => answer,
                    },
                    _ => text(StatusCode::NOT_FOUND, "no such call"),
                }
            },
        ));
        let peer = Peer::new(&url, None).unwrap();
        let within = Duration::from_secs(5);
        let sent = serde_json::json!({"a": 1});
        assert_eq!(
            peer.post::<_, serde_json::Value>("/echo", &sent, within)
                .await
                .unwrap(),
            sent
        );
        let error = peer
            .get::<serde_json::Value>("/none", within)
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                CallError::Status {
                    status: StatusCode::NOT_FOUND,
                    ..
                }
            ),
            "{error}"
        );
        assert!(signal.drain(within).await);
        server.await.unwrap();
        assert!(matches!(
            peer.get::<serde_json::Value>("/echo", within).await,
            Err(CallError::Connect { .. })
        ));
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_what_to_do() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).await.unwrap_err().to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("choose another port"),
            "{error}"
        );
    }
}
