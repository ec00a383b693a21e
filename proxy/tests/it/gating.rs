//! A write's answer waits until a standby has it.

use std::sync::Mutex;
use std::time::Duration;

use proxy::steer::{Gate, Sign, View};
use shared::api::{Passed, Refusal, Refused};
use shared::clock;
use shared::model::{Epoch, Positions};

use crate::harness::{A, Act, B, Node, Proxy, Setup, at, nobody, open};

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn gated(gate: Gate) -> View {
    View { gate, ..open(1, A) }
}

fn passed(position: Positions) -> Act {
    Act::ok(&serde_json::to_string(&Passed { position }).unwrap())
}

fn refused(status: u16, error: Refused, epoch: u64) -> Act {
    let refusal = Refusal {
        epoch: Epoch(epoch),
        error,
        message: "no".to_owned(),
    };
    Act::status(status, &serde_json::to_string(&refusal).unwrap())
}

struct Pair {
    app: Node,
    other: Node,
    syncds: [Node; 2],
}

impl Pair {
    fn new(syncd: Node) -> Self {
        Self {
            app: Node::ok(),
            other: Node::ok(),
            syncds: [syncd, Node::ok()],
        }
    }

    fn start(&self, gate: Gate, more: &str) -> Proxy {
        let failover = format!("[service.failover]\ndurability = \"standby-ack\"\n{more}");
        Setup::new(&[&self.app, &self.other])
            .syncds(&[&self.syncds[0], &self.syncds[1]])
            .with(&failover)
            .view(gated(gate))
            .start()
    }
}

#[test]
fn the_answer_waits_for_the_barrier_and_the_position_is_learnt() {
    let (go, act) = passed(at(1, 5)).when();
    let pair = Pair::new(Node::acts([act]));
    let proxy = pair.start(Gate::Barrier, "");
    let mut client = proxy.client();
    client.send(POST);
    let question = pair.syncds[0].seen();
    assert_eq!(question.target(), "/v1/barrier?epoch=1&within_ms=2000");
    assert_eq!(pair.app.seen().body, b"hi", "the node has answered");
    assert!(client.is_silent(Duration::from_millis(50)));
    assert_eq!(
        proxy.steering.in_flight(),
        (0, 1),
        "it is in flight until it is released"
    );
    assert_eq!(proxy.ask(GET).status, 200, "reads do not wait");
    go.send(()).unwrap();
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(proxy.steering.known().position, at(1, 5));
    assert_eq!(
        (proxy.steering.in_flight(), proxy.steering.released()),
        ((0, 0), 1)
    );
    let line = &proxy.log()[1];
    assert!(line["gate_ms"].as_f64().unwrap() > 0.0, "{line}");
}

#[test]
fn methods_that_nobody_knows_wait_as_writes_do() {
    // Many frameworks read a method in any case, and WebDAV's methods write.
    for method in ["MKCOL", "post", "BREW"] {
        let (go, act) = passed(at(1, 5)).when();
        let pair = Pair::new(Node::acts([act]));
        let proxy = pair.start(Gate::Barrier, "gate_methods = [\"PUT\"]");
        let mut client = proxy.client();
        client.send(POST.replace("POST", method));
        pair.syncds[0].seen();
        assert!(client.is_silent(Duration::from_millis(20)), "{method}");
        go.send(()).unwrap();
        assert_eq!(client.answer().text(), "ok");
        assert_eq!(proxy.ask(POST).status, 200, "left out by the operator");
        assert!(pair.syncds[0].rest().is_empty());
    }
}

#[test]
fn a_request_whose_method_may_be_another_waits_as_writes_do() {
    for (method, name) in [
        ("GET", "X-HTTP-Method-Override"),
        ("OPTIONS", "x-http-method"),
        ("POST", "X-Method-Override"),
    ] {
        let (go, act) = passed(at(1, 5)).when();
        let pair = Pair::new(Node::acts([act]));
        let proxy = pair.start(Gate::Barrier, "gate_methods = [\"PUT\"]");
        let mut client = proxy.client();
        client.send(format!(
            "{method} / HTTP/1.1\r\nHost: a\r\n{name}: DELETE\r\n\r\n"
        ));
        pair.syncds[0].seen();
        assert!(client.is_silent(Duration::from_millis(20)), "{name}");
        go.send(()).unwrap();
        assert_eq!(client.answer().text(), "ok");
        assert_eq!(pair.app.seen().field(name), Some("DELETE"), "it passes");
    }
}

