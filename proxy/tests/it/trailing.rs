//! What comes behind bodies: passed on to whoever takes it, dropped for everybody else.

use std::io::Read;

use http::HeaderMap;

use crate::harness::http2::{Ask, Proper};
use crate::harness::{Act, Node, Proxy, Setup};

const ANSWER: &str = "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\nContent-Length: 9\r\nSet-Cookie: a=b\r\nX-Sum: 8\r\n\r\n";

/// The whole answer to a GET with these lines, on a connection of its own.
fn raw_answer(proxy: &Proxy, lines: &str) -> String {
    let mut client = proxy.client();
    client.send(format!(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n"
    ));
    let mut answer = String::new();
    let mut stream = client.stream();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_client_of_http1_gets_trailers_only_if_it_takes_them() {
    let node = Node::start(|_| Act::raw(ANSWER));
    let proxy = Setup::new(&[&node]).start();
    let with = raw_answer(&proxy, "TE: trailers\r\n");
    let end = "\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 7\r\nx-sum: 8\r\n\r\n";
    assert!(
        with.ends_with(end) && with.contains("\r\nTrailer: X-Sum\r\n"),
        "{with}"
    );
    for lines in ["", "TE: gzip\r\n", "Connection: TE\r\n"] {
        let without = raw_answer(&proxy, lines);
        assert!(
            without.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            "{without}"
        );
        assert!(!without.contains("Trailer"), "{without}");
    }
    let mut old = proxy.client();
    let answer = old.ask("GET / HTTP/1.0\r\nHost: a\r\nTE: trailers\r\n\r\n");
    assert_eq!(answer.text(), "hello");
}

#[test]
fn a_client_of_http2_gets_them_always_but_never_those_that_mislead() {
    let node = Node::start(|_| Act::raw(ANSWER));
    let proxy = Setup::new(&[&node]).start();
    let answer = Proper::connect(proxy.address).ask(Ask::get("http://a/"));
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.cut),
        (200, "hello", None)
    );
    assert_eq!(answer.field("trailer"), Some("X-Sum"));
    let trailers = answer.trailers.unwrap();
    let sums: Vec<_> = trailers.get_all("x-sum").iter().collect();
    assert_eq!(sums, ["7", "8"]);
    assert_eq!(trailers.len(), 2);
}

#[test]
fn trailers_that_are_none_break_the_answer() {
    let text =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum 7\r\n\r\n";
    let node = Node::start(|_| Act::raw(text));
    let proxy = Setup::new(&[&node]).start();
    let answer = Proper::connect(proxy.address).ask(Ask::get("http://a/"));
    assert!(answer.cut.is_some());
}

#[test]
fn a_node_hears_that_the_client_takes_trailers() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    for lines in [
        "TE: trailers\r\nConnection: TE\r\n",
        "TE: deflate, trailers\r\n",
    ] {
        proxy.ask(&format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        let seen = node.seen();
        assert_eq!(seen.fields("te"), ["trailers"]);
        assert_eq!(seen.fields("connection"), ["TE"]);
    }
    Proper::connect(proxy.address).ask(Ask::new("GET", "http://a/", &[("te", "trailers")]));
    assert_eq!(node.seen().fields("te"), ["trailers"]);
    proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nTE: deflate\r\n\r\n");
    let seen = node.seen();
    assert!(seen.field("te").is_none() && seen.field("connection").is_none());
}

#[test]
fn a_node_of_http1_gets_the_body_without_the_trailers_behind_it() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    let ask = Ask::new("POST", "http://a/", &[]).pieces(&["hel", "lo"]);
    let answer = Proper::connect(proxy.address).ask(ask.trailers(trailers));
    assert_eq!(answer.status, 200);
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n";
    assert_eq!(proxy.ask(chunked).status, 200);
    for seen in [node.seen(), node.seen()] {
        assert_eq!((seen.whole, &seen.body[..]), (true, &b"hello"[..]));
        assert!(seen.raw.ends_with(b"\r\n0\r\n\r\n"));
    }
}
