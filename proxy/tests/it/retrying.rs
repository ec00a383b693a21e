//! What is tried again when a node fails, and what is not; with and without a node that takes over.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use proxy::steer::{Settled, Sign, View};
use shared::model::{Epoch, Positions};

use crate::harness::{A, Act, B, Client, Node, Proxy, Seen, Setup, at, closed, nobody, open};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";

/// A view in which B took over from A, which ended where `last` says.
fn taken_over(last: Option<Positions>) -> View {
    View {
        settled: Some(Settled {
            left: Epoch(1),
            last,
        }),
        ..open(2, B)
    }
}

fn hang_up(node: &Node, proxy: &Proxy, request: &str) -> (Client, Seen) {
    let mut client = proxy.client();
    client.send(request);
    let seen = node.seen();
    (client, seen)
}

#[test]
fn a_refused_connection_waits_for_whoever_takes_over_whatever_the_method() {
    let b = Node::start(|seen| Act::ok(&String::from_utf8_lossy(&seen.body)));
    let mut proxy = Setup::addresses(&[nobody(), b.address]).start();
    let mut clients = [proxy.client(), proxy.client()];
    clients[0].send(GET);
    clients[1].send(POST);
    proxy.await_sign(Sign::Refused(A));
    proxy.until("both wait", |proxy| proxy.steering.held() == 2);
    proxy
        .steering
        .publish(closed(1, "the primary is in trouble (crash)"));
    proxy.steering.publish(taken_over(None));
    assert_eq!(clients[0].answer().status, 200);
    assert_eq!(clients[1].answer().text(), "hi");
    let lines = proxy.log();
    let attempts = lines[1]["attempts"].as_array().unwrap();
    assert_eq!(attempts[0]["result"], "never-sent");
    assert_eq!(attempts.last().unwrap()["node"], "b");
    assert_eq!(attempts.last().unwrap()["result"], "ok");
}

#[test]
fn a_node_that_comes_back_is_tried_again_without_being_told() {
    let address = nobody();
    let mut proxy = Setup::addresses(&[address]).start();
    let mut client = proxy.client();
    client.send(POST);
    proxy.await_sign(Sign::Refused(A));
    let back = Node::start_at(address, |_| Act::ok("back"));
    assert_eq!(client.answer().text(), "back");
    assert_eq!(back.rest().len(), 1);
}

#[test]
fn a_node_that_stays_away_is_an_honest_502() {
    let hold = "[service.hold]\nmax_wait = \"400ms\"\n[service.timeouts]\nconnect = \"100ms\"";
    let proxy = Setup::addresses(&[nobody()]).with(hold).start();
    let answer = proxy.ask(POST);
    assert_eq!(answer.status, 502);
    let status = answer.field("proxy-status").unwrap();
    assert_eq!(
        status,
        "hotwarm; error=connection_refused; details=\"connection refused; the request was not sent\""
    );
}

#[test]
fn a_lost_get_is_made_again_and_a_lost_post_is_not() {
    for act in [Act::Close, Act::Reset] {
        let reset = matches!(act, Act::Reset);
        let node = Node::acts([act]);
        let mut proxy = Setup::new(&[&node]).start();
        assert_eq!(proxy.ask(GET).text(), "ok", "reset: {reset}");
        assert_eq!(node.rest().len(), 2);
        assert_eq!(proxy.signs(), [Sign::Lost(A)]);
    }
    let node = Node::acts([Act::Close]);
    let proxy = Setup::new(&[&node]).start();
    let answer = proxy.ask(POST);
    assert_eq!(answer.status, 502);
    let status = answer.field("proxy-status").unwrap();
    assert!(status.contains("error=connection_terminated"), "{status}");
    assert!(
        status.contains("whether the request was carried out is unknown"),
        "{status}"
    );
    assert_eq!(
        node.rest()
            .iter()
            .filter(|seen| seen.method() == "POST")
            .count(),
        1
    );
}

#[test]
fn the_number_of_attempts_is_bounded_while_the_node_lives() {
    let node = Node::start(|_| Act::Close);
    let proxy = Setup::new(&[&node]).start();
    assert_eq!(proxy.ask(GET).status, 502);
    assert_eq!(node.rest().len(), 2);
}