#[test]
fn one_question_answers_for_many() {
    let pair = Pair::new(Node::start(|_| passed(at(1, 5))));
    let proxy = pair.start(Gate::Barrier, "");
    let address = proxy.address;
    let clients: Vec<_> = (0..40)
        .map(|_| {
            std::thread::spawn(move || crate::harness::Client::connect(address).ask(POST).status)
        })
        .collect();
    for client in clients {
        assert_eq!(client.join().unwrap(), 200);
    }
    assert!(pair.syncds[0].rest().len() <= 40);
    assert!(pair.syncds[0].connections() <= 8, "connections are kept");

    // While four rounds are under way, all others wait for the one after.
    let (gates, acts): (Vec<_>, Vec<_>) = (0..5).map(|_| passed(at(1, 6)).when()).unzip();
    let acts = Mutex::new(acts);
    let pair = Pair::new(Node::start(move |_| {
        acts.lock()
            .unwrap()
            .pop()
            .unwrap_or_else(|| passed(at(1, 7)))
    }));
    let proxy = pair.start(Gate::Barrier, "");
    let mut clients: Vec<_> = (0..30).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(POST);
    }
    for _ in 0..30 {
        pair.app.seen();
    }
    let answered = proxy
        .metrics
        .upstream_seconds
        .with_label_values(&["shop", "a"]);
    proxy.until("all wait at the gate", |_| {
        answered.get_sample_count() == 30
    });
    for gate in gates {
        gate.send(()).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(
        pair.syncds[0].rest().len(),
        5,
        "four, and one for all others"
    );
}

#[test]
fn nothing_waits_when_the_gate_is_off_or_open() {
    for gate in [Gate::Off, Gate::Open] {
        let pair = Pair::new(Node::ok());
        let proxy = pair.start(gate, "");
        assert_eq!(proxy.ask(POST).status, 200);
        assert!(pair.syncds[0].rest().is_empty());
    }
}

#[test]
fn a_gate_that_closes_while_the_write_is_under_way_holds_its_answer() {
    let (answer, act) = Act::ok("done").when();
    let (go, barrier) = passed(at(1, 5)).when();
    let pair = Pair {
        app: Node::acts([act]),
        ..Pair::new(Node::acts([barrier]))
    };
    let proxy = pair.start(Gate::Open, "");
    let mut client = proxy.client();
    client.send(POST);
    pair.app.seen();
    proxy.steering.publish(gated(Gate::Barrier));
    answer.send(()).unwrap();
    pair.syncds[0].seen();
    assert!(
        client.is_silent(Duration::from_millis(30)),
        "a standby has become required meanwhile"
    );
    go.send(()).unwrap();
    assert_eq!(client.answer().text(), "done");
}

#[test]
fn a_newer_epoch_is_never_a_success() {
    let pair = Pair::new(Node::start(|_| refused(409, Refused::StaleEpoch, 2)));
    let proxy = pair.start(Gate::Barrier, "");
    let answer = proxy.ask(POST);
    assert_eq!(answer.status, 504);
    assert!(
        answer.text().contains("whether it stands is unknown"),
        "{}",
        answer.text()
    );
    assert_eq!(proxy.steering.released(), 0);

    // The same when the epoch ends while the answer waits.
    let pair = Pair::new(Node::start(|_| Act::Never));
    let proxy = pair.start(Gate::Barrier, "");
    let mut client = proxy.client();
    client.send(POST);
    pair.syncds[0].seen();
    proxy.steering.abandon_below(Epoch(2));
    proxy.steering.publish(View {
        gate: Gate::Open,
        ..open(2, B)
    });
    assert_eq!(client.answer().status, 504);
}

#[test]
fn a_barrier_that_is_not_passed_yet_is_asked_for_again() {
    let pair = Pair::new(Node::acts([
        refused(503, Refused::NotPrimary, 1),
        Act::Close,
        refused(504, Refused::Timeout, 1),
        Act::raw("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{]}"),
        passed(at(1, 5)),
    ]));
    let proxy = pair.start(Gate::Barrier, "");
    assert_eq!(proxy.ask(POST).status, 200);
    assert_eq!(pair.syncds[0].rest().len(), 5);
}

