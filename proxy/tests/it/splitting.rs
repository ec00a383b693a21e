//! Ten thousand odd answers of a node through the whole proxy to a client that is read by hyper: whatever the client
//! understands, hyper understands of the node's own bytes, too; what is broken stays broken, or is an error of the proxy's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use shared::rng::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::season::season;
use crate::harness::{PATIENCE, Setup};

const SEED: u64 = 0x0005_0117_7e40;
const INPUTS: u64 = 10_000;
/// Each lane asks for its share of the answers, one after the other, through a proxy of its own.
const LANES: u64 = 8;

/// An answer as hyper read it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Understood {
    status: StatusCode,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    by_proxy: bool,
}

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Head,
    New,
    /// In HTTP/1.0.
    Old,
}

impl Ask {
    /// The node closes without saying so beforehand, and a connection that it just closed may be used once more. A valid
    /// answer is asked for by a method that is made again then; the others may end as an error anyway.
    fn text(self, number: u64, pure: bool) -> String {
        let method = match self {
            Self::Head => "HEAD",
            Self::New | Self::Old if pure => "GET",
            Self::New | Self::Old => "POST",
        };
        let version = if self == Self::Old { "1.0" } else { "1.1" };
        format!(
            "{method} /{number} HTTP/{version}\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    }
}

/// What a node answers, and to what.
fn input(number: u64) -> (Ask, Vec<u8>, bool) {
    let mut rng = Rng::with_seed(SEED + number);
    let ask = match rng.u8(..12) {
        0 => Ask::Head,
        1 | 2 => Ask::Old,
        _ => Ask::New,
    };
    let mut text = script(&mut rng, ask);
    let pure = rng.u8(..4) == 0;
    if !pure {
        season(&mut rng, &mut text, &SPICES);
    }
    (ask, text, pure)
}

/// A valid answer, perhaps after a few interim ones.
fn script(rng: &mut Rng, ask: Ask) -> Vec<u8> {
    let statuses = [
        "200 OK",
        "204 No Content",
        "304 Not Modified",
        "404 ",
        "500 Oh no",
        "206 x",
    ];
    let status = statuses[rng.usize(..statuses.len())];
    let body: Vec<u8> = (0..rng.usize(..200)).map(|_| rng.u8(b'a'..=b'z')).collect();
    let bodiless = ask == Ask::Head || status.starts_with("204") || status.starts_with("304");
    let mut text = Vec::new();
    for _ in 0..rng.usize(..3) {
        text.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
    }
    text.extend_from_slice(format!("HTTP/1.1 {status}\r\n").as_bytes());
    for n in 0..rng.usize(..5) {
        let value: String = (0..rng.usize(..20)).map(|_| rng.alphanumeric()).collect();
        let space = " ".repeat(rng.usize(..3));
        text.extend_from_slice(format!("Own-{n}:{space}{value} \r\n").as_bytes());
    }
    match rng.u8(..3) {
        _ if bodiless => text.extend_from_slice(b"\r\n"),
        0 => {
            text.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            text.extend_from_slice(&body);
        }
        1 => {
            text.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for piece in body.chunks(rng.usize(1..50)) {
                text.extend_from_slice(format!("{:X}", piece.len()).as_bytes());
                text.extend_from_slice(if rng.bool() { b";x=y\r\n" } else { b"\r\n" });
                text.extend_from_slice(piece);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
        }
        _ => {
            text.extend_from_slice(b"\r\n");
            text.extend_from_slice(&body);
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
    b"\x0c",
    b":",
    b";",
    b",",
    b"0\r\n\r\n",
    b"\xff",
    b"Content-Length: 3\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Connection: close, content-length\r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 X\r\n\r\n",
    b"ffffffffffffffff",
    b"-1",
];

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// What hyper understands of bytes that end; nothing when they are broken.
async fn understood(bytes: &[u8], ask: Ask) -> Option<Understood> {
    let (client, mut node) = tokio::io::duplex(1 << 20);
    let (mut sender, connection) = http1::handshake(TokioIo::new(client)).await.ok()?;
    let node = async move {
        let _ = node.read(&mut [0; 1024]).await;
        let _ = node.write_all(bytes).await;
    };
    let method = if ask == Ask::Head { "HEAD" } else { "GET" };
    let request = Request::builder()
        .method(method)
        .uri("/")
        .header("host", "a");
    let request = request.body(Empty::<Bytes>::new()).ok()?;
    let exchange = async move {
        let response = sender.send_request(request).await.ok()?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.ok()?.to_bytes().to_vec();
        let own = head
            .headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("own-"));
        let own = own.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
        Some(Understood {
            status: head.status,
            fields: own.collect(),
            body,
            by_proxy: head.headers.contains_key("proxy-status"),
        })
    };
    let driven = async move {
        let _ = connection.await;
    };
    tokio::join!(exchange, node, driven).0
}

/// A node that answers `/n` with input n and closes, until the test's process ends.
fn node() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
            while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut piece) {
                    Ok(read) if read > 0 => bytes.extend_from_slice(&piece[..read]),
                    Ok(_) | Err(_) => break,
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            let number = text
                .split(' ')
                .nth(1)
                .and_then(|target| target.get(1..)?.parse().ok());
            if let Some(number) = number {
                let _ = stream.write_all(&input(number).1);
            }
        }
    });
    address
}

/// Everything that the proxy says until it closes, and whether that was an orderly end.
fn ask(proxy: SocketAddr, text: &str) -> (Vec<u8>, bool) {
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut all = Vec::new();
    let orderly = stream.read_to_end(&mut all).is_ok();
    (all, orderly)
}

/// How many answers arrived as they were meant, and how many as errors of the proxy's or broken.
fn run(lane: u64) -> (usize, usize) {
    let rules = "[service.breaker]\nconsecutive_failures = 100000\nmin_requests = 100000\n[service.retry]\nmethods = [\"GET\", \"HEAD\"]";
    let proxy = Setup::addresses(&[node()]).with(rules).start();
    let runtime = runtime();
    let (mut same, mut refused) = (0, 0);
    for number in (lane..INPUTS).step_by(usize::try_from(LANES).unwrap()) {
        let (how, text, pure) = input(number);
        let (answer, orderly) = ask(proxy.address, &how.text(number, pure));
        let meant = runtime.block_on(understood(&text, how));
        let got = runtime
            .block_on(understood(&answer, how))
            .filter(|_| orderly);
        let shown = || {
            let (text, answer) = (
                String::from_utf8_lossy(&text),
                String::from_utf8_lossy(&answer),
            );
            format!("seed {SEED} + {number}, {how:?}: {text:?} became {answer:?}")
        };
        match got {
            Some(got) if !got.by_proxy => {
                assert_eq!(Some(got), meant, "{}", shown());
                same += 1;
            }
            Some(_) | None => {
                assert!(!pure, "{}", shown());
                refused += 1;
            }
        }
    }
    (same, refused)
}

#[test]
fn ten_thousand_seeded_answers_reach_the_client_as_they_were_meant_or_broken() {
    let lanes: Vec<_> = (0..LANES)
        .map(|lane| thread::spawn(move || run(lane)))
        .collect();
    let (mut same, mut refused) = (0, 0);
    for lane in lanes {
        let ran = lane.join().unwrap();
        (same, refused) = (same + ran.0, refused + ran.1);
    }
    assert!(same > 3500 && refused > 1000, "{same} {refused}");
}
