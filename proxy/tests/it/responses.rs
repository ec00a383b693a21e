//! What nodes may answer, and what clients get of it.

use std::io::{ErrorKind, Read};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::harness::{Act, Client, Node, Setup};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_node_s_own_answer_passes_unchanged() {
    let text = "HTTP/1.1 418 Teapot\r\nServer: x\r\nDate: Fri, 20 Nov 2026 02:22:00 GMT\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\n\r\nshort";
    let node = Node::acts([Act::raw(text), Act::status(500, "sorry")]);
    let proxy = Setup::new(&[&node]).start();
    let answer = proxy.ask(GET);
    assert_eq!((answer.status, answer.text().as_str()), (418, "short"));
    assert!(
        answer.head.contains("X-A: 1\r\nX-A: 2\r\n"),
        "{}",
        answer.head
    );
    assert_eq!(answer.field("set-cookie"), Some("a=b"));
    assert_eq!(answer.head.matches("Date:").count(), 1);
    assert!(
        answer.head.starts_with("HTTP/1.1 418 Teapot\r\n"),
        "in its own words"
    );
    assert_eq!(answer.field("proxy-status"), None);
    let failed = proxy.ask(GET);
    assert_eq!((failed.status, failed.text().as_str()), (500, "sorry"));
    assert!(failed.field("date").is_some(), "added when it is missing");
}

#[test]
fn every_way_of_framing_arrives_whole() {
    for (text, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\n\r\nhello",
            "hello",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nhel\r\n2\r\nlo\r\n0\r\nT: x\r\n\r\n",
            "hello",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "hello",
        ),
        ("HTTP/1.1 200 OK\r\n\r\nhello", "hello"),
        ("HTTP/1.0 200 OK\r\n\r\nhello", "hello"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
    ] {
        let node = Node::acts([Act::Last(text.as_bytes().to_vec())]);
        let proxy = Setup::new(&[&node]).start();
        let mut client = proxy.client();
        let answer = client.ask(GET);
        assert!(answer.whole, "{text}");
        assert_eq!(answer.text(), body, "{text}");
        assert!(
            answer.head.matches("content-length").count() <= 1,
            "{}",
            answer.head
        );
        assert_eq!(
            client.ask(GET).status,
            200,
            "the client's connection goes on: {text}"
        );
    }
}

#[test]
fn an_old_client_gets_the_body_until_the_end_of_its_connection() {
    let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let node = Node::acts([Act::raw(text)]);
    let proxy = Setup::new(&[&node]).start();
    let answer = proxy.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!(
        (answer.field("transfer-encoding"), answer.text().as_str()),
        (None, "hello")
    );
}

#[test]
fn a_truncated_body_aborts_the_client_s_response_and_never_ends_it() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!!\r\n0\r\n\r\n",
    ] {
        let bytes = || text.as_bytes().to_vec();
        // The second closes a moment later, when the beginning is on its way to the client already.
        let late = Act::Pieces(vec![bytes(), Vec::new()], never());
        for act in [Act::Last(bytes()), late] {
            let node = Node::acts([act]);
            let proxy = Setup::new(&[&node]).start();
            let mut client = proxy.client();
            let answer = client.ask(GET);
            assert!(!answer.whole, "{text}: {answer:?}");
            assert!(client.is_closed());
        }
    }
}

#[test]
fn a_truncated_body_without_framing_is_reset() {
    let node = Node::start(|_| {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        Act::Last(text.as_bytes().to_vec())
    });
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    let mut said = Vec::new();
    let error = client.stream().read_to_end(&mut said).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{said:?}");
}

/// Told nothing: whoever waits for it is done at once.
fn never() -> Receiver<()> {
    channel().1
}

#[test]
fn what_is_not_a_response_becomes_502() {
    for text in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 1000 OK\r\n\r\n",
    ] {
        let node = Node::acts((0..4).map(|_| Act::raw(text)));
        let proxy = Setup::new(&[&node]).start();
        let answer = proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(answer.status, 502, "{text}");
        let status = answer.field("proxy-status").unwrap();
        assert!(
            status.starts_with("hotwarm; error=http_protocol_error; details="),
            "{status}"
        );
        assert_eq!(
            answer.field("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(
            node.rest().len(),
            1,
            "a POST that was answered is not made again: {text}"
        );
    }
}

