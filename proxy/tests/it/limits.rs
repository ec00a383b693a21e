//! No client takes more than its share of time, memory or connections.

use std::time::Duration;

use shared::clock;

use crate::harness::{Act, Client, Node, Setup};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = clock::now();
    let result = work();
    (result, clock::now() - began)
}

/// Our clock starts when the client has heard of it, a little after the proxy's.
fn is_about(took: Duration, millis: u64) -> bool {
    took + Duration::from_millis(100) >= Duration::from_millis(millis)
        && took < Duration::from_millis(millis) + Duration::from_secs(4)
}

#[test]
fn a_head_that_does_not_come_ends_by_its_deadline() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("header_timeout = \"400ms\", idle_timeout = \"60s\"")
        .start();
    let mut silent = proxy.client();
    let (closed, took) = timed(|| silent.is_closed());
    assert!(closed && is_about(took, 400), "{took:?}");

    let mut slow = proxy.client();
    let (answer, took) = timed(|| {
        for piece in ["GET / HT", "TP/1.1\r\nHo", "st: a\r\nX-"] {
            slow.send(piece);
            clock::pause_thread(Duration::from_millis(100));
        }
        slow.answer()
    });
    assert_eq!(answer.status, 408);
    assert!(answer.field("proxy-status").is_some() && slow.is_closed());
    assert!(is_about(took, 400), "{took:?}");

    // The second request's head is timed from its first byte, however long the connection was idle before.
    let mut later = proxy.client();
    assert_eq!(later.ask(GET).status, 200);
    assert!(later.is_silent(Duration::from_millis(900)));
    assert_eq!(later.ask(GET).status, 200);
    later.send("GET / HTTP/1.1\r\n");
    let (answer, took) = timed(|| later.answer());
    assert!(answer.status == 408 && is_about(took, 300), "{took:?}");
    assert_eq!(node.rest().len(), 2);
}

#[test]
fn empty_lines_do_not_keep_a_connection() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("header_timeout = \"300ms\", idle_timeout = \"60s\"")
        .start();
    let mut client = proxy.client();
    assert_eq!(client.ask(GET).status, 200);
    let until = clock::now() + Duration::from_secs(10);
    while client.try_send("\r\n") && client.is_silent(Duration::from_millis(50)) {
        assert!(clock::now() < until, "still open");
    }
    assert!(client.is_closed());
}

#[test]
fn an_idle_connection_ends_by_its_deadline() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("idle_timeout = \"300ms\"")
        .start();
    let mut client = proxy.client();
    assert_eq!(client.ask(GET).status, 200);
    let (closed, took) = timed(|| client.is_closed());
    assert!(closed && is_about(took, 300), "{took:?}");
}

#[test]
fn a_body_that_does_not_come_ends_by_its_deadline() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("body_idle_timeout = \"300ms\"")
        .start();
    let mut client = proxy.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhal");
    let (answer, took) = timed(|| client.answer());
    assert_eq!(answer.status, 408);
    assert!(is_about(took, 300) && client.is_closed(), "{took:?}");
    assert!(!node.seen().whole, "the node never saw an end");

    // A trailer that ends without CR LF is awaited by hyper for ever.
    let mut client = proxy.client();
    client.send(
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: y\n\n",
    );
    assert!(matches!(client.answer().status, 400 | 408));
    assert!(!node.seen().whole);
}

#[test]
fn a_slow_body_that_moves_is_given_its_time() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("body_idle_timeout = \"400ms\", min_body_rate = \"5B\"")
        .start();
    let mut client = proxy.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    for _ in 0..10 {
        clock::pause_thread(Duration::from_millis(100));
        client.send("x");
    }
    assert_eq!(client.answer().status, 200);
    assert_eq!(node.seen().body.len(), 10);
}

#[test]
fn a_body_that_drips_does_not_hold_a_connection() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("body_idle_timeout = \"600ms\", header_timeout = \"60s\"")
        .start();
    let mut client = proxy.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
    let (_, took) = timed(|| {
        while client.is_silent(Duration::from_millis(100)) {
            client.try_send("x");
        }
    });
    assert_eq!(client.answer().status, 408);
    assert!(is_about(took, 600) && client.is_closed(), "{took:?}");
    assert!(!node.seen().whole, "the node never saw an end");
}

#[test]
fn a_response_that_is_sipped_does_not_hold_a_connection() {
    const SIZE: usize = 64 << 20;
    let node = Node::start(|_| {
        let mut text = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").into_bytes();
        text.resize(text.len() + SIZE, b'x');
        Act::Send(text)
    });
    let proxy = Setup::new(&[&node])
        .limits("body_idle_timeout = \"1s\", min_body_rate = \"64MiB\"")
        .start();
    let mut client = proxy.client();
    client.send(GET);
    let mut piece = vec![0; 512 << 10];
    let mut read = 0;
    let (_, took) = timed(|| {
        // About five megabytes a second: never idle, and far below what is asked for.
        while let Ok(some @ 1..) = std::io::Read::read(&mut client.stream(), &mut piece) {
            read += some;
            clock::pause_thread(Duration::from_millis(100));
        }
    });
    assert!(read < SIZE, "{took:?}");
}

