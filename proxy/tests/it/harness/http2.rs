//! HTTP/2 from outside: a client that speaks it properly, and one that sends whatever frames it is told.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use h2::ext::Protocol;
use http::{HeaderMap, Method, Request};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::PATIENCE;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// An answer, as a proper client understood it.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
    /// Why the stream was cut, if it was.
    pub(crate) cut: Option<Reason>,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request with a body in pieces.
pub(crate) struct Ask {
    pub(crate) head: Request<()>,
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Ask {
    pub(crate) fn new(method: &str, uri: &str, fields: &[(&str, &str)]) -> Self {
        let method: Method = method.parse().unwrap();
        let mut head = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            head = head.header(*name, *value);
        }
        Self {
            head: head.body(()).unwrap(),
            pieces: Vec::new(),
            trailers: None,
        }
    }

    pub(crate) fn get(uri: &str) -> Self {
        Self::new("GET", uri, &[])
    }

    pub(crate) fn pieces(mut self, pieces: &[&str]) -> Self {
        self.pieces = pieces
            .iter()
            .map(|piece| Bytes::copy_from_slice(piece.as_bytes()))
            .collect();
        self
    }

    pub(crate) fn trailers(mut self, trailers: HeaderMap) -> Self {
        self.trailers = Some(trailers);
        self
    }
}

/// A client that speaks HTTP/2 as the RFC has it.
pub(crate) struct Proper {
    runtime: Runtime,
    send: SendRequest<Bytes>,
}

impl Proper {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::over(tokio::net::TcpStream::connect(address))
    }

    /// Connects with TLS to `localhost`.
    pub(crate) fn connect_tls(address: SocketAddr, config: Arc<ClientConfig>) -> Self {
        Self::over(async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").unwrap();
            TlsConnector::from(config).connect(name, stream).await
        })
    }

    fn over<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        connecting: impl Future<Output = std::io::Result<T>>,
    ) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let send = runtime.block_on(async {
            let stream = connecting.await.unwrap();
            // As browsers do: until the settings say how many streams there may be, a hundred (RFC 9113 §6.5.2).
            let mut builder = h2::client::Builder::new();
            builder.initial_max_send_streams(100);
            let (send, connection) = builder.handshake(stream).await.unwrap();
            tokio::spawn(connection);
            send
        });
        Self { runtime, send }
    }

    /// Asks for another protocol: the answer's status, and the stream if there is one.
    pub(crate) fn switch(&self, protocol: &str) -> (u16, Option<Switched<'_>>) {
        let mut ask = Ask::new("CONNECT", "http://a/ws", &[("sec-websocket-version", "13")]);
        let wanted = Protocol::from(protocol);
        ask.head.extensions_mut().insert(wanted);
        self.runtime.block_on(async {
            let mut send = self.send.clone().ready().await.unwrap();
            let allowed = async {
                while !send.is_extended_connect_protocol_enabled() {
                    tokio::task::yield_now().await;
                }
            };
            timeout(PATIENCE, allowed).await.expect("never allowed");
            let (response, to) = send.send_request(ask.head, false).unwrap();
            let (head, from) = response.await.unwrap().into_parts();
            let status = head.status.as_u16();
            let ended = from.is_end_stream();
            let client = self;
            (status, (!ended).then_some(Switched { client, to, from }))
        })
    }

    pub(crate) fn ask(&self, ask: Ask) -> Answer {
        self.all([ask]).remove(0)
    }

    /// Asks all at once.
    pub(crate) fn all(&self, asks: impl IntoIterator<Item = Ask>) -> Vec<Answer> {
        self.runtime.block_on(async {
            let asked: Vec<_> = asks
                .into_iter()
                .map(|ask| tokio::spawn(timeout(PATIENCE, exchange(self.send.clone(), ask))))
                .collect();
            let mut answers = Vec::new();
            for one in asked {
                answers.push(one.await.unwrap().expect("no answer"));
            }
            answers
        })
    }
}

/// A stream that speaks another protocol.
pub(crate) struct Switched<'c> {
    client: &'c Proper,
    to: h2::SendStream<Bytes>,
    from: h2::RecvStream,
}

impl Switched<'_> {
    pub(crate) fn send(&mut self, bytes: &[u8], last: bool) {
        self.to.reserve_capacity(bytes.len());
        self.to
            .send_data(Bytes::copy_from_slice(bytes), last)
            .unwrap();
    }

    /// Reads so many bytes, or up to the end.
    pub(crate) fn exactly(&mut self, length: usize) -> Vec<u8> {
        let from = &mut self.from;
        self.client.runtime.block_on(async {
            let mut all = Vec::new();
            while all.len() < length {
                let next = timeout(PATIENCE, from.data()).await.expect("nothing came");
                let Some(Ok(data)) = next else { break };
                let _ = from.flow_control().release_capacity(data.len());
                all.extend_from_slice(&data);
            }
            all
        })
    }
}

