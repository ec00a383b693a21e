//! Reads from standbys: nobody reads what was before its own last write, whatever becomes of standbys, roles and keys.

use proxy::logic::NodeId;
use proxy::steer::{Gate, Readers, View};
use shared::api::Passed;
use shared::model::{Epoch, Positions};

use crate::harness::{A, Act, Answer, B, Node, Proxy, Setup, at, closed, open};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
const ANYWHERE: &str = "[service.failover]\nreads = \"any-caught-up\"";

fn passed(position: Positions) -> Act {
    Act::ok(&serde_json::to_string(&Passed { position }).unwrap())
}

/// These nodes are standbys of the term, and show their readers as much as `applied` says.
fn standbys(epoch: u64, fit: &[NodeId], applied: Positions) -> Readers {
    Readers {
        epoch: Epoch(epoch),
        fit: fit.iter().copied().collect(),
        applied: vec![applied; 2],
    }
}

/// The value of the cookie that tells how far its client has seen.
fn seen(answer: &Answer) -> String {
    let (pair, attributes) = answer
        .field("set-cookie")
        .unwrap()
        .split_once("; ")
        .unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
    pair.strip_prefix("hotwarm_seen=").unwrap().to_owned()
}

struct Pair {
    nodes: [Node; 2],
    syncds: [Node; 2],
}

impl Pair {
    fn new(syncd: Node) -> Self {
        Self {
            nodes: ["a", "b"].map(|name| Node::start(move |_| Act::ok(name))),
            syncds: [syncd, Node::ok()],
        }
    }

    fn start(&self, view: View, tables: &str) -> Proxy {
        let [a, b] = &self.nodes;
        let [one, other] = &self.syncds;
        Setup::new(&[a, b])
            .syncds(&[one, other])
            .with(tables)
            .view(view)
            .start()
    }
}

/// Who answers `count` reads of a client with this cookie, each name once.
fn readers(proxy: &Proxy, cookie: Option<&str>, count: usize) -> String {
    let cookie = cookie.map_or_else(String::new, |value| {
        format!("Cookie: hotwarm_seen={value}\r\n")
    });
    let get = format!("GET / HTTP/1.1\r\nHost: a\r\n{cookie}\r\n");
    let mut client = proxy.client();
    let answers = (0..count).map(|_| client.ask(&get));
    let mut names: Vec<_> = answers
        .map(|answer| {
            assert_eq!((answer.status, answer.field("set-cookie")), (200, None));
            answer.text()
        })
        .collect();
    names.sort();
    names.dedup();
    names.concat()
}

#[test]
fn a_client_reads_its_own_write_wherever_it_reads() {
    for (gate, durability) in [(Gate::Off, "async"), (Gate::Barrier, "standby-ack")] {
        let pair = Pair::new(Node::start(|_| passed(at(1, 5))));
        let tables = format!("{ANYWHERE}\ndurability = \"{durability}\"");
        let proxy = pair.start(View { gate, ..open(1, A) }, &tables);
        proxy.steering.let_read(standbys(1, &[B], at(1, 4)));
        let written = proxy.ask(POST);
        assert_eq!(written.text(), "a", "writes go to the primary");
        let cookie = seen(&written);
        assert!(cookie.starts_with("1/db:1:0:5."), "{cookie}");
        assert_eq!(
            readers(&proxy, Some(&cookie), 10),
            "a",
            "the standby is behind"
        );
        assert_eq!(readers(&proxy, None, 10), "ab", "others have not written");
        proxy.steering.let_read(standbys(1, &[B], at(1, 5)));
        assert_eq!(readers(&proxy, Some(&cookie), 10), "ab", "it has caught up");
        proxy.steering.let_read(standbys(1, &[], at(1, 6)));
        assert_eq!(readers(&proxy, None, 10), "a", "it is not fit any more");
    }
}

