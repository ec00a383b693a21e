//! The prober of one node: asks for its health at an interval, and, when somebody is alarmed, at once, and knocks at its port
//! in quick succession. What it sees goes to the control plane, which judges.

mod grpc;

use std::fmt;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::Connection;
use http::{HeaderValue, Method, Version};
use shared::rng::{Rng, jitter};
use shared::{clock, drain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::client::parse::{self, Asked, Found};
use super::link::{self, DialError, Link, dial};
use super::session;
use crate::config::{Endpoint, Health, Question};
use crate::exchange::Cause;
use crate::exchange::decode::{Decoder, Malformed, Piece};
use crate::logic::NodeId;
use crate::logic::health::Statuses;

/// From one knock to the next while alarmed.
const KNOCK_EVERY: Duration = Duration::from_millis(25);
/// What is read of an answer's body, so that the node can finish writing it, in bytes.
const BODY_READ: usize = 64 << 10;

/// What a probe saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// At which node.
    pub node: NodeId,
    /// What.
    pub kind: Seen,
}

/// What a probe can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It answered as it should.
    Passed,
    /// It did not.
    Failed {
        /// For a person.
        why: String,
        /// In which way.
        how: How,
    },
    /// A knock was refused.
    Refused,
    /// A knock was answered.
    Answered,
}

/// In which way a probe failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The port refused the connection.
    Refused,
    /// Nothing came in time.
    Late,
    /// Something else than an answer that passes.
    Wrong,
}

/// Whom to probe, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// The node.
    pub node: NodeId,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// How.
    pub health: Health,
}

/// Probes until the drain begins or nobody listens any more. While `alert` is true it knocks, too.
pub async fn run(
    target: Target,
    alert: watch::Receiver<bool>,
    seen: mpsc::Sender<Observation>,
    rng: Rng,
    mut drain: drain::Watch,
) {
    tokio::select! {
        () = beat(&target, alert.clone(), &seen, rng) => (),
        () = knock(&target, alert, &seen) => (),
        () = drain.begun() => (),
    }
}

async fn beat(
    target: &Target,
    mut alert: watch::Receiver<bool>,
    seen: &mpsc::Sender<Observation>,
    mut rng: Rng,
) {
    let Health {
        interval,
        timeout: within,
        jitter: share,
        ..
    } = target.health;
    loop {
        // An alarm that comes from here on is answered with another question.
        alert.mark_unchanged();
        let next = clock::now() + jitter(interval, share, &mut rng);
        let mut rest = None;
        let kind = match timeout(within, ask(target)).await {
            Ok(Ok(answer)) => {
                rest = answer.rest;
                match answer.verdict {
                    Ok(()) => Seen::Passed,
                    Err(why) => Seen::Failed {
                        why,
                        how: How::Wrong,
                    },
                }
            }
            Ok(Err(failure)) => failure.seen(),
            Err(_) => Seen::Failed {
                why: format!("no answer within {} ms", within.as_millis()),
                how: How::Late,
            },
        };
        let node = target.node;
        if seen.send(Observation { node, kind }).await.is_err() {
            return;
        }
        if let Some(rest) = rest {
            // Whatever becomes of the body, the verdict stands.
            let _ = timeout(within, rest.drain()).await;
        }
        tokio::select! {
            () = clock::sleep_until(next) => (),
            () = alarm(&mut alert) => (),
        }
    }
}

/// Waits until somebody is alarmed who was not before.
async fn alarm(alert: &mut watch::Receiver<bool>) {
    loop {
        if alert.changed().await.is_err() {
            return std::future::pending().await;
        }
        if *alert.borrow_and_update() {
            return;
        }
    }
}

async fn knock(
    target: &Target,
    mut alert: watch::Receiver<bool>,
    seen: &mpsc::Sender<Observation>,
) {
    loop {
        if alert.wait_for(|alarmed| *alarmed).await.is_err() {
            // Nobody will ever be alarmed again; the beat goes on.
            return std::future::pending().await;
        }
        let next = clock::now() + KNOCK_EVERY;
        let dialed = timeout(
            target.health.timeout,
            link::knock(&target.endpoint, &mut None),
        )
        .await;
        let kind = match dialed {
            Ok(Ok(_)) => Some(Seen::Answered),
            Ok(Err(error)) if error.is_refusal() => Some(Seen::Refused),
            // Neither is certain: the next probe will tell.
            Ok(Err(_)) | Err(_) => None,
        };
        let node = target.node;
        if let Some(kind) = kind
            && seen.send(Observation { node, kind }).await.is_err()
        {
            return;
        }
        clock::sleep_until(next).await;
    }
}

