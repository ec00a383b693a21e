//! HTTP/2 with clients: the same requests and answers as in HTTP/1.1, whatever they travel in.

use std::fmt::Write as _;

use h2::Reason;
use http::Version;

use crate::harness::http2::{
    ACK, Ask, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, Proper, RST_STREAM, Raw, get,
    head,
};
use crate::harness::{Act, Node, Setup};

const SHOP: &str = "http://shop.test/x?y=1";

#[test]
fn a_request_in_http2_reaches_the_node_as_one_in_http1() {
    let answer = "HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nConnection: keep-alive, X-Mine\r\nKeep-Alive: timeout=5\r\nX-Mine: 1\r\nX-Yours: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nok";
    let node = Node::acts([Act::raw(answer)]);
    let proxy = Setup::new(&[&node]).start();
    let client = Proper::connect(proxy.address);
    let fields = [
        ("cookie", "a=1"),
        ("x-one", "1"),
        ("cookie", "b=2"),
        ("te", "trailers"),
        ("cookie", "c=3"),
    ];
    let answer = client.ask(Ask::new("GET", SHOP, &fields));
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.cut),
        (200, "ok", None)
    );
    assert_eq!(answer.field("content-length"), Some("2"));
    assert_eq!(answer.field("x-yours"), Some("2"));
    let cookies: Vec<_> = answer.fields.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    for gone in ["connection", "keep-alive", "x-mine", "transfer-encoding"] {
        assert_eq!(answer.field(gone), None, "{gone}");
    }
    assert!(answer.field("date").is_some() && answer.field("x-request-id").is_some());
    let seen = node.seen();
    assert!(
        seen.head.starts_with("GET /x?y=1 HTTP/1.1\r\n"),
        "{}",
        seen.head
    );
    assert_eq!(seen.fields("host"), ["shop.test"]);
    assert_eq!(seen.fields("cookie"), ["a=1; b=2; c=3"]);
    assert_eq!(seen.fields("x-one"), ["1"]);
    assert_eq!(seen.fields("via"), ["2.0 hotwarm"]);
    assert_eq!(seen.fields("x-forwarded-proto"), ["http"]);
    let line = &proxy.log()[0];
    assert_eq!(line["protocol"], "HTTP/2.0");
    assert_eq!(line["bytes_out"], 2);
}

#[test]
fn bodies_of_any_length_go_both_ways() {
    let node = Node::start(|seen| Act::ok(&"y".repeat(seen.body.len())));
    let proxy = Setup::new(&[&node]).start();
    let client = Proper::connect(proxy.address);
    for size in [0, 1, 1000, 100_000, 3_000_000] {
        let body = "x".repeat(size);
        let length = size.to_string();
        for fields in [&[("content-length", length.as_str())][..], &[]] {
            let ask = Ask::new("POST", SHOP, fields).pieces(&[&body]);
            let answer = client.ask(ask);
            assert_eq!(
                (answer.status, answer.body.len(), answer.cut),
                (200, size, None)
            );
            let seen = node.seen();
            assert_eq!((seen.whole, seen.body.len()), (true, size));
            let chunked = seen.field("transfer-encoding") == Some("chunked");
            assert_eq!(chunked, fields.is_empty());
        }
    }
}

#[test]
fn many_requests_share_a_connection_and_a_slow_one_stops_nobody() {
    let (go, slow) = Act::ok("slow").when();
    let slow = std::sync::Mutex::new(Some(slow));
    let node = Node::start(move |seen| match seen.target() {
        "/slow" => slow.lock().unwrap().take().unwrap(),
        other => Act::ok(other),
    });
    let proxy = Setup::new(&[&node]).start();
    let client = Proper::connect(proxy.address);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.ask(Ask::get("http://a/slow")));
        let asks = (0..200).map(|n| Ask::get(&format!("http://a/{n}")));
        for (n, answer) in client.all(asks).iter().enumerate() {
            assert_eq!((answer.status, answer.text()), (200, format!("/{n}")));
        }
        assert!(!waiting.is_finished());
        go.send(()).unwrap();
        assert_eq!(waiting.join().unwrap().text(), "slow");
    });
    proxy.until("one connection carried all", |proxy| {
        proxy.log_text().lines().count() == 201
    });
}