#[test]
fn methods_are_repeated_as_configured() {
    for (method, times) in [("PUT", 2), ("DELETE", 1), ("PATCH", 1), ("BREW", 1)] {
        let node = Node::acts([Act::Close]);
        let retry = "[service.retry]\nmethods = [\"GET\", \"PUT\"]";
        let proxy = Setup::new(&[&node]).with(retry).start();
        let answer = proxy.ask(&POST.replace("POST", method));
        assert_eq!(
            answer.status,
            if times == 2 { 200 } else { 502 },
            "{method}"
        );
        let seen = node.rest();
        let made = seen.iter().filter(|seen| seen.method() == method);
        assert_eq!(made.clone().count(), times, "{method}");
        assert!(made.into_iter().all(|seen| seen.body == b"hi"));
    }
}

#[test]
fn a_body_that_was_too_large_to_keep_is_not_sent_again() {
    let node = Node::acts([Act::Close]);
    let retry = "[service.retry]\nmax_body = \"1KiB\"";
    let proxy = Setup::new(&[&node]).with(retry).start();
    let large = format!(
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n{}",
        "x".repeat(5000)
    );
    assert_eq!(proxy.ask(&large).status, 502);
    assert_eq!(node.rest().len(), 1);
}

#[test]
fn statuses_are_retried_when_configured_and_the_last_answer_passes_unchanged() {
    let node = Node::acts([Act::status(503, "busy")]);
    let proxy = Setup::new(&[&node])
        .with("[service.retry]\nstatuses = [503]")
        .start();
    assert_eq!(proxy.ask(GET).text(), "ok");
    let node = Node::start(|_| Act::status(503, "busy"));
    let proxy = Setup::new(&[&node])
        .with("[service.retry]\nstatuses = [503]")
        .start();
    let last = proxy.ask(GET);
    assert_eq!(
        (last.status, last.text().as_str(), node.rest().len()),
        (503, "busy", 2)
    );
    let post = proxy.ask(POST);
    assert_eq!(
        (post.status, post.text().as_str(), node.rest().len()),
        (503, "busy", 1)
    );
}

#[test]
fn a_stale_connection_costs_nothing_but_another() {
    // Each answer is followed by a close that the proxy may or may not have seen when it uses the connection again.
    let node = Node::start(|seen| {
        let text = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}",
            seen.target().len(),
            seen.target()
        );
        Act::Last(text.into_bytes())
    });
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    for n in 0..200 {
        let answer = client.ask(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!((answer.status, answer.text()), (200, format!("/{n}")));
    }
}

#[test]
fn a_get_in_flight_on_a_killed_node_is_answered_by_the_next() {
    let a = Node::start(|_| Act::Never);
    let b = Node::start(|_| Act::ok("from b"));
    let mut proxy = Setup::new(&[&a, &b]).start();
    let mut clients: Vec<_> = (0..10).map(|_| hang_up(&a, &proxy, GET).0).collect();
    a.kill();
    proxy.await_sign(Sign::Lost(A));
    proxy.until("all wait", |proxy| proxy.steering.held() == 10);
    proxy
        .steering
        .publish(closed(1, "the primary is in trouble (crash)"));
    proxy.steering.abandon_below(Epoch(2));
    proxy.steering.publish(taken_over(None));
    for client in &mut clients {
        assert_eq!(client.answer().text(), "from b");
    }
}

#[test]
fn requests_at_a_hung_node_are_given_up_as_soon_as_it_loses_its_role() {
    let a = Node::start(|_| Act::Never);
    let b = Node::start(|_| Act::ok("from b"));
    let proxy = Setup::new(&[&a, &b]).start();
    let (mut get, _) = hang_up(&a, &proxy, GET);
    let (mut post, _) = hang_up(&a, &proxy, POST);
    assert_eq!(proxy.steering.in_flight(), (1, 1));
    proxy
        .steering
        .publish(closed(1, "the primary is in trouble (hang)"));
    proxy.steering.abandon_below(Epoch(2));
    proxy.steering.publish(taken_over(Some(at(1, 9))));
    assert_eq!(get.answer().text(), "from b");
    let answer = post.answer();
    assert_eq!(answer.status, 504);
    let status = answer.field("proxy-status").unwrap();
    assert!(status.contains("the node lost its role"), "{status}");
    assert_eq!(proxy.steering.in_flight(), (0, 0));
    assert!(b.rest().iter().all(|seen| seen.method() == "GET"));
}

