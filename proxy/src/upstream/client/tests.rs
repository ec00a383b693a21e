//! A scripted wire in place of a socket, and the same bytes given to hyper's client.

use super::*;
use crate::exchange::Replay;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use shared::rng::Rng;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::Waker;
use tokio::io::{AsyncWriteExt, ReadBuf};

#[derive(Clone, Debug)]
enum Step {
    Data(Vec<u8>),
    Wait,
    Fail(io::ErrorKind),
}

/// A socket that follows a script; at its end the node has closed.
#[derive(Debug, Default)]
struct Wire {
    reads: VecDeque<Step>,
    /// How many bytes each write takes; `None` is an error. Everything, once the script is over.
    writes: VecDeque<Option<usize>>,
    /// Which error that is; a broken pipe unless said.
    fails_with: Option<io::ErrorKind>,
    written: Rc<RefCell<Vec<Vec<u8>>>>,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.reads.pop_front() {
            None => Poll::Ready(Ok(())),
            Some(Step::Wait) => Poll::Pending,
            Some(Step::Fail(kind)) => Poll::Ready(Err(kind.into())),
            Some(Step::Data(mut data)) => {
                let rest = data.split_off(data.len().min(buffer.remaining()));
                buffer.put_slice(&data);
                if !rest.is_empty() {
                    self.reads.push_front(Step::Data(rest));
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = match self.writes.pop_front() {
            None => bytes.len(),
            Some(Some(0)) => return Poll::Pending,
            Some(Some(taken)) => taken.min(bytes.len()),
            Some(None) => {
                let kind = self.fails_with.unwrap_or(io::ErrorKind::BrokenPipe);
                return Poll::Ready(Err(kind.into()));
            }
        };
        self.written.borrow_mut().push(bytes[..taken].to_vec());
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn ask(method: &str, lines: &str) -> Head {
    Head::for_test(method, "/", lines)
}

#[derive(Clone, Debug, Default)]
struct Shelf(Rc<RefCell<Vec<Connection<Wire>>>>);

impl Home<Wire> for Shelf {
    fn take_back(&self, connection: Connection<Wire>) {
        self.0.borrow_mut().push(connection);
    }

    fn abandon(&self, connection: Connection<Wire>) {
        drop(connection);
    }
}

struct Bench {
    transfer: Transfer<Wire, Shelf>,
    written: Rc<RefCell<Vec<Vec<u8>>>>,
    shelf: Shelf,
    deadlines: Deadlines,
}

fn data(text: &str) -> Step {
    Step::Data(text.as_bytes().to_vec())
}

impl Bench {
    fn new(
        head: Head,
        body: Body,
        reads: impl IntoIterator<Item = Step>,
        writes: impl IntoIterator<Item = Option<usize>>,
    ) -> Self {
        let wire = Wire {
            reads: reads.into_iter().collect(),
            writes: writes.into_iter().collect(),
            ..Wire::default()
        };
        let (written, shelf) = (Rc::clone(&wire.written), Shelf::default());
        let deadlines = Deadlines::default();
        let terms = Terms {
            node: NodeId(0),
            idle: Duration::from_secs(1),
            deadlines: deadlines.clone(),
        };
        let trail = Rc::new(Trail::for_test());
        let upload = match body {
            Body::Empty => Upload::none(),
            body @ (Body::Full(_) | Body::Stream(_) | Body::Tunnel(_)) => {
                Upload::new(Replay::new(body, 64 << 10, &deadlines, &trail))
            }
        };
        let transfer = Transfer::new(
            Connection::new(wire),
            &head,
            upload,
            &trail,
            shelf.clone(),
            terms,
        );
        Self {
            transfer,
            written,
            shelf,
            deadlines,
        }
    }

    fn get(reads: impl IntoIterator<Item = Step>) -> Self {
        Self::new(ask("GET", ""), Body::Empty, reads, [])
    }

    fn poll(&mut self) -> Poll<Result<Response, Fault>> {
        self.transfer
            .poll_response(&mut Context::from_waker(Waker::noop()))
    }

    fn response(&mut self) -> Response {
        match self.poll() {
            Poll::Ready(Ok(response)) => response,
            other @ (Poll::Ready(_) | Poll::Pending) => panic!("{other:?}"),
        }
    }

    fn fault(&mut self) -> (Reach, Cause) {
        match self.poll() {
            Poll::Ready(Err(Fault::Upstream(fault))) => (fault.reach, fault.cause),
            other @ (Poll::Ready(_) | Poll::Pending) => panic!("{other:?}"),
        }
    }

    fn written(&self) -> String {
        String::from_utf8(self.written.borrow().concat()).unwrap()
    }

    fn kept(&self) -> usize {
        self.shelf.0.borrow().len()
    }
}

/// Reads a body to its end or to its fault; pending pieces are not waited for.
fn drain(body: &mut Body) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    loop {
        match Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(None) => return Ok(all),
            Poll::Ready(Some(Ok(frame))) => all.extend(frame.into_data().unwrap_or_default()),
            Poll::Ready(Some(Err(fault))) => return Err(fault.to_string()),
            Poll::Pending => return Err("pending".to_owned()),
        }
    }
}

#[test]
fn a_small_answer_is_whole_with_its_head_and_the_connection_is_free_at_once() {
    let mut bench = Bench::get([data("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")]);
    let mut response = bench.response();
    assert_eq!(bench.kept(), 1);
    assert!(matches!(response.body, Body::Full(_)));
    assert_eq!(drain(&mut response.body).unwrap(), b"ok");
    assert_eq!(bench.written(), "GET / HTTP/1.1\r\n\r\n");
    assert_eq!(bench.written.borrow().len(), 1);
}

#[test]
fn a_streamed_body_frees_the_connection_with_its_last_piece() {
    for (fields, pieces) in [
        ("Content-Length: 6", ["abc", "def"]),
        (
            "Transfer-Encoding: chunked",
            ["3\r\nabc\r\n", "3\r\ndef\r\n0\r\n\r\n"],
        ),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{}", pieces[0]);
        let mut bench = Bench::get([data(&head), data(pieces[1])]);
        let mut response = bench.response();
        assert_eq!(bench.kept(), 0);
        assert_eq!(drain(&mut response.body).unwrap(), b"abcdef", "{fields}");
        assert!(response.body.is_end_stream());
        assert_eq!(bench.kept(), 1, "{fields}");
    }
}

#[test]
fn a_head_that_comes_alone_waits_a_moment_for_its_body() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
    let mut bench = Bench::get([data(head), Step::Wait, data("ok")]);
    assert!(bench.poll().is_pending());
    let response = bench.response();
    assert!(matches!(response.body, Body::Full(_)));
    let mut bench = Bench::get([data(head), Step::Wait, Step::Wait, data("ok")]);
    assert!(bench.poll().is_pending());
    (0..3).for_each(|_| bench.deadlines.tick());
    let mut response = bench.response();
    assert_eq!(drain(&mut response.body).unwrap(), b"ok", "late, but whole");
    let events = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    Bench::get([data(events), Step::Wait]).response();
}

#[test]
fn a_node_that_breaks_off_between_head_and_body_has_failed_the_attempt() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
    let mut bench = Bench::get([data(head), Step::Wait]);
    assert!(bench.poll().is_pending());
    assert_eq!(bench.fault(), (Reach::Head, Cause::Closed));
    let reset = Step::Fail(io::ErrorKind::ConnectionReset);
    let mut bench = Bench::get([data(head), reset]);
    assert_eq!(bench.fault().0, Reach::Head);
}