#[test]
fn a_client_that_does_not_read_ends_by_its_deadline() {
    let node = Node::start(|_| {
        let mut text = b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n".to_vec();
        text.resize(text.len() + 50_000_000, b'x');
        Act::Send(text)
    });
    let mut proxy = Setup::new(&[&node])
        .limits("body_idle_timeout = \"300ms\"")
        .start();
    let mut client = proxy.client();
    client.send(GET);
    proxy.until("the connection is given up", |proxy| {
        proxy
            .metrics
            .client_connections
            .with_label_values(&[&proxy.address.to_string()])
            .get()
            == 1
    });
    proxy.until("the connection is given up", |proxy| {
        proxy
            .metrics
            .client_connections
            .with_label_values(&[&proxy.address.to_string()])
            .get()
            == 0
    });
    assert!(!client.answer().whole);
    assert!(proxy.signs().is_empty(), "it is not the node's fault");
}

#[test]
fn heads_are_bounded_in_size_and_number() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("max_header_bytes = \"8KiB\", max_headers = 10")
        .start();
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(10));
    let large = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "y".repeat(9000)
    );
    let endless = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(9000));
    for request in [many, large, endless] {
        let mut client = proxy.client();
        client.try_send(&request);
        assert_eq!(client.answer().status, 431);
        assert!(client.is_closed());
    }
    let fits = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "y".repeat(7000)
    );
    assert_eq!(proxy.ask(&fits).status, 200);

    let proxy = Setup::new(&[&node])
        .limits("max_header_bytes = \"128KiB\"")
        .start();
    let target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(66_000));
    assert_eq!(proxy.ask(&target).status, 414);
    let hundred_one = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "X: y\r\n".repeat(100)
    );
    assert_eq!(proxy.ask(&hundred_one).status, 431);
}

#[test]
fn too_many_connections_are_turned_away_politely() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("max_connections = 2")
        .threads(2)
        .start();
    let mut guests = [proxy.client(), proxy.client()];
    for guest in &mut guests {
        assert_eq!(guest.ask(GET).status, 200);
    }
    let mut third = proxy.client();
    third.send(GET);
    let answer = third.answer();
    assert_eq!(
        (answer.status, answer.field("retry-after")),
        (503, Some("1"))
    );
    assert!(answer.text().contains("all connections are taken") && third.is_closed());
    drop(guests);
    proxy.until("there is room again", |proxy| {
        let mut client = Client::connect(proxy.address);
        client.try_send(GET) && client.answer().status == 200
    });
}

#[test]
fn a_node_that_does_not_answer_is_a_504_and_a_slow_upload_is_not() {
    let node = Node::start(|_| Act::Never);
    let timeouts = "[service.timeouts]\nresponse_header = \"400ms\"\n[service.retry]\nattempts = 1";
    let mut proxy = Setup::new(&[&node]).with(timeouts).start();
    let (answer, took) =
        timed(|| proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"));
    assert!(answer.status == 504 && is_about(took, 400), "{took:?}");
    let status = answer.field("proxy-status").unwrap();
    assert!(status.contains("error=http_response_timeout"), "{status}");
    assert!(proxy.signs().is_empty());

    let node = Node::ok();
    let proxy = Setup::new(&[&node]).with(timeouts).start();
    let mut client = proxy.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    for _ in 0..10 {
        clock::pause_thread(Duration::from_millis(100));
        client.send("x");
    }
    assert_eq!(client.answer().status, 200);
}

#[test]
fn a_node_that_pauses_within_its_answer_aborts_it() {
    let node = Node::acts([Act::raw(
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
    )]);
    let proxy = Setup::new(&[&node])
        .with("[service.timeouts]\nidle = \"300ms\"")
        .start();
    let mut client = proxy.client();
    let (answer, took) = timed(|| client.ask(GET));
    assert!(!answer.whole && is_about(took, 300), "{took:?}");
    assert!(client.is_closed());
}

#[test]
fn connections_to_a_node_are_bounded_and_those_who_wait_get_their_turn() {
    let (gates, acts): (Vec<_>, Vec<_>) = (0..6).map(|n| Act::ok(&n.to_string()).when()).unzip();
    let node = Node::acts(acts);
    // `max_connections` is the last node's key.
    let proxy = Setup::new(&[&node]).with("max_connections = 2").start();
    let mut clients: Vec<_> = (0..6).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(GET);
    }
    node.seen();
    node.seen();
    for gate in &gates {
        assert!(node.connections() <= 2);
        gate.send(()).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(node.connections(), 2);
}
