//! A node's places: how many connections it has over all workers, who waits for one, and what is left at a node that hangs.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use crate::harness::{A, Act, Node, PATIENCE, Setup};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn the_bound_holds_over_all_workers_and_everybody_gets_a_turn() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (here, seen) = (Arc::clone(&now), Arc::clone(&most));
    let node = Node::start(move |_| {
        seen.fetch_max(here.fetch_add(1, SeqCst) + 1, SeqCst);
        thread::yield_now();
        here.fetch_sub(1, SeqCst);
        Act::ok("ok")
    });
    // `max_connections` is the last node's key.
    let proxy = Setup::new(&[&node])
        .with("max_connections = 3")
        .threads(4)
        .start();
    let clients: Vec<_> = (0..24)
        .map(|_| {
            let mut client = proxy.client();
            thread::spawn(move || {
                for _ in 0..20 {
                    assert_eq!(client.ask(GET).text(), "ok");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    assert!(most.load(SeqCst) <= 3, "{most:?}");
    assert_eq!(proxy.handle.queued(A), 0);
}

#[test]
fn one_worker_s_idle_connection_makes_room_for_another_worker_s_request() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .with("max_connections = 1")
        .threads(4)
        .start();
    // Connections of clients are dealt out by the system, so that most of these come to other workers.
    for _ in 0..40 {
        assert_eq!(proxy.ask(GET).text(), "ok");
    }
}

#[test]
fn the_queue_is_bounded_and_says_when_to_come_again() {
    let (tell, act) = Act::ok("late").when();
    let node = Node::acts([act]);
    let proxy = Setup::new(&[&node])
        .with("max_connections = 1\nmax_queue = 2")
        .start();
    let mut clients: Vec<_> = (0..3).map(|_| proxy.client()).collect();
    clients[0].send(GET);
    node.seen();
    clients[1].send(GET);
    clients[2].send(GET);
    proxy.until("two wait", |proxy| proxy.handle.queued(A) == 2);
    let refused = proxy.ask(GET);
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.field("retry-after"), Some("1"));
    let said = refused.field("proxy-status").unwrap();
    assert!(said.contains("error=connection_limit_reached"), "{said}");
    let gauge = proxy
        .metrics
        .queued_requests
        .with_label_values(&["shop", "a"]);
    proxy.until("it is shown", |_| gauge.get() == 2);
    tell.send(()).unwrap();
    let answers: Vec<_> = clients
        .iter_mut()
        .map(|client| client.answer().text())
        .collect();
    assert_eq!(answers, ["late", "ok", "ok"]);
    assert_eq!(node.connections(), 1);
}

#[test]
fn who_waits_in_vain_is_told_so_and_who_goes_away_leaves_the_queue() {
    let (tell, act) = Act::ok("late").when();
    let node = Node::acts([act]);
    let proxy = Setup::new(&[&node])
        .with("max_connections = 1\n[service.hold]\nmax_wait = \"1100ms\"")
        .start();
    let mut first = proxy.client();
    first.send(GET);
    node.seen();
    let mut gone = proxy.client();
    gone.send(GET);
    proxy.until("it waits", |proxy| proxy.handle.queued(A) == 1);
    drop(gone);
    proxy.until("it has left", |proxy| proxy.handle.queued(A) == 0);
    assert_eq!(proxy.ask(GET).status, 503);
    tell.send(()).unwrap();
    assert_eq!(first.answer().text(), "late");
    assert_eq!(node.rest().len(), 0);
}

#[test]
fn a_node_that_wakes_finds_no_more_abandoned_requests_than_it_may_have_at_once() {
    // It hangs: the system takes connections for it, and nobody reads them.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = Setup::addresses(&[address])
        .with("max_connections = 2")
        .start();
    let in_flight = |wanted: u64| {
        proxy.until("they are on their way", |proxy| {
            let (safe, writes) = proxy.steering.in_flight();
            safe + writes == wanted
        });
    };
    for round in 0..4 {
        let mut clients: Vec<_> = (0..3).map(|_| proxy.client()).collect();
        for client in &mut clients {
            client.send(GET);
        }
        in_flight(3);
        let queued = if round == 0 { 1 } else { 3 };
        proxy.until("the rest waits", |proxy| proxy.handle.queued(A) == queued);
        drop(clients);
        in_flight(0);
        proxy.until("they have left", |proxy| proxy.handle.queued(A) == 0);
    }
    let mut last = proxy.client();
    last.send(GET);
    proxy.until("it waits", |proxy| proxy.handle.queued(A) == 1);
    // It wakes.
    listener.set_nonblocking(true).unwrap();
    let mut found = Vec::new();
    loop {
        match listener.accept() {
            Ok((stream, _)) => found.push(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(found.len(), 2);
    for stream in &mut found {
        assert_eq!(read_head(stream), GET.lines().next().unwrap());
        // Nobody is there to read it, but it may be written.
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    }
    drop(found);
    listener.set_nonblocking(false).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    read_head(&mut stream);
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nawake";
    stream.write_all(answer).unwrap();
    assert_eq!(last.answer().text(), "awake");
}

/// The first line of a request.
fn read_head(stream: &mut TcpStream) -> String {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let text = String::from_utf8(bytes).unwrap();
    text.lines().next().unwrap().to_owned()
}
