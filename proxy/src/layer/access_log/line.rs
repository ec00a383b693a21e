//! One finished request as a line.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::{StatusCode, Version};
use shared::clock;

use crate::exchange::encode::decimal as number_out;
use crate::exchange::fields::FieldId;
use crate::exchange::{Certified, RequestId, Trail};

/// About how long a line is, in bytes.
const USUAL: usize = 512;

/// What a line tells besides the trail.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'f> {
    /// What happened.
    pub trail: &'f Trail,
    /// The status that the client got; 499 when it left before.
    pub status: StatusCode,
    /// Bytes of the response's body that were handed over.
    pub sent: u64,
    /// When it ended.
    pub at: Instant,
    /// How long it took in all.
    pub took: Duration,
    /// The service's name; empty when none was found.
    pub service: &'f str,
    /// The names of its nodes.
    pub nodes: &'f [Box<str>],
}

/// Writes wall time without formatting the same second twice, and without asking for it when the other clock was just read.
#[derive(Debug, Default)]
pub struct Stamp {
    second: RefCell<Second>,
    /// One moment on both clocks.
    known: Cell<Option<(Instant, u64)>>,
}

/// How long the two clocks are taken to agree; they drift, and the wall clock may be set.
const TOGETHER: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Second {
    number: u64,
    rfc3339: Vec<u8>,
    combined: Vec<u8>,
}

impl Stamp {
    fn write(&self, out: &mut Vec<u8>, combined: bool, at: Instant) {
        let (then, nanos) = match self.known.get() {
            Some((then, nanos)) if at.saturating_duration_since(then) < TOGETHER => (then, nanos),
            _ => (at, clock::unix_nanos()),
        };
        self.known.set(Some((then, nanos)));
        let since = at.saturating_duration_since(then).as_nanos();
        let since = u64::try_from(since).unwrap_or(0);
        self.write_at(out, combined, nanos.saturating_add(since));
    }

    fn write_at(&self, out: &mut Vec<u8>, combined: bool, nanos: u64) {
        let number = nanos / 1_000_000_000;
        let mut second = self.second.borrow_mut();
        if second.number != number || second.rfc3339.is_empty() {
            let text = clock::rfc3339_at(number * 1_000_000_000);
            second.number = number;
            second.combined = combined_time(&text).into_bytes();
            second.rfc3339 = text.as_bytes()[..text.len().min(19)].to_vec();
        }
        if combined {
            out.extend_from_slice(&second.combined);
            return;
        }
        out.extend_from_slice(&second.rfc3339);
        out.push(b'.');
        let millis = nanos / 1_000_000 % 1000;
        if millis < 100 {
            out.push(b'0');
        }
        if millis < 10 {
            out.push(b'0');
        }
        number_out(out, millis);
        out.push(b'Z');
    }
}

/// `2023-11-14T22:13:20…` → `14/Nov/2023:22:13:20 +0000`.
fn combined_time(rfc3339: &str) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let part = |from, to| rfc3339.get(from..to).unwrap_or_default();
    let month: usize = part(5, 7).parse().unwrap_or(1);
    let month = MONTHS.get(month.saturating_sub(1)).unwrap_or(&"Jan");
    format!(
        "{}/{month}/{}:{} +0000",
        part(8, 10),
        part(0, 4),
        part(11, 19)
    )
}

