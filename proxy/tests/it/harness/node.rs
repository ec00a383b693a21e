//! A node on a raw socket: it keeps what it was sent and does with each request what its script says.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::PATIENCE;

/// A connection that is the test's own from now on, and what has come on it already.
pub(crate) type Handed = (TcpStream, Vec<u8>);

/// What a node does with a request.
pub(crate) enum Act {
    /// Sends these bytes and waits for the next request.
    Send(Vec<u8>),
    /// Sends these bytes and closes.
    Last(Vec<u8>),
    /// Closes without a word.
    Close,
    /// Resets the connection.
    Reset,
    /// Says nothing until the proxy closes.
    Never,
    /// Waits until told, then does that.
    When(Receiver<()>, Box<Self>),
    /// Sends these bytes and hands the connection over, with what has come behind the request.
    Hand(Vec<u8>, Sender<Handed>),
    /// Sends the pieces, waiting until told before each but the first; then waits for the next request.
    Pieces(Vec<Vec<u8>>, Receiver<()>),
}

impl Act {
    /// A plain answer with a length.
    pub(crate) fn ok(body: &str) -> Self {
        Self::status(200, body)
    }

    pub(crate) fn status(status: u16, body: &str) -> Self {
        let length = body.len();
        let text = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
        Self::Send(text.into_bytes())
    }

    pub(crate) fn raw(text: &str) -> Self {
        Self::Send(text.as_bytes().to_vec())
    }

    pub(crate) fn when(self) -> (Sender<()>, Self) {
        let (tell, told) = channel();
        (tell, Self::When(told, Box::new(self)))
    }
}

/// One request as a node read it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The head, without the empty line.
    pub(crate) head: String,
    /// The body, chunks joined; what had come when the connection ended.
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its end.
    pub(crate) whole: bool,
    /// The bytes of the whole request as they came.
    pub(crate) raw: Vec<u8>,
}

impl Seen {
    pub(crate) fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    pub(crate) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn fields(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1);
        let fields = lines.filter_map(|line| line.split_once(": "));
        fields
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields(name).first().copied()
    }
}

type Script = dyn Fn(&Seen) -> Act + Send + Sync;

pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    seen: Mutex<Receiver<Seen>>,
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<HashMap<usize, TcpStream>>>,
}

