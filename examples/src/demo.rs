//! The shop at work behind the proxy: for a person to play with, or showing a failover by itself.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use rustix::process::getppid;
use shared::clock;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::Failover;
use crate::scenario::crash;
use crate::stack::{Durability, PORTS, Part, Shape, Side, Stack};
use crate::trouble::Trouble;

/// How often the deployment is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A demo on a busy machine is not a measurement, but longer than this is not a failover either.
const RTO_MS_MOST: f64 = 2_000.0;

/// Carries `work` out until it is done, or a person or the system wants us to end. Being told to end is not a failure.
///
/// # Errors
/// As `work`.
pub async fn until_told(
    work: impl Future<Output = Result<bool, Trouble>>,
    with_parent: bool,
) -> Result<bool, Trouble> {
    let listen = |kind| signal(kind).map_err(Trouble::system("listen for signals"));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => Ok(true),
        _ = terminate.recv() => Ok(true),
        _ = hang_up.recv() => Ok(true),
        () = parent_gone(), if with_parent => Ok(true),
    }
}

/// Waits until the process that started this one has ended.
async fn parent_gone() {
    let parent = getppid();
    while getppid() == parent {
        clock::sleep(LOOK_EVERY).await;
    }
}

/// Starts the deployment, says where everything is, and tells of every change until it is dropped.
///
/// # Errors
/// It could not be started.
pub async fn serve(base_port: u16, mut say: impl FnMut(&str)) -> Result<bool, Trouble> {
    let stack = start(base_port, &mut say)?;
    stack.start_all()?;
    stack.until_safe(Duration::from_secs(60)).await?;
    say(&directions(&stack));
    let mut told = String::new();
    let mut groups = Vec::new();
    let mut failover = stack
        .service()
        .await?
        .last_failover
        .map(|event| event.epoch);
    loop {
        let service = stack.service().await;
        let now = match &service {
            Ok(service) => service.summary(),
            Err(error) => error.to_string(),
        };
        if now != told {
            say(&stamped(&now));
            told = now;
        }
        let event = service.ok().and_then(|service| service.last_failover);
        if let Some(event) = event.filter(|event| Some(event.epoch) != failover) {
            say(&stamped(&in_words(&event)));
            failover = Some(event.epoch);
        }
        let present: Vec<_> = Part::ALL
            .into_iter()
            .map(|part| (part, stack.group(part)))
            .collect();
        if present != groups {
            say(&stamped(&kill_commands(&present)));
            groups = present;
        }
        clock::sleep(LOOK_EVERY).await;
    }
}

/// Shows a failover under load and audits it. Whether every promise was kept.
///
/// # Errors
/// It could not be carried out.
pub async fn failover(base_port: u16, mut say: impl FnMut(&str)) -> Result<bool, Trouble> {
    check_ports(base_port)?;
    say(
        "hotwarm: failover of an unmodified Flask shop (Gunicorn, SQLite), durability standby-ack\n",
    );
    let began = clock::now();
    let options = crash::Options {
        victim: crash::Victim::Application,
        durability: Durability::StandbyAck,
        seed: 1,
        around: Duration::from_secs(4),
        base_port: Some(base_port),
    };
    let mut report = crash::run(options, |step| say(&elapsed(began, step))).await?;
    let rto = report.value("gap_ms");
    report.promise(rto <= RTO_MS_MOST, || {
        format!("no request succeeded for {rto:.0} ms, longer than {RTO_MS_MOST:.0} ms")
    });
    let rows = [
        (
            "RTO: longest time without a success",
            format!("{rto:.0} ms"),
        ),
        ("requests", format!("{:.0}", report.value("requests"))),
        (
            "failed requests",
            format!(
                "{:.0}",
                report.value("failed_reads") + report.value("failed_writes")
            ),
        ),
        (
            "  orders under way at the crash",
            format!("{:.0}", report.value("writes_under_way")),
        ),
        (
            "acknowledged orders",
            format!("{:.0}", report.value("accepted")),
        ),
        ("  lost", format!("{:.0}", report.value("lost"))),
        (
            "  executed twice",
            format!("{:.0}", report.value("doubled")),
        ),
    ];
    say("\nsummary");
    for (what, value) in rows {
        say(&format!("  {what:<38} {value:>10}"));
    }
    for note in &report.notes {
        say(&format!("  {note}"));
    }
    for broken in &report.broken {
        say(&format!("  BROKEN: {broken}"));
    }
    let kept = report.broken.is_empty();
    say(if kept {
        "\nPASS: every promise was kept; both databases are equal, page for page"
    } else {
        "\nFAIL: not every promise was kept"
    });
    Ok(kept)
}