/// Appends a line as a JSON object.
pub fn json(out: &mut Vec<u8>, stamp: &Stamp, facts: &Facts<'_>) {
    let trail = facts.trail;
    out.reserve(USUAL);
    out.extend_from_slice(b"{\"time\":\"");
    stamp.write(out, false, facts.at);
    out.extend_from_slice(b"\",\"client\":\"");
    address(out, trail.client(), trail);
    out.extend_from_slice(b"\",\"method\":\"");
    if let Some(head) = trail.head() {
        escaped(out, head.method.as_str().as_bytes());
        out.extend_from_slice(b"\",\"host\":\"");
        escaped(out, head.host());
        out.extend_from_slice(b"\",\"path\":\"");
        escaped(out, head.target());
        out.extend_from_slice(b"\",\"protocol\":\"");
        out.extend_from_slice(protocol(head.version));
    } else {
        out.extend_from_slice(b"\",\"host\":\"\",\"path\":\"\",\"protocol\":\"");
    }
    if let Some(encryption) = &trail.peer.encryption {
        out.extend_from_slice(b"\",\"tls\":\"");
        out.extend_from_slice(encryption.version.as_bytes());
        out.extend_from_slice(b"\",\"sni\":\"");
        escaped(out, encryption.name.as_bytes());
        if let Certified::As { subject, .. } = &encryption.certified {
            out.extend_from_slice(b"\",\"client_cert\":\"");
            escaped(out, subject.as_bytes());
        }
    }
    out.extend_from_slice(b"\",\"status\":");
    out.extend_from_slice(facts.status.as_str().as_bytes());
    out.extend_from_slice(b",\"bytes_in\":");
    number_out(out, trail.bytes_in());
    out.extend_from_slice(b",\"bytes_out\":");
    number_out(out, facts.sent);
    out.extend_from_slice(b",\"request_id\":\"");
    match trail.id() {
        Some(RequestId::New(digits)) => out.extend_from_slice(digits),
        Some(RequestId::Given(text)) => escaped(out, text),
        None => (),
    }
    out.extend_from_slice(b"\",\"service\":\"");
    out.extend_from_slice(facts.service.as_bytes());
    out.extend_from_slice(b"\",\"node\":\"");
    let (node, epoch) = trail.node();
    out.extend_from_slice(node.map_or(b"", |node| name(facts, node.index())));
    out.extend_from_slice(b"\",\"epoch\":");
    number_out(out, epoch.0);
    for (key, took) in [
        (&b",\"hold_ms\":"[..], trail.held()),
        (b",\"upstream_ms\":", trail.upstream()),
        (b",\"gate_ms\":", trail.gated()),
        (b",\"total_ms\":", facts.took),
    ] {
        out.extend_from_slice(key);
        millis(out, took);
    }
    out.extend_from_slice(b",\"attempts\":[");
    let mut first = true;
    trail.for_each_attempt(|tried| {
        out.extend_from_slice(if first {
            b"{\"node\":\""
        } else {
            b",{\"node\":\""
        });
        first = false;
        out.extend_from_slice(name(facts, tried.node.index()));
        out.extend_from_slice(b"\",\"result\":\"");
        out.extend_from_slice(tried.result.as_bytes());
        if !tried.error.is_empty() {
            out.extend_from_slice(b"\",\"error\":\"");
            out.extend_from_slice(tried.error.as_bytes());
        }
        out.extend_from_slice(if tried.sent {
            b"\",\"sent\":true,\"ms\":"
        } else {
            b"\",\"sent\":false,\"ms\":"
        });
        millis(out, tried.took);
        out.push(b'}');
    });
    out.extend_from_slice(b"],\"closed_by\":\"");
    out.extend_from_slice(trail.closer().as_str().as_bytes());
    out.extend_from_slice(b"\"}");
}

/// Appends a line in the combined log format of Apache and nginx, and what it does not have behind it.
pub fn combined(out: &mut Vec<u8>, stamp: &Stamp, facts: &Facts<'_>) {
    let trail = facts.trail;
    address(out, trail.client(), trail);
    out.extend_from_slice(b" - - [");
    stamp.write(out, true, facts.at);
    out.extend_from_slice(b"] \"");
    if let Some(head) = trail.head() {
        escaped(out, head.method.as_str().as_bytes());
        out.push(b' ');
        escaped(out, head.target());
        out.push(b' ');
        out.extend_from_slice(protocol(head.version));
    } else {
        out.push(b'-');
    }
    out.extend_from_slice(b"\" ");
    out.extend_from_slice(facts.status.as_str().as_bytes());
    out.push(b' ');
    number_out(out, facts.sent);
    for id in [FieldId::Referer, FieldId::UserAgent] {
        out.extend_from_slice(b" \"");
        match trail.head().and_then(|head| head.fields.get(id)) {
            None | Some([]) => out.push(b'-'),
            Some(text) => escaped(out, text),
        }
        out.push(b'"');
    }
    tail(out, facts);
}

