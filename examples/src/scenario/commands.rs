//! What an operator and a client see: commands with their exit codes, metrics, answers made by the proxy, orderly ends.

use std::process::Output;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use crate::client::Client;
use crate::scenario::{Report, UP_WITHIN};
use crate::stack::{Durability, Part, Shape, Side, Stack};
use crate::trouble::Trouble;

/// How long an answer may take here.
const WITHIN: Duration = Duration::from_secs(5);

const HOTWARM_METRICS: &[&str] = &[
    "hotwarm_requests_total",
    "hotwarm_request_duration_seconds_bucket",
    "hotwarm_upstream_duration_seconds_bucket",
    "hotwarm_breaker_state",
    "hotwarm_node_up",
    "hotwarm_node_primary",
    "hotwarm_epoch",
    "hotwarm_failovers_total",
    "hotwarm_held_requests",
    "hotwarm_replication_lag_seconds",
    "hotwarm_replication_lag_bytes",
    "hotwarm_client_connections",
];
const SYNCD_METRICS: &[&str] = &[
    "syncd_role",
    "syncd_epoch",
    "syncd_position_seq",
    "syncd_lag_seconds",
    "syncd_lag_bytes",
];

/// Which program a command belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Hotwarm,
    Syncd,
}

/// Commands, with the exit code that they must end with and what they must say. ADMIN and DOOR are the proxy's admin door
/// and node B's syncd.
const COMMANDS: &[(Program, &str, i32, &[&str])] = &[
    (
        Program::Hotwarm,
        "status --admin ADMIN",
        0,
        &["shop", "serving"],
    ),
    (
        Program::Hotwarm,
        "status shop --json --admin ADMIN",
        0,
        &["\"shop\""],
    ),
    (
        Program::Hotwarm,
        "status --admin http://127.0.0.1:1",
        3,
        &["127.0.0.1:1"],
    ),
    (Program::Hotwarm, "frobnicate", 2, &["frobnicate"]),
    (
        Program::Hotwarm,
        "switchover shop --to nobody --admin ADMIN",
        1,
        &["nobody"],
    ),
    (
        Program::Hotwarm,
        "switchover nothing --admin ADMIN",
        1,
        &["nothing"],
    ),
    (
        Program::Hotwarm,
        "switchover shop --to b --admin ADMIN",
        0,
        &["ms"],
    ),
    (
        Program::Hotwarm,
        "drain shop a --admin ADMIN",
        0,
        &["a gets no requests"],
    ),
    (
        Program::Hotwarm,
        "status shop --admin ADMIN",
        0,
        &["draining"],
    ),
    (
        Program::Hotwarm,
        "switchover shop --to a --admin ADMIN",
        1,
        &["hotwarm undrain shop a"],
    ),
    (
        Program::Hotwarm,
        "undrain shop a --admin ADMIN",
        0,
        &["a may be promoted"],
    ),
    (
        Program::Hotwarm,
        "drain shop nobody --admin ADMIN",
        1,
        &["nobody"],
    ),
    (Program::Syncd, "status --url DOOR", 0, &["primary"]),
    (
        Program::Syncd,
        "status --json --url DOOR",
        0,
        &["\"primary\""],
    ),
    (
        Program::Syncd,
        "status --url http://127.0.0.1:1",
        3,
        &["127.0.0.1:1"],
    ),
    (
        Program::Syncd,
        "diverged list --config syncd-a.toml",
        0,
        &[],
    ),
];

