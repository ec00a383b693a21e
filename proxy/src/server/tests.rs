//! The same bytes for our reader of requests and for hyper's server: whatever we take for a request, hyper takes for the same
//! one.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use shared::rng::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::head;
use crate::config::Limits;
use crate::exchange::Fault;
use crate::exchange::decode::{Decoder, Piece};
use std::time::Duration;

const LIMITS: Limits = Limits {
    max_connections: 1,
    header_timeout: Duration::from_secs(1),
    idle_timeout: Duration::from_secs(1),
    body_idle_timeout: Duration::from_secs(1),
    min_body_rate: 240,
    max_header_bytes: 64 << 10,
    max_headers: 100,
    max_streams: 128,
};

/// A request as a reader understood it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Understood {
    method: String,
    target: String,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

/// Framing is judged by the body that comes of it.
fn is_compared(name: &str) -> bool {
    !matches!(name, "content-length" | "transfer-encoding")
}

/// Reads requests until the bytes end or are refused; says why, if they are.
fn ours(bytes: &[u8], step: usize) -> (Vec<Understood>, Option<String>) {
    let (mut incoming, mut pieces) = (BytesMut::new(), bytes.chunks(step));
    let mut all = Vec::new();
    loop {
        let mut seen = 0;
        let parsed = loop {
            match head::request(&mut incoming, seen, &LIMITS) {
                Ok(Some(parsed)) => break parsed,
                Err(refused) => return (all, Some(refused.fault.to_string())),
                Ok(None) => seen = incoming.len(),
            }
            match pieces.next() {
                Some(piece) => incoming.extend_from_slice(piece),
                None => return (all, None),
            }
        };
        // What is wrong with a target is told by the layer of rules; hyper tells it here.
        let Ok(target) = http::Uri::try_from(parsed.head.target()) else {
            return (all, Some("no URI".to_owned()));
        };
        let mut decoder = Decoder::new(parsed.framing);
        let mut body = Vec::new();
        loop {
            match decoder.decode(&mut incoming) {
                Ok(Some(Piece::Data(data))) => body.extend_from_slice(&data),
                Ok(Some(Piece::End)) => break,
                Err(malformed) => return (all, Some(malformed.0.to_owned())),
                Ok(None) => match pieces.next() {
                    Some(piece) => incoming.extend_from_slice(piece),
                    None => return (all, None),
                },
            }
        }
        let head = &parsed.head;
        let fields = head.fields.iter().map(|(_, name, value)| {
            let name = String::from_utf8_lossy(name).to_lowercase();
            (name, value.to_vec())
        });
        let mut fields: Vec<_> = fields.filter(|(name, _)| is_compared(name)).collect();
        fields.sort();
        all.push(Understood {
            method: head.method.to_string(),
            target: target.to_string(),
            fields,
            body,
        });
        if !parsed.persistent {
            return (all, None);
        }
    }
}

async fn understand(request: http::Request<Incoming>) -> Option<Understood> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.ok()?.to_bytes().to_vec();
    let mut fields: Vec<_> = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .filter(|(name, _)| is_compared(name))
        .collect();
    fields.sort();
    Some(Understood {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        fields,
        body,
    })
}

async fn theirs(bytes: &[u8]) -> Vec<Understood> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let all: Rc<RefCell<Vec<Understood>>> = Rc::default();
    let told = Rc::clone(&all);
    let service = hyper::service::service_fn(move |request| {
        let told = Rc::clone(&told);
        async move {
            let understood = understand(request).await;
            told.borrow_mut().extend(understood);
            Ok::<_, Infallible>(http::Response::new(Empty::<Bytes>::new()))
        }
    });
    let io = hyper_util::rt::TokioIo::new(server);
    // Otherwise the end of the input drops requests already read.
    let serve = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(io, service);
    let talk = async move {
        let _ = client.write_all(bytes).await;
        let _ = client.shutdown().await;
        let mut sink = Vec::new();
        let _ = client.read_to_end(&mut sink).await;
    };
    let _ = tokio::join!(serve, talk);
    all.take()
}

