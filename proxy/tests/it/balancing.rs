//! Services whose nodes are all active: who gets which request, and what happens when one of them fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use proxy::logic::NodeId;
use proxy::logic::fleet::Members;
use proxy::secret::Secret;
use proxy::steer::{Sign, View};

use crate::harness::{A, Act, Answer, B, Node, Proxy, Setup, nobody};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
const C: NodeId = NodeId(2);

/// These take requests, of three with equal weights.
fn members(takes: &[NodeId]) -> View {
    View {
        members: Some(Members {
            takes: takes.iter().copied().collect(),
            weights: [100; 3].into(),
            ..Members::default()
        }),
        phase: "serving",
        ..View::default()
    }
}

fn balanced(nodes: &[&Node], takes: &[NodeId], tables: &str) -> Proxy {
    let setup = Setup::new(nodes).view(members(takes)).with(tables);
    setup.start_as("mode = \"hot-hot\"")
}

fn named(name: &'static str) -> Node {
    Node::start(move |_| Act::ok(name))
}

#[test]
fn each_node_gets_its_turn_and_nobody_who_is_away_gets_any() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let turns = "[service.balance]\npolicy = \"round-robin\"";
    let proxy = balanced(&[&a, &b, &c], &[A, B, C], turns);
    let mut client = proxy.client();
    for _ in 0..30 {
        assert_eq!(client.ask(POST).status, 200);
    }
    assert_eq!([&a, &b, &c].map(|node| node.rest().len()), [10, 10, 10]);
    proxy.steering.publish(members(&[A, C]));
    for _ in 0..30 {
        assert_eq!(client.ask(GET).status, 200);
    }
    assert_eq!([&a, &b, &c].map(|node| node.rest().len()), [15, 0, 15]);
    assert_eq!(proxy.steering.in_flight_at(A), 0);
}

#[test]
fn a_busy_node_gets_no_more_while_another_is_idle() {
    let (tell, stuck) = Act::ok("late").when();
    let (a, b) = (Node::acts([stuck]), Node::ok());
    let proxy = balanced(&[&a, &b], &[A, B], "");
    let mut first = proxy.client();
    first.send(GET);
    let asked_first = |proxy: &Proxy| proxy.steering.in_flight_at(A) == 1;
    proxy.until("one of them has it", |proxy| {
        asked_first(proxy) || proxy.steering.pulse().answered == 1
    });
    if !asked_first(&proxy) {
        // b answered it; the turn is a's.
        assert_eq!(first.answer().text(), "ok");
        first.send(GET);
    }
    a.seen();
    for _ in 0..20 {
        assert_eq!(proxy.ask(GET).text(), "ok");
    }
    assert!(a.rest().is_empty());
    tell.send(()).unwrap();
    assert_eq!(first.answer().text(), "late");
}

#[test]
fn one_key_is_always_served_by_the_same_node_and_moves_only_if_that_leaves() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let hash = "[service.balance]\npolicy = \"hash\"\nhash_key = \"header:X-User\"";
    let proxy = balanced(&[&a, &b, &c], &[A, B, C], hash);
    let mut client = proxy.client();
    let mut ask = |user: u32| {
        let get = format!("GET /{user} HTTP/1.1\r\nHost: a\r\nx-user: {user}\r\n\r\n");
        client.ask(get).text()
    };
    let before: Vec<_> = (0..60).map(&mut ask).collect();
    let again: Vec<_> = (0..60).map(&mut ask).collect();
    assert_eq!(before, again);
    for name in ["a", "b", "c"] {
        let share = before.iter().filter(|by| *by == name).count();
        assert!((8..40).contains(&share), "{name}: {share}");
    }
    proxy.steering.publish(members(&[A, B]));
    for (user, before) in (0..60).zip(&before) {
        let after = ask(user);
        assert!(
            after == *before || before == "c",
            "{user}: {before}, then {after}"
        );
    }
}

#[test]
fn a_node_that_is_gone_costs_nobody_a_request() {
    let (a, dead) = (Node::ok(), nobody());
    let setup = Setup::addresses(&[a.address, dead]).view(members(&[A, B]));
    let mut proxy = setup.start_as("mode = \"hot-hot\"");
    let mut client = proxy.client();
    for _ in 0..10 {
        assert_eq!(client.ask(POST).status, 200);
    }
    proxy.await_sign(Sign::Refused(B));
    assert_eq!(a.rest().len(), 10);
}

#[test]
fn what_may_be_repeated_is_repeated_at_another_node_and_a_write_is_not() {
    let count = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&count);
    let a = Node::start(move |_| {
        asked.fetch_add(1, SeqCst);
        Act::Close
    });
    let b = named("b");
    let long = "[service.breaker]\nconsecutive_failures = 1000";
    let proxy = balanced(&[&a, &b], &[A, B], long);
    for _ in 0..10 {
        assert_eq!(proxy.ask(GET).text(), "b");
    }
    let lost = count.load(SeqCst);
    assert!(lost >= 3, "a had its share: {lost}");
    b.rest();
    let statuses: Vec<_> = (0..10).map(|_| proxy.ask(POST).status).collect();
    let failed = statuses.iter().filter(|status| **status == 502).count();
    assert_eq!(failed, count.load(SeqCst) - lost, "each loss is told");
    assert_eq!(b.rest().len() + failed, 10, "and no write was made twice");
}

