//! What must hold of every reader of foreign bytes, whatever bytes come: one function each, which panics if it does not.
//!
//! Nothing in the program calls them. Tests do with ten thousand seeded inputs each, and `fuzz/` with as many as it has time
//! for.

use bytes::{Bytes, BytesMut};

use crate::config::{self, Limits, Network};
use crate::exchange::decode::{Decoder, Framing, Malformed, Piece};
use crate::exchange::fields::{FieldId, FieldSet, Fields, Span, is_value_byte};
use crate::exchange::{Head, encode};
use crate::layer::forward::{chain, trace};
use crate::layer::rescue::wants::Wants;
use crate::layer::strict;
use crate::logic::health::Statuses;
use crate::logic::route::{HostPattern, Table};
use crate::server::head::{self, Parsed};
use crate::server::proxy_protocol;
use crate::tls::x509;
use crate::upstream::client::parse::{self, Asked, Found};
use std::time::Duration;

/// A trial: its name, what it does with bytes, and bytes that lead far into what it tries.
pub type Trial = (&'static str, fn(&[u8]), &'static [&'static [u8]]);

/// Every trial.
pub const ALL: [Trial; 9] = [
    ("request_head", request_head, REQUESTS),
    ("response_head", response_head, RESPONSES),
    ("chunks", chunks, CHUNKS),
    ("proxy_header", proxy_header, PROXY_HEADERS),
    ("forwarded", forwarded, FORWARDED),
    ("trace_and_accept", trace_and_accept, TRACES),
    ("certificate", certificate, CERTIFICATES),
    ("words", words, WORDS),
    ("configuration", configuration, CONFIGURATIONS),
];

const LIMITS: Limits = Limits {
    max_connections: 1,
    header_timeout: Duration::from_secs(1),
    idle_timeout: Duration::from_secs(1),
    body_idle_timeout: Duration::from_secs(1),
    min_body_rate: 240,
    max_header_bytes: 8 << 10,
    max_headers: 20,
    max_streams: 1,
};

const REQUESTS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\nPOST /a?b=%20 HTTP/1.1\r\nHost: a.b:80\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT http://[::1]:8/x HTTP/1.1\nhost:a\nTransfer-Encoding:  chunked \nExpect: 100-continue\n\n0\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nConnection: keep-alive, x-a\r\nX-A: 1\r\nMax-Forwards: 0\r\nX_B: \t2\t\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: a\r\nVia: 1.1 hotwarm\r\nUpgrade: websocket\r\nConnection: upgrade\r\nTE: trailers\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\xff\r\n y\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 1\r\n\r\n",
];

const RESPONSES: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDate: x\r\n\r\nok",
    b"HTTP/1.0 404\r\nConnection: keep-alive, x-a\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 \xff\nTransfer-Encoding: chunked\nTrailer: x\nKeep-Alive: timeout=5, max=3\n\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5, 5\r\nETag: \"a\"\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
];

const CHUNKS: &[&[u8]] = &[
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=b;c=\"d\"\r\nhello\r\n000a  \r\n0123456789\r\n0\r\nX: y\r\n\r\nrest",
    b"ffffffffffffffff\r\nx",
    b"1\nx\r\n0\r\n\n",
    b"0\r\nA: b\r\n c\r\n\r\n",
];

const PROXY_HEADERS: &[&[u8]] = &[
    b"PROXY TCP4 192.0.2.1 10.0.0.9 56324 443\r\nGET",
    b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n",
    b"PROXY UNKNOWN whatever\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14\xc0\0\x02\x01\x0a\0\0\x09\xdc\x04\x01\xbb\x04\0\x02\0\0\x02\0\0GET",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x2b\x20\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x01\0\x02\x03\0\x04abcd",
];

const FORWARDED: &[&[u8]] = &[
    b"for=192.0.2.60;proto=http;by=203.0.113.43",
    b"For=\"[2001:db8:cafe::17]:4711\", for=_hidden;host=\"a:80\"",
    b"for=unknown;;proto=https ; host=a,, ,for=\"192.0.2.43:_x\"",
    b"192.0.2.1, [::1]:80, 2001:db8::1, 1.2.3.4:5",
];

const TRACES: &[&[u8]] = &[
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what",
    b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    b"application/problem+json ; Q=0.123, application/* ; q=1.000; text/html;level=1",
    b"application/grpc+proto;x",
];

