//! The door: orders of the arbiter, questions of operators, sessions of other syncds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use shared::admin::{
    Answer, Payload, answer, is_authorized, json, pieces, query, read_json, text, unauthorized,
};
use shared::api::{Refusal, Refused};
use shared::call::Peer;
use shared::clock;
use shared::metrics::{self, Registry};
use shared::model::{Epoch, Position};
use tokio::sync::mpsc;

use crate::diverged;
use crate::link;
use crate::node::Node;
use crate::store::Store;
use crate::wire::message::{PROTOCOL, Point};

/// Reports follow each other no faster than this.
const WATCH_PACE: Duration = Duration::from_millis(10);
/// And no slower.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// A barrier waits this long if it is not told otherwise, and never longer.
const BARRIER_WITHIN: Duration = Duration::from_secs(2);
const BARRIER_MOST: Duration = Duration::from_secs(60);
/// How long the primary may take to say what its content was.
const POINT_WITHIN: Duration = Duration::from_secs(5);

/// What the door needs.
#[derive(Debug)]
pub struct Door {
    /// This node.
    pub node: Arc<Node>,
    /// All numbers.
    pub registry: Registry,
    /// Where diverged writes are kept.
    pub store: Store,
    /// The secret that callers show.
    pub token: Option<String>,
    /// Caps snapshots and resyncs, in bytes per second.
    pub rate: Option<u64>,
}

/// How one source compares with the primary's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The source.
    pub source: String,
    /// Where the two were compared.
    pub position: Option<Position>,
    /// Checksum of the content here, read anew from the disk.
    pub here: Option<String>,
    /// The primary's at the same position.
    pub there: Option<String>,
    /// What is wrong, if anything.
    pub error: Option<String>,
}

impl Verdict {
    /// Whether both are the same.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.error.is_none() && self.here.is_some() && self.here == self.there
    }
}

/// Answers one request.
pub async fn handle(door: Arc<Door>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "/healthz") => return text(StatusCode::OK, "ok"),
        (&Method::GET, "/metrics") => {
            // Gauges are brought up to date by looking.
            let _ = door.node.report();
            return answer(
                StatusCode::OK,
                metrics::TEXT,
                metrics::render(&door.registry),
            );
        }
        _ => (),
    }
    if !is_authorized(request.headers(), door.token.as_deref()) {
        return unauthorized();
    }
    match (request.method(), path.as_str()) {
        (&Method::GET, "/v1/status") => json(StatusCode::OK, &door.node.status()),
        (&Method::GET, "/v1/watch") => watch(&door),
        (&Method::POST, "/v1/promise" | "/v1/fence") => match read_json(request).await {
            Ok(order) => obeyed(door.node.seal(order).await),
            Err(answer) => answer,
        },
        (&Method::POST, "/v1/lead") => match read_json(request).await {
            Ok(order) => obeyed(door.node.lead(order).await),
            Err(answer) => answer,
        },
        (&Method::POST, "/v1/follow") => match read_json(request).await {
            Ok(order) => obeyed(door.node.follow(order).await),
            Err(answer) => answer,
        },
        (&Method::GET, "/v1/barrier") => barrier(&door, &request).await,
        (&Method::GET, "/v1/stream") => stream(&door, request),
        (&Method::GET, "/v1/point") => point(&door, &request),
        (&Method::POST, "/v1/verify") => json(StatusCode::OK, &verify(&door).await),
        (&Method::GET, "/v1/diverged") => match diverged::list(&door.store.diverged()) {
            Ok(list) => json(StatusCode::OK, &list),
            Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, why),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            format!("no such call: {} {path}", request.method()),
        ),
    }
}

fn obeyed<T: Serialize>(result: Result<T, Refusal>) -> Answer {
    match result {
        Ok(done) => json(StatusCode::OK, &done),
        Err(refusal) => {
            let status = match refusal.error {
                Refused::StaleEpoch
                | Refused::OtherCluster
                | Refused::NotPrimary
                | Refused::Behind => StatusCode::CONFLICT,
                Refused::Timeout => StatusCode::GATEWAY_TIMEOUT,
                Refused::Failed => StatusCode::SERVICE_UNAVAILABLE,
            };
            json(status, &refusal)
        }
    }
}

async fn barrier(door: &Door, request: &Request<Incoming>) -> Answer {
    let Some(epoch) = query(request, "epoch")
        .and_then(|epoch| epoch.parse().ok())
        .map(Epoch)
    else {
        return text(StatusCode::BAD_REQUEST, "epoch: missing, or not a number");
    };
    let within = query(request, "within_ms")
        .and_then(|millis| millis.parse().ok())
        .map(Duration::from_millis);
    obeyed(
        door.node
            .barrier(epoch, within.unwrap_or(BARRIER_WITHIN).min(BARRIER_MOST))
            .await,
    )
}