/// Why an answer is not one.
#[derive(Debug)]
enum Failure {
    Dial(DialError),
    Talk(io::Error),
    Closed,
    Malformed(Malformed),
    Http2(Cause),
    Broken(String),
}

impl Failure {
    fn seen(&self) -> Seen {
        Seen::Failed {
            why: self.to_string(),
            how: match self {
                Self::Dial(error) if error.is_refusal() => How::Refused,
                Self::Dial(_)
                | Self::Talk(_)
                | Self::Closed
                | Self::Malformed(_)
                | Self::Http2(_)
                | Self::Broken(_) => How::Wrong,
            },
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial(error) => error.fmt(f),
            Self::Talk(error) => write!(f, "read the answer: {error}"),
            Self::Closed => f.write_str("closed without an answer"),
            Self::Http2(cause) => cause.fmt(f),
            Self::Broken(why) => write!(f, "no answer in HTTP/2: {why}"),
            Self::Malformed(Malformed(why)) => write!(f, "malformed answer: {why}"),
        }
    }
}

/// An answer whose head has come.
struct Answer {
    /// Whether it passes, or why not.
    verdict: Result<(), String>,
    rest: Option<Rest>,
}

/// What comes behind a head, on HTTP/1.1.
struct Rest {
    decoder: Decoder,
    bytes: BytesMut,
    link: Link,
}

impl Rest {
    /// Lets the node finish, within reason: it might log a reset as an error.
    async fn drain(mut self) {
        let mut left = BODY_READ;
        while left > 0 {
            match self.decoder.decode(&mut self.bytes) {
                Ok(Some(Piece::Data(data))) => left = left.saturating_sub(data.len()),
                Ok(Some(Piece::End)) | Err(_) => return,
                Ok(None) => match self.link.read_buf(&mut self.bytes).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => (),
                },
            }
        }
    }
}

impl Target {
    async fn dial(&self) -> Result<Link, DialError> {
        dial(&self.endpoint, &mut None).await
    }

    /// A request of HTTP/2 for `path`.
    fn request(&self, path: &str) -> http::request::Builder {
        let scheme = match &self.endpoint {
            Endpoint::Tls(..) => "https",
            Endpoint::Tcp(_) | Endpoint::H2c(_) | Endpoint::Unix(_) => "http",
        };
        let uri = format!("{scheme}://{}{path}", self.endpoint.authority());
        http::Request::builder().uri(uri).version(Version::HTTP_2)
    }
}

fn judge(statuses: &Statuses, status: u16) -> Result<(), String> {
    if statuses.contain(status) {
        return Ok(());
    }
    Err(format!("answered {status}"))
}