/// What the format does not have, as `key=value`: the request's id, milliseconds, and each attempt as `node:result:ms`, with
/// what happened behind the result if it failed.
fn tail(out: &mut Vec<u8>, facts: &Facts<'_>) {
    let trail = facts.trail;
    out.extend_from_slice(b" id=");
    match trail.id() {
        Some(RequestId::New(digits)) => out.extend_from_slice(digits),
        Some(RequestId::Given(text)) => escaped(out, text),
        None => out.push(b'-'),
    }
    for (key, took) in [
        (&b" hold_ms="[..], trail.held()),
        (b" upstream_ms=", trail.upstream()),
        (b" gate_ms=", trail.gated()),
        (b" total_ms=", facts.took),
    ] {
        out.extend_from_slice(key);
        millis(out, took);
    }
    out.extend_from_slice(b" attempts=");
    let mut first = true;
    trail.for_each_attempt(|tried| {
        if !first {
            out.push(b',');
        }
        first = false;
        out.extend_from_slice(name(facts, tried.node.index()));
        out.push(b':');
        out.extend_from_slice(tried.result.as_bytes());
        if !tried.error.is_empty() {
            out.push(b'/');
            out.extend_from_slice(tried.error.as_bytes());
        }
        out.push(b':');
        millis(out, tried.took);
    });
    if first {
        out.push(b'-');
    }
}

const fn protocol(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_10 => b"HTTP/1.0",
        Version::HTTP_2 => b"HTTP/2.0",
        _ => b"HTTP/1.1",
    }
}

fn name<'f>(facts: &Facts<'f>, node: usize) -> &'f [u8] {
    facts.nodes.get(node).map_or(b"", |name| name.as_bytes())
}

fn address(out: &mut Vec<u8>, client: IpAddr, trail: &Trail) {
    if client == trail.peer.ip {
        out.extend_from_slice(trail.peer.shown.as_bytes());
    } else {
        out.extend_from_slice(client.to_string().as_bytes());
    }
}

/// Whether a byte may stand in a string as it is.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0x20;
    while byte < 0x7f {
        plain[byte] = byte != b'"' as usize && byte != b'\\' as usize;
        byte += 1;
    }
    plain
};

/// Appends text so that it neither ends the string it is in nor the line.
fn escaped(out: &mut Vec<u8>, text: &[u8]) {
    if text.iter().all(|byte| PLAIN[usize::from(*byte)]) {
        out.extend_from_slice(text);
        return;
    }
    for byte in text {
        if PLAIN[usize::from(*byte)] {
            out.push(*byte);
        } else {
            let hex = |digit: u8| b"0123456789abcdef"[usize::from(digit)];
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[hex(byte >> 4), hex(byte & 15)]);
        }
    }
}