#[test]
fn after_a_failover_who_has_written_reads_from_the_primary() {
    let pair = Pair::new(Node::start(|_| passed(at(1, 5))));
    let proxy = pair.start(open(1, A), ANYWHERE);
    proxy.steering.let_read(standbys(1, &[B], at(1, 9)));
    let cookie = seen(&proxy.ask(POST));
    assert_eq!(readers(&proxy, Some(&cookie), 10), "ab");
    // While roles change, a standby that has the write may still show it; without a primary nobody else may.
    proxy.steering.publish(View {
        reads: Some(B),
        ..closed(1, "in trouble")
    });
    assert_eq!(readers(&proxy, Some(&cookie), 4), "b");
    // Another history begins: what was said of standbys holds no more, and positions of the old term prove nothing.
    proxy.steering.publish(open(2, B));
    assert_eq!(readers(&proxy, None, 10), "b", "they are not told of yet");
    proxy.steering.let_read(standbys(2, &[A], at(1, 9)));
    assert_eq!(readers(&proxy, None, 10), "ab");
    assert_eq!(readers(&proxy, Some(&cookie), 10), "b");
}

#[test]
fn a_standby_that_stands_in_does_not_answer_who_has_written_more() {
    let pair = Pair::new(Node::start(|_| passed(at(1, 5))));
    let proxy = pair.start(open(1, A), ANYWHERE);
    let cookie = seen(&proxy.ask(POST));
    proxy.steering.let_read(standbys(1, &[B], at(1, 4)));
    proxy.steering.publish(View {
        reads: Some(B),
        ..closed(1, "read-only")
    });
    assert_eq!(readers(&proxy, None, 4), "b");
    let mut client = proxy.client();
    client.send(format!(
        "GET / HTTP/1.1\r\nHost: a\r\nCookie: hotwarm_seen={cookie}\r\n\r\n"
    ));
    proxy.until("it is held", |proxy| proxy.steering.held() == 1);
    proxy.steering.publish(open(1, A));
    assert_eq!(client.answer().text(), "a");
}

#[test]
fn what_is_not_signed_by_us_is_read_from_the_primary() {
    let pair = Pair::new(Node::start(|_| passed(at(1, 5))));
    let proxy = pair.start(open(1, A), ANYWHERE);
    proxy.steering.let_read(standbys(1, &[B], at(1, 9)));
    let cookie = seen(&proxy.ask(POST));
    let older = cookie.replace(":5.", ":1.");
    let unsigned = cookie.split('.').next().unwrap();
    for made_up in [&older, unsigned, "", "x", "primary", &format!("{cookie}0")] {
        assert_eq!(readers(&proxy, Some(made_up), 6), "a", "{made_up}");
    }
    // A proxy with another key does not believe it, either.
    let other = pair.start(open(1, A), ANYWHERE);
    other.steering.let_read(standbys(1, &[B], at(1, 9)));
    assert_eq!(readers(&other, Some(&cookie), 6), "a");
}

#[test]
fn a_write_of_which_no_position_is_known_is_read_from_the_primary() {
    for (syncd, tables, gate) in [
        (Node::start(|_| Act::status(500, "no")), "", Gate::Off),
        (Node::start(|_| Act::Never), "", Gate::Off),
        (
            Node::start(|_| passed(at(1, 5))),
            "gate_methods = [\"PUT\"]",
            Gate::Off,
        ),
        (
            Node::start(|_| passed(at(1, 5))),
            "durability = \"standby-ack\"",
            Gate::Open,
        ),
    ] {
        let pair = Pair::new(syncd);
        let proxy = pair.start(
            View { gate, ..open(1, A) },
            &format!("{ANYWHERE}\n{tables}"),
        );
        proxy.steering.let_read(standbys(1, &[B], at(1, 9)));
        let cookie = seen(&proxy.ask(POST));
        assert_eq!(cookie, "primary", "{tables}");
        assert_eq!(readers(&proxy, Some(&cookie), 6), "a");
    }
}

