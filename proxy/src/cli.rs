//! What the commands do, and what they print.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::slice;
use std::time::Duration;

use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shared::call::{CallError, Peer};
use shared::clock;
use shared::telemetry;

use crate::admin::{Refused, Reloaded, Result202};
use crate::arbiter::Arbiter;
use crate::{app, config};

/// How long a running hotwarm may take to answer a question.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long an order may take.
const ORDER_WITHIN: Duration = Duration::from_secs(60);
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// Why a command did not do what it should.
#[derive(Debug)]
pub struct Failure {
    /// 1 it failed or was refused, 2 usage or configuration, 3 not reachable.
    pub code: u8,
    /// For stderr.
    pub message: String,
}

impl Failure {
    fn failed(message: impl ToString) -> Self {
        Self {
            code: 1,
            message: message.to_string(),
        }
    }

    fn usage(message: impl ToString) -> Self {
        Self {
            code: 2,
            message: message.to_string(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::failed(error)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Connect { .. } | CallError::Timeout { .. } => Self {
                code: 3,
                message: format!("{error}; is hotwarm running there? (--admin says where)"),
            },
            CallError::Status { ref body, .. } => {
                let refused = serde_json::from_str::<Refused>(body).map(|refused| refused.error);
                Self {
                    code: 1,
                    message: refused.unwrap_or_else(|_| body.clone()),
                }
            }
            CallError::Refused { .. } | CallError::Broken { .. } => Self {
                code: 1,
                message: error.to_string(),
            },
        }
    }
}

/// Where the running hotwarm is.
#[derive(Debug)]
pub struct Admin<'a> {
    /// Its admin URL.
    pub url: &'a str,
    /// A file with its secret.
    pub token_file: Option<&'a Path>,
}

impl Admin<'_> {
    fn peer(&self) -> Result<Peer, Failure> {
        let read = |path: &Path| {
            fs::read_to_string(path)
                .map_err(|error| Failure::usage(format!("read {}: {error}", path.display())))
        };
        let token = self.token_file.map(read).transpose()?;
        Peer::new(self.url, token.as_deref().map(str::trim)).map_err(Failure::usage)
    }
}