#[test]
fn an_attempt_that_ended_with_its_node_s_role_does_not_count_against_the_request() {
    let a = Node::acts([Act::status(503, "busy"), Act::Never]);
    let b = Node::start(|_| Act::ok("from b"));
    let proxy = Setup::new(&[&a, &b])
        .with("[service.retry]\nstatuses = [503]")
        .start();
    let (mut get, _) = hang_up(&a, &proxy, GET);
    a.seen();
    proxy.steering.publish(closed(1, "in trouble"));
    proxy.steering.abandon_below(Epoch(2));
    proxy.steering.publish(taken_over(None));
    assert_eq!(get.answer().text(), "from b");
}

/// A pair with syncds that nobody asks anything, because nothing is gated.
fn replicated(a: &Node, b: &Node) -> (Proxy, [Node; 2]) {
    let syncds = [Node::ok(), Node::ok()];
    let setup = Setup::new(&[a, b]).syncds(&[&syncds[0], &syncds[1]]);
    (setup.start(), syncds)
}

#[test]
fn a_lost_post_is_replayed_exactly_once_when_nothing_was_committed_since() {
    let executed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executed);
    let a = Node::start(|_| Act::Never);
    let b = Node::start(move |seen| {
        count.fetch_add(1, SeqCst);
        Act::ok(&String::from_utf8_lossy(&seen.body))
    });
    let (proxy, _syncds) = replicated(&a, &b);
    proxy.steering.learn(Epoch(1), &at(1, 7));
    let (mut client, _) = hang_up(&a, &proxy, POST);
    a.kill();
    proxy.until("it waits", |proxy| proxy.steering.held() == 1);
    proxy.steering.publish(closed(1, "crash"));
    proxy.steering.abandon_below(Epoch(2));
    proxy.steering.publish(taken_over(Some(at(1, 7))));
    assert_eq!(client.answer().text(), "hi");
    assert_eq!(executed.load(SeqCst), 1);
    let line = &proxy.log()[0];
    assert_eq!(line["attempts"][0]["result"], "known-unprocessed");
    assert_eq!(line["attempts"][1]["result"], "ok");
}

#[test]
fn a_post_that_was_given_up_is_never_replayed_whatever_is_proved() {
    // The node hangs and its connection stays open: it may carry the request out when it wakes, after any fence.
    let a = Node::start(|_| Act::Never);
    let b = Node::ok();
    let (proxy, _syncds) = replicated(&a, &b);
    proxy.steering.learn(Epoch(1), &at(1, 7));
    let (mut client, _) = hang_up(&a, &proxy, POST);
    proxy.steering.publish(closed(1, "hang"));
    proxy.steering.abandon_below(Epoch(2));
    proxy.steering.publish(taken_over(Some(at(1, 7))));
    let answer = client.answer();
    assert_eq!(answer.status, 504, "{}", answer.text());
    let status = answer.field("proxy-status").unwrap();
    assert!(
        status.contains("the node lost its role; whether the request was carried out is unknown"),
        "{status}"
    );
    assert!(b.rest().is_empty());
    assert_eq!(proxy.log()[0]["attempts"][0]["result"], "maybe-processed");
}

#[test]
fn a_post_that_took_too_long_is_never_replayed_whatever_is_proved() {
    let a = Node::start(|_| Act::Never);
    let b = Node::ok();
    let syncds = [Node::ok(), Node::ok()];
    let proxy = Setup::new(&[&a, &b])
        .syncds(&[&syncds[0], &syncds[1]])
        .with("[service.timeouts]\nresponse_header = \"200ms\"")
        .start();
    proxy.steering.learn(Epoch(1), &at(1, 7));
    let (mut client, _) = hang_up(&a, &proxy, POST);
    let late = client.answer();
    assert_eq!(late.status, 504, "{}", late.text());
    proxy.steering.publish(taken_over(Some(at(1, 7))));
    assert_eq!(proxy.ask(GET).status, 200);
    assert!(b.rest().iter().all(|seen| seen.method() == "GET"));
}