#[test]
fn a_head_or_an_empty_answer_ends_the_stream_at_once() {
    let node = Node::acts([
        Act::raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        Act::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        Act::raw("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: \"a\"\r\n\r\n"),
        Act::raw("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ]);
    let proxy = Setup::new(&[&node]).start();
    let client = Proper::connect(proxy.address);
    for (method, status, length) in [
        ("HEAD", 200, Some("5")),
        ("GET", 204, None),
        ("GET", 304, Some("7")),
        ("GET", 200, Some("0")),
    ] {
        let answer = client.ask(Ask::new(method, SHOP, &[]));
        assert_eq!(
            (answer.status, answer.body.len(), answer.cut),
            (status, 0, None)
        );
        assert_eq!(answer.field("content-length"), length, "{status}");
    }
}

#[test]
fn an_answer_that_breaks_off_is_never_taken_for_whole() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let node = Node::acts([Act::Last(text.as_bytes().to_vec())]);
        let proxy = Setup::new(&[&node]).start();
        let answer = Proper::connect(proxy.address).ask(Ask::get(SHOP));
        assert_eq!(answer.cut, Some(Reason::INTERNAL_ERROR), "{answer:?}");
        assert_eq!(proxy.log()[0]["closed_by"], "upstream");
    }
}

#[test]
fn a_body_that_is_not_as_long_as_it_says_never_reaches_the_node_whole() {
    for (length, body) in [("4", "hello"), ("6", "hello")] {
        let node = Node::ok();
        let proxy = Setup::new(&[&node]).start();
        let mut raw = Raw::connect(proxy.address);
        raw.send(
            HEADERS,
            END_HEADERS,
            1,
            &head("POST", &[("content-length", length)]),
        );
        raw.send(DATA, END_STREAM, 1, body.as_bytes());
        let reset = raw.until(|frame| frame.kind == RST_STREAM);
        assert_eq!(reset.reason(), Reason::PROTOCOL_ERROR);
        drop(proxy);
        assert!(node.rest().iter().all(|seen| !seen.whole));
    }
}

#[test]
fn who_the_request_is_for_is_said_once_or_twice_the_same() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    let mut raw = Raw::connect(proxy.address);
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
    let block = |more: &[(&str, &str)]| crate::harness::http2::block(&[&pseudo[..], more].concat());
    for (n, (more, status)) in [
        (&[(":authority", "a")][..], 200),
        (&[("host", "a")], 200),
        (&[(":authority", "a"), ("host", "A")], 200),
        (&[(":authority", "a"), ("host", "b")], 400),
        (&[(":authority", "a"), ("host", "a"), ("host", "a")], 400),
        (&[("host", "a"), ("host", "a")], 400),
        (&[], 400),
        (&[(":authority", "u@a")], 400),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = u32::try_from(n * 2 + 1).unwrap();
        raw.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(more));
        let answer = raw.until(|frame| frame.stream == stream && frame.kind == HEADERS);
        assert_eq!(answer.status(), status, "{more:?}");
    }
    assert!(
        node.rest()
            .iter()
            .all(|seen| seen.fields("host").len() == 1)
    );
}

#[test]
fn what_http1_refuses_is_refused_here_too() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    let mut raw = Raw::connect(proxy.address);
    let of = |method: &str, scheme: &str, path: &str, more: &[(&str, &str)]| {
        let pseudo = [
            (":method", method),
            (":scheme", scheme),
            (":path", path),
            (":authority", "a"),
        ];
        crate::harness::http2::block(&[&pseudo[..], more].concat())
    };
    let connect = crate::harness::http2::block(&[(":method", "CONNECT"), (":authority", "a:1")]);
    for (n, (block, status)) in [
        (of("GET", "http", "/", &[]), 200),
        (of("GET", "https", "*", &[]), 400),
        (of("OPTIONS", "http", "*", &[]), 200),
        (of("GET", "http", "/\u{e9}", &[]), 400),
        (of("GET", "ftp", "/", &[]), 400),
        (of("TRACE", "http", "/", &[]), 405),
        (connect, 405),
        (of("GET", "http", "/", &[("x", " a")]), 400),
        (of("GET", "http", "/", &[("x", "a\t")]), 400),
        (of("GET", "http", "/", &[("expect", "magic")]), 417),
        (
            of("GET", "http", &format!("/{}", "x".repeat(70_000)), &[]),
            431,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = u32::try_from(n * 2 + 1).unwrap();
        let (first, rest) = block.split_at(block.len().min(16_000));
        let ends = if rest.is_empty() { END_HEADERS } else { 0 };
        raw.send(HEADERS, ends | END_STREAM, stream, first);
        let mut pieces = rest.chunks(16_000).peekable();
        while let Some(piece) = pieces.next() {
            let ends = if pieces.peek().is_none() {
                END_HEADERS
            } else {
                0
            };
            raw.send(crate::harness::http2::CONTINUATION, ends, stream, piece);
        }
        let answer =
            raw.until(|frame| frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM));
        let shown = String::from_utf8_lossy(&block[..block.len().min(80)]);
        if answer.kind == RST_STREAM {
            // The library's own refusal of what it cannot read.
            assert!(status == 400 || status == 431, "{shown}");
        } else {
            assert_eq!(answer.status(), status, "{shown}");
        }
    }
    let reached = node.rest();
    assert_eq!(reached.len(), 2, "{reached:?}");
}

