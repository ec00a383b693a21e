//! Calling a JSON door: one connection a call, a deadline on every one, typed answers, and refusals kept apart from failures.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::TcpStream;

use crate::api::Refusal;

/// The largest answer that is read into memory.
const ANSWER_LIMIT: usize = 16 << 20;

/// Why a call brought no answer.
#[derive(Debug, Error)]
pub enum CallError {
    /// Nobody is there: nothing was sent.
    #[error("connect to {peer}: {source}")]
    Connect {
        /// Who was called.
        peer: String,
        /// What the system said.
        source: io::Error,
    },
    /// The deadline passed; the other side may or may not have acted.
    #[error("{peer} did not answer within {within:?}")]
    Timeout {
        /// Who was called.
        peer: String,
        /// The deadline.
        within: Duration,
    },
    /// The other side answered that it does not do this.
    #[error("{}", refusal.message)]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Its reason.
        refusal: Box<Refusal>,
    },
    /// It answered with a status that carries no refusal of ours.
    #[error("{peer} answered {status}: {body}")]
    Status {
        /// Who was called.
        peer: String,
        /// The HTTP status.
        status: StatusCode,
        /// The beginning of the body.
        body: String,
    },
    /// The connection broke or the answer made no sense; the other side may have acted.
    #[error("talk to {peer}: {why}")]
    Broken {
        /// Who was called.
        peer: String,
        /// What went wrong.
        why: String,
    },
}

/// A base URL that is not one of ours.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BadUrl(pub String);

/// Somebody who can be called.
#[derive(Clone, Debug)]
pub struct Peer {
    authority: String,
    host: HeaderValue,
    token: Option<HeaderValue>,
}

impl Peer {
    /// Takes a base URL, `http://host:port`, and the bearer token to show.
    ///
    /// # Errors
    /// The URL has another form, or the token has characters that no header may carry.
    pub fn new(url: &str, token: Option<&str>) -> Result<Self, BadUrl> {
        let bad = |why: &str| {
            BadUrl(format!(
                "\"{url}\" is not a base URL: {why}; expected http://HOST:PORT"
            ))
        };
        let authority = url
            .strip_prefix("http://")
            .ok_or_else(|| bad("it does not begin with http://"))?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let port = authority.rsplit_once(':').and_then(|(host, port)| {
            (!host.is_empty())
                .then(|| port.parse::<u16>().ok())
                .flatten()
        });
        if port.is_none_or(|port| port == 0) {
            return Err(bad("host and port are needed"));
        }
        let parsed: http::uri::Authority = authority
            .parse()
            .map_err(|_| bad("the host is not valid"))?;
        if parsed.as_str() != authority || authority.contains('@') {
            return Err(bad("nothing may follow the port"));
        }
        let host = HeaderValue::from_str(authority).map_err(|_| bad("the host is not valid"))?;
        let token = token
            .map(|token| HeaderValue::from_str(&format!("Bearer {token}")))
            .transpose()
            .map_err(|_| {
                BadUrl("the token has characters that a header cannot carry".to_owned())
            })?;
        Ok(Self {
            authority: authority.to_owned(),
            host,
            token,
        })
    }

    /// Host and port.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// `GET path`, the answer as a `T`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        within: Duration,
    ) -> Result<T, CallError> {
        self.call(Method::GET, path, Bytes::new(), within).await
    }

    /// `POST path` with `body`, the answer as a `T`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        within: Duration,
    ) -> Result<T, CallError> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        self.call(Method::POST, path, body.into(), within).await
    }

    /// `GET path` with only the head awaited: the body comes as it comes, for streams of lines.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn stream(&self, path: &str, within: Duration) -> Result<Incoming, CallError> {
        self.within(within, async {
            let response = self
                .send(self.request(Method::GET, path, Bytes::new())?)
                .await?;
            Ok(self.expect_ok(response, StatusCode::OK).await?.into_body())
        })
        .await
    }

    /// `GET path` asking for `protocol`; the connection itself once the other side agreed.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
        within: Duration,
    ) -> Result<hyper::upgrade::Upgraded, CallError> {
        self.within(within, async {
            let mut request = self.request(Method::GET, path, Bytes::new())?;
            request
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("upgrade"));
            request
                .headers_mut()
                .insert(UPGRADE, HeaderValue::from_static(protocol));
            let response = self
                .expect_ok(self.send(request).await?, StatusCode::SWITCHING_PROTOCOLS)
                .await?;
            hyper::upgrade::on(response)
                .await
                .map_err(|error| self.broken(error))
        })
        .await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> Result<T, CallError> {
        self.within(within, async {
            let response = self.send(self.request(method, path, body)?).await?;
            let response = self.expect_ok(response, StatusCode::OK).await?;
            let body = self.body(response).await?;
            serde_json::from_slice(&body).map_err(|error| self.broken(error))
        })
        .await
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, CallError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        request
            .body(Full::new(body))
            .map_err(|error| self.broken(error))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, CallError> {
        let socket = TcpStream::connect(&self.authority).await;
        let socket = socket.map_err(|source| CallError::Connect {
            peer: self.authority.clone(),
            source,
        })?;
        let _ = socket.set_nodelay(true);
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|error| self.broken(error))?;
        // The connection is driven beside the call and ends with it: its error, if any, shows in the response.
        tokio::spawn(connection.with_upgrades());
        sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(error))
    }

    async fn expect_ok(
        &self,
        response: Response<Incoming>,
        wanted: StatusCode,
    ) -> Result<Response<Incoming>, CallError> {
        let status = response.status();
        if status == wanted || (wanted == StatusCode::OK && status.is_success()) {
            return Ok(response);
        }
        let body = self.body(response).await?;
        if let Ok(refusal) = serde_json::from_slice::<Refusal>(&body) {
            return Err(CallError::Refused {
                status,
                refusal: Box::new(refusal),
            });
        }
        let body = String::from_utf8_lossy(&body[..body.len().min(300)])
            .trim()
            .to_owned();
        Err(CallError::Status {
            peer: self.authority.clone(),
            status,
            body,
        })
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, CallError> {
        let body = Limited::new(response.into_body(), ANSWER_LIMIT)
            .collect()
            .await;
        Ok(body.map_err(|error| self.broken(error))?.to_bytes())
    }

    async fn within<T>(
        &self,
        within: Duration,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let late = |_| CallError::Timeout {
            peer: self.authority.clone(),
            within,
        };
        tokio::time::timeout(within, call).await.map_err(late)?
    }

    fn broken(&self, why: impl ToString) -> CallError {
        CallError::Broken {
            peer: self.authority.clone(),
            why: why.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_host_and_port_and_nothing_else() {
        assert_eq!(
            Peer::new("http://127.0.0.1:7001", None)
                .unwrap()
                .authority(),
            "127.0.0.1:7001"
        );
        assert_eq!(
            Peer::new("http://[::1]:7001/", Some("t"))
                .unwrap()
                .authority(),
            "[::1]:7001"
        );
        for url in [
            "127.0.0.1:7001",
            "https://a:1",
            "http://a",
            "http://a:0",
            "http://a:1/x",
            "http://u@a:1",
            "http://:1",
            "http://a b:1",
        ] {
            assert!(Peer::new(url, None).is_err(), "{url}");
        }
        assert!(Peer::new("http://a:1", Some("two\nlines")).is_err());
    }
}
