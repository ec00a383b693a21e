//! Requests wait while nobody may take them, within bounds.

use std::time::Duration;

use proxy::steer::View;
use shared::clock;

use crate::harness::{A, Act, B, Node, Setup, closed, open};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn held_requests_go_to_whoever_takes_over() {
    let (a, b) = (Node::ok(), Node::start(|_| Act::ok("from b")));
    let proxy = Setup::new(&[&a, &b]).view(closed(1, "starting")).start();
    let mut clients: Vec<_> = (0..20).map(|_| proxy.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(if n % 2 == 0 { GET } else { POST });
    }
    proxy.until("twenty are held", |proxy| proxy.steering.held() == 20);
    assert_eq!(
        proxy.steering.in_flight(),
        (0, 0),
        "who waits is not in flight"
    );
    proxy.steering.publish(open(2, B));
    for client in &mut clients {
        assert_eq!(client.answer().text(), "from b");
    }
    assert!(a.rest().is_empty());
    assert_eq!(proxy.steering.held(), 0);
    let lines = proxy.log();
    assert_eq!(lines.len(), 20);
    assert!(
        lines
            .iter()
            .all(|line| line["hold_ms"].as_f64() > Some(0.0))
    );
    assert!(
        lines
            .iter()
            .all(|line| line["epoch"] == 2 && line["node"] == "b")
    );
}

#[test]
fn safe_requests_may_be_answered_by_a_standby_meanwhile() {
    let (a, b) = (Node::ok(), Node::start(|_| Act::ok("from b")));
    let view = View {
        reads: Some(B),
        ..closed(1, "read-only")
    };
    let proxy = Setup::new(&[&a, &b]).view(view).start();
    assert_eq!(proxy.ask(GET).text(), "from b");
    let mut writer = proxy.client();
    writer.send(POST);
    proxy.until("the write is held", |proxy| proxy.steering.held() == 1);
    proxy.steering.publish(open(2, A));
    assert_eq!(writer.answer().text(), "ok");
}

#[test]
fn who_waits_in_vain_is_told_why_and_when_to_come_again() {
    let a = Node::ok();
    let hold = "[service.hold]\nmax_wait = \"300ms\"\n[service.timeouts]\nconnect = \"100ms\"";
    let proxy = Setup::new(&[&a])
        .with(hold)
        .view(closed(1, "no node can take over"))
        .start();
    let began = clock::now();
    let answer = proxy.ask(POST);
    let took = clock::now() - began;
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(5),
        "{took:?}"
    );
    assert_eq!(
        (answer.status, answer.field("retry-after")),
        (503, Some("1"))
    );
    assert!(
        answer
            .text()
            .contains("within 300ms: no node can take over"),
        "{}",
        answer.text()
    );
    let status = answer.field("proxy-status").unwrap();
    assert!(
        status.starts_with("hotwarm; error=destination_unavailable;"),
        "{status}"
    );
    assert!(a.rest().is_empty());
}

#[test]
fn only_so_many_wait_and_only_so_many_bytes() {
    let a = Node::ok();
    let hold = "[service.hold]\nmax_requests = 2\nmax_bytes = \"20KiB\"";
    let proxy = Setup::new(&[&a])
        .with(hold)
        .view(closed(1, "starting"))
        .start();
    let mut first = proxy.client();
    first.send(GET);
    proxy.until("one is held", |proxy| proxy.steering.held() == 1);
    let fat = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(20_300)
    );
    let answer = proxy.ask(&fat);
    assert_eq!(answer.status, 503);
    assert!(
        answer.text().contains("too many requests are waiting"),
        "{}",
        answer.text()
    );
    let mut second = proxy.client();
    second.send(GET);
    proxy.until("two are held", |proxy| proxy.steering.held() == 2);
    assert_eq!(proxy.ask(GET).status, 503);
    proxy.steering.publish(open(1, A));
    assert_eq!((first.answer().status, second.answer().status), (200, 200));
}

#[test]
fn a_client_that_leaves_gives_its_place_back() {
    let a = Node::ok();
    let proxy = Setup::new(&[&a]).view(closed(1, "starting")).start();
    let mut client = proxy.client();
    client.send(GET);
    proxy.until("it is held", |proxy| proxy.steering.held() == 1);
    drop(client);
    proxy.until("the place is free", |proxy| proxy.steering.held() == 0);
    proxy.steering.publish(open(1, A));
    assert_eq!(proxy.ask(GET).status, 200);
    assert_eq!(a.rest().len(), 1);
    let lines = proxy.log();
    assert_eq!(
        (&lines[0]["status"], &lines[0]["closed_by"]),
        (&499.into(), &"client".into())
    );
}

#[test]
fn a_body_is_not_read_while_its_request_is_held() {
    let a = Node::ok();
    let proxy = Setup::new(&[&a]).view(closed(1, "starting")).start();
    let mut client = proxy.client();
    // Far more than any buffer: were the body read while it is held, this would not block.
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
    proxy.until("it is held", |proxy| proxy.steering.held() == 1);
    client.stream().set_nonblocking(true).unwrap();
    let piece = vec![b'x'; 1 << 20];
    let mut taken = 0;
    let mut refusals = 0;
    while refusals < 100 && taken < 100_000_000 {
        match std::io::Write::write(&mut client.stream(), &piece) {
            Ok(wrote) => taken += wrote,
            Err(_) => {
                refusals += 1;
                clock::pause_thread(Duration::from_millis(2));
            }
        }
    }
    assert!(taken < 50_000_000, "{taken} bytes were taken in");
    assert_eq!(proxy.steering.held(), 1);
}