/// Tries all of it.
///
/// # Errors
/// It could not be carried out.
pub async fn run() -> Result<Report, Trouble> {
    let mut report = Report::new("what an operator and a client see", 0);
    let shape = Shape::new(Durability::StandbyAck).with("hold", "max_wait", "\"1500ms\"");
    let stack = Stack::new(shape)?;
    stack.start_all()?;
    stack.until_safe(UP_WITHIN).await?;
    let shop = stack.client();
    let order = shop.post("/order", r#"{"item":"tea"}"#, WITHIN).await;
    let placed = order.is_ok_and(|answer| answer.status == StatusCode::CREATED);
    report.promise(placed, || "an order was not accepted".to_owned());
    report.broken.extend(commands(&stack)?);
    stack.until_safe(UP_WITHIN).await?;
    for (path, status) in [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/", 200),
        ("/nowhere", 404),
    ] {
        let answer = get(stack.admin(), path).await?;
        report.promise(answer.status.as_u16() == status, || {
            format!("GET {path} at the admin door: {}", answer.status)
        });
    }
    report.broken.extend(metrics(&stack).await?);
    report.broken.extend(own_answers(&stack).await?);
    for part in [Part::Proxy, Part::Syncd(Side::A), Part::Syncd(Side::B)] {
        report.promise(stack.terminate(part, Duration::from_secs(10)), || {
            format!("{part} did not end properly on SIGTERM")
        });
    }
    report.broken.extend(stack.panics());
    Ok(report)
}

fn commands(stack: &Stack) -> Result<Vec<String>, Trouble> {
    let admin = format!("http://{}", stack.admin());
    let door = format!("http://{}", stack.syncd_door(Side::B));
    let mut broken = Vec::new();
    for (program, command, code, words) in COMMANDS {
        let path = match program {
            Program::Hotwarm => &stack.programs().hotwarm,
            Program::Syncd => &stack.programs().syncd,
        };
        let args = command.replace("ADMIN", &admin).replace("DOOR", &door);
        let args: Vec<_> = args.split_whitespace().collect();
        let output = stack.run(path, &args)?;
        let wrong = judge(&output, *code, words, args.contains(&"--json"));
        broken.extend(
            wrong
                .into_iter()
                .map(|wrong| format!("{program:?} {command}: {wrong}")),
        );
    }
    Ok(broken)
}

fn judge(output: &Output, code: i32, words: &[&str], json: bool) -> Vec<String> {
    let out = String::from_utf8_lossy(&output.stdout);
    let said = format!("{out}{}", String::from_utf8_lossy(&output.stderr));
    let mut broken = Vec::new();
    if output.status.code() != Some(code) {
        broken.push(format!("{} instead of {code}: {said}", output.status));
    }
    let unsaid = words.iter().filter(|word| !said.contains(**word));
    broken.extend(unsaid.map(|word| format!("\"{word}\" is not said: {said}")));
    if json && serde_json::from_str::<Value>(&out).is_err() {
        broken.push(format!("this is not JSON: {out}"));
    }
    broken
}

async fn metrics(stack: &Stack) -> Result<Vec<String>, Trouble> {
    let mut broken = Vec::new();
    let doors = [
        (stack.admin(), HOTWARM_METRICS),
        (stack.syncd_door(Side::A), SYNCD_METRICS),
        (stack.syncd_door(Side::B), SYNCD_METRICS),
    ];
    for (door, families) in doors {
        let answer = get(door, "/metrics").await?;
        let text = String::from_utf8_lossy(&answer.body);
        let counted = |family: &&&str| text.lines().any(|line| line.starts_with(**family));
        let missing: Vec<_> = families.iter().filter(|family| !counted(family)).collect();
        if !missing.is_empty() {
            broken.push(format!("http://{door}/metrics lacks {missing:?}"));
        }
    }
    Ok(broken)
}

/// With no application left, a request is held for as long as it may, then told so in the documented form.
async fn own_answers(stack: &Stack) -> Result<Vec<String>, Trouble> {
    stack.kill_for_good(&Side::BOTH.map(Part::App));
    let answer = get(stack.front(), "/orders").await?;
    let field = |name: &str| {
        let value = answer
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok());
        value.unwrap_or("").to_owned()
    };
    let mut broken = Vec::new();
    let mut expect = |what: &str, is: String, right: bool| {
        if !right {
            broken.push(format!("with no application left, {what} is {is:?}"));
        }
    };
    let status = answer.status;
    expect(
        "the status",
        status.to_string(),
        status == StatusCode::SERVICE_UNAVAILABLE,
    );
    let media = field("content-type");
    expect(
        "content-type",
        media.clone(),
        media.starts_with("application/problem+json"),
    );
    let proxy = field("proxy-status");
    expect(
        "proxy-status",
        proxy.clone(),
        proxy.starts_with("hotwarm;") && proxy.contains("error="),
    );
    let retry = field("retry-after");
    expect("retry-after", retry.clone(), retry.parse::<u32>().is_ok());
    let problem = answer.json::<Value>().unwrap_or_default();
    expect(
        "the body",
        problem.to_string(),
        problem["status"] == 503 && problem["title"].is_string(),
    );
    Ok(broken)
}

async fn get(door: std::net::SocketAddr, path: &str) -> Result<crate::client::Answer, Trouble> {
    let answer = Client::new(door).get(path, WITHIN).await;
    answer.map_err(|lost| Trouble::Nonsense(format!("GET http://{door}{path}: {lost}")))
}