async fn exchange(send: SendRequest<Bytes>, ask: Ask) -> Answer {
    let mut answer = Answer::default();
    if let Err(error) = try_exchange(send, ask, &mut answer).await {
        answer.cut = Some(error.reason().unwrap_or(Reason::NO_ERROR));
    }
    answer
}

async fn try_exchange(
    send: SendRequest<Bytes>,
    ask: Ask,
    answer: &mut Answer,
) -> Result<(), h2::Error> {
    let ends = ask.pieces.is_empty() && ask.trailers.is_none();
    let mut ready = send.ready().await?;
    let (response, mut stream) = ready.send_request(ask.head, ends)?;
    let last = ask.pieces.len().wrapping_sub(1);
    for (n, piece) in ask.pieces.into_iter().enumerate() {
        stream.send_data(piece, n == last && ask.trailers.is_none())?;
    }
    if let Some(trailers) = ask.trailers {
        stream.send_trailers(trailers)?;
    }
    let (head, mut body) = response.await?.into_parts();
    answer.status = head.status.as_u16();
    answer.fields = head.headers;
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        answer.body.extend_from_slice(&data);
    }
    answer.trailers = body.trailers().await?;
    Ok(())
}

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of a frame that has one.
    pub(crate) fn reason(&self) -> Reason {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        let code: [u8; 4] = self.payload[at..at + 4].try_into().unwrap();
        u32::from_be_bytes(code).into()
    }

    /// The status of a response's head.
    pub(crate) fn status(&self) -> u16 {
        let indexed = [200, 204, 206, 304, 400, 404, 500];
        // Behind changes of the table's size.
        let from = self.payload.iter().position(|byte| byte >> 5 != 1);
        let block = &self.payload[from.unwrap()..];
        match block[0] {
            at @ 0x88..=0x8e => indexed[usize::from(at - 0x88)],
            _ => digits(&block[2..]),
        }
    }
}

/// Three digits in Huffman's code (RFC 7541, appendix B).
fn digits(bytes: &[u8]) -> u16 {
    let mut bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1)));
    let mut next = |count: usize| bits.by_ref().take(count).fold(0, |sum, bit| sum << 1 | bit);
    let mut number = 0;
    for _ in 0..3 {
        let five = next(5);
        let digit = if five < 3 {
            five
        } else {
            (five << 1 | next(1)) - 0x19 + 3
        };
        number = number * 10 + digit;
    }
    number
}

/// Fields as a header block, nothing compressed.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let text = |text: &str| {
        let length = text.len();
        let mut bytes = Vec::new();
        if length < 127 {
            bytes.push(u8::try_from(length).unwrap());
        } else {
            let mut rest = length - 127;
            bytes.push(127);
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).unwrap() | 128);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).unwrap());
        }
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    for (name, value) in fields {
        block.push(0);
        block.extend(text(name));
        block.extend(text(value));
    }
    block
}

/// The head of a GET, with more fields.
pub(crate) fn get(more: &[(&str, &str)]) -> Vec<u8> {
    head("GET", more)
}

pub(crate) fn head(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [
        (":method", method),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "a"),
    ];
    block(&[&pseudo, more].concat())
}

/// A client that says exactly what it is told.
pub(crate) struct Raw {
    stream: TcpStream,
}

impl Raw {
    /// Connects, and has exchanged settings.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let mut raw = Self::silent(address);
        raw.begin(&[]);
        raw
    }

    /// Connects, and says nothing.
    pub(crate) fn silent(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// Sends the preface and these settings; acknowledges the other side's.
    pub(crate) fn begin(&mut self, settings: &[(u16, u32)]) {
        self.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut payload = Vec::new();
        // No dynamic table: every status is told in full.
        for (id, value) in [(1, 0)].iter().chain(settings) {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        self.send(SETTINGS, 0, 0, &payload);
        self.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0);
        self.send(SETTINGS, ACK, 0, &[]);
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        assert!(self.try_send(kind, flags, stream, payload));
    }

    /// Sends, whether or not somebody still listens.
    pub(crate) fn try_send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.stream.write_all(&bytes).is_ok()
    }

    /// The next frame; `None` when the connection ends.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        if !self.fill(&mut head) {
            return None;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if !self.fill(&mut payload) {
            return None;
        }
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> bool {
        match self.stream.read_exact(bytes) {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing came")
            }
            Err(_) => false,
        }
    }

    /// Reads until such a frame comes.
    pub(crate) fn until(&mut self, is_it: impl Fn(&Frame) -> bool) -> Frame {
        self.find(is_it).expect("the connection has ended")
    }

    /// Reads until such a frame comes, or the end.
    pub(crate) fn find(&mut self, is_it: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if is_it(&frame) {
                return Some(frame);
            }
        }
    }

    /// What the connection ends with.
    pub(crate) fn last_word(&mut self) -> Option<Reason> {
        let frame = self.find(|frame| frame.kind == GOAWAY)?;
        while self.next().is_some() {}
        Some(frame.reason())
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}