#[test]
fn a_connection_is_used_again_only_when_nothing_is_left_over() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n\r\nok",
        "HTTP/1.1 204 No Content\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ] {
        let mut bench = Bench::get([data(text)]);
        let mut response = bench.response();
        assert!(drain(&mut response.body).is_ok(), "{text}");
        assert_eq!(bench.kept(), 0, "{text}");
    }
}

#[test]
fn a_truncated_body_is_a_fault_and_never_an_end() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz",
    ] {
        let mut bench = Bench::get([data(text)]);
        let mut response = bench.response();
        assert!(drain(&mut response.body).is_err(), "{text}");
        assert_eq!(bench.kept(), 0, "{text}");
    }
}

#[test]
fn never_sent_means_that_not_a_byte_was_taken() {
    let get = || ask("GET", "");
    let mut refused = Bench::new(get(), Body::Empty, [], [None]);
    let broken_pipe = Cause::Io(io::ErrorKind::BrokenPipe);
    assert_eq!(refused.fault(), (Reach::Unsent, broken_pipe));
    let mut halfway = Bench::new(get(), Body::Empty, [], [Some(3), None]);
    assert_eq!(halfway.fault(), (Reach::Sent, Cause::Closed));
    let mut cut = Bench::new(get(), Body::Empty, [], [Some(3), None]);
    if let Some(connection) = &mut cut.transfer.connection {
        connection.io.fails_with = Some(io::ErrorKind::TimedOut);
    }
    assert_eq!(
        cut.fault(),
        (Reach::Sent, Cause::Io(io::ErrorKind::TimedOut)),
        "what the network swallowed was not closed by the node"
    );
    let reset = Step::Fail(io::ErrorKind::ConnectionReset);
    let mut lost = Bench::new(get(), Body::Empty, [reset], []);
    assert_eq!(
        lost.fault(),
        (Reach::Sent, Cause::Io(io::ErrorKind::ConnectionReset))
    );
    let mut closed = Bench::new(get(), Body::Empty, [], []);
    assert_eq!(closed.fault(), (Reach::Sent, Cause::Closed));
    let mut part = Bench::new(get(), Body::Empty, [data("HTTP/1.1 2")], []);
    assert_eq!(part.fault(), (Reach::Head, Cause::Closed));
    let answer = data("HTTP/1.1 200 OK\r\n\r\n");
    let mut early = Bench::new(get(), Body::Empty, [answer], [Some(0)]);
    assert_eq!(
        early.fault().0,
        Reach::Unsent,
        "bytes before the request are nobody's answer"
    );
}