#[test]
fn a_post_whose_answer_had_begun_is_never_replayed_whatever_is_proved() {
    let a = Node::start(|_| Act::Pieces(vec![b"HTTP/1.1 20".to_vec(), Vec::new()], channel().1));
    let b = Node::ok();
    let (mut proxy, _syncds) = replicated(&a, &b);
    proxy.steering.learn(Epoch(1), &at(1, 7));
    let (mut client, _) = hang_up(&a, &proxy, POST);
    proxy.await_sign(Sign::Lost(A));
    a.kill();
    proxy.steering.publish(closed(1, "crash"));
    proxy.steering.publish(taken_over(Some(at(1, 7))));
    assert_eq!(client.answer().status, 502);
    assert!(b.rest().is_empty());
}

#[test]
fn a_post_lost_by_a_node_that_lives_is_never_replayed_whatever_is_proved() {
    // A worker gave its connection up; its process may still be at the request.
    let a = Node::acts([Act::Close]);
    let b = Node::ok();
    let (proxy, _syncds) = replicated(&a, &b);
    proxy.steering.learn(Epoch(1), &at(1, 7));
    proxy.steering.publish(closed(1, "switchover"));
    let mut client = proxy.client();
    client.send(POST);
    proxy.until("it is held", |proxy| proxy.steering.held() == 1);
    proxy.steering.publish(open(1, A));
    a.seen();
    proxy.steering.publish(closed(1, "switchover"));
    proxy.steering.publish(taken_over(Some(at(1, 7))));
    assert_eq!(client.answer().status, 502);
    assert!(b.rest().is_empty());
}

#[test]
fn without_proof_a_lost_post_is_an_honest_502() {
    type Case = (&'static str, Option<Positions>, Option<(u64, Positions)>);
    let cases: [Case; 5] = [
        (
            "something was committed",
            Some(at(1, 8)),
            Some((1, at(1, 7))),
        ),
        (
            "the former primary could not be asked",
            None,
            Some((1, at(1, 7))),
        ),
        ("its position was never known", Some(at(1, 7)), None),
        (
            "what was known is of another epoch",
            Some(at(1, 7)),
            Some((0, at(1, 7))),
        ),
        (
            "nothing has a position",
            Some(Positions::default()),
            Some((1, Positions::default())),
        ),
    ];
    for (why, last, known) in cases {
        let a = Node::start(|_| Act::Never);
        let b = Node::ok();
        let (proxy, _syncds) = replicated(&a, &b);
        if let Some((epoch, position)) = known {
            proxy.steering.learn(Epoch(epoch), &position);
        }
        let (mut client, _) = hang_up(&a, &proxy, POST);
        a.kill();
        proxy.until("it waits", |proxy| proxy.steering.held() == 1);
        proxy.steering.publish(closed(1, "crash"));
        proxy.steering.publish(taken_over(last));
        assert_eq!(client.answer().status, 502, "{why}");
        assert!(b.rest().is_empty(), "{why}");
    }
}

#[test]
fn what_became_known_after_the_request_was_sent_proves_nothing() {
    let a = Node::start(|_| Act::Never);
    let b = Node::ok();
    let (proxy, _syncds) = replicated(&a, &b);
    proxy.steering.learn(Epoch(1), &at(1, 7));
    let (mut client, _) = hang_up(&a, &proxy, POST);
    // The request itself may have made this position.
    proxy.steering.learn(Epoch(1), &at(1, 8));
    a.kill();
    proxy.until("it waits", |proxy| proxy.steering.held() == 1);
    proxy.steering.publish(taken_over(Some(at(1, 8))));
    assert_eq!(client.answer().status, 502);
    assert!(b.rest().is_empty());
}

#[test]
fn a_lost_post_is_told_at_once_when_the_node_answers_again() {
    let a = Node::start(|_| Act::Never);
    let b = Node::ok();
    let (proxy, _syncds) = replicated(&a, &b);
    let (mut client, _) = hang_up(&a, &proxy, POST);
    a.kill();
    proxy.until("it waits", |proxy| proxy.steering.held() == 1);
    proxy.steering.publish(closed(1, "crash"));
    // The worker must have seen the view closed; it knocks no more then, and counts nobody in.
    let mut held = proxy.client();
    held.send(GET);
    proxy.until("another is held", |proxy| proxy.steering.held() == 2);
    let back = Node::start_at(a.address, |_| Act::ok("back"));
    proxy.steering.publish(open(1, A));
    assert_eq!(client.answer().status, 502);
    assert_eq!(held.answer().text(), "back");
    assert!(back.rest().iter().all(|seen| seen.method() == "GET"));
}

#[test]
fn retries_are_limited_to_a_share_of_the_requests() {
    let (lose, lost) = channel::<()>();
    drop(lose);
    let failing = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&failing);
    let node = Node::start(move |seen| {
        count.fetch_add(1, SeqCst);
        // Malformed, so that it is neither a loss nor a status.
        let _ = seen;
        Act::Last(b"nonsense\r\n\r\n".to_vec())
    });
    let breaker = "[service.breaker]\nconsecutive_failures = 10000\nmin_requests = 10000";
    let proxy = Setup::new(&[&node]).with(breaker).start();
    for _ in 0..100 {
        assert_eq!(proxy.ask(GET).status, 502);
    }
    drop(lost);
    let retried = failing.load(SeqCst) - 100;
    // A fifth of a hundred, and the ten that are always allowed.
    assert_eq!(retried, 30);
    let flushed = proxy
        .metrics
        .retries
        .with_label_values(&["shop", "maybe-processed"]);
    assert_eq!(flushed.get(), 30);
}