#[test]
fn a_node_in_trouble_is_left_out_and_the_last_one_is_asked_whatever_it_says() {
    let (a, b) = (Node::start(|_| Act::status(500, "sorry")), named("b"));
    let breaker = "[service.breaker]\nconsecutive_failures = 3\nopen_for = \"5m\"\n[service.hold]\nmax_wait = \"10m\"";
    let mut proxy = balanced(&[&a, &b], &[A, B], breaker);
    let mut client = proxy.client();
    while client.ask(GET).status != 500 || proxy.handle.breaker(A).as_str() == "closed" {}
    proxy.await_sign(Sign::Broke(A));
    a.rest();
    for _ in 0..20 {
        assert_eq!(client.ask(POST).text(), "b");
    }
    assert!(a.rest().is_empty());
    proxy.steering.publish(members(&[A]));
    for _ in 0..5 {
        assert_eq!(client.ask(POST).text(), "sorry", "some answer beats none");
    }
}

#[test]
fn when_nobody_takes_requests_they_wait_for_the_first_who_does() {
    let (a, b) = (named("a"), named("b"));
    let proxy = balanced(&[&a, &b], &[], "");
    let mut clients: Vec<_> = (0..10).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(POST);
    }
    proxy.until("they are held", |proxy| proxy.steering.held() == 10);
    proxy.steering.publish(members(&[B]));
    for client in &mut clients {
        assert_eq!(client.answer().text(), "b");
    }
}

#[test]
fn who_waits_in_vain_for_any_node_is_told_so() {
    let a = Node::ok();
    let hold = "[service.hold]\nmax_wait = \"200ms\"\n[service.timeouts]\nconnect = \"100ms\"";
    let proxy = balanced(&[&a], &[], hold);
    let answer = proxy.ask(GET);
    assert_eq!(
        (answer.status, answer.field("retry-after")),
        (503, Some("1"))
    );
    assert!(a.rest().is_empty());
}

/// The cookie that an answer sets, as `name=value`, and its attributes.
fn cookie(answer: &Answer) -> Option<(String, String)> {
    let (pair, attributes) = answer.field("set-cookie")?.split_once("; ")?;
    Some((pair.to_owned(), attributes.to_owned()))
}

fn with_cookie(pair: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: x=1; {pair}\r\n\r\n")
}

const STICKY: &str = "[service.balance]\npolicy = \"round-robin\"\nsticky = \"cookie\"";

#[test]
fn a_client_with_a_cookie_returns_to_its_node() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let proxy = balanced(&[&a, &b, &c], &[A, B, C], STICKY);
    for _ in 0..3 {
        let first = proxy.ask(GET);
        let (pair, attributes) = cookie(&first).unwrap();
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        let value = pair.strip_prefix("hotwarm_node=").unwrap();
        assert!(value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit()));
        for _ in 0..6 {
            let again = proxy.ask(&with_cookie(&pair));
            assert_eq!(again.text(), first.text());
            assert_eq!(cookie(&again), None, "it has it already");
        }
    }
    let made_up = proxy.ask(&with_cookie(
        "hotwarm_node=00000000000000000000000000000000",
    ));
    assert!(
        cookie(&made_up).is_some(),
        "what nobody gave out is replaced"
    );
}

#[test]
fn a_client_whose_node_is_gone_gets_another_and_its_cookie() {
    let (a, b) = (named("a"), named("b"));
    let proxy = balanced(&[&a, &b], &[A, B], STICKY);
    let first = proxy.ask(GET);
    let (pair, _) = cookie(&first).unwrap();
    let (here, there) = if first.text() == "a" { (A, B) } else { (B, A) };
    proxy.steering.publish(members(&[there]));
    let second = proxy.ask(&with_cookie(&pair));
    assert_ne!(second.text(), first.text());
    let (other, _) = cookie(&second).unwrap();
    proxy.steering.publish(members(&[A, B]));
    assert_eq!(proxy.ask(&with_cookie(&other)).text(), second.text());
    let draining = View {
        members: members(&[there]).members.map(|rest| Members {
            keeps: [here].into_iter().collect(),
            ..rest
        }),
        ..members(&[])
    };
    proxy.steering.publish(draining);
    let kept = proxy.ask(&with_cookie(&pair));
    assert_eq!(
        kept.text(),
        first.text(),
        "a drained node keeps its clients"
    );
    assert_eq!(cookie(&kept), None);
    for _ in 0..4 {
        assert_eq!(proxy.ask(GET).text(), second.text(), "and gets no others");
    }
}

#[test]
fn a_cookie_does_not_bind_a_request_to_a_node_that_failed_it() {
    let (a, dead) = (Node::ok(), nobody());
    let setup = Setup::addresses(&[dead, a.address]).view(members(&[A, B]));
    let cookies = setup.with(&format!("{STICKY}\ncookie = \"SRV\""));
    let proxy = cookies.start_as("mode = \"hot-hot\"");
    let secret = Secret::fresh();
    let unknown = String::from_utf8(secret.mark(&[b"node", b"shop", b"a"]).to_vec()).unwrap();
    for _ in 0..4 {
        let answer = proxy.ask(&with_cookie(&format!("SRV={unknown}")));
        assert_eq!(answer.status, 200);
        assert!(
            cookie(&answer).unwrap().0.starts_with("SRV="),
            "marked with who answered"
        );
    }
}

#[test]
fn a_cookie_that_came_over_tls_is_not_sent_without() {
    let a = Node::ok();
    let proxy = balanced(&[&a], &[A], STICKY);
    let behind = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n";
    let answer = proxy.ask(behind);
    let (_, attributes) = cookie(&answer).unwrap();
    assert!(attributes.ends_with("; Secure"), "{attributes}");
}