/// The shape of a certificate without its key and signature.
const CERTIFICATES: &[&[u8]] = &[
    b"\x30\x4f\x30\x4d\xa0\x03\x02\x01\x02\x02\x01\x01\x30\x03\x06\x01\x2a\x30\x00\x30\x1e\x17\x0d260101000000Z\x17\x0d270101000000Z\x30\x1e\x31\x0b\x30\x09\x06\x03\x55\x04\x03\x0c\x02,\xc3\x31\x0f\x30\x0d\x06\x03\x55\x04\x0a\x13\x06Shop A",
    b"\x30\x3a\x30\x38\x02\x01\x01\x30\x00\x30\x00\x30\x20\x18\x0f20510101000000Z\x18\x0f99991231235959Z\x30\x0d\x31\x0b\x30\x09\x06\x04\x2a\x86\x48\x01\x05\x01\x00",
];

const WORDS: &[&[u8]] = &[
    b"10.0.0.0/8",
    b"fd00::/8",
    b"*.Example.com",
    b"[::1]",
    b"200-299, 404",
    b"1.5s",
    b"64KiB",
    b"250ms",
];

const CONFIGURATIONS: &[&[u8]] = &[
    b"state_dir = \"s\"\n[[listener]]\nbind = \"127.0.0.1:0\"\nlimits = { max_headers = 1, min_body_rate = \"1B\" }\n[[service]]\nname = \"s\"\n[[service.node]]\nname = \"a\"\nurl = \"http://127.0.0.1:1\"\n",
    b"state_dir = 1\nthreads = -1\n[admin]\nbind = \"x\"\n[[service]]\nhosts = [\"*\"]\n[service.health]\nstatus = \"1\"\njitter = nan\ninterval = \"9999999999999999h\"\n",
];

/// Hands `bytes` over `step` at a time to `take`, which gets all that was not taken yet and how much of it it has seen.
fn feed<T>(
    bytes: &[u8],
    step: usize,
    mut take: impl FnMut(&mut BytesMut, usize) -> Option<T>,
) -> Option<T> {
    let mut incoming = BytesMut::new();
    let mut seen = 0;
    for piece in bytes.chunks(step.max(1)) {
        incoming.extend_from_slice(piece);
        if let Some(result) = take(&mut incoming, seen) {
            return Some(result);
        }
        seen = incoming.len();
    }
    None
}

/// The fields as they would be sent on.
fn written(fields: &Fields) -> Vec<u8> {
    let mut out = Vec::new();
    fields.write(&mut out, FieldSet::NONE);
    out
}

fn assert_one_line(text: &[u8]) {
    assert!(text.iter().all(|byte| is_value_byte(*byte)), "{text:?}");
}

fn assert_fields(fields: &Fields) {
    for (_, name, value) in fields.iter() {
        assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic));
        assert!(!name.contains(&b':'));
        assert_one_line(value);
    }
}

/// A request's head means the same in whatever pieces it comes; what is taken for one can be sent on and means the same
/// again; and its body ends in one way.
pub fn request_head(bytes: &[u8]) {
    let read = |step: usize| {
        feed(bytes, step, |incoming, seen| {
            match head::request(incoming, seen, &LIMITS) {
                Ok(None) => None,
                Ok(Some(parsed)) => Some(Ok(parsed)),
                Err(refused) => Some(Err(refused.fault.to_string())),
            }
        })
    };
    let (whole, pieces) = (read(bytes.len()), read(1));
    let (Some(Ok(parsed)), Some(Ok(again))) = (&whole, &pieces) else {
        let is_one = |read: &Option<Result<Parsed, String>>| matches!(read, Some(Ok(_)));
        // In pieces, a head that is too long may be noticed before its end and what is wrong with that.
        assert_eq!(is_one(&whole), is_one(&pieces), "{whole:?} and {pieces:?}");
        return;
    };
    assert_same_request(parsed, again);
    assert_fields(&parsed.head.fields);
    let is_chunked = parsed.head.fields.has(FieldId::TransferEncoding);
    let is_sized = parsed.head.fields.has(FieldId::ContentLength);
    assert!(!(is_chunked && is_sized), "two ways to end");
    assert_eq!(parsed.framing == Framing::Chunked, is_chunked);
    let sent = request_text(&parsed.head);
    let mut incoming = BytesMut::from(&sent[..]);
    match head::request(&mut incoming, 0, &LIMITS) {
        Ok(Some(again)) => assert_same_request(parsed, &again),
        // Plain lines may be longer than those that came.
        other => assert!(sent.len() > LIMITS.max_header_bytes, "{other:?}"),
    }
    let mut checked = (*parsed.head).clone();
    if strict::check(&mut checked).is_ok() {
        assert_checked(&checked);
    }
}