#[test]
fn a_head_without_end_is_given_up() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(70_000));
    let node = Node::acts([Act::raw(&endless)]);
    let proxy = Setup::new(&[&node])
        .with("[service.retry]\nattempts = 1")
        .start();
    assert_eq!(proxy.ask(GET).status, 502);
}

#[test]
fn head_204_and_304_have_no_body_and_keep_what_they_say() {
    let node = Node::start(|seen| match seen.target() {
        "/head" => Act::raw("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"),
        "/chunked" => Act::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        "/204" => Act::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        "/204l" => Act::raw("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
        _ => Act::raw("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"),
    });
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    client.send("HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer_to(true).field("content-length"), Some("1234"));
    client.send("HEAD /chunked HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer_to(true).status, 200);
    for (target, status) in [("/204", 204), ("/204l", 204), ("/304", 304)] {
        let answer = client.ask(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.status, status);
        assert_eq!(
            answer.field("content-length"),
            None,
            "{target}: {}",
            answer.head
        );
        assert_eq!(answer.field("transfer-encoding"), None);
    }
    assert_eq!(
        node.connections(),
        3,
        "one each for what promises a body and has none, and one for the rest"
    );
}

#[test]
fn a_body_in_answer_to_head_is_nobody_s_answer() {
    let (go, told) = channel();
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n".to_vec();
    let body = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison".to_vec();
    let node = Node::acts([Act::Pieces(vec![head, body], told)]);
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer_to(true).status, 200);
    client.send(GET);
    // On the same connection the body would come when the request was sent, and be read as its answer.
    let _ = client.is_silent(Duration::from_millis(200));
    let _ = go.send(());
    assert_eq!(client.answer().text(), "ok");
}

#[test]
fn a_204_with_a_body_costs_the_connection_and_nothing_else() {
    let node = Node::acts([Act::raw(
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
    )]);
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    assert_eq!(client.ask(GET).status, 204);
    assert_eq!(
        client.ask(GET).text(),
        "ok",
        "not the rest of the answer before"
    );
    assert_eq!(node.connections(), 2);
}

#[test]
fn bytes_that_nobody_asked_for_are_nobody_s_answer() {
    let (go, told) = channel();
    let poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison".to_vec();
    let first = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec();
    let node = Node::acts([Act::Pieces(vec![first, poison], told)]);
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    assert_eq!(client.ask(GET).text(), "ok");
    let idle = proxy
        .metrics
        .upstream_connections
        .with_label_values(&["shop", "a", "idle"]);
    proxy.until("the connection is put aside", |_| idle.get() == 1);
    go.send(()).unwrap();
    proxy.until("the connection is given up", |_| idle.get() == 0);
    for _ in 0..20 {
        assert_eq!(client.ask(GET).text(), "ok");
    }
}

#[test]
fn an_early_refusal_reaches_a_client_that_is_still_sending() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Setup::addresses(&[listener.local_addr().unwrap()]).start();
    let node = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut some = [0; 4096];
        let _ = Read::read(&mut stream, &mut some).unwrap();
        let refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!";
        std::io::Write::write_all(&mut stream, refusal).unwrap();
        // Read on for a while, as a polite server does, until the proxy closes.
        while Read::read(&mut stream, &mut some).is_ok_and(|read| read > 0) {}
    });
    let mut client = proxy.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n");
    let piece = vec![b'x'; 100_000];
    let sent = (0..30).take_while(|_| client.try_send(&piece)).count();
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (413, "no!"),
        "after {sent} pieces"
    );
    node.join().unwrap();
}