/// Asks once.
async fn ask(target: &Target) -> Result<Answer, Failure> {
    let mut link = target.dial().await.map_err(Failure::Dial)?;
    let is_http2 = link.is_http2(&target.endpoint);
    let (path, statuses) = match &target.health.question {
        Question::Grpc(service) if is_http2 => return ask_in_grpc(target, link, service).await,
        Question::Grpc(_) => {
            let why = "it chose HTTP/1.1, and gRPC needs HTTP/2".to_owned();
            return Err(Failure::Broken(why));
        }
        Question::Get { path, statuses } if is_http2 => {
            return ask_in_http2(target, link, path, statuses).await;
        }
        Question::Get { path, statuses } => (path, statuses),
    };
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: {}\r\nuser-agent: hotwarm\r\naccept: */*\r\nconnection: close\r\n\r\n",
        path,
        target.endpoint.authority()
    );
    let sent = link.write_all(request.as_bytes()).await;
    sent.map_err(Failure::Talk)?;
    let mut bytes = BytesMut::with_capacity(4096);
    loop {
        if link.read_buf(&mut bytes).await.map_err(Failure::Talk)? == 0 {
            return Err(Failure::Closed);
        }
        while let Some(found) =
            parse::response(&mut bytes, 0, Asked::default()).map_err(Failure::Malformed)?
        {
            match found {
                Found::Final(head) => {
                    return Ok(Answer {
                        verdict: judge(statuses, head.status.as_u16()),
                        rest: Some(Rest {
                            decoder: Decoder::new(head.framing),
                            bytes,
                            link,
                        }),
                    });
                }
                Found::Interim(_) => (),
            }
        }
    }
}

async fn ask_in_http2(
    target: &Target,
    link: Link,
    path: &str,
    statuses: &Statuses,
) -> Result<Answer, Failure> {
    let request = target
        .request(path)
        .header(http::header::USER_AGENT, "hotwarm")
        .header(http::header::ACCEPT, "*/*")
        .body(());
    let request = request.map_err(|_| Failure::Malformed(Malformed("the path is not valid")))?;
    let shaken = session::handshake(link).await;
    let (mut send, connection) = shaken.map_err(Failure::Http2)?;
    let asked = async {
        let (response, _) = send.send_request(request, true)?;
        Ok(response.await?.status().as_u16())
    };
    let status = driven(asked, connection).await.map_err(broken)?;
    Ok(Answer {
        verdict: judge(statuses, status),
        rest: None,
    })
}

/// `Health/Check` of gRPC, to the end of its trailers.
async fn ask_in_grpc(target: &Target, link: Link, service: &str) -> Result<Answer, Failure> {
    let request = target
        .request(grpc::PATH)
        .method(Method::POST)
        .header(http::header::CONTENT_TYPE, grpc::CONTENT_TYPE)
        .header(http::header::TE, "trailers")
        .header(http::header::USER_AGENT, "hotwarm")
        // Whoever is late is told not to bother.
        .header(
            "grpc-timeout",
            format!(
                "{}m",
                target.health.timeout.as_millis().clamp(1, 99_999_999)
            ),
        )
        .body(());
    let request = request.map_err(|_| Failure::Malformed(Malformed("the address is not valid")))?;
    let shaken = session::handshake(link).await;
    let (mut send, connection) = shaken.map_err(Failure::Http2)?;
    let asked = async {
        let (response, mut stream) = send.send_request(request, false)?;
        stream.send_data(grpc::question(service), true)?;
        let (head, mut answer) = response.await?.into_parts();
        let mut body = Vec::new();
        while let Some(data) = answer.data().await {
            let data = data?;
            answer.flow_control().release_capacity(data.len())?;
            body.extend_from_slice(&data);
            if body.len() > grpc::ANSWER_MOST {
                return Ok(Err(format!(
                    "answered with more than {} bytes",
                    grpc::ANSWER_MOST
                )));
            }
        }
        let trailers = answer.trailers().await?;
        let said = |name: &str| {
            let last = trailers.as_ref().unwrap_or(&head.headers);
            last.get(name).map(HeaderValue::as_bytes)
        };
        let kind = head.headers.get(http::header::CONTENT_TYPE);
        Ok(grpc::judge(&grpc::Reply {
            http: head.status.as_u16(),
            kind: kind.map_or(b"", HeaderValue::as_bytes),
            status: said("grpc-status"),
            message: said("grpc-message").unwrap_or_default(),
            body: &body,
        }))
    };
    let verdict = driven(asked, connection).await.map_err(broken)?;
    Ok(Answer {
        verdict,
        rest: None,
    })
}

fn broken(error: h2::Error) -> Failure {
    Failure::Broken(error.to_string())
}

/// What comes of `asked` on a connection of its own.
async fn driven<T>(
    asked: impl Future<Output = Result<T, h2::Error>>,
    connection: Connection<Link, Bytes>,
) -> Result<T, h2::Error> {
    let (mut asked, mut connection) = (pin!(asked), pin!(connection));
    tokio::select! {
        biased;
        answered = &mut asked => return answered,
        _ = &mut connection => (),
    }
    // What came before its end is there now.
    asked.await
}