/// Appends milliseconds with three digits behind the point, and none when it is nothing.
fn millis(out: &mut Vec<u8>, span: Duration) {
    if span.is_zero() {
        out.push(b'0');
        return;
    }
    number_out(out, span.as_secs() * 1000 + u64::from(span.subsec_millis()));
    let part = span.subsec_micros() % 1000;
    if part > 0 {
        let digit = |value: u32| b'0' + u8::try_from(value % 10).unwrap_or(0);
        out.extend_from_slice(&[b'.', digit(part / 100), digit(part / 10), digit(part)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::{Body, Head, Request, Tried};
    use crate::logic::NodeId;
    use shared::model::Epoch;
    use std::rc::Rc;

    fn trail(path: &str) -> Rc<Trail> {
        let trail = Rc::new(Trail::for_test());
        let raw = "Host: shop.example.com\r\nUser-Agent: a \"b\" \\ c\r\n";
        let head = Head::for_test("POST", path, raw);
        let request = Request {
            head: Rc::new(head),
            body: Body::Empty,
            fault: None,
            trail: Rc::clone(&trail),
        };
        request.freeze();
        trail
    }

    fn line(trail: &Trail, write: fn(&mut Vec<u8>, &Stamp, &Facts<'_>)) -> String {
        let facts = Facts {
            trail,
            status: StatusCode::CREATED,
            sent: 512,
            at: clock::now(),
            took: Duration::from_micros(12_034),
            service: "shop",
            nodes: &["a".into(), "b".into()],
        };
        let mut out = Vec::new();
        write(&mut out, &Stamp::default(), &facts);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_json_line_is_one_object_with_every_field() {
        let trail = trail("/order?x=%22\"");
        trail.admitted(NodeId(1), Epoch(7));
        trail.received(90);
        trail.held_for(Duration::from_millis(5));
        for (node, result) in [(0, "never-sent"), (1, "ok")] {
            trail.tried(Tried {
                node: NodeId(node),
                result,
                error: if result == "ok" { "" } else { "refused" },
                sent: result == "ok",
                took: Duration::from_micros(1_005),
            });
        }
        let line = line(&trail, json);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["path"], "/order?x=%22\"");
        for (key, wanted) in [
            ("status", "201"),
            ("bytes_in", "90"),
            ("bytes_out", "512"),
            ("node", "\"b\""),
            ("epoch", "7"),
            ("hold_ms", "5"),
            ("upstream_ms", "1.005"),
            ("total_ms", "12.034"),
            ("client", "\"127.0.0.1\""),
            ("host", "\"shop.example.com\""),
            ("protocol", "\"HTTP/1.1\""),
            ("closed_by", "\"none\""),
        ] {
            assert_eq!(value[key].to_string(), wanted, "{key}: {line}");
        }
        assert_eq!(
            value["attempts"],
            serde_json::json!([
                { "node": "a", "result": "never-sent", "error": "refused", "sent": false, "ms": 1.005 },
                { "node": "b", "result": "ok", "sent": true, "ms": 1.005 },
            ])
        );
        assert_eq!(value["protocol"], "HTTP/1.1");
        assert!(value["tls"].is_null() && value["sni"].is_null());
    }

    #[test]
    fn a_combined_line_is_what_log_readers_expect() {
        let trail = trail("/order");
        trail.identify(RequestId::Given(b"id\"7".as_slice().into()));
        for (node, result, error) in [(0, "maybe-processed", "closed"), (1, "ok", "")] {
            trail.tried(Tried {
                node: NodeId(node),
                result,
                error,
                sent: true,
                took: Duration::from_micros(1_005),
            });
        }
        let line = line(&trail, combined);
        let (begin, end) = line.split_at(line.find('[').unwrap());
        assert_eq!(begin, "127.0.0.1 - - ");
        let end = &end[end.find(']').unwrap()..];
        let agent = "a \\u0022b\\u0022 \\u005c c";
        assert_eq!(
            end,
            format!(
                "] \"POST /order HTTP/1.1\" 201 512 \"-\" \"{agent}\" id=id\\u00227 hold_ms=0 upstream_ms=1.005 gate_ms=0 total_ms=12.034 attempts=a:maybe-processed/closed:1.005,b:ok:1.005"
            )
        );
    }

    #[test]
    fn time_is_written_as_people_read_it() {
        let stamp = Stamp::default();
        let mut out = Vec::new();
        stamp.write_at(&mut out, false, 1_700_000_000_007_000_000);
        out.push(b' ');
        stamp.write_at(&mut out, true, 1_700_000_000_999_000_000);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "2023-11-14T22:13:20.007Z 14/Nov/2023:22:13:20 +0000");
    }

    #[test]
    fn a_request_without_a_head_still_makes_a_line() {
        let trail = Trail::for_test();
        let line = line(&trail, json);
        assert!(
            serde_json::from_str::<serde_json::Value>(&line).is_ok(),
            "{line}"
        );
    }
}