#[test]
fn many_posts_on_a_node_that_is_killed_are_executed_at_most_once() {
    let executed: Arc<Mutex<Vec<String>>> = Arc::default();
    let run = |name: &'static str| {
        let executed = Arc::clone(&executed);
        Node::start(move |seen| {
            executed.lock().unwrap().push(seen.target().to_owned());
            Act::ok(name)
        })
    };
    let (a, b) = (run("a"), run("b"));
    let proxy = Setup::new(&[&a, &b]).threads(2).start();
    let address = proxy.address;
    let (tell, told) = channel();
    let clients: Vec<_> = (0..8)
        .map(|worker| {
            let tell = tell.clone();
            std::thread::spawn(move || {
                for n in 0..50 {
                    let request = format!(
                        "POST /{worker}/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
                    );
                    let answer = Client::connect(address).ask(request);
                    tell.send((format!("/{worker}/{n}"), answer.status))
                        .unwrap();
                }
            })
        })
        .collect();
    drop(tell);
    let mut answers = Vec::new();
    for (n, answer) in told.iter().enumerate() {
        answers.push(answer);
        if n == 100 {
            a.kill();
            proxy.steering.publish(closed(1, "crash"));
            proxy.steering.abandon_below(Epoch(2));
            proxy.steering.publish(taken_over(None));
        }
    }
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(answers.len(), 400);
    let executed = executed.lock().unwrap();
    for (target, status) in &answers {
        let times = executed.iter().filter(|done| *done == target).count();
        match status {
            200 => assert_eq!(times, 1, "{target}"),
            502 | 504 => assert!(times <= 1, "{target}"),
            other => panic!("{target}: {other}"),
        }
    }
    let failed = answers.iter().filter(|(_, status)| *status != 200).count();
    assert!(
        failed <= 8,
        "{failed} failed, but only eight were in flight"
    );
}

#[test]
fn a_request_whose_method_may_be_another_is_never_repeated() {
    let node = Node::acts([Act::Close]);
    let proxy = Setup::new(&[&node]).start();
    assert_eq!(proxy.ask(GET).status, 200, "a GET is repeated");
    assert_eq!(node.rest().len(), 2);
    let node = Node::acts([Act::Close]);
    let proxy = Setup::new(&[&node]).start();
    let get = "GET / HTTP/1.1\r\nHost: a\r\nX-HTTP-Method-Override: POST\r\n\r\n";
    assert_eq!(proxy.ask(get).status, 502);
    assert_eq!(node.rest().len(), 1);
    let attempts = &proxy.log()[0]["attempts"];
    assert_eq!(attempts[0]["result"], "maybe-processed");
    assert_eq!(
        (&attempts[0]["error"], &attempts[0]["sent"]),
        (&"closed".into(), &true.into())
    );
}
