//! The operator's door: status page, JSON, metrics, orders.

mod page;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::ACCEPT;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use shared::admin::{Answer, answer, is_authorized, json, pieces, read_json, text, unauthorized};
use shared::metrics::{self, Registry};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::control::{Chronicle, Control, Entry};
use crate::logic::failover::Order;

/// What the door needs.
#[derive(Debug)]
pub struct Door {
    known: ArcSwap<Known>,
    chronicle: Chronicle,
    registry: Registry,
    reloads: mpsc::Sender<Reload>,
}

/// What a reload may change.
#[derive(Debug, Default)]
struct Known {
    services: BTreeMap<String, Control>,
    token: Option<Arc<str>>,
}

/// Somebody wants the configuration to be read again.
#[derive(Debug)]
pub struct Reload {
    /// Where to say what came of it.
    pub answer: oneshot::Sender<Result<Reloaded, String>>,
}

/// The answer to a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// In words.
    pub message: String,
    /// Everything that is different now.
    pub changed: Vec<String>,
}

impl Reloaded {
    /// This is different now.
    #[must_use]
    pub fn new(changed: Vec<String>) -> Self {
        let message = if changed.is_empty() {
            "reloaded; nothing has changed".to_owned()
        } else {
            format!("reloaded; {}", changed.join(", "))
        };
        Self { message, changed }
    }
}

/// The answer to an order that was carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Result202 {
    /// In words.
    pub message: String,
    /// For how long nobody took requests, in milliseconds.
    pub unavailable_ms: Option<f64>,
}

/// The answer to an order that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why, and what to do.
    pub error: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    to: Option<String>,
    #[serde(default)]
    accept_data_loss: bool,
}

/// Answers one request.
pub async fn handle(door: Arc<Door>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    if request.method() == Method::POST {
        if !is_authorized(request.headers(), door.known.load().token.as_deref()) {
            return unauthorized();
        }
        return match parts.as_slice() {
            [
                "api",
                "v1",
                "services",
                service,
                what @ ("switchover" | "promote"),
            ] => door.ask(service, what, request).await,
            [
                "api",
                "v1",
                "services",
                service,
                "nodes",
                node,
                what @ ("drain" | "undrain" | "rejoin"),
            ] => door.ask_node(service, node, what).await,
            ["api", "v1", "reload"] => door.reload().await,
            _ => not_found(&request),
        };
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD or POST");
    }
    match parts.as_slice() {
        [""] => answer(
            StatusCode::OK,
            "text/html; charset=utf-8",
            page::render(&door.views(), &door.chronicle.all()),
        ),
        ["healthz"] => text(StatusCode::OK, "ok"),
        ["readyz"] => door.ready(),
        ["metrics"] => answer(
            StatusCode::OK,
            metrics::TEXT,
            metrics::render(&door.registry),
        ),
        ["api", "v1", "services"] => json(StatusCode::OK, &door.views()),
        ["api", "v1", "services", name] => match door.service(name) {
            Some(control) => json(StatusCode::OK, &**control.view.borrow()),
            None => text(StatusCode::NOT_FOUND, door.unknown(name)),
        },
        ["api", "v1", "events"] => door.events(&request),
        _ => not_found(&request),
    }
}

fn not_found(request: &Request<Incoming>) -> Answer {
    text(
        StatusCode::NOT_FOUND,
        format!(
            "no such call: {} {}",
            request.method(),
            request.uri().path()
        ),
    )
}

fn refused(error: String) -> Answer {
    json(StatusCode::CONFLICT, &Refused { error })
}

impl Door {
    /// A door without services yet.
    #[must_use]
    pub fn new(chronicle: Chronicle, registry: Registry, reloads: mpsc::Sender<Reload>) -> Self {
        Self {
            known: ArcSwap::default(),
            chronicle,
            registry,
            reloads,
        }
    }

    /// There are these services from now on, and callers show this for what changes something.
    pub fn change(&self, services: BTreeMap<String, Control>, token: Option<Arc<str>>) {
        self.known.store(Arc::new(Known { services, token }));
    }

    fn service(&self, name: &str) -> Option<Control> {
        self.known.load().services.get(name).cloned()
    }

    async fn reload(&self) -> Answer {
        let (answer, done) = oneshot::channel();
        if self.reloads.try_send(Reload { answer }).is_err() {
            return refused("other reloads are under way, or the program ends".to_owned());
        }
        match done.await {
            Ok(Ok(reloaded)) => json(StatusCode::ACCEPTED, &reloaded),
            Ok(Err(why)) => refused(why),
            Err(_) => refused("the program ends".to_owned()),
        }
    }

