//! What clients may not say, and what becomes of what they may.

use std::time::Duration;

use crate::harness::{Act, Node, Proxy, Setup};

fn bench() -> (Node, Proxy) {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    (node, proxy)
}

#[test]
fn requests_that_can_be_read_in_two_ways_are_refused() {
    let (node, proxy) = bench();
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b@c\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
            501,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
            400,
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n X: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /\r\n\r\n", 400),
        ("GET /ä HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: magic\r\n\r\nx",
            417,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, authorization\r\n\r\n",
            400,
        ),
        ("PRI * HTTP/2.0\r\nHost: a\r\n\r\n", 400),
    ] {
        let mut client = proxy.client();
        let answer = client.ask(request);
        assert_eq!(answer.status, status, "{request:?}: {}", answer.head);
        assert!(answer.field("proxy-status").is_some(), "{request:?}");
        assert!(
            client.is_closed(),
            "{request:?}: what follows must not be read as a request"
        );
    }
    assert!(node.rest().is_empty(), "none of them reached the node");
}

#[test]
fn what_is_allowed_but_odd_is_made_plain() {
    let (node, proxy) = bench();
    let bare = "\r\n\r\nGET /bare HTTP/1.1\nHost: a\nX-A: 1\n\n";
    assert_eq!(proxy.ask(bare).status, 200);
    let seen = node.seen();
    let text = String::from_utf8(seen.raw).unwrap();
    assert_eq!(text.matches('\n').count(), text.matches("\r\n").count());
    assert!(text.starts_with("GET /bare HTTP/1.1\r\n"));

    proxy.ask("GET http://real.example:81/x?y HTTP/1.1\r\nHost: other\r\n\r\n");
    let seen = node.seen();
    assert_eq!(
        (seen.target(), seen.fields("host")),
        ("/x?y", vec!["real.example:81"])
    );

    proxy.ask("GET /f HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 1.1.1.1\r\nX-Ok: \u{e9}\r\n\r\n");
    let seen = node.seen();
    assert_eq!((seen.target(), seen.field("x_forwarded_for")), ("/f", None));
    assert!(seen.field("x-ok").is_some());

    assert_eq!(proxy.ask("GET / HTTP/1.0\r\n\r\n").status, 200);
    assert_eq!(node.seen().field("host"), Some(""));

    let doubled = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(proxy.ask(doubled).status, 200);
    let seen = node.seen();
    assert_eq!(
        (seen.fields("content-length"), &seen.body[..]),
        (vec!["2"], &b"hi"[..])
    );
}

#[test]
fn chunks_are_framed_anew_and_extensions_and_trailers_end_here() {
    let (node, proxy) = bench();
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2;a=b\r\nhi\r\n3 \r\n yo\r\n0;z\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n";
    assert_eq!(proxy.ask(request).status, 200);
    let seen = node.seen();
    assert_eq!(seen.body, b"hi yo");
    let raw = String::from_utf8(seen.raw).unwrap();
    assert!(
        !raw.contains("a=b") && !raw.contains("X-Sum") && !raw.contains("Content-Length: 9"),
        "{raw}"
    );
    assert_eq!(seen.head.matches("trailer").count(), 0);
    assert!(raw.ends_with("0\r\n\r\n"));
}

#[test]
fn a_body_that_breaks_aborts_the_node_s_request_and_never_ends_it() {
    let (node, proxy) = bench();
    for broken in [
        "zz\r\n",
        "2\nhi\r\n",
        "2\r\nhi!!",
        "0x1\r\nh\r\n",
        "fffffffffffffffff\r\n",
    ] {
        let mut client = proxy.client();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n{broken}"
        ));
        let answer = client.answer();
        assert!(
            answer.status == 400 || answer.status == 0,
            "{broken:?}: {}",
            answer.head
        );
        let seen = node.seen();
        assert!(!seen.whole, "{broken:?}");
    }
}

#[test]
fn an_upgrade_with_a_body_is_refused_and_nothing_behind_it_is_read() {
    let (node, proxy) = bench();
    let mut client = proxy.client();
    let smuggler = "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: foo\r\nContent-Length: 3\r\n\r\nabcGET /second HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(client.ask(smuggler).status, 400);
    assert!(client.is_closed());
    assert!(node.rest().is_empty());
    let h2c = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    assert_eq!(
        proxy.ask(h2c).status,
        200,
        "an upgrade that nobody needs is ignored"
    );
    let seen = node.seen();
    assert_eq!(
        (seen.field("upgrade"), seen.field("http2-settings")),
        (None, None)
    );
}

#[test]
fn a_body_is_only_asked_for_when_the_node_wants_it() {
    let node = Node::acts([Act::ok("stored")]);
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    let go = client.answer();
    assert_eq!(go.status, 100);
    client.send("hi");
    assert_eq!(client.answer().status, 200);
    assert_eq!(node.seen().body, b"hi");

    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Setup::addresses(&[refusing.local_addr().unwrap()]).start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    let (mut stream, _) = refusing.accept().unwrap();
    let mut head = [0; 2048];
    let read = std::io::Read::read(&mut stream, &mut head).unwrap();
    assert!(head[..read].ends_with(b"\r\n\r\n"), "the body was not sent");
    let refusal = "HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n";
    std::io::Write::write_all(&mut stream, refusal.as_bytes()).unwrap();
    assert_eq!(client.answer().status, 413, "no 100 before it");
}

#[test]
fn a_client_that_was_not_asked_for_its_body_is_told_that_the_connection_ends() {
    // Whatever the answer is: the client may send the body all the same, or not.
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Setup::addresses(&[refusing.local_addr().unwrap()]).start();
    let mut client = proxy.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    let (mut stream, _) = refusing.accept().unwrap();
    let mut head = [0; 2048];
    let read = std::io::Read::read(&mut stream, &mut head).unwrap();
    assert!(head[..read].ends_with(b"\r\n\r\n"), "the body was not sent");
    let known = "HTTP/1.1 200 Known\r\nContent-Length: 0\r\n\r\n";
    std::io::Write::write_all(&mut stream, known.as_bytes()).unwrap();
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.field("connection")),
        (200, Some("close"))
    );
    assert!(client.is_closed());
}

#[test]
fn a_body_that_is_there_already_is_not_asked_for() {
    let node = Node::acts([Act::ok("stored")]);
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(client.answer().status, 200, "no 100 before it");
    assert_eq!(node.seen().body, b"hi");
}

#[test]
fn pipelined_requests_are_answered_in_turn() {
    let node = Node::start(|seen| Act::ok(seen.target()));
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    let requests: String = (0..20)
        .map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .collect();
    client.send(requests);
    for n in 0..20 {
        assert_eq!(client.answer().text(), format!("/{n}"));
    }
    assert!(client.is_silent(Duration::from_millis(20)));
}

#[test]
fn options_that_may_go_no_further_is_answered_here() {
    let (node, proxy) = bench();
    let last = proxy.ask("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n");
    assert_eq!(last.status, 204);
    proxy.ask("OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 5\r\n\r\n");
    let seen = node.seen();
    assert_eq!(
        (seen.target(), seen.field("max-forwards")),
        ("*", Some("4"))
    );
}
