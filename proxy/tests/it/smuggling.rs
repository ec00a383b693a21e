//! Ten thousand odd inputs through the whole proxy to a node that is read by hyper: whatever the node understood, hyper
//! understands of the client's own bytes, too. So nothing was added, split, joined or cut on the way.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use shared::rng::Rng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::harness::season::season;
use crate::harness::{PATIENCE, Setup};

const SEED: u64 = 0x0005_3399_1e50;
const INPUTS: u64 = 10_000;
/// Each sends its share of the inputs, one after the other, through a proxy of its own.
const LANES: u64 = 8;
/// An input that was cut short gets no answer; nothing depends on how long one is waited for.
const IMPATIENCE: Duration = Duration::from_millis(5);

/// A request as hyper read it, with the number of the input that it was in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Understood {
    method: String,
    target: String,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

async fn understand(request: Request<Incoming>) -> Option<Understood> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.ok()?.to_bytes().to_vec();
    let path = head.uri.path();
    let query = head.uri.query().map(|query| format!("?{query}"));
    let target = format!("{path}{}", query.unwrap_or_default());
    // The other fields are the proxy's to change, and names with underscores to drop.
    let ours = |name: &str| name == "input" || name.starts_with("own-") && !name.contains('_');
    let fields = head.headers.iter().filter(|(name, _)| ours(name.as_str()));
    let fields = fields.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
    let mut fields: Vec<_> = fields.collect();
    fields.sort();
    Some(Understood {
        method: head.method.to_string(),
        target,
        fields,
        body,
    })
}

/// Serves one connection; tells of every request that was understood whole.
async fn serve<T>(io: T, tell: Sender<Understood>)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let tell = tell.clone();
        async move {
            if let Some(understood) = understand(request).await {
                let _ = tell.send(understood);
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    // Otherwise the end of the input drops requests already read.
    let mut server = http1::Builder::new();
    let _ = server
        .half_close(true)
        .serve_connection(TokioIo::new(io), service)
        .await;
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// A node that runs until the test's process ends.
fn node() -> (SocketAddr, Receiver<Understood>) {
    let (tell, told) = channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime(), async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(serve(stream, tell.clone()));
            }
        });
    });
    (address, told)
}

/// What hyper understands of the bytes themselves.
fn understood(runtime: &tokio::runtime::Runtime, bytes: &[u8]) -> Vec<Understood> {
    let (tell, told) = channel();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let talk = async {
            let _ = client.write_all(bytes).await;
            let _ = client.shutdown().await;
            let _ = client.read_to_end(&mut Vec::new()).await;
        };
        tokio::join!(serve(server, tell), talk);
    });
    told.try_iter().collect()
}

/// What a client sends.
struct Input {
    text: Vec<u8>,
    /// How many bytes at once.
    step: usize,
    /// Whether it is valid and asks for the connection to be closed behind its last answer.
    ends: bool,
}

fn input(number: u64) -> Input {
    let mut rng = Rng::with_seed(SEED + number);
    let ends = rng.u8(..5) > 0;
    let mut text = script(&mut rng, number, ends);
    let pure = rng.u8(..4) == 0;
    if !pure {
        season(&mut rng, &mut text, &SPICES);
    }
    let whole = rng.bool();
    Input {
        step: if whole {
            text.len().max(1)
        } else {
            rng.usize(20..200)
        },
        text,
        ends: ends && pure,
    }
}

/// A few valid requests in a row.
fn script(rng: &mut Rng, input: u64, ends: bool) -> Vec<u8> {
    let mut text = Vec::new();
    let requests = rng.usize(1..4);
    for request in 1..=requests {
        let method = ["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "BREW"][rng.usize(..7)];
        let target = ["/", "/a/b?c=d", "/%20", "http://host/x?y", "/x;y=1"][rng.usize(..5)];
        let head = format!("{method} {target} HTTP/1.1\r\nHost: a\r\nInput: {input}\r\n");
        text.extend_from_slice(head.as_bytes());
        for n in 0..rng.usize(..4) {
            let value: String = (0..rng.usize(..20)).map(|_| rng.alphanumeric()).collect();
            let space = " ".repeat(rng.usize(..3));
            text.extend_from_slice(format!("Own-{n}:{space}{value} \r\n").as_bytes());
        }
        if request == requests && ends {
            text.extend_from_slice(b"Connection: close\r\n");
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

const SPICES: [&[u8]; 34] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b"\x0b",
    b"\x0c",
    b":",
    b";",
    b",",
    b"_",
    b"\xff",
    b"0\r\n\r\n",
    b"0\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff",
    b"-1",
    b"+",
    b"0x",
    b"Content-Length: 3\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length : 3\r\n",
    b"Content_Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Connection: content-length\r\n",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: h2c\r\n",
    b"GET / HTTP/1.0\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    b" HTTP/1.1\r\nHost: a\r\n\r\n",
];

/// Sends an input and reads until nothing more comes.
fn send(proxy: SocketAddr, input: &Input) {
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_nodelay(true).unwrap();
    let patience = if input.ends { PATIENCE } else { IMPATIENCE };
    stream.set_read_timeout(Some(patience)).unwrap();
    // A proxy that has refused does not take the rest.
    let mut pieces = input.text.chunks(input.step);
    let _ = pieces.try_for_each(|piece| stream.write_all(piece));
    let mut sink = [0; 4096];
    while stream.read(&mut sink).is_ok_and(|read| read > 0) {}
}

/// Sends the inputs of one lane. What the node understood, and how much of the same hyper understands.
fn run(lane: u64) -> (Vec<Understood>, HashMap<Understood, usize>) {
    let (address, told) = node();
    let breaker = "[service.breaker]\nconsecutive_failures = 100000\nmin_requests = 100000";
    let proxy = Setup::addresses(&[address]).with(breaker).start();
    let runtime = runtime();
    let mut meant: HashMap<_, usize> = HashMap::new();
    for number in (lane..INPUTS).step_by(usize::try_from(LANES).unwrap()) {
        let input = input(number);
        for request in understood(&runtime, &input.text) {
            *meant.entry(request).or_default() += 1;
        }
        send(proxy.address, &input);
    }
    drop(proxy);
    (told.try_iter().collect(), meant)
}

/// A request, and the input that it came from.
fn shown(request: &Understood) -> String {
    let number = request.fields.iter().find(|(name, _)| name == "input");
    let number = number.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok());
    let text = number.map(|number| input(number).text).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    format!("{request:?}\ninput {number:?}: {text:?}")
}

#[test]
fn ten_thousand_seeded_inputs_reach_the_node_as_they_were_meant_or_not_at_all() {
    let lanes: Vec<_> = (0..LANES)
        .map(|lane| thread::spawn(move || run(lane)))
        .collect();
    let mut reached = 0;
    for lane in lanes {
        let (seen, mut meant) = lane.join().unwrap();
        reached += seen.len();
        for request in seen {
            let left = meant.get_mut(&request).filter(|left| **left > 0);
            let Some(left) = left else {
                panic!("seed {SEED}: nobody meant {}", shown(&request));
            };
            *left -= 1;
        }
    }
    assert!(reached > 3500, "{reached} requests came through");
}