impl Node {
    pub(crate) fn start(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script)
    }

    pub(crate) fn start_at(
        address: SocketAddr,
        script: impl Fn(&Seen) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let (tell, seen) = channel();
        let node = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            seen: Mutex::new(seen),
            stop: Arc::default(),
            open: Arc::default(),
        };
        let (count, stop, open) = (
            Arc::clone(&node.connections),
            Arc::clone(&node.stop),
            Arc::clone(&node.open),
        );
        let script: Arc<Script> = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let connection = count.fetch_add(1, SeqCst) + 1;
                open.lock()
                    .unwrap()
                    .insert(connection, stream.try_clone().unwrap());
                let (script, tell, open) = (Arc::clone(&script), tell.clone(), Arc::clone(&open));
                thread::spawn(move || {
                    serve(stream, &*script, &tell);
                    open.lock().unwrap().remove(&connection);
                });
            }
        });
        node
    }

    /// Answers everything with "ok".
    pub(crate) fn ok() -> Self {
        Self::start(|_| Act::ok("ok"))
    }

    /// Follows the acts one by one, then answers with "ok".
    pub(crate) fn acts(acts: impl IntoIterator<Item = Act>) -> Self {
        let acts: Mutex<Vec<Act>> = Mutex::new(acts.into_iter().collect());
        Self::start(move |_| {
            let mut acts = acts.lock().unwrap();
            if acts.is_empty() {
                Act::ok("ok")
            } else {
                acts.remove(0)
            }
        })
    }

    /// The next request, in the order of arrival.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().recv_timeout(PATIENCE).unwrap()
    }

    /// Requests that were not looked at yet.
    pub(crate) fn rest(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().try_iter().collect()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    /// Stops listening, and cuts every connection with a reset, as a killed process does.
    pub(crate) fn kill(&self) {
        self.stop.store(true, SeqCst);
        // Wakes the listener, which then ends and closes its socket.
        let _ = TcpStream::connect(self.address);
        while TcpStream::connect_timeout(&self.address, PATIENCE).is_ok() {
            shared::clock::pause_thread(Duration::from_millis(1));
        }
        for (_, stream) in self.open.lock().unwrap().drain() {
            reset(&stream);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _ = TcpStream::connect(self.address);
        for (_, stream) in self.open.lock().unwrap().drain() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn reset(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let _ = socket.set_linger(Some(Duration::ZERO));
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

fn serve(mut stream: TcpStream, script: &Script, tell: &Sender<Seen>) {
    let mut bytes = Vec::new();
    while let Some(seen) = read(&mut stream, &mut bytes) {
        let whole = seen.whole;
        let act = script(&seen);
        let _ = tell.send(seen);
        if !whole || !follow(&mut stream, &mut bytes, act) {
            return;
        }
    }
}

/// Does as told; returns whether to go on.
fn follow(stream: &mut TcpStream, bytes: &mut Vec<u8>, act: Act) -> bool {
    match act {
        Act::Send(text) => stream.write_all(&text).is_ok(),
        Act::Last(text) => {
            let _ = stream.write_all(&text);
            false
        }
        Act::Close => false,
        Act::Reset => {
            let socket = socket2::SockRef::from(&*stream);
            let _ = socket.set_linger(Some(Duration::ZERO));
            false
        }
        Act::Never => {
            let mut sink = [0; 1024];
            while stream.read(&mut sink).is_ok_and(|read| read > 0) {}
            false
        }
        Act::When(told, act) => told.recv_timeout(PATIENCE).is_ok() && follow(stream, bytes, *act),
        Act::Hand(text, to) => {
            let _ = stream.write_all(&text);
            let stream = stream.try_clone().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let _ = to.send((stream, std::mem::take(bytes)));
            false
        }
        Act::Pieces(pieces, told) => pieces.iter().enumerate().all(|(n, piece)| {
            let go = n == 0 || told.recv_timeout(PATIENCE).is_ok();
            go && stream.write_all(piece).is_ok()
        }),
    }
}

/// Reads one request; `None` when the connection ended before its first byte.
fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Seen> {
    let end = loop {
        if let Some(at) = find(bytes, b"\r\n\r\n") {
            break at;
        }
        if !more(stream, bytes) {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut seen = Seen {
        head,
        body: Vec::new(),
        whole: false,
        raw: Vec::new(),
    };
    let mut at = end + 4;
    if seen.field("expect").is_some() {
        let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
    }
    let length = seen
        .field("content-length")
        .and_then(|text| text.parse().ok());
    if seen.field("transfer-encoding").is_some() {
        seen.whole = read_chunks(stream, bytes, &mut at, &mut seen.body);
    } else {
        let length: usize = length.unwrap_or(0);
        while bytes.len() < at + length && more(stream, bytes) {}
        let there = bytes.len().min(at + length);
        seen.body = bytes[at..there].to_vec();
        seen.whole = there == at + length;
        at = there;
    }
    seen.raw = bytes.drain(..at.min(bytes.len())).collect();
    Some(seen)
}

fn read_chunks(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
    at: &mut usize,
    body: &mut Vec<u8>,
) -> bool {
    loop {
        let end = loop {
            if let Some(found) = find(&bytes[*at..], b"\r\n") {
                break *at + found;
            }
            if !more(stream, bytes) {
                return false;
            }
        };
        let line = String::from_utf8_lossy(&bytes[*at..end]).into_owned();
        let size = usize::from_str_radix(&line, 16).unwrap();
        while bytes.len() < end + 2 + size + 2 {
            if !more(stream, bytes) {
                body.extend_from_slice(&bytes[(end + 2).min(bytes.len())..]);
                return false;
            }
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        *at = end + 2 + size + 2;
        if size == 0 {
            return true;
        }
    }
}

fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> bool {
    let mut piece = [0; 64 << 10];
    match stream.read(&mut piece) {
        Ok(0) | Err(_) => false,
        Ok(read) => {
            bytes.extend_from_slice(&piece[..read]);
            true
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