/// `hotwarm run`.
///
/// # Errors
/// It could not start.
pub fn run(path: &Path, takeover: bool) -> Result<(), Failure> {
    let settings = config::load(path).map_err(Failure::usage)?;
    let switch = telemetry::start(settings.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime
        .block_on(app::run(settings, switch, takeover))
        .map_err(Failure::failed)
}

/// `hotwarm check`.
///
/// # Errors
/// Every fault of the file, and of the state that it points to.
pub fn check(path: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let settings = config::load(path).map_err(Failure::usage)?;
    // A running proxy holds the folder; its own check of the records has passed then.
    if let Ok(arbiter) = Arbiter::open(&settings.state_dir) {
        for service in &settings.services {
            let nodes = service
                .nodes
                .iter()
                .map(|node| node.name.to_string())
                .collect();
            arbiter
                .place(&service.name, nodes)
                .load()
                .map_err(Failure::usage)?;
        }
    }
    for note in &settings.notes {
        writeln!(out, "note: {note}")?;
    }
    let (services, listeners) = (settings.services.len(), settings.listeners.len());
    writeln!(
        out,
        "{}: ok: {services} service(s), {listeners} listener(s)",
        path.display()
    )?;
    Ok(())
}

/// `hotwarm status`.
///
/// # Errors
/// It is not reachable, or has no such service.
pub fn status(
    admin: &Admin<'_>,
    service: Option<&str>,
    as_json: bool,
    watch: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let peer = admin.peer()?;
    asking(async {
        loop {
            let path = service.map_or_else(
                || "/api/v1/services".to_owned(),
                |name| format!("/api/v1/services/{name}"),
            );
            let answer: Value = peer.get(&path, ANSWER_WITHIN).await?;
            if as_json {
                serde_json::to_writer_pretty(&mut *out, &answer).map_err(Failure::failed)?;
                writeln!(out)?;
            } else {
                if watch {
                    write!(out, "\x1b[2J\x1b[H")?;
                }
                for service in answer
                    .as_array()
                    .map_or_else(|| slice::from_ref(&answer), Vec::as_slice)
                {
                    print_service(service, out)?;
                }
            }
            out.flush()?;
            if !watch {
                return Ok(());
            }
            clock::sleep(WATCH_EVERY).await;
        }
    })
}

fn print_service(service: &Value, out: &mut dyn Write) -> io::Result<()> {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let is_led = service["mode"] != "hot-hot";
    let led = || {
        let (primary, durability) = (word(&service["primary"]), word(&service["durability"]));
        format!(
            "epoch {}, primary {primary}, {durability}",
            service["epoch"]
        )
    };
    writeln!(
        out,
        "{}: {}, {}, {} held",
        word(&service["name"]),
        word(&service["phase"]),
        if is_led {
            led()
        } else {
            word(&service["mode"])
        },
        service["held_requests"]
    )?;
    if let Some(why) = service["why"].as_str() {
        writeln!(out, "  {why}")?;
    }
    for node in service["nodes"].as_array().into_iter().flatten() {
        let seconds = node["lag"]["seconds"].as_f64();
        let lag = seconds.map_or_else(
            || "lag unknown".to_owned(),
            |seconds| format!("lag {:.0} ms", seconds * 1000.0),
        );
        let (name, health, breaker) = (
            word(&node["name"]),
            word(&node["health"]),
            word(&node["breaker"]),
        );
        if is_led {
            let (role, syncd) = (word(&node["role"]), word(&node["syncd"]));
            writeln!(
                out,
                "  {name:<12} {role:<10} app {health:<8} breaker {breaker:<9} syncd {syncd:<7} {lag}"
            )?;
        } else {
            let under_way = &node["in_flight"];
            writeln!(
                out,
                "  {name:<12} app {health:<8} breaker {breaker:<9} under way {under_way}"
            )?;
        }
        for (key, label) in [
            ("health_why", "down because"),
            ("not_promotable_because", "cannot take over:"),
        ] {
            if let Some(why) = node[key].as_str() {
                writeln!(out, "  {:<12} {label} {why}", "")?;
            }
        }
    }
    let last = &service["last_failover"];
    if last.is_object() {
        writeln!(
            out,
            "  last change: {} to {} in epoch {} ({}: {}), unavailable {} ms, {} held, loss {}",
            word(&last["from"]),
            word(&last["to"]),
            last["epoch"],
            word(&last["kind"]),
            word(&last["reason"]),
            last["unavailable_ms"],
            last["held"],
            word(&last["loss"])
        )?;
    }
    Ok(())
}

/// `hotwarm switchover`.
///
/// # Errors
/// It was refused, or is not reachable.
pub fn switchover(
    admin: &Admin<'_>,
    service: &str,
    to: Option<&str>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    writeln!(
        out,
        "{service}: checking, then holding new requests, draining, fencing, catching up, switching"
    )?;
    out.flush()?;
    let body = to.map_or_else(|| json!({}), |to| json!({ "to": to }));
    let done: Result202 = order(
        admin,
        &format!("/api/v1/services/{service}/switchover"),
        &body,
    )?;
    let pause = done
        .unavailable_ms
        .map_or_else(String::new, |pause| format!("; pause {pause:.1} ms"));
    writeln!(out, "{service}: {}{pause}", done.message)?;
    Ok(())
}

/// `hotwarm promote`.
///
/// # Errors
/// It was refused, or is not reachable.
pub fn promote(
    admin: &Admin<'_>,
    service: &str,
    to: &str,
    accept_data_loss: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let body = json!({ "to": to, "accept_data_loss": accept_data_loss });
    let done: Result202 = order(admin, &format!("/api/v1/services/{service}/promote"), &body)?;
    writeln!(out, "{service}: {}", done.message)?;
    Ok(())
}

/// `hotwarm drain`, `undrain` and `rejoin`: `what` is the word.
///
/// # Errors
/// It was refused, or is not reachable.
pub fn ask_node(
    admin: &Admin<'_>,
    what: &str,
    service: &str,
    node: &str,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let done: Result202 = order(
        admin,
        &format!("/api/v1/services/{service}/nodes/{node}/{what}"),
        &json!({}),
    )?;
    writeln!(out, "{service}: {}", done.message)?;
    Ok(())
}

/// `hotwarm reload`.
///
/// # Errors
/// It was refused, with every fault of the file, or is not reachable.
pub fn reload(admin: &Admin<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let done: Reloaded = order(admin, "/api/v1/reload", &json!({}))?;
    writeln!(out, "{}", done.message)?;
    Ok(())
}

fn order<T: DeserializeOwned>(admin: &Admin<'_>, path: &str, body: &Value) -> Result<T, Failure> {
    let peer = admin.peer()?;
    asking(async {
        let result = peer.post(path, body, ORDER_WITHIN).await;
        if let Err(CallError::Status {
            status: StatusCode::UNAUTHORIZED,
            ..
        }) = &result
        {
            return Err(Failure::usage(
                "this hotwarm wants a token: --token-file FILE names the file that holds it",
            ));
        }
        Ok(result?)
    })
}

fn asking<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(call)
}