#[test]
fn without_an_answer_in_time_the_control_plane_decides() {
    let more = "ack_timeout = \"200ms\"";
    let pair = Pair::new(Node::start(|_| refused(504, Refused::Timeout, 1)));
    let mut proxy = pair.start(Gate::Barrier, more);
    let mut client = proxy.client();
    let began = clock::now();
    client.send(POST);
    proxy.await_sign(Sign::AckTimeout(Epoch(1)));
    assert!(clock::now() - began >= Duration::from_millis(200));
    proxy.steering.publish(gated(Gate::Open));
    assert_eq!(client.answer().status, 200);
    let degraded = proxy.metrics.ack_degraded.with_label_values(&["shop"]);
    assert_eq!(degraded.get(), 1);

    // It does not open the gate: the write stands, and nobody says that it is safe.
    let mut proxy = pair.start(Gate::Barrier, more);
    let answer = proxy.ask(POST);
    assert_eq!(answer.status, 504);
    assert!(
        answer
            .text()
            .contains("the write stands on the primary, its replication is unconfirmed")
    );
    assert_eq!(proxy.signs(), [Sign::AckTimeout(Epoch(1))]);
}

#[test]
fn fail_means_that_nothing_is_released_without_a_standby() {
    let more = "ack_timeout = \"200ms\"\non_ack_timeout = \"fail\"";
    let pair = Pair::new(Node::start(|_| Act::Never));
    let mut proxy = pair.start(Gate::Barrier, more);
    let began = clock::now();
    assert_eq!(proxy.ask(POST).status, 504);
    let took = clock::now() - began;
    assert!(
        took >= Duration::from_millis(200) && took < Duration::from_secs(2),
        "{took:?}"
    );
    assert_eq!(proxy.signs(), [Sign::AckTimeout(Epoch(1))]);
}

#[test]
fn a_syncd_that_is_away_for_a_moment_only_costs_that_moment() {
    let address = nobody();
    let (app, other, second) = (Node::ok(), Node::ok(), Node::ok());
    let folder = "[service.failover]\ndurability = \"standby-ack\"";
    let gone = Node::start_at(address, |_| Act::Close);
    let proxy = Setup::new(&[&app, &other])
        .syncds(&[&gone, &second])
        .with(folder)
        .view(gated(Gate::Barrier))
        .start();
    gone.kill();
    let mut client = proxy.client();
    client.send(POST);
    app.seen();
    proxy.until("it waits at the gate", |proxy| {
        proxy.steering.in_flight() == (0, 1)
    });
    let _back = Node::start_at(address, |_| passed(at(1, 5)));
    assert_eq!(client.answer().status, 200);
}

#[test]
fn the_gate_s_work_goes_on_when_the_client_leaves() {
    let (answer, act) = Act::ok("done").when();
    let (go, barrier) = passed(at(1, 5)).when();
    let pair = Pair {
        app: Node::acts([act]),
        ..Pair::new(Node::acts([barrier]))
    };
    let proxy = pair.start(Gate::Barrier, "");
    let mut client = proxy.client();
    client.send(POST);
    pair.app.seen();
    drop(client);
    answer.send(()).unwrap();
    pair.syncds[0].seen();
    assert_eq!(
        proxy.steering.in_flight(),
        (0, 1),
        "the write is still accounted for"
    );
    go.send(()).unwrap();
    proxy.until("it is over", |proxy| proxy.steering.in_flight() == (0, 0));
    assert_eq!(proxy.steering.known().position, at(1, 5));
}

#[test]
fn a_write_that_is_replayed_is_gated_in_its_new_epoch() {
    let a = Node::start(|_| Act::Never);
    let b = Node::ok();
    let (first, second) = (Node::ok(), Node::start(|_| passed(at(2, 9))));
    let proxy = Setup::new(&[&a, &b])
        .syncds(&[&first, &second])
        .with("[service.failover]\ndurability = \"standby-ack\"")
        .view(gated(Gate::Barrier))
        .start();
    proxy.steering.learn(Epoch(1), &at(1, 7));
    let mut client = proxy.client();
    client.send(POST);
    a.seen();
    a.kill();
    proxy.until("it waits", |proxy| proxy.steering.held() == 1);
    proxy.steering.publish(View {
        gate: Gate::Barrier,
        settled: Some(proxy::steer::Settled {
            left: Epoch(1),
            last: Some(at(1, 7)),
        }),
        ..open(2, B)
    });
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(second.seen().target(), "/v1/barrier?epoch=2&within_ms=2000");
    assert!(first.rest().is_empty());
}