#[test]
fn early_hints_arrive_before_the_answer_is_there() {
    let hint = |n: u32| {
        format!(
            "HTTP/1.1 103 Early Hints\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 5\r\nLink: </{n}>\r\n\r\n"
        )
    };
    let (go, told) = channel();
    let pieces = vec![
        [hint(1), hint(2)].concat().into_bytes(),
        hint(3).into_bytes(),
        b"HTTP/1.1 102 Processing\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    ];
    let node = Node::acts([Act::Pieces(pieces, told)]);
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    client.send(GET);
    for link in ["</1>", "</2>", "</3>"] {
        let hint = client.answer();
        assert_eq!((hint.status, hint.field("link")), (103, Some(link)));
        assert_eq!(
            (hint.field("x-hop"), hint.field("content-length")),
            (None, None)
        );
        if link != "</1>" {
            go.send(()).unwrap();
        }
    }
    assert_eq!(client.answer().status, 102);
    go.send(()).unwrap();
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert_eq!(answer.field("link"), None);
}

#[test]
fn hints_that_come_with_the_answer_are_before_it_and_none_are_for_http_1_0() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(12);
    let text = format!("{hints}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let node = Node::start(move |_| Act::raw(&text));
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    client.send(GET);
    for _ in 0..8 {
        assert_eq!(client.answer().status, 103);
    }
    assert_eq!(client.answer().text(), "ok", "so many are enough");
    let old = proxy.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!((old.status, old.text().as_str()), (200, "ok"));
}

#[test]
fn ranges_pass_as_they_are_asked_for_and_given() {
    let node = Node::start(|seen| match seen.field("range") {
        Some("bytes=2-4") => Act::raw(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/10\r\nContent-Length: 3\r\n\r\n234",
        ),
        _ => Act::raw("HTTP/1.1 416 No\r\nContent-Range: bytes */10\r\nContent-Length: 0\r\n\r\n"),
    });
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    let part = client.ask(GET.replace("\r\n\r\n", "\r\nRange: bytes=2-4\r\n\r\n"));
    let range = part.field("content-range");
    assert_eq!(
        (part.status, part.text().as_str(), range),
        (206, "234", Some("bytes 2-4/10"))
    );
    let beyond = client.ask(GET.replace("\r\n\r\n", "\r\nRange: bytes=20-\r\n\r\n"));
    assert_eq!(
        (beyond.status, beyond.field("content-range")),
        (416, Some("bytes */10"))
    );
}

#[test]
fn streams_pass_piece_by_piece() {
    let (go, told) = channel();
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n".to_vec();
    let node = Node::acts([Act::Pieces(vec![head, b"data: 2\n\n".to_vec()], told)]);
    let proxy = Setup::new(&[&node]).start();
    let mut client: Client = proxy.client();
    client.send(GET);
    let mut text = Vec::new();
    let mut read_until = |wanted: &str| {
        let mut piece = [0; 1024];
        while !String::from_utf8_lossy(&text).contains(wanted) {
            let read = Read::read(&mut client.stream(), &mut piece).unwrap();
            assert!(read > 0, "ended early");
            text.extend_from_slice(&piece[..read]);
        }
    };
    read_until("data: 1");
    go.send(()).unwrap();
    read_until("data: 2");
}

#[test]
fn large_bodies_stream_both_ways_untouched() {
    let body: Vec<u8> = (0..5_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let node = Node::start(|seen| {
        let mut text = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            seen.body.len()
        )
        .into_bytes();
        text.extend_from_slice(&seen.body);
        Act::Send(text)
    });
    let proxy = Setup::new(&[&node]).start();
    for framing in ["Content-Length", "Transfer-Encoding"] {
        let mut client = proxy.client();
        if framing == "Content-Length" {
            client.send(format!(
                "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ));
            client.send(&body);
        } else {
            client.send("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
            for piece in body.chunks(70_001) {
                client.send(format!("{:x}\r\n", piece.len()));
                client.send(piece);
                client.send("\r\n");
            }
            client.send("0\r\n\r\n");
        }
        let answer = client.answer();
        assert!(answer.whole && answer.body == body, "{framing}");
        assert_eq!(node.seen().fields(framing).len(), 1);
    }
}