#[test]
fn of_writes_at_once_each_is_told_the_newest_position_that_is_known() {
    let pair = Pair::new(Node::start(|_| passed(at(1, 5))));
    let proxy = pair.start(open(1, A), ANYWHERE);
    proxy.steering.learn(Epoch(1), &at(1, 8));
    assert!(seen(&proxy.ask(POST)).starts_with("1/db:1:0:8."));
}

#[test]
fn a_standby_that_fails_a_read_costs_nobody_an_answer_and_the_primary_no_suspicion() {
    let pair = Pair {
        nodes: [Node::start(|_| Act::ok("a")), Node::start(|_| Act::Reset)],
        syncds: [Node::ok(), Node::ok()],
    };
    let mut proxy = pair.start(open(1, A), ANYWHERE);
    proxy.steering.let_read(standbys(1, &[B], at(1, 9)));
    assert_eq!(readers(&proxy, None, 20), "a");
    let of_primary = |sign: &proxy::steer::Sign| {
        matches!(
            *sign,
            proxy::steer::Sign::Lost(A) | proxy::steer::Sign::Refused(A)
        )
    };
    assert!(!proxy.signs().iter().any(of_primary));
    assert_eq!(proxy.steering.in_flight(), (0, 0));
}

const WARM: &str = "[[service.route]]\npath = \"/tips\"\nprefer = \"warm\"\nclass = \"non-core\"";

#[test]
fn a_route_that_prefers_standbys_goes_there_and_falls_back_to_the_primary() {
    let pair = Pair::new(Node::ok());
    let proxy = pair.start(open(1, A), WARM);
    proxy.steering.let_read(standbys(1, &[B], at(1, 9)));
    let tips = GET.replace("GET /", "GET /tips/1");
    for _ in 0..5 {
        assert_eq!(proxy.ask(&tips).text(), "b");
        assert_eq!(proxy.ask(GET).text(), "a", "all else goes to the primary");
        assert_eq!(
            proxy.ask(&POST.replace("POST /", "POST /tips")).text(),
            "a",
            "and so do writes"
        );
    }
    proxy.steering.let_read(standbys(1, &[], at(1, 9)));
    assert_eq!(proxy.ask(&tips).text(), "a");
}

#[test]
fn under_overload_what_can_be_done_without_is_refused_first() {
    let pair = Pair::new(Node::ok());
    let tables = format!("{WARM}\n[service.hold]\nmax_requests = 4");
    let proxy = pair.start(closed(1, "in trouble"), &tables);
    let tips = GET.replace("GET /", "GET /tips");
    let mut clients: Vec<_> = (0..3).map(|_| proxy.client()).collect();
    for (held, client) in (1..).zip(&mut clients) {
        client.send(GET);
        proxy.until("it is held", |proxy| proxy.steering.held() == held);
    }
    let refused = proxy.ask(&tips);
    assert_eq!(
        (refused.status, refused.field("retry-after")),
        (503, Some("1"))
    );
    assert!(refused.text().contains("overloaded"), "{}", refused.text());
    let mut core = proxy.client();
    core.send(GET);
    proxy.until("core work is still held", |proxy| {
        proxy.steering.held() == 4
    });
    proxy.steering.publish(open(1, A));
    for client in clients.iter_mut().chain([&mut core]) {
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(proxy.ask(&tips).status, 200, "it is over");
    let shed = proxy.metrics.shed.with_label_values(&["shop", "non-core"]);
    assert_eq!(shed.get(), 1);
}

#[test]
fn connections_that_are_nearly_all_taken_are_overload_too() {
    let (go, stuck) = Act::ok("late").when();
    let a = Node::acts([stuck]);
    let routes = "max_connections = 1\n[[service.route]]\npath = \"/tips\"\nclass = \"non-core\"";
    let proxy = Setup::new(&[&a]).with(routes).start();
    let mut first = proxy.client();
    first.send(GET);
    a.seen();
    assert_eq!(proxy.ask(&GET.replace("GET /", "GET /tips")).status, 503);
    go.send(()).unwrap();
    assert_eq!(first.answer().text(), "late");
    assert_eq!(proxy.ask(&GET.replace("GET /", "GET /tips")).status, 200);
}
