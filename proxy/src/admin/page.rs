//! The status page: complete without JavaScript, live with it (it fetches itself again every second).

use std::fmt::Write;
use std::sync::Arc;

use shared::model::Lag;

use crate::control::{Entry, NodeView, ServiceView};

/// So many of the latest events are shown.
const EVENTS_SHOWN: usize = 30;

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>hotwarm</title>
<style>
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c62828; --warn: #9a6700; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.2rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; } .why { opacity: .8; font-size: .9em; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; } .warn { color: var(--warn); font-weight: 600; }
@media (prefers-color-scheme: dark) { :root { --good: #57c26b; --bad: #ff7b72; --warn: #d9a441; } }
</style></head><body><h1>hotwarm</h1><main id="all">
"#;

const FOOT: &str = r#"</main>
<script>
setInterval(async () => {
  try {
    const text = await (await fetch(location.href, {cache: "no-store"})).text();
    const next = new DOMParser().parseFromString(text, "text/html").getElementById("all");
    document.getElementById("all").replaceWith(next);
    document.title = "hotwarm";
  } catch { document.title = "hotwarm (not reachable)"; }
}, 1000);
</script></body></html>
"#;

/// The page.
pub(super) fn render(services: &[Arc<ServiceView>], events: &[Arc<Entry>]) -> String {
    let mut page = String::from(HEAD);
    for service in services {
        service_section(&mut page, service);
    }
    event_section(&mut page, events);
    page.push_str(FOOT);
    page
}

// Writing to a string cannot fail; the results of `write!` say nothing here.

fn service_section(page: &mut String, service: &ServiceView) {
    let class = match service.phase {
        "serving" => "good",
        "unavailable" | "read-only" => "bad",
        _ => "warn",
    };
    let _ = write!(
        page,
        "<h2>{} <span class=\"{class}\">{}</span></h2>",
        escape(&service.name),
        service.phase
    );
    let is_led = service.mode != "hot-hot";
    if is_led {
        let _ = write!(page, "<p>{}, epoch {}", service.durability, service.epoch);
    } else {
        let _ = write!(page, "<p>{}", service.mode);
    }
    let _ = write!(page, ", {} held", service.held_requests);
    if service.durability == "standby-ack" {
        let in_sync = if service.in_sync.is_empty() {
            "<span class=\"warn\">nobody</span>".to_owned()
        } else {
            escape(&service.in_sync.join(", "))
        };
        let _ = write!(page, "; in sync: {in_sync}");
    }
    if let Some(why) = &service.why {
        let _ = write!(page, "<br><span class=\"why\">{}</span>", escape(why));
    }
    if is_led {
        page.push_str("</p><table><tr><th>node<th>role<th>application<th>breaker<th>syncd<th>lag<th>position<th>could take over</tr>");
    } else {
        page.push_str("</p><table><tr><th>node<th>application<th>breaker<th>under way</tr>");
    }
    for node in &service.nodes {
        if is_led {
            node_row(page, node, service.primary.as_deref() == Some(&node.name));
        } else {
            member_row(page, node);
        }
    }
    page.push_str("</table>");
    if let Some(last) = &service.last_failover {
        let lost = last
            .lost_transactions
            .map_or_else(|| "unknown".to_owned(), |lost| lost.to_string());
        let _ = write!(
            page,
            "<p class=\"why\">Last change: {} to {} in epoch {} at {} ({}: {}); unavailable {} ms, {} held, loss {} ({lost}).</p>",
            escape(last.from.as_deref().unwrap_or("nobody")),
            escape(&last.to),
            last.epoch,
            last.at,
            last.kind,
            escape(&last.reason),
            last.unavailable_ms,
            last.held,
            last.loss
        );
    }
}

fn node_row(page: &mut String, node: &NodeView, is_primary: bool) {
    let health = if node.health == "up" { "good" } else { "bad" };
    let breaker = if node.breaker == "closed" { "" } else { "warn" };
    let (could, because) = match (&node.not_promotable_because, is_primary) {
        (_, true) => ("leads", ""),
        (None, false) => ("<span class=\"good\">yes</span>", ""),
        (Some(because), false) => ("<span class=\"warn\">no</span>", because.as_str()),
    };
    let positions: Vec<_> = node
        .position
        .iter()
        .map(|(source, position)| format!("{source} {position}"))
        .collect();
    let _ = write!(
        page,
        "<tr><td>{}<td>{}<td><span class=\"{health}\">{}</span><br><span class=\"why\">{}</span><td class=\"{breaker}\">{}<td>{}<td class=\"n\">{}\
         <td>{}<td>{could}<br><span class=\"why\">{}</span></tr>",
        escape(&node.name),
        node.role,
        node.health,
        escape(node.health_why.as_deref().unwrap_or("")),
        node.breaker,
        node.syncd,
        lag(&node.lag),
        escape(&positions.join(", ")),
        escape(because)
    );
}

/// A node of a service in which every node is active.
fn member_row(page: &mut String, node: &NodeView) {
    let health = if node.health == "up" { "good" } else { "bad" };
    let breaker = if node.breaker == "closed" { "" } else { "warn" };
    let _ = write!(
        page,
        "<tr><td>{}<td><span class=\"{health}\">{}</span><br><span class=\"why\">{}</span><td class=\"{breaker}\">{}<td class=\"n\">{}</tr>",
        escape(&node.name),
        node.health,
        escape(node.health_why.as_deref().unwrap_or("")),
        node.breaker,
        node.in_flight
    );
}

fn event_section(page: &mut String, events: &[Arc<Entry>]) {
    page.push_str("<h2>Events</h2><table><tr><th>when<th>service<th>what<th>node<th></tr>");
    for entry in events.iter().rev().take(EVENTS_SHOWN) {
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            entry.at,
            escape(&entry.service),
            entry.kind,
            escape(entry.node.as_deref().unwrap_or("")),
            escape(&entry.message)
        );
    }
    page.push_str("</table>");
}

fn lag(lag: &Lag) -> String {
    lag.seconds.map_or_else(
        || "<span class=\"warn\">unknown</span>".to_owned(),
        |seconds| format!("{:.0} ms", seconds * 1000.0),
    )
}

/// Text that stays text in HTML.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays_text() {
        let node = NodeView {
            name: "a<b".into(),
            not_promotable_because: Some("<script>".into()),
            ..NodeView::default()
        };
        let service = ServiceView {
            name: "x&y".into(),
            nodes: vec![node],
            why: Some("\"q\"".into()),
            ..ServiceView::default()
        };
        let page = render(&[Arc::new(service)], &[]);
        assert!(
            page.contains("x&amp;y") && page.contains("a&lt;b") && page.contains("&lt;script&gt;")
        );
        assert_eq!(page.matches("<script>").count(), 1, "only the page's own");
    }

    #[test]
    fn a_service_without_a_primary_is_shown_without_roles() {
        let service = ServiceView {
            name: "x".into(),
            mode: "hot-hot",
            nodes: vec![NodeView {
                name: "a".into(),
                health: "up",
                in_flight: 7,
                ..NodeView::default()
            }],
            ..ServiceView::default()
        };
        let page = render(&[Arc::new(service)], &[]);
        assert!(
            page.contains("<th>under way") && page.contains(">7</tr>"),
            "{page}"
        );
        assert!(
            !page.contains("could take over") && !page.contains("epoch"),
            "{page}"
        );
    }

    #[test]
    fn an_unknown_lag_is_not_zero() {
        assert!(lag(&Lag::default()).contains("unknown"));
        assert_eq!(
            lag(&Lag {
                seconds: Some(0.0041),
                ..Lag::default()
            }),
            "4 ms"
        );
    }
}