/// A line of JSON at every change, until the caller leaves.
fn watch(door: &Arc<Door>) -> Answer {
    let (lines, body) = mpsc::channel(1);
    let node = Arc::clone(&door.node);
    tokio::spawn(async move {
        let mut changes = node.changes();
        loop {
            changes.borrow_and_update();
            let Ok(mut line) = serde_json::to_vec(&node.report()) else {
                return;
            };
            line.push(b'\n');
            if lines.send(Bytes::from(line)).await.is_err() {
                return;
            }
            clock::sleep(WATCH_PACE).await;
            let ended = tokio::select! {
                changed = tokio::time::timeout(WATCH_EVERY, changes.changed()) => matches!(changed, Ok(Err(_))),
                () = lines.closed() => true,
            };
            if ended {
                return;
            }
        }
    });
    pieces("application/x-ndjson", body)
}

/// A session of another syncd's.
fn stream(door: &Arc<Door>, request: Request<Incoming>) -> Answer {
    let source = query(&request, "source").unwrap_or_default().to_owned();
    let Some(replica) = door
        .node
        .replicas()
        .iter()
        .find(|replica| replica.name() == source)
        .cloned()
    else {
        return text(
            StatusCode::NOT_FOUND,
            format!(
                "source \"{source}\" is not configured on node \"{}\"",
                door.node.name()
            ),
        );
    };
    let asks = request
        .headers()
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()));
    if !asks {
        return text(
            StatusCode::UPGRADE_REQUIRED,
            format!("this call needs `Upgrade: {PROTOCOL}`"),
        );
    }
    let (node, rate) = (Arc::clone(&door.node), door.rate);
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => link::serve(node, replica, TokioIo::new(upgraded), rate).await,
            Err(error) => tracing::debug!(%error, "a session was not upgraded"),
        }
    });
    let mut answer = Response::new(Payload::Whole(None));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer
        .headers_mut()
        .insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    answer
}

/// What the content of a source was after increment `seq`.
fn point(door: &Door, request: &Request<Incoming>) -> Answer {
    let replica = query(request, "source").and_then(|name| {
        door.node
            .replicas()
            .iter()
            .find(|replica| replica.name() == name)
    });
    let seq = query(request, "seq").and_then(|seq| seq.parse().ok());
    let (Some(replica), Some(seq)) = (replica, seq) else {
        return text(StatusCode::BAD_REQUEST, "source and seq are needed");
    };
    match replica.point_at(seq) {
        Some(point) => json(
            StatusCode::OK,
            &Point {
                position: point.position,
                content: point.content,
            },
        ),
        None => text(
            StatusCode::NOT_FOUND,
            format!(
                "increment {seq} is not in the log of source \"{}\"",
                replica.name()
            ),
        ),
    }
}

/// Reads every source anew, and compares with what the primary had at the same position.
async fn verify(door: &Door) -> Vec<Verdict> {
    let last = door.node.held().last.filter(|last| !last.url.is_empty());
    let primary = last.and_then(|last| Peer::new(&last.url, door.token.as_deref()).ok());
    let mut verdicts = Vec::new();
    for replica in door.node.replicas() {
        let source = replica.name().to_owned();
        let mut verdict = Verdict {
            source,
            position: None,
            here: None,
            there: None,
            error: None,
        };
        match replica.verify().await {
            Ok(Some(point)) => {
                verdict.position = Some(point.position);
                verdict.here = Some(format!("{:016x}", point.content));
                compare(&mut verdict, primary.as_ref(), point.position).await;
            }
            Ok(None) => {
                verdict.error = Some("there is no database, or it is not a copy yet".to_owned());
            }
            Err(error) => verdict.error = Some(error.to_string()),
        }
        verdicts.push(verdict);
    }
    verdicts
}

async fn compare(verdict: &mut Verdict, primary: Option<&Peer>, position: Position) {
    let Some(primary) = primary else {
        // A primary compares with nobody.
        verdict.there.clone_from(&verdict.here);
        return;
    };
    let path = format!("/v1/point?source={}&seq={}", verdict.source, position.seq);
    match primary.get::<Point>(&path, POINT_WITHIN).await {
        Ok(point) if point.position == position => {
            verdict.there = Some(format!("{:016x}", point.content));
        }
        Ok(point) => {
            verdict.error = Some(format!(
                "the primary has {} where this node has {position}",
                point.position
            ));
        }
        Err(error) => verdict.error = Some(error.to_string()),
    }
}
