//! What the two programs say about themselves, as far as a rehearsal asks: the documented JSON, and nothing else.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::api::Status;
use shared::call::{CallError, Peer};
use shared::model::{Epoch, Lag, Role};

/// How long a program may take over an answer about itself.
const WITHIN: Duration = Duration::from_secs(2);

/// `GET /api/v1/services/{name}`.
#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub phase: String,
    /// The term in force.
    pub epoch: Epoch,
    /// Who takes writes.
    pub primary: Option<String>,
    /// `async` or `standby-ack`.
    pub durability: String,
    /// Standbys that have every acknowledged write, on record; nobody is kept account of with `async`.
    pub in_sync: Vec<String>,
    /// Requests that wait.
    pub held_requests: u64,
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// How the last change of primary went.
    pub last_failover: Option<Failover>,
}

/// One node of a [`Service`].
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What it does with its data.
    pub role: Role,
    /// Whether its application answers.
    pub health: String,
    /// How far behind.
    pub lag: Lag,
    /// Whether it could take over now.
    pub promotable: bool,
    /// Why not.
    pub not_promotable_because: Option<String>,
}

/// A change of primary.
#[derive(Clone, Debug, Deserialize)]
pub struct Failover {
    /// The epoch that began.
    pub epoch: Epoch,
    /// Who led before.
    pub from: Option<String>,
    /// Who leads since.
    pub to: String,
    /// `crash`, `hang`, `switchover`, …
    pub kind: String,
    /// In words.
    pub reason: String,
    /// How long nobody could write, as the proxy measured it.
    pub unavailable_ms: f64,
    /// Requests that waited.
    pub held: u64,
    /// What the former primary had and the new one has not, at most.
    pub lost_transactions: Option<u64>,
    /// `none`, `bounded` or `unknown`.
    pub loss: String,
}

impl Service {
    /// Whether requests are served and a healthy standby could take over at once without losing anything it should not.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.followers()
            .any(|node| node.promotable && node.health == "up")
    }

    /// Whether requests are served and a standby has the data, whatever its application does.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.followers().next().is_some()
    }

    /// The standbys of a node that serves; with `standby-ack`, those of them that are in sync.
    fn followers(&self) -> impl Iterator<Item = &Node> {
        let serving = self.phase == "serving" && self.primary.is_some();
        let all = self.durability != "standby-ack";
        let follows = move |node: &&Node| {
            serving && node.role == Role::Standby && (all || self.in_sync.contains(&node.name))
        };
        self.nodes.iter().filter(follows)
    }

    /// How many accepted writes the last change of primary is said to have lost at most.
    #[must_use]
    pub fn admitted_loss(&self) -> usize {
        let event = self.last_failover.as_ref();
        let lost = event.and_then(|event| event.lost_transactions);
        lost.map_or(0, |lost| usize::try_from(lost).unwrap_or(usize::MAX))
    }

    /// In one line, for messages.
    #[must_use]
    pub fn summary(&self) -> String {
        let node = |node: &Node| {
            let why = node.not_promotable_because.as_deref().unwrap_or("");
            let fit = if node.promotable { "promotable" } else { why };
            format!("{} {} {} {fit}", node.name, node.role, node.health)
        };
        let nodes = self.nodes.iter().map(node).collect::<Vec<_>>().join("; ");
        let primary = self.primary.as_deref().unwrap_or("nobody");
        format!(
            "{} in epoch {}, primary {primary} ({nodes})",
            self.phase, self.epoch
        )
    }
}

/// The order to hand over: `POST /api/v1/services/{name}/switchover`.
#[derive(Clone, Debug, Serialize)]
struct Handover<'a> {
    to: &'a str,
}

/// A running `hotwarm`, seen by its operator.
#[derive(Clone, Debug)]
pub struct Hotwarm {
    peer: Peer,
    service: String,
}

impl Hotwarm {
    /// The one whose admin door is on that port of loopback, and one service of it.
    ///
    /// # Errors
    /// The port is 0.
    pub fn on(port: u16, service: &str) -> Result<Self, shared::call::BadUrl> {
        Ok(Self {
            peer: Peer::new(&format!("http://127.0.0.1:{port}"), None)?,
            service: service.to_owned(),
        })
    }

    /// How the service stands.
    ///
    /// # Errors
    /// There is no answer, or none that can be read.
    pub async fn service(&self) -> Result<Service, CallError> {
        let path = format!("/api/v1/services/{}", self.service);
        self.peer.get(&path, WITHIN).await
    }

    /// Everything that was noted.
    ///
    /// # Errors
    /// There is no answer, or none that can be read.
    pub async fn events(&self) -> Result<Vec<Value>, CallError> {
        self.peer.get("/api/v1/events", WITHIN).await
    }

    /// Hands over to `node` as planned; returns when it has been done or refused.
    ///
    /// # Errors
    /// It was refused, or there is no answer.
    pub async fn switchover(&self, node: &str, within: Duration) -> Result<Value, CallError> {
        let path = format!("/api/v1/services/{}/switchover", self.service);
        self.peer.post(&path, &Handover { to: node }, within).await
    }

    /// Sends no more requests to `node`, which hands over first if it is primary; returns when none is under way there.
    ///
    /// # Errors
    /// It was refused, or there is no answer.
    pub async fn drain(&self, node: &str, within: Duration) -> Result<Value, CallError> {
        let path = format!("/api/v1/services/{}/nodes/{node}/drain", self.service);
        self.peer.post(&path, &(), within).await
    }

    /// Lets `node` take requests again.
    ///
    /// # Errors
    /// It was refused, or there is no answer.
    pub async fn undrain(&self, node: &str) -> Result<Value, CallError> {
        let path = format!("/api/v1/services/{}/nodes/{node}/undrain", self.service);
        self.peer.post(&path, &(), WITHIN).await
    }
}

/// A running `syncd`, seen by its operator.
#[derive(Clone, Debug)]
pub struct Syncd(Peer);

impl Syncd {
    /// The one on that port of loopback.
    ///
    /// # Errors
    /// The port is 0.
    pub fn on(port: u16) -> Result<Self, shared::call::BadUrl> {
        Ok(Self(Peer::new(&format!("http://127.0.0.1:{port}"), None)?))
    }

    /// How it stands.
    ///
    /// # Errors
    /// There is no answer, or none that can be read.
    pub async fn status(&self) -> Result<Status, CallError> {
        self.0.get("/v1/status", WITHIN).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(durability: &str, in_sync: &[&str], health: &str) -> Service {
        let node = |name: &str, role: &str, health: &str| {
            json!({"name": name, "role": role, "health": health, "lag": {},
                   "promotable": health == "up", "not_promotable_because": null})
        };
        let service = json!({
            "name": "shop", "phase": "serving", "epoch": 2, "primary": "b", "durability": durability,
            "in_sync": in_sync, "held_requests": 0, "last_failover": null,
            "nodes": [node("a", "standby", health), node("b", "primary", "up")],
        });
        serde_json::from_value(service).unwrap()
    }

    #[test]
    fn a_standby_with_a_hung_application_follows_and_is_not_safe() {
        let hung = service("standby-ack", &["a"], "down");
        assert!(hung.is_followed() && !hung.is_safe());
        let well = service("standby-ack", &["a"], "up");
        assert!(well.is_followed() && well.is_safe());
        let late = service("standby-ack", &[], "up");
        assert!(!late.is_followed() && !late.is_safe());
        let nobody_waits = service("async", &[], "up");
        assert!(nobody_waits.is_followed() && nobody_waits.is_safe());
    }
}