#[test]
fn a_small_body_goes_out_with_the_head_in_one_call() {
    let post = ask("POST", "content-length: 5\r\n");
    let answer = data("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let mut bench = Bench::new(post, Body::Full("hello".into()), [Step::Wait, answer], []);
    assert!(bench.poll().is_pending());
    assert_eq!(
        bench.written(),
        "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    );
    assert_eq!(bench.written.borrow().len(), 1);
    bench.response();
    assert_eq!(bench.kept(), 1);
}

/// A body of unknown length from a script.
fn stream(pieces: &[&'static str]) -> Body {
    Body::Stream(Box::pin(Pieces(pieces.iter().copied().collect())))
}

struct Pieces(VecDeque<&'static str>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let piece = self.0.pop_front();
        Poll::Ready(piece.map(|piece| Ok(Frame::data(Bytes::from(piece)))))
    }
}

#[test]
fn a_body_without_a_length_is_chunked_anew_even_for_get() {
    let answer = data("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let mut bench = Bench::new(ask("GET", ""), stream(&["ab", "c"]), [answer], []);
    bench.response();
    let expected =
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
    assert_eq!(bench.written(), expected);
    assert_eq!(bench.kept(), 1);
}

#[test]
fn tiny_pieces_are_not_a_write_each() {
    let answer = data("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let mut bench = Bench::new(ask("PUT", ""), stream(&["x"; 50_000]), [answer], []);
    bench.response();
    assert_eq!(bench.written().matches("1\r\nx\r\n").count(), 50_000);
    assert!(bench.written().ends_with("\r\n0\r\n\r\n"));
    let writes = bench.written.borrow();
    assert!(writes.len() < 30, "{} writes", writes.len());
    assert!(writes.iter().all(|write| write.len() <= 32 << 10));
}

#[test]
fn large_pieces_are_written_as_they_are_however_little_is_taken_at_once() {
    let big: &'static str = Box::leak("x".repeat(40_000).into_boxed_str());
    let answer = data("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let writes: Vec<_> = (0..500).map(|_| Some(97)).collect();
    let mut bench = Bench::new(ask("PUT", ""), stream(&[big, "y"]), [answer], writes);
    bench.response();
    let expected = format!(
        "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n9c40\r\n{big}\r\n1\r\ny\r\n0\r\n\r\n"
    );
    assert!(bench.written() == expected);
}

#[test]
fn an_early_refusal_is_passed_on_and_stops_the_upload() {
    let answer = data("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno");
    for writes in [vec![Some(40), Some(0), Some(0)], vec![Some(40), None]] {
        let put = ask("PUT", "content-length: 20000\r\n");
        let body = Body::Full(vec![b'x'; 20_000].into());
        let mut bench = Bench::new(put, body, [answer.clone()], writes);
        let mut response = bench.response();
        assert_eq!(response.status, 413);
        assert_eq!(drain(&mut response.body).unwrap(), b"no");
        assert_eq!(bench.kept(), 0);
    }
}

#[test]
fn an_early_success_lets_the_upload_go_on() {
    let head = data("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
    let rest = data("1\r\nb\r\n0\r\n\r\n");
    let put = ask("PUT", "content-length: 20000\r\n");
    let body = Body::Full(vec![b'x'; 20_000].into());
    let mut bench = Bench::new(put, body, [head, Step::Wait, rest], [Some(40), Some(0)]);
    let mut response = bench.response();
    assert_eq!(drain(&mut response.body), Err("pending".to_owned()));
    assert_eq!(drain(&mut response.body).unwrap(), b"b");
    assert!(bench.written().ends_with("xxx"));
    assert_eq!(bench.written().matches('x').count(), 20_000);
    assert_eq!(bench.kept(), 1);
}

#[test]
fn a_body_that_is_expected_waits_for_the_node_s_word() {
    let post = || ask("POST", "expect: 100-continue\r\n");
    let go = data("HTTP/1.1 100 Continue\r\n\r\n");
    let answer = data("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let script = [Step::Wait, go, Step::Wait, answer];
    let mut bench = Bench::new(post(), Body::Full("hello".into()), script, []);
    assert!(bench.poll().is_pending());
    assert!(!bench.written().contains("hello"));
    assert!(bench.poll().is_pending());
    assert!(bench.written().ends_with("\r\n\r\nhello"));
    bench.response();
    assert_eq!(bench.kept(), 1);

    let refusal = data("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n");
    let mut refused = Bench::new(post(), Body::Full("hello".into()), [refusal], []);
    assert_eq!(refused.response().status, 417);
    assert!(!refused.written().contains("hello"));
    assert_eq!(refused.kept(), 0, "the node may still wait for the body");

    let mut silent = Bench::new(
        post(),
        Body::Full("hello".into()),
        [Step::Wait, Step::Wait],
        [],
    );
    assert!(silent.poll().is_pending());
    for _ in 0..12 {
        silent.deadlines.tick();
    }
    assert!(silent.poll().is_pending());
    assert!(silent.written().ends_with("hello"));
}

#[test]
fn interim_responses_are_handed_over_and_bounded() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut bench = Bench::get([data(&format!("{hints}{hints}{answer}"))]);
    assert_eq!(bench.response().status, 200);
    let said: Vec<_> = bench.transfer.take_said().collect();
    assert_eq!((said.len(), said[0].status.as_u16()), (2, 103));
    let mut endless = Bench::get([data(&hints.repeat(20))]);
    assert!(matches!(
        endless.fault(),
        (_, Cause::Malformed("too many interim responses"))
    ));
    let mut switching = Bench::get([data("HTTP/1.1 101 Switching\r\n\r\n")]);
    assert!(matches!(
        switching.fault(),
        (Reach::Head, Cause::Malformed(_))
    ));
}

#[test]
fn a_body_that_pauses_for_too_long_is_a_fault() {
    let head = data("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
    let script = [head, Step::Wait, data("def"), Step::Wait, Step::Wait];
    let mut bench = Bench::get(script);
    let mut response = bench.response();
    assert_eq!(drain(&mut response.body), Err("pending".to_owned()));
    for _ in 0..8 {
        bench.deadlines.tick();
    }
    assert_eq!(drain(&mut response.body), Err("pending".to_owned()));
    for _ in 0..12 {
        bench.deadlines.tick();
    }
    assert_eq!(
        drain(&mut response.body),
        Err("no progress in time".to_owned())
    );
}

// ---- the same bytes for hyper's client ---------------------------------------------------------------------------------

type Read = Result<(StatusCode, HeaderMap, Vec<u8>), String>;

fn ours(bytes: &[u8], step: usize, head: bool) -> Read {
    let reads = bytes
        .chunks(step.max(1))
        .map(|piece| Step::Data(piece.to_vec()));
    let request = if head {
        ask("HEAD", "")
    } else {
        ask("GET", "")
    };
    let mut bench = Bench::new(request, Body::Empty, reads, []);
    match bench.poll() {
        Poll::Pending => Err("pending".to_owned()),
        Poll::Ready(Err(fault)) => Err(fault.to_string()),
        Poll::Ready(Ok(mut response)) => {
            let body = drain(&mut response.body)?;
            let mut fields = HeaderMap::new();
            for (_, name, value) in response.fields.iter() {
                let name = HeaderName::from_bytes(name).map_err(|error| error.to_string())?;
                let value = HeaderValue::from_bytes(value).map_err(|error| error.to_string())?;
                fields.append(name, value);
            }
            Ok((response.status, fields, body))
        }
    }
}

async fn theirs(bytes: &[u8], head: bool) -> Read {
    let (client, mut node) = tokio::io::duplex(1 << 20);
    let io = hyper_util::rt::TokioIo::new(client);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(|error| error.to_string())?;
    let node = async move {
        let mut request = [0; 1024];
        let _ = node.read(&mut request).await;
        let _ = node.write_all(bytes).await;
    };
    let request = Request::builder()
        .method(if head { "HEAD" } else { "GET" })
        .uri("/")
        .header("host", "a")
        .body(http_body_util::Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async move {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?;
        Ok((parts.status, parts.headers, body.to_bytes().to_vec()))
    };
    let driven = async move {
        let _ = connection.await;
    };
    tokio::join!(exchange, node, driven).0
}

/// A response that is valid, and what may be done to it.
fn script(rng: &mut Rng) -> (Vec<u8>, bool) {
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
    let bodiless = status.starts_with("204") || status.starts_with("304");
    let mut text = Vec::new();
    for _ in 0..rng.usize(..3) {
        text.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
    }
    text.extend_from_slice(format!("HTTP/1.1 {status}\r\n").as_bytes());
    for n in 0..rng.usize(..6) {
        let value: String = (0..rng.usize(..20)).map(|_| rng.alphanumeric()).collect();
        text.extend_from_slice(
            format!("X-{n}:{}{value} \r\n", " ".repeat(rng.usize(..3))).as_bytes(),
        );
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
    (text, true)
}

const SPICES: [&[u8]; 22] = [
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
    b"Content-Length: 3\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Connection: close\r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 X\r\n\r\n",
    b"ffffffffffffffff",
    b"-1",
    b"5, 5",
];

/// Some changes of bytes here and there.
fn season(rng: &mut Rng, text: &mut Vec<u8>) {
    for _ in 0..rng.usize(1..5) {
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

/// What hyper lets through and we do not, by our reasons.
const STRICTER: [&str; 16] = [
    "Transfer-Encoding other than chunked",
    "Transfer-Encoding in HTTP/1.0",
    "switches to a protocol",
    "line end without CR",
    "chunk longer than its size",
    "invalid chunk size",
    "invalid trailer",
    "control character in a line",
    "empty line before",
    "too many interim",
    "status out of range",
    "differing Content-Length",
    "invalid Content-Length",
    "line too long",
    "answered before it was asked",
    "too many extensions",
];

#[tokio::test]
async fn ten_thousand_seeded_responses_never_panic_and_agree_with_hyper() {
    let seed = 0x005e_ed0f_0a11;
    let (mut valid, mut stricter, mut agreed_bad) = (0, 0, 0);
    for round in 0..10_000_u64 {
        let mut rng = Rng::with_seed(seed + round);
        let to_head = rng.u8(..10) == 0;
        let (mut text, _) = script(&mut rng);
        let pure = rng.u8(..4) == 0;
        if !pure {
            season(&mut rng, &mut text);
        }
        let step = if rng.bool() {
            usize::MAX
        } else {
            rng.usize(1..40)
        };
        let ours = ours(&text, step.min(text.len().max(1)), to_head);
        let theirs = theirs(&text, to_head).await;
        let shown = || {
            format!(
                "seed {}: {:?}",
                seed + round,
                String::from_utf8_lossy(&text)
            )
        };
        match (ours, theirs) {
            (Ok((status, mut fields, body)), Ok((their_status, mut their_fields, their_body))) => {
                for name in [
                    "transfer-encoding",
                    "connection",
                    "keep-alive",
                    "content-length",
                ] {
                    fields.remove(name);
                    their_fields.remove(name);
                }
                assert_eq!(status, their_status, "{}", shown());
                assert_eq!(fields, their_fields, "{}", shown());
                assert_eq!(
                    String::from_utf8_lossy(&body),
                    String::from_utf8_lossy(&their_body),
                    "{}",
                    shown()
                );
                valid += 1;
            }
            (Err(why), Ok(_)) => {
                assert!(!pure, "{why}: {}", shown());
                let known = STRICTER.iter().any(|reason| why.contains(reason));
                assert!(known, "{why}: {}", shown());
                stricter += 1;
            }
            (Ok(read), Err(why)) => panic!("hyper says {why}, we read {read:?}: {}", shown()),
            (Err(_), Err(_)) => {
                assert!(!pure, "{}", shown());
                agreed_bad += 1;
            }
        }
    }
    assert!(
        valid > 2500 && stricter > 50 && agreed_bad > 1000,
        "{valid} {stricter} {agreed_bad}"
    );
}
