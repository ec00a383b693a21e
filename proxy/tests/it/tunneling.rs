//! Connections that speak another protocol after a 101: who may open one, what passes, and how it ends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use proxy::steer::View;
use shared::clock;

use crate::harness::http2::{Ask, Proper};
use crate::harness::node::Handed;
use crate::harness::{A, Act, B, Client, Node, PATIENCE, Proxy, Setup, closed, open};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const ASK: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const YES: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const RESTART: &[u8] = &[0x88, 2, 0x03, 0xf4];
const GOING_AWAY: &[u8] = &[0x88, 2, 0x03, 0xe9];

/// A node that says yes, with these bytes behind it, to whoever asks, and "ok" to everybody else.
fn node(behind: &'static [u8]) -> (Node, Receiver<Handed>) {
    let (hand, handed) = channel();
    let node = Node::start(move |seen| {
        if seen.field("upgrade").is_none() {
            return Act::ok("ok");
        }
        let yes = YES.replace(
            "WebSocket\r",
            &format!("{}\r", seen.field("upgrade").unwrap()),
        );
        Act::Hand([yes.as_bytes(), behind].concat(), hand.clone())
    });
    (node, handed)
}

/// Opens a tunnel: the client's end and the node's.
fn tunnel(proxy: &Proxy, handed: &Receiver<Handed>) -> (Client, TcpStream) {
    let mut client = proxy.client();
    let answer = client.ask(ASK);
    assert_eq!(answer.status, 101, "{}", answer.head);
    (client, handed.recv_timeout(PATIENCE).unwrap().0)
}

fn exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Whatever comes until the end, which may be a reset.
fn to_the_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        bytes.extend_from_slice(&piece[..read]);
    }
    bytes
}

fn tunnels(proxy: &Proxy, node: &str) -> i64 {
    proxy
        .metrics
        .tunnels
        .with_label_values(&["shop", node])
        .get()
}

#[test]
fn a_tunnel_passes_every_byte_both_ways_and_each_side_s_end() {
    let (node, handed) = node(b"early");
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    client.send(format!("{ASK}behind"));
    let answer = client.answer();
    assert_eq!(answer.status, 101);
    let upgrade = (answer.field("connection"), answer.field("upgrade"));
    assert_eq!(upgrade, (Some("Upgrade"), Some("websocket")));
    assert!(answer.field("sec-websocket-accept").is_some());
    assert_eq!(client.exactly(5), b"early");
    let seen = node.seen();
    let upgrade = (seen.fields("connection"), seen.fields("upgrade"));
    assert_eq!(upgrade, (vec!["Upgrade"], vec!["websocket"]));
    assert!(seen.field("sec-websocket-key").is_some());
    let (mut far, mut came) = handed.recv_timeout(PATIENCE).unwrap();
    let missing = b"behind".len() - came.len();
    came.extend(exactly(&mut far, missing));
    assert_eq!(came, b"behind");
    let large: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let echo = std::thread::spawn(move || {
        let all = exactly(&mut far, 1_000_000);
        far.write_all(&all).unwrap();
        let end = to_the_end(&mut far);
        // The client has said all, and is still there to hear.
        far.write_all(b"last").unwrap();
        end
    });
    client.send(&large);
    assert!(client.exactly(large.len()) == large);
    assert_eq!(tunnels(&proxy, "a"), 1);
    client.stream().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.exactly(4), b"last");
    assert!(client.is_closed());
    assert_eq!(echo.join().unwrap(), b"");
    proxy.until("it is not counted any more", |proxy| {
        tunnels(proxy, "a") == 0
    });
    let log = proxy.log();
    let line = &log[0];
    assert_eq!((log.len(), &line["status"]), (1, &101.into()));
    assert_eq!(line["bytes_in"], 1_000_006);
    assert_eq!(line["bytes_out"], 1_000_009);
    assert_eq!(
        (&line["node"], &line["closed_by"]),
        (&"a".into(), &"none".into())
    );
}