fn request_text(head: &Head) -> Vec<u8> {
    let version = if head.version == http::Version::HTTP_10 {
        "HTTP/1.0"
    } else {
        "HTTP/1.1"
    };
    let mut sent = format!("{} ", head.method).into_bytes();
    sent.extend_from_slice(head.target());
    sent.extend_from_slice(format!(" {version}\r\n").as_bytes());
    sent.extend_from_slice(&written(&head.fields));
    sent.extend_from_slice(b"\r\n");
    sent
}

fn assert_same_request(one: &Parsed, other: &Parsed) {
    assert_eq!(one.head.method, other.head.method);
    assert_eq!(one.head.target(), other.head.target());
    assert_eq!(one.head.version, other.head.version);
    assert_eq!(written(&one.head.fields), written(&other.head.fields));
    assert_eq!(one.framing, other.framing);
    assert_eq!(
        (one.persistent, one.expects),
        (other.persistent, other.expects)
    );
}

/// What passes the rules names at most one host and nothing of the connection.
fn assert_checked(head: &Head) {
    let fields = &head.fields;
    assert!(fields.all(FieldId::Host).count() <= 1);
    assert!(head.target().iter().all(u8::is_ascii_graphic));
    assert!(matches!(head.target().first(), Some(b'/' | b'*')));
    for id in [
        FieldId::Connection,
        FieldId::Te,
        FieldId::Trailer,
        FieldId::Upgrade,
        FieldId::KeepAlive,
        FieldId::ProxyConnection,
        FieldId::Underscored,
    ] {
        assert!(!fields.has(id) && fields.all(id).next().is_none(), "{id:?}");
    }
}

/// A response's head means the same in whatever pieces it comes, and nothing in it can be taken for another line.
pub fn response_head(bytes: &[u8]) {
    for to_head in [false, true] {
        let read = |step: usize| {
            feed(bytes, step, |incoming, seen| {
                let asked = Asked {
                    head: to_head,
                    upgrade: to_head.then_some("websocket"),
                };
                parse::response(incoming, seen, asked).transpose()
            })
        };
        let (whole, pieces) = (read(bytes.len()), read(1));
        let (Some(Ok(Found::Final(one))), Some(Ok(Found::Final(other)))) = (&whole, &pieces) else {
            let kind = |read: &Option<Result<Found, Malformed>>| match read {
                Some(Ok(Found::Final(_))) => 2,
                Some(Ok(_)) => 1,
                Some(Err(_)) | None => 0,
            };
            assert_eq!(kind(&whole), kind(&pieces), "{whole:?} and {pieces:?}");
            return;
        };
        assert_eq!(written(&one.fields), written(&other.fields));
        assert_eq!((one.status, one.framing), (other.status, other.framing));
        assert_fields(&one.fields);
        assert!(!one.fields.has(FieldId::TransferEncoding));
        if let Some(reason) = one.reason {
            assert_one_line(reason.of(one.fields.raw()));
        }
        let status = one.status.as_u16();
        if to_head || matches!(status, 204 | 304) {
            assert_eq!(one.framing, Framing::None);
        }
    }
}

/// A chunked body means the same in whatever pieces it comes, and the same when it is sent on.
pub fn chunks(bytes: &[u8]) {
    let read = |bytes: &[u8], step: usize| {
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut data = Vec::new();
        let mut incoming = BytesMut::new();
        let mut left = bytes;
        loop {
            match decoder.decode(&mut incoming) {
                Ok(Some(Piece::Data(piece))) => {
                    assert!(!piece.is_empty());
                    data.extend_from_slice(&piece);
                }
                Ok(Some(Piece::End)) => {
                    let rest = [&incoming[..], left].concat();
                    return Some(Ok((data, rest)));
                }
                Err(Malformed(_)) => return Some(Err(())),
                Ok(None) if left.is_empty() => return None,
                Ok(None) => {
                    let (piece, later) = left.split_at(step.clamp(1, left.len()));
                    incoming.extend_from_slice(piece);
                    left = later;
                }
            }
        }
    };
    let (whole, pieces) = (read(bytes, bytes.len()), read(bytes, 1));
    assert_eq!(whole, pieces);
    if let Some(Ok((data, _))) = whole {
        let mut sent = Vec::new();
        for piece in data.chunks(7) {
            encode::chunk(&mut sent, piece.len());
            sent.extend_from_slice(piece);
            sent.extend_from_slice(b"\r\n");
        }
        sent.extend_from_slice(encode::LAST_CHUNK);
        assert_eq!(read(&sent, 3), Some(Ok((data, Vec::new()))));
    }
}