#[test]
fn a_client_that_takes_its_request_back_is_like_one_that_went_away() {
    let node = Node::start(|_| Act::Never);
    let proxy = Setup::new(&[&node]).start();
    let mut raw = Raw::connect(proxy.address);
    raw.send(HEADERS, END_HEADERS | END_STREAM, 1, &get(&[]));
    node.seen();
    raw.send(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    proxy.until("it is written down", |proxy| !proxy.log_text().is_empty());
    raw.send(PING, 0, 0, b"12345678");
    let pong = raw.until(|frame| frame.kind == PING);
    assert_eq!(
        (pong.flags & ACK, &pong.payload[..]),
        (ACK, &b"12345678"[..])
    );
    let line = &proxy.log()[0];
    assert_eq!(
        (line["status"].as_u64(), line["closed_by"].as_str()),
        (Some(499), Some("client"))
    );
}

#[test]
fn errors_of_ours_say_what_happened_as_in_http1() {
    let node = Node::acts([Act::Close, Act::Close]);
    let proxy = Setup::new(&[&node]).start();
    let answer = Proper::connect(proxy.address).ask(Ask::new("POST", SHOP, &[]).pieces(&["a"]));
    assert_eq!((answer.status, answer.cut), (502, None));
    assert_eq!(
        answer.field("content-type"),
        Some("application/problem+json")
    );
    let proxy_status = answer.field("proxy-status").unwrap();
    assert!(
        proxy_status.starts_with("hotwarm; error=connection_terminated; details="),
        "{proxy_status}"
    );
    assert!(answer.text().contains("\"status\":502"));
}

#[test]
fn a_client_that_waits_for_a_word_gets_it_and_then_its_answer() {
    let node = Node::start(|seen| Act::ok(&String::from_utf8_lossy(&seen.body)));
    let proxy = Setup::new(&[&node]).start();
    let mut raw = Raw::connect(proxy.address);
    let fields = [("expect", "100-continue"), ("content-length", "5")];
    raw.send(HEADERS, END_HEADERS, 1, &head("POST", &fields));
    let word = raw.until(|frame| frame.kind == HEADERS);
    assert_eq!((word.status(), word.flags & END_STREAM), (100, 0));
    raw.send(DATA, END_STREAM, 1, b"hello");
    assert_eq!(raw.until(|frame| frame.kind == HEADERS).status(), 200);
    assert_eq!(raw.until(|frame| frame.kind == DATA).payload, b"hello");
}

#[test]
fn early_hints_come_before_the_answer() {
    let text = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let node = Node::acts([Act::raw(text)]);
    let proxy = Setup::new(&[&node]).start();
    let mut raw = Raw::connect(proxy.address);
    raw.send(HEADERS, END_HEADERS | END_STREAM, 1, &get(&[]));
    let hints = raw.until(|frame| frame.kind == HEADERS);
    assert_eq!((hints.status(), hints.flags & END_STREAM), (103, 0));
    assert_eq!(raw.until(|frame| frame.kind == HEADERS).status(), 200);
    assert_eq!(raw.until(|frame| frame.kind == DATA).payload, b"ok");
}

#[test]
fn a_drain_lets_streams_finish_and_takes_no_more() {
    let (go, slow) = Act::ok("finished").when();
    let node = Node::acts([slow]);
    let mut proxy = Setup::new(&[&node]).start();
    let mut raw = Raw::connect(proxy.address);
    raw.send(HEADERS, END_HEADERS | END_STREAM, 1, &get(&[]));
    node.seen();
    proxy.begin_drain();
    let goaway = raw.until(|frame| frame.kind == GOAWAY);
    assert_eq!(goaway.reason(), Reason::NO_ERROR);
    let ping = raw.until(|frame| frame.kind == PING);
    raw.send(PING, ACK, 0, &ping.payload);
    let last = raw.until(|frame| frame.kind == GOAWAY);
    assert_eq!(
        (last.reason(), &last.payload[..4]),
        (Reason::NO_ERROR, &1_u32.to_be_bytes()[..])
    );
    go.send(()).unwrap();
    assert_eq!(raw.until(|frame| frame.kind == HEADERS).status(), 200);
    assert_eq!(raw.until(|frame| frame.kind == DATA).payload, b"finished");
    while raw.next().is_some() {}
    proxy.join();
}

#[test]
fn a_preface_that_comes_byte_by_byte_is_still_one_and_a_get_is_still_a_get() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    let mut raw = Raw::silent(proxy.address);
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n" {
        raw.write(&[*byte]);
    }
    raw.write(b"\r\n");
    raw.send(crate::harness::http2::SETTINGS, 0, 0, &[]);
    raw.send(HEADERS, END_HEADERS | END_STREAM, 1, &get(&[]));
    assert_eq!(raw.until(|frame| frame.kind == HEADERS).status(), 200);
    let mut plain = proxy.client();
    assert_eq!(plain.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
    let mut later = String::from("PRI * HTTP/2.0\r\n\r\n");
    write!(later, "SM\r\n\r\n").unwrap();
    assert_eq!(
        plain.ask(&later).status,
        400,
        "only a connection's first bytes"
    );
    assert_eq!(format!("{:?}", Version::HTTP_2), "HTTP/2.0");
}