#[test]
fn only_a_get_that_asks_by_the_rules_is_offered_only_what_is_on_the_list() {
    let (node, handed) = node(b"");
    let proxy = Setup::new(&[&node]).start();
    for request in [
        ASK.replace("GET", "DELETE"),
        ASK.replace("websocket", "h2c"),
        ASK.replace("websocket", "TLS/1.0"),
        ASK.replace("keep-alive, Upgrade", "keep-alive"),
        ASK.replace("HTTP/1.1", "HTTP/1.0"),
    ] {
        assert_eq!(proxy.ask(&request).status, 200, "{request}");
        let seen = node.seen();
        let upgrade = (seen.field("connection"), seen.field("upgrade"));
        assert_eq!(upgrade, (None, None), "{request}");
    }
    let several = ASK.replace("websocket", "h2c, foo/1, WebSocket");
    assert_eq!(proxy.ask(&several).status, 101);
    assert_eq!(node.seen().fields("upgrade"), ["websocket"]);
    assert!(handed.recv_timeout(PATIENCE).is_ok());

    let proxy = Setup::new(&[&node]).start_as("upgrades = [\"Foo/1\"]");
    assert_eq!(proxy.ask(ASK).status, 200);
    assert_eq!(node.seen().field("upgrade"), None);
    assert_eq!(proxy.ask(&several).status, 101);
    assert_eq!(node.seen().fields("upgrade"), ["foo/1"]);
}

#[test]
fn a_request_with_a_body_opens_nothing_and_nothing_behind_it_is_read() {
    let (node, _handed) = node(b"");
    let proxy = Setup::new(&[&node]).start();
    for framing in [
        "Content-Length: 3\r\n\r\nabc",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let head = ASK.trim_end();
        let mut client = proxy.client();
        let answer = client.ask(format!("{head}\r\n{framing}{GET}"));
        assert_eq!(answer.status, 400, "{framing}");
        assert!(client.is_closed());
    }
    assert!(node.rest().is_empty());
}

#[test]
fn an_answer_that_switches_to_something_else_becomes_502() {
    for yes in [
        YES.replace("WebSocket\r", "h2c\r"),
        YES.replace("upgrade\r", "close\r"),
        YES.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"),
        YES.replace("HTTP/1.1", "HTTP/1.0"),
    ] {
        let node = Node::acts((0..4).map(|_| Act::raw(&yes)));
        let proxy = Setup::new(&[&node]).start();
        let answer = proxy.ask(ASK);
        assert_eq!(answer.status, 502, "{yes}");
        assert_eq!(tunnels(&proxy, "a"), 0);
    }
}

#[test]
fn a_node_that_declines_answers_as_usual_and_its_connection_is_not_used_again() {
    let node = Node::start(|seen| Act::ok(seen.target()));
    let proxy = Setup::new(&[&node]).start();
    let mut client = proxy.client();
    for n in 1..=3 {
        let answer = client.ask(format!("{ASK}{GET}"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "/ws"));
        assert_eq!(answer.field("upgrade"), None);
        assert_eq!(client.answer().text(), "/");
        assert_eq!(node.connections(), n + 1, "the other requests share one");
    }
}