    fn views(&self) -> Vec<Arc<crate::control::ServiceView>> {
        let known = self.known.load();
        known
            .services
            .values()
            .map(|control| Arc::clone(&control.view.borrow()))
            .collect()
    }

    fn unknown(&self, name: &str) -> String {
        let known = self.known.load();
        let names: Vec<_> = known.services.keys().map(String::as_str).collect();
        format!("no service \"{name}\"; there is: {}", names.join(", "))
    }

    /// Ready when every service has a node that may take writes.
    fn ready(&self) -> Answer {
        let waiting: Vec<_> = self
            .views()
            .iter()
            .filter(|view| view.phase != "serving")
            .map(|view| {
                format!(
                    "{}: {} ({})",
                    view.name,
                    view.phase,
                    view.why.as_deref().unwrap_or("-")
                )
            })
            .collect();
        if waiting.is_empty() {
            text(StatusCode::OK, "ready")
        } else {
            text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {}", waiting.join("; ")),
            )
        }
    }

    async fn ask(&self, service: &str, what: &str, request: Request<Incoming>) -> Answer {
        let Some(control) = self.service(service) else {
            return text(StatusCode::NOT_FOUND, self.unknown(service));
        };
        let wish: Wish = match read_json(request).await {
            Ok(wish) => wish,
            Err(answer) => return answer,
        };
        let to = match wish
            .to
            .as_deref()
            .map(|name| control.node(name).ok_or(name))
            .transpose()
        {
            Ok(to) => to,
            Err(name) => {
                return text(
                    StatusCode::NOT_FOUND,
                    format!("service \"{service}\" has no node \"{name}\""),
                );
            }
        };
        let order = match (what, to) {
            ("promote", Some(to)) => Order::Promote {
                to,
                accept_loss: wish.accept_data_loss,
            },
            ("promote", None) => {
                return text(
                    StatusCode::BAD_REQUEST,
                    "to: missing: say which node to promote",
                );
            }
            _ => Order::Switchover(to),
        };
        finish(control.order(order).await)
    }

    async fn ask_node(&self, service: &str, node: &str, what: &str) -> Answer {
        let Some(control) = self.service(service) else {
            return text(StatusCode::NOT_FOUND, self.unknown(service));
        };
        let Some(id) = control.node(node) else {
            return text(
                StatusCode::NOT_FOUND,
                format!("service \"{service}\" has no node \"{node}\""),
            );
        };
        let order = match what {
            "drain" => Order::Drain(id),
            "undrain" => Order::Undrain(id),
            _ => Order::Rejoin(id),
        };
        finish(control.order(order).await)
    }

    fn events(&self, request: &Request<Incoming>) -> Answer {
        let follows = request
            .headers()
            .get_all(ACCEPT)
            .iter()
            .any(|value| value.as_bytes().starts_with(b"text/event-stream"));
        if !follows {
            return json(StatusCode::OK, &self.chronicle.all());
        }
        let (before, mut after) = self.chronicle.follow();
        let (lines, body) = mpsc::channel(16);
        tokio::spawn(async move {
            for entry in before {
                if lines.send(as_event(&entry)).await.is_err() {
                    return;
                }
            }
            loop {
                let entry = tokio::select! {
                    entry = after.recv() => entry,
                    () = lines.closed() => return,
                };
                match entry {
                    Ok(entry) => {
                        if lines.send(as_event(&entry)).await.is_err() {
                            return;
                        }
                    }
                    // A reader that cannot keep up has missed some; their numbers show it.
                    Err(broadcast::error::RecvError::Lagged(_)) => (),
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
        pieces("text/event-stream", body)
    }
}

fn finish(result: Result<crate::control::Done, String>) -> Answer {
    match result {
        Ok(done) => json(
            StatusCode::ACCEPTED,
            &Result202 {
                message: done.message,
                unavailable_ms: done.unavailable_ms,
            },
        ),
        Err(error) => refused(error),
    }
}

fn as_event(entry: &Entry) -> Bytes {
    let data = serde_json::to_string(entry).unwrap_or_default();
    Bytes::from(format!(
        "id: {}\nevent: {}\ndata: {data}\n\n",
        entry.id, entry.kind
    ))
}