/// A few valid requests in a row.
fn script(rng: &mut Rng) -> Vec<u8> {
    let mut text = Vec::new();
    for _ in 0..rng.usize(1..4) {
        let method = ["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "BREW"][rng.usize(..7)];
        let target = ["/", "/a/b?c=d", "/%20", "http://host/x?y", "/x;y=1"][rng.usize(..5)];
        if rng.u8(..10) == 0 {
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(format!("{method} {target} HTTP/1.1\r\nHost: a\r\n").as_bytes());
        for n in 0..rng.usize(..6) {
            let value: String = (0..rng.usize(..20)).map(|_| rng.alphanumeric()).collect();
            let space = " ".repeat(rng.usize(..3));
            text.extend_from_slice(format!("X-{n}:{space}{value} \r\n").as_bytes());
        }
        let body: Vec<u8> = (0..rng.usize(..100)).map(|_| rng.u8(b'a'..=b'z')).collect();
        match rng.u8(..3) {
            0 => {
                let length = format!("Content-Length: {}\r\n\r\n", body.len());
                text.extend_from_slice(length.as_bytes());
                text.extend_from_slice(&body);
            }
            1 => {
                text.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                for piece in body.chunks(rng.usize(1..50)) {
                    text.extend_from_slice(format!("{:x}", piece.len()).as_bytes());
                    text.extend_from_slice(if rng.bool() { b";x=y\r\n" } else { b"\r\n" });
                    text.extend_from_slice(piece);
                    text.extend_from_slice(b"\r\n");
                }
                text.extend_from_slice(b"0\r\n\r\n");
            }
            _ => text.extend_from_slice(b"\r\n"),
        }
    }
    text
}

const SPICES: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"0\r\n\r\n",
    b"\xff",
    b"_",
    b"Content-Length: 3\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"GET / HTTP/1.0\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HTTP/1.1",
    b"ffffffffffffffff",
    b"-1",
    b"Host: b\r\n",
];

fn season(rng: &mut Rng, text: &mut Vec<u8>) {
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..=text.len());
        match rng.u8(..5) {
            0 => {
                let spice = SPICES[rng.usize(..SPICES.len())];
                text.splice(at..at, spice.iter().copied());
            }
            1 if at < text.len() => text[at] = rng.u8(..),
            2 => text.truncate(at),
            3 => {
                let end = (at + rng.usize(..10)).min(text.len());
                text.drain(at..end);
            }
            _ => {
                let lines: Vec<usize> = (0..text.len())
                    .filter(|n| text[*n] == b'\n')
                    .map(|n| n + 1)
                    .collect();
                if let Some(at) = rng.choice(&lines) {
                    let spice = SPICES[rng.usize(..SPICES.len())];
                    text.splice(*at..*at, spice.iter().copied());
                }
            }
        }
    }
}

#[tokio::test]
async fn ten_thousand_seeded_requests_never_panic_and_mean_the_same_to_hyper() {
    let seed = 0x0005_e4d0_f0a2_u64;
    let (mut same, mut stricter) = (0, 0);
    for round in 0..10_000 {
        let mut rng = Rng::with_seed(seed + round);
        let mut text = script(&mut rng);
        let pure = rng.u8(..4) == 0;
        if !pure {
            season(&mut rng, &mut text);
        }
        let step = if rng.bool() {
            text.len().max(1)
        } else {
            rng.usize(1..40)
        };
        let (ours, refusal) = ours(&text, step);
        let theirs = theirs(&text).await;
        let shown = || {
            format!(
                "seed {}: {:?}",
                seed + round,
                String::from_utf8_lossy(&text)
            )
        };
        for (n, (our, their)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(our, their, "request {n} of {}", shown());
        }
        // What hyper reads and we do not must have been refused aloud.
        assert!(
            ours.len() >= theirs.len() || refusal.is_some(),
            "{}",
            shown()
        );
        // What we read and hyper does not would be a request that only we see.
        assert!(ours.len() <= theirs.len(), "we read more: {}", shown());
        if pure {
            assert_eq!((ours.len(), &refusal), (theirs.len(), &None), "{}", shown());
        }
        same += ours.len();
        stricter += usize::from(ours.len() < theirs.len());
    }
    assert!(same > 9000 && stricter > 20, "{same} {stricter}");
}

#[test]
fn what_is_wrong_is_told_by_its_status() {
    let status = |text: &str, limits: &Limits| {
        let mut bytes = BytesMut::from(text);
        match head::request(&mut bytes, 0, limits) {
            Ok(parsed) => panic!("{parsed:?}"),
            Err(refused) => match refused.fault {
                Fault::Request { status, .. } => status.as_u16(),
                fault @ (Fault::HeadTooSlow
                | Fault::BodyBroken
                | Fault::BodyTooSlow
                | Fault::NoService
                | Fault::Unavailable(_)
                | Fault::Upstream(_)
                | Fault::Unconfirmed(_)) => panic!("{fault:?}"),
            },
        }
    };
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(101));
    let large = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(70_000));
    let roomy = Limits {
        max_header_bytes: 1 << 20,
        max_headers: 200,
        ..LIMITS
    };
    assert_eq!(status(&long, &LIMITS), 414);
    assert_eq!(status(&long, &roomy), 414);
    assert_eq!(status(&many, &LIMITS), 431);
    assert_eq!(status(&large, &LIMITS), 431);
    assert_eq!(status("GET / HTTP/2.0\r\n\r\n", &LIMITS), 400);
    assert!(head::request(&mut BytesMut::from(many.as_str()), 0, &roomy).is_ok());
    assert!(head::request(&mut BytesMut::from(large.as_str()), 0, &roomy).is_ok());
}