fn start(base_port: u16, say: &mut impl FnMut(&str)) -> Result<Stack, Trouble> {
    check_ports(base_port)?;
    say("hotwarm: a Flask shop (Gunicorn, SQLite) with a hot and a warm copy");
    let shape = Shape {
        base_port: Some(base_port),
        ..Shape::new(Durability::StandbyAck).supervised()
    };
    Stack::new(shape)
}

/// Better to say it here than to let six programs say it in six logs.
fn check_ports(base_port: u16) -> Result<(), Trouble> {
    for port in base_port..base_port + PORTS {
        let doing = format!("listen on port {port} (PORT_BASE moves all ports of the demo)");
        TcpListener::bind(("127.0.0.1", port)).map_err(Trouble::system(doing))?;
    }
    Ok(())
}

fn directions(stack: &Stack) -> String {
    let (front, admin) = (stack.front(), stack.admin());
    let mut text = format!(
        "
  shop     http://{front}/orders
  status   http://{admin}/
  metrics  http://{admin}/metrics"
    );
    for side in Side::BOTH {
        let (app, syncd) = (stack.app(side), stack.syncd_door(side));
        text +=
            &format!("\n  node {side}   application http://{app}, syncd http://{syncd}/v1/status");
    }
    let programs = stack.programs();
    let (hotwarm, syncd) = (programs.hotwarm.display(), programs.syncd.display());
    let doors = stack.syncd_door(Side::B);
    text += &format!(
        "
  files    {folder}

  place an order   curl -s http://{front}/order -H 'content-type: application/json' -d '{{\"item\":\"coffee\",\"quantity\":2}}'
  hand over        {hotwarm} switchover shop --to b --admin http://{admin}
  look             {hotwarm} status --admin http://{admin}
                   {syncd} status --url http://{doors}

  Kill what you like (see below); it is started again, as a supervisor would. Ctrl-C ends everything.
",
        folder = stack.folder().display()
    );
    text
}

/// How to kill each part's whole process group.
fn kill_commands(groups: &[(Part, Option<i32>)]) -> String {
    let command = |(part, group): &(Part, Option<i32>)| match group {
        Some(group) => format!("{part}: kill -9 -{group}"),
        None => format!("{part}: down"),
    };
    groups.iter().map(command).collect::<Vec<_>>().join("   ")
}

fn in_words(event: &Failover) -> String {
    let from = event.from.as_deref().unwrap_or("nobody");
    format!(
        "{}: {from} → {} in epoch {}, {:.0} ms without a primary, {} requests held, loss {}; {}",
        event.kind,
        event.to,
        event.epoch,
        event.unavailable_ms,
        event.held,
        event.loss,
        event.reason
    )
}

/// With the time of day, to the second.
fn stamped(line: &str) -> String {
    let now = clock::rfc3339();
    let time = now.get(11..19).unwrap_or(&now);
    format!("{time}  {line}")
}

/// With the time since the beginning.
fn elapsed(began: Instant, line: &str) -> String {
    format!("{:6.1} s  {line}", (clock::now() - began).as_secs_f64())
}
