//! A node's breaker: opens on failures, holds requests, and never for longer than it must.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use proxy::logic::breaker::Phase;
use proxy::steer::Sign;
use shared::clock;

use crate::harness::{A, Act, B, Node, Setup, closed, open};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const BREAKER: &str =
    "[service.breaker]\nconsecutive_failures = 3\nopen_for = \"300ms\"\nhalf_open_probes = 2";

/// A node that is in trouble until told otherwise.
fn troubled() -> (Node, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (well, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let (is_well, count) = (Arc::clone(&well), Arc::clone(&asked));
    let node = Node::start(move |_| {
        count.fetch_add(1, SeqCst);
        if is_well.load(SeqCst) {
            Act::ok("well")
        } else {
            Act::status(500, "sorry")
        }
    });
    (node, well, asked)
}

#[test]
fn errors_pass_until_it_opens_and_requests_wait_then() {
    let (a, well, asked) = troubled();
    let spare = Node::ok();
    let nodes = [&a, &spare];
    let mut proxy = Setup::new(&nodes).with(BREAKER).threads(2).start();
    for _ in 0..3 {
        let answer = proxy.ask(GET);
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (500, "sorry"),
            "unchanged"
        );
    }
    proxy.await_sign(Sign::Broke(A));
    assert!(matches!(proxy.handle.breaker(A), Phase::Refuse(_)));
    let gauge = proxy
        .metrics
        .breaker_state
        .with_label_values(&["shop", "a"]);
    assert_eq!(gauge.get(), 2);
    well.store(true, SeqCst);
    let began = clock::now();
    let mut clients: Vec<_> = (0..10).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(GET);
    }
    for client in &mut clients {
        assert_eq!(client.answer().text(), "well", "nobody failed");
    }
    let took = clock::now() - began;
    assert!(
        took >= Duration::from_millis(200) && took < Duration::from_secs(5),
        "{took:?}"
    );
    proxy.await_sign(Sign::Mended(A));
    assert_eq!((proxy.handle.breaker(A), gauge.get()), (Phase::Admit, 0));
    assert_eq!(asked.load(SeqCst), 13);
}

#[test]
fn a_node_that_stays_in_trouble_is_reached_again_and_again() {
    let (a, _well, asked) = troubled();
    let spare = Node::ok();
    let proxy = Setup::new(&[&a, &spare]).with(BREAKER).start();
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(proxy.ask(GET).status);
    }
    // Three to open it, then one trial after each rest, each with the node's own answer.
    assert_eq!(statuses, [500; 6]);
    assert_eq!(asked.load(SeqCst), 6);
}

#[test]
fn a_service_of_one_node_is_never_made_unavailable_by_its_breaker() {
    let (a, _, asked) = troubled();
    let long = BREAKER.replace("300ms", "5m");
    let mut proxy = Setup::new(&[&a]).with(&long).start();
    for n in 1..=10 {
        let answer = proxy.ask(GET);
        assert_eq!((answer.status, answer.text().as_str()), (500, "sorry"));
        assert_eq!(asked.load(SeqCst), n);
    }
    proxy.await_sign(Sign::Broke(A));
    assert!(matches!(proxy.handle.breaker(A), Phase::Refuse(_)));
}

#[test]
fn a_view_that_sends_requests_there_anew_ends_the_rest() {
    let (a, well, _) = troubled();
    let long = BREAKER.replace("300ms", "5m");
    let spare = Node::ok();
    let mut proxy = Setup::new(&[&a, &spare]).with(&long).start();
    for _ in 0..3 {
        proxy.ask(GET);
    }
    proxy.await_sign(Sign::Broke(A));
    let mut client = proxy.client();
    client.send(GET);
    proxy.until("it waits", |proxy| proxy.steering.held() == 1);
    proxy
        .steering
        .publish(closed(1, "the primary is in trouble (breaker)"));
    well.store(true, SeqCst);
    proxy.steering.publish(open(1, A));
    assert_eq!(client.answer().text(), "well");
}

#[test]
fn requests_that_wait_for_a_breaker_go_to_whoever_takes_over() {
    let (a, _, _) = troubled();
    let b = Node::start(|_| Act::ok("from b"));
    let long = BREAKER.replace("300ms", "5m");
    let mut proxy = Setup::new(&[&a, &b]).with(&long).start();
    for _ in 0..3 {
        proxy.ask(GET);
    }
    proxy.await_sign(Sign::Broke(A));
    let mut post = proxy.client();
    post.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    proxy.until("it waits", |proxy| proxy.steering.held() == 1);
    proxy.steering.publish(open(2, B));
    assert_eq!(post.answer().text(), "from b");
    assert_eq!(b.seen().body, b"hi");
}