/// A PROXY header ends where it says, whatever is behind it, and not before.
pub fn proxy_header(bytes: &[u8]) {
    let Ok(Some((said, length))) = proxy_protocol::parse(bytes) else {
        return;
    };
    assert!(length <= bytes.len() && length <= proxy_protocol::LONGEST);
    assert_eq!(
        proxy_protocol::parse(&bytes[..length]),
        Ok(Some((said, length)))
    );
    for end in 0..length.min(256) {
        assert_eq!(proxy_protocol::parse(&bytes[..end]), Ok(None));
    }
}

/// Steps of a chain are what is read of what is written of them.
pub fn forwarded(bytes: &[u8]) {
    let Some(steps) = chain::steps(bytes.split(|byte| *byte == b'\n')) else {
        return;
    };
    for step in &steps {
        let mut out = Vec::new();
        chain::write(&mut out, *step);
        let again = chain::steps([&out[..]].into_iter());
        let again = again.unwrap_or_else(|| panic!("{out:?}"));
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].from, step.from);
        assert!(again[0].proto.is_empty() || again[0].proto == step.proto);
        assert!(again[0].host.is_empty() || again[0].host == step.host);
    }
    if let Some(address) = chain::address(bytes) {
        let text = address.to_string();
        assert_eq!(chain::address(text.as_bytes()), Some(address));
    }
}

/// What counts as a trace is plain text; whatever a client says it accepts has an answer.
pub fn trace_and_accept(bytes: &[u8]) {
    if trace::is_valid(bytes) {
        assert!(bytes.len() >= 55 && bytes[..55].is_ascii());
    }
    let clean: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|byte| is_value_byte(*byte))
        .collect();
    for name in ["Accept", "Content-Type"] {
        let raw = Bytes::from([name.as_bytes(), b": ", &clean, b"\r\n"].concat());
        let mut fields = Fields::new(raw.clone(), 1);
        let value = Span::within(&raw, &raw[name.len() + 2..raw.len() - 2]);
        fields.push(Span::within(&raw, &raw[..name.len()]), value);
        let head = Head::new(
            http::Method::GET,
            Span::default(),
            http::Version::HTTP_11,
            fields,
        );
        if let Wants::Grpc(kind) = Wants::of(&head) {
            assert_eq!(kind.as_bytes(), clean);
            assert_eq!(name, "Content-Type");
        }
    }
}

/// Whatever is read of a certificate can stand in a field.
pub fn certificate(bytes: &[u8]) {
    if let Some(facts) = x509::read(bytes) {
        let mut subject = facts.subject.bytes();
        assert!(facts.subject.len() <= 1024 && subject.all(|byte| (b' '..=b'~').contains(&byte)));
    }
}

/// Words of the configuration: what is read is written as the same.
pub fn words(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(span) = shared::config::span(text) {
        assert_eq!(shared::config::span(&span.to_string()), Some(span));
    }
    if let Some(size) = shared::config::size(text) {
        assert_eq!(shared::config::size(&size.to_string()), Some(size));
    }
    if let Some(network) = Network::parse(text) {
        let first = match network {
            Network::V4(first, _) => first.into(),
            Network::V6(first, _) => first.into(),
        };
        assert!(network.contains(first));
    }
    if let Some(statuses) = Statuses::parse(text) {
        assert!((100..600).any(|status| statuses.contain(status)));
    }
    if let Some(pattern) = HostPattern::parse(text) {
        let host = match &pattern {
            HostPattern::Exact(name) => name.clone(),
            HostPattern::Below(end) => format!("x{end}"),
            HostPattern::Any => "x".to_owned(),
        };
        let table = Table::new([(pattern, 7)]);
        assert_eq!(table.find(host.as_bytes()), Some(7), "{host}");
    }
    let _ = Table::default().find(bytes);
}

/// A file that is none is an error that says something.
pub fn configuration(bytes: &[u8]) {
    if let Err(error) = config::form(String::from_utf8_lossy(bytes).into_owned()) {
        assert!(!error.to_string().is_empty());
    }
}
