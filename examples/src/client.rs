//! A small HTTP/1.1 client that keeps connections and never repeats a request that may have been sent.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::TcpStream;

/// Idle connections kept.
const IDLE_MOST: usize = 256;
/// The largest answer that is read.
const BODY_LIMIT: usize = 16 << 20;

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON, if it is that.
    #[must_use]
    pub fn json<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum Lost {
    /// Nobody listens; nothing was sent.
    #[error("connect: {0}")]
    Connect(std::io::Error),
    /// The connection ended first; the request may have been carried out.
    #[error("the connection was lost: {0}")]
    Broken(String),
    /// Time ran out; the request may have been carried out.
    #[error("no answer in time")]
    Late,
}

/// One server, and the connections to it.
#[derive(Debug)]
pub struct Client {
    server: SocketAddr,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// A client of `server`.
    #[must_use]
    pub const fn new(server: SocketAddr) -> Self {
        Self {
            server,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// `GET path`.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn get(&self, path: &str, within: Duration) -> Result<Answer, Lost> {
        self.send(Method::GET, path, Bytes::new(), within).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn post(
        &self,
        path: &str,
        body: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Answer, Lost> {
        self.send(Method::POST, path, body.into(), within).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> Result<Answer, Lost> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.server.to_string());
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Lost::Broken(error.to_string()))?;
        tokio::time::timeout(within, self.exchange(request))
            .await
            .unwrap_or(Err(Lost::Late))
    }

    /// Tries kept connections for as long as they prove to be closed before anything was sent, then a fresh one.
    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, Lost> {
        while let Some(mut kept) = self.take() {
            match kept.try_send_request(request).await {
                Ok(response) => return self.read(response, kept).await,
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Lost::Broken(error.into_error().to_string())),
                },
            }
        }
        let mut fresh = self.connect().await?;
        match fresh.send_request(request).await {
            Ok(response) => self.read(response, fresh).await,
            Err(error) => Err(Lost::Broken(error.to_string())),
        }
    }

    async fn read(
        &self,
        response: hyper::Response<hyper::body::Incoming>,
        connection: SendRequest<Full<Bytes>>,
    ) -> Result<Answer, Lost> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, BODY_LIMIT).collect().await;
        let body = body.map_err(|error| Lost::Broken(error.to_string()))?;
        self.keep(connection);
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Lost> {
        let socket = TcpStream::connect(self.server)
            .await
            .map_err(Lost::Connect)?;
        // Only a matter of speed.
        let _ = socket.set_nodelay(true);
        let (sender, connection) = handshake(TokioIo::new(socket))
            .await
            .map_err(|error| Lost::Broken(error.to_string()))?;
        // Its error, if any, shows in the response.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn take(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        let ready = idle.iter().rposition(SendRequest::is_ready)?;
        Some(idle.swap_remove(ready))
    }

    fn keep(&self, connection: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.is_closed() && idle.len() < IDLE_MOST {
            idle.push(connection);
        }
    }
}