#[test]
fn a_websocket_ends_with_its_node_s_role_at_the_end_of_a_frame() {
    for view in [open(2, B), closed(1, "a planned switchover is under way")] {
        let (node, handed) = node(b"");
        let proxy = Setup::new(&[&node]).start();
        let (mut client, mut far) = tunnel(&proxy, &handed);
        client.send([0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2]);
        assert_eq!(exactly(&mut far, 8).len(), 8);
        far.write_all(&[0x82, 10, 1, 2, 3]).unwrap();
        assert_eq!(client.exactly(5), [0x82, 10, 1, 2, 3]);
        proxy.steering.publish(view);
        let word = exactly(&mut far, 8);
        assert_eq!(word[..2], [0x88, 0x82], "a masked Close frame");
        assert_eq!([word[6] ^ word[2], word[7] ^ word[3]], [0x03, 0xf4]);
        far.write_all(&[4, 5, 6, 7, 8, 9, 10, 0x81, 1, b'x'])
            .unwrap();
        assert_eq!(client.exactly(7), [4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(client.exactly(100), RESTART, "and nothing behind it");
        proxy.until("it is not counted any more", |proxy| {
            tunnels(proxy, "a") == 0
        });
        let log = proxy.log();
        assert_eq!(log[0]["closed_by"], "proxy");
    }
}

#[test]
fn nothing_reaches_a_node_that_has_lost_its_role() {
    let (node, handed) = node(b"");
    let proxy = Setup::new(&[&node]).start();
    let (mut client, mut far) = tunnel(&proxy, &handed);
    // Amid a frame of the client's: there is no place for a Close frame.
    client.send([0x82, 0x85, 0, 0, 0, 0, b'h']);
    assert_eq!(exactly(&mut far, 7).len(), 7);
    proxy.steering.publish(open(2, B));
    assert_eq!(client.exactly(4), RESTART);
    client.try_send(b"ello");
    assert_eq!(to_the_end(&mut far), b"");
}

#[test]
fn a_node_that_does_not_finish_its_frame_is_not_waited_for_long() {
    let (node, handed) = node(b"");
    let proxy = Setup::new(&[&node]).start();
    let (mut client, mut far) = tunnel(&proxy, &handed);
    far.write_all(&[0x82, 10, 1]).unwrap();
    assert_eq!(client.exactly(3), [0x82, 10, 1]);
    let began = clock::now();
    proxy.steering.publish(open(2, B));
    assert!(
        client.is_closed(),
        "a Close frame would be taken for payload"
    );
    assert!(clock::now() - began < Duration::from_secs(10));
}

#[test]
fn other_protocols_are_just_ended() {
    let (node, handed) = node(b"");
    let proxy = Setup::new(&[&node]).start_as("upgrades = [\"foo/1\"]");
    let mut client = proxy.client();
    assert_eq!(client.ask(ASK.replace("websocket", "foo/1")).status, 101);
    let (mut far, _) = handed.recv_timeout(PATIENCE).unwrap();
    far.write_all(b"hello").unwrap();
    assert_eq!(client.exactly(5), b"hello");
    proxy.steering.publish(open(2, B));
    assert!(client.is_closed());
    assert_eq!(to_the_end(&mut far), b"");
}

#[test]
fn doubt_about_a_node_does_not_end_its_tunnels_and_does_not_open_new_ones() {
    let (node, handed) = node(b"");
    let proxy = Setup::new(&[&node]).start();
    let (mut client, mut far) = tunnel(&proxy, &handed);
    let doubted = View {
        doubted: Some(A),
        ..closed(1, "the primary is in trouble")
    };
    proxy.steering.publish(doubted);
    client.send("up");
    assert_eq!(exactly(&mut far, 2), b"up");
    let mut later = proxy.client();
    later.send(ASK);
    proxy.until("the next is held", |proxy| proxy.steering.held() == 1);
    proxy.steering.publish(open(1, A));
    assert_eq!(later.answer().status, 101);
    far.write_all(b"down").unwrap();
    assert_eq!(client.exactly(4), b"down");
}

#[test]
fn a_tunnel_is_no_request_in_flight_and_is_never_opened_to_a_standby() {
    let (node, handed) = node(b"");
    let (standby, _) = self::node(b"");
    let proxy = Setup::new(&[&node, &standby]).start();
    let (client, _far) = tunnel(&proxy, &handed);
    assert_eq!(proxy.steering.in_flight(), (0, 0));
    let read_only = View {
        reads: Some(B),
        ..closed(1, "read-only")
    };
    proxy.steering.publish(read_only);
    drop(client);
    let mut held = proxy.client();
    held.send(ASK);
    proxy.until("it is held", |proxy| proxy.steering.held() == 1);
    assert_eq!(proxy.ask(GET).status, 200);
    proxy.steering.publish(open(2, A));
    assert_eq!(held.answer().status, 101);
    assert!(
        standby
            .rest()
            .iter()
            .all(|seen| seen.field("upgrade").is_none())
    );
}

#[test]
fn a_websocket_inside_of_http_2_is_one_of_http_1_1_to_its_node() {
    let (node, handed) = node(b"early");
    let proxy = Setup::new(&[&node]).start();
    let client = Proper::connect(proxy.address);
    let (status, stream) = client.switch("websocket");
    let mut stream = stream.unwrap();
    assert_eq!((status, &stream.exactly(5)[..]), (200, &b"early"[..]));
    let seen = node.seen();
    assert_eq!((seen.method(), seen.target()), ("GET", "/ws"));
    assert_eq!(seen.fields("upgrade"), ["websocket"]);
    assert_eq!(seen.field("sec-websocket-key").unwrap().len(), 24);
    assert_eq!(seen.field("sec-websocket-version"), Some("13"));
    let (mut far, _) = handed.recv_timeout(PATIENCE).unwrap();
    let large: Vec<u8> = (0..500_000_u32).map(|n| (n % 251) as u8).collect();
    stream.send(&large, false);
    assert!(exactly(&mut far, large.len()) == large);
    far.write_all(&large).unwrap();
    assert!(stream.exactly(large.len()) == large);
    let other = client.ask(Ask::get("http://a/"));
    assert_eq!((other.status, tunnels(&proxy, "a")), (200, 1));
    stream.send(b"end", true);
    assert_eq!(to_the_end(&mut far), b"end");
    far.write_all(b"last").unwrap();
    drop(far);
    assert_eq!(stream.exactly(100), b"last");
    proxy.until("it is not counted any more", |proxy| {
        tunnels(proxy, "a") == 0
    });
}

#[test]
fn a_websocket_inside_of_http_2_ends_with_its_node_s_role_and_its_connection_does_not() {
    let (node, handed) = node(b"");
    let proxy = Setup::new(&[&node]).start();
    let client = Proper::connect(proxy.address);
    let mut stream = client.switch("websocket").1.unwrap();
    let (mut far, _) = handed.recv_timeout(PATIENCE).unwrap();
    far.write_all(&[0x82, 3, 1]).unwrap();
    assert_eq!(stream.exactly(3), [0x82, 3, 1]);
    proxy
        .steering
        .publish(closed(1, "a planned switchover is under way"));
    assert_eq!(exactly(&mut far, 2), [0x88, 0x82]);
    far.write_all(&[2, 3, 0x81, 1, b'x']).unwrap();
    assert_eq!(stream.exactly(100), [&[2, 3][..], RESTART].concat());
    proxy.steering.publish(open(1, A));
    assert_eq!(client.ask(Ask::get("http://a/")).status, 200);
}

#[test]
fn what_is_not_spoken_is_never_a_success_to_an_http_2_client() {
    let declines = Node::start(|_| Act::ok("a page"));
    let proxy = Setup::new(&[&declines]).start();
    let client = Proper::connect(proxy.address);
    let (status, stream) = client.switch("websocket");
    assert_eq!((status, stream.is_none()), (502, true));
    declines.seen();
    let (status, _) = client.switch("connect-udp");
    assert_eq!(status, 501, "not on the list");
    assert!(declines.rest().is_empty());
    let forbids = Node::start(|_| Act::status(403, "no"));
    let proxy = Setup::new(&[&forbids]).start();
    let (status, _) = Proper::connect(proxy.address).switch("websocket");
    assert_eq!(status, 403);
}

#[test]
fn a_drain_lets_tunnels_live_and_says_goodbye_before_it_ends() {
    let (node, handed) = node(b"");
    let mut proxy = Setup::new(&[&node]).start();
    let (mut client, mut far) = tunnel(&proxy, &handed);
    proxy.begin_drain();
    proxy.until("nobody is accepted any more", |proxy| {
        TcpStream::connect(proxy.address).is_err()
    });
    client.send("up");
    assert_eq!(exactly(&mut far, 2), b"up");
    assert_eq!(client.exactly(100), GOING_AWAY);
    drop(client);
    proxy.join();
}

#[test]
fn a_tunnel_in_which_nothing_passes_is_ended() {
    let (node, handed) = node(b"");
    let proxy = Setup::new(&[&node])
        .with("[service.timeouts]\ntunnel_idle = \"300ms\"")
        .start();
    let (mut client, mut far) = tunnel(&proxy, &handed);
    let began = clock::now();
    for _ in 0..5 {
        clock::pause_thread(Duration::from_millis(100));
        far.write_all(&[0x8a, 0]).unwrap();
        assert_eq!(client.exactly(2), [0x8a, 0]);
    }
    assert!(clock::now() - began > Duration::from_millis(400));
    assert_eq!(client.exactly(100), GOING_AWAY);
}

#[test]
fn whoever_does_not_read_stops_the_other_side() {
    let (node, handed) = node(b"");
    let proxy = Setup::new(&[&node]).start();
    let (mut client, mut far) = tunnel(&proxy, &handed);
    far.set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let piece: Vec<u8> = (0..65_536_u32).map(|n| (n % 251) as u8).collect();
    let mut sent = Vec::new();
    while let Ok(written) = far.write(&piece) {
        sent.extend_from_slice(&piece[..written]);
        assert!(sent.len() < 64 << 20, "nobody keeps that much");
    }
    assert!(client.exactly(sent.len()) == sent);
    far.write_all(b"more").unwrap();
    assert_eq!(client.exactly(4), b"more");
}

#[test]
fn tunnels_are_bounded_and_take_no_request_s_place() {
    let (node, handed) = node(b"");
    let proxy = Setup::new(&[&node])
        .with("max_tunnels = 2\nmax_connections = 1")
        .start();
    let first = tunnel(&proxy, &handed);
    let _second = tunnel(&proxy, &handed);
    let refused = proxy.ask(ASK);
    assert_eq!(refused.status, 503);
    let why = refused.field("proxy-status").unwrap();
    assert!(why.contains("error=connection_limit_reached"), "{why}");
    assert_eq!(proxy.ask(GET).status, 200);
    drop(first);
    proxy.until("there is room", |proxy| tunnels(proxy, "a") == 1);
    let _third = tunnel(&proxy, &handed);
}
