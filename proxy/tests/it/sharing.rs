//! Nodes that speak HTTP/2: what they are told, what is shared, and which losses prove that nothing was carried out.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use proxy::config::Endpoint;
use proxy::upstream::probe::Seen;

use crate::harness::http2_node::Http2Node;
use crate::harness::{Node, PATIENCE, Proxy, Setup};
use crate::watching::{OFTEN, Prober, failed};

const GET: &str = "GET /a?b HTTP/1.1\r\nHost: shop.test\r\nCookie: a=1\r\nTE: trailers\r\n\r\n";
const POST: &str = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
const WAIT: &str = "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n";

fn before(node: &Http2Node) -> Proxy {
    Setup::urls([&*node.url()]).start()
}

#[test]
fn requests_share_a_connection_and_are_said_as_http2_wants() {
    let node = Http2Node::start(100);
    let proxy = before(&node);
    let first = proxy.ask(GET);
    assert_eq!((first.status, &*first.text()), (200, "ok"));
    assert_eq!(first.field("x-served"), Some("yes"));
    let head = node.seen().remove(0);
    assert_eq!(head.uri, *"http://shop.test/a?b");
    assert_eq!(head.headers["cookie"], "a=1");
    assert_eq!(head.headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(head.headers["x-forwarded-host"], "shop.test");
    assert_eq!(head.headers["via"], "1.1 hotwarm");
    assert_eq!(head.headers["te"], "trailers");
    assert!(head.headers.contains_key("x-request-id"));
    assert!(!head.headers.contains_key("host"));
    let clients: Vec<_> = (0..20).map(|_| proxy.client()).collect();
    let clients: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            client.send(WAIT);
            client
        })
        .collect();
    proxy.until("all are there", |_| node.waiting().0 == 20);
    node.go();
    for mut client in clients {
        assert_eq!(client.answer().text(), "waited");
    }
    assert_eq!(node.connections(), 1);
}

#[test]
fn bodies_of_any_size_pass_both_ways() {
    let node = Http2Node::start(100);
    let proxy = before(&node);
    assert_eq!(proxy.ask(POST).text(), "hi");
    let chunked = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(proxy.ask(chunked).text(), "hello");
    let lengths: Vec<_> = node
        .seen()
        .iter()
        .map(|head| head.headers.get("content-length").cloned())
        .collect();
    assert_eq!(lengths, [Some("2".parse().unwrap()), None]);
    let long = "y".repeat(2 << 20);
    let upload = format!(
        "PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{long}",
        long.len()
    );
    let mut client = proxy.client();
    let answer = client.ask(upload);
    assert!(answer.whole && answer.text() == long);
    let big = client.ask("GET /big HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((big.whole, big.body.len()), (true, 2 << 20));
    let head = client.ask("GET /trailers HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((head.whole, &*head.text()), (true, "message"));
    assert_eq!(node.connections(), 1);
}

#[test]
fn a_node_gets_no_more_streams_on_a_connection_than_it_allows() {
    let node = Http2Node::start(2);
    let proxy = before(&node);
    let mut clients: Vec<_> = (0..6).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(WAIT);
    }
    proxy.until("all are there", |_| node.waiting().0 == 6);
    assert_eq!(node.connections(), 3);
    node.go();
    for client in &mut clients {
        assert_eq!(client.answer().text(), "waited");
    }
}

#[test]
fn max_connections_is_how_many_requests_a_node_has_at_once() {
    let node = Http2Node::start(100);
    // `max_connections` is the last node's key.
    let proxy = Setup::urls([&*node.url()])
        .with("max_connections = 2")
        .threads(2)
        .start();
    let mut clients: Vec<_> = (0..6).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(WAIT);
    }
    proxy.until("the rest waits", |proxy| {
        node.waiting().0 == 2 && proxy.handle.queued(crate::harness::A) == 4
    });
    node.go();
    for client in &mut clients {
        assert_eq!(client.answer().text(), "waited");
    }
    assert_eq!(node.waiting(), (0, 2));
}

#[test]
fn a_client_that_goes_away_takes_its_stream_along() {
    let node = Http2Node::start(100);
    let proxy = before(&node);
    let mut client = proxy.client();
    client.send(WAIT);
    proxy.until("it is there", |_| node.waiting().0 == 1);
    drop(client);
    proxy.until("it is gone", |_| node.waiting().0 == 0);
    assert_eq!(proxy.ask(GET).text(), "ok");
    assert_eq!(node.connections(), 1);
}

/// What a node on bare frames does with a request.
#[derive(Clone, Copy)]
enum Does {
    /// Answers 200 without a body.
    Answer,
    /// Resets the stream with this code.
    Reset(u32),
    /// Says that it got as far as this stream, and closes.
    GoAway(u32),
    /// Closes without a word.
    Close,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A node on bare frames that does one thing after the other, each on a connection of its own if it has to be.
fn framed(acts: impl IntoIterator<Item = Does>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("h2c://{}", listener.local_addr().unwrap());
    let acts: Vec<_> = acts.into_iter().collect();
    let mut acts = acts.into_iter();
    thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap(), &mut acts);
            if acts.len() == 0 {
                return;
            }
        }
    });
    url
}

fn serve(mut stream: TcpStream, acts: &mut impl Iterator<Item = Does>) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).unwrap();
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    stream.write_all(&frame(4, 0, 0, &[])).unwrap();
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            return;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).unwrap();
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let answer = match (head[3], head[4] & 1) {
            (4, 0) => frame(4, 1, 0, &[]),
            // The request's last frame, with its head or its body.
            (0 | 1, 1) => match acts.next().unwrap() {
                // `:status: 200` is the eighth entry of the static table.
                Does::Answer => frame(1, 5, id, &[0x88]),
                Does::Reset(code) => frame(3, 0, id, &code.to_be_bytes()),
                Does::GoAway(last) => {
                    let mut said = last.to_be_bytes().to_vec();
                    said.extend_from_slice(&[0; 4]);
                    stream.write_all(&frame(7, 0, 0, &said)).unwrap();
                    return;
                }
                Does::Close => return,
            },
            _ => continue,
        };
        stream.write_all(&answer).unwrap();
    }
}

fn attempts(proxy: Proxy) -> Vec<String> {
    let log = proxy.log();
    let attempts = log[0]["attempts"].as_array().unwrap();
    let result = |tried: &serde_json::Value| tried["result"].as_str().unwrap().to_owned();
    attempts.iter().map(result).collect()
}

#[test]
fn what_the_node_says_it_did_not_begin_is_made_again_whatever_it_is() {
    for declined in [Does::Reset(7), Does::GoAway(0)] {
        let url = framed([declined, declined, Does::Answer]);
        let proxy = Setup::urls([&*url]).start();
        assert_eq!(proxy.ask(POST).status, 200);
        let wanted = ["known-unprocessed", "known-unprocessed", "ok"];
        assert_eq!(attempts(proxy), wanted);
    }
}

#[test]
fn any_other_loss_leaves_a_write_unknown_and_a_read_is_made_again() {
    for lost in [Does::Reset(2), Does::Reset(8), Does::GoAway(1), Does::Close] {
        let url = framed([lost]);
        let proxy = Setup::urls([&*url]).start();
        let answer = proxy.ask(POST);
        assert_eq!(answer.status, 502, "{answer:?}");
        assert!(
            answer.text().contains("carried out is unknown"),
            "{answer:?}"
        );
        assert_eq!(attempts(proxy), ["maybe-processed"]);
        let url = framed([lost, Does::Answer]);
        let proxy = Setup::urls([&*url]).start();
        assert_eq!(proxy.ask(GET).status, 200);
        assert_eq!(attempts(proxy), ["maybe-processed", "ok"]);
    }
}

#[test]
fn a_node_that_speaks_something_else_was_sent_no_request() {
    // One that closes as well may do so before it was heard.
    let node = Node::ok();
    let url = format!("h2c://{}", node.address);
    let proxy = Setup::urls([&*url])
        .with("[service.hold]\nmax_wait = \"1100ms\"")
        .start();
    let answer = proxy.ask(POST);
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(
        answer.text().contains("does not speak HTTP/2"),
        "{answer:?}"
    );
    assert!(answer.text().contains("was not sent"), "{answer:?}");
}

#[tokio::test]
async fn health_is_asked_for_in_http2() {
    let node = Http2Node::start(100);
    let address = proxy::config::Address {
        host: "127.0.0.1".to_owned(),
        port: node.address.port(),
    };
    let mut prober = Prober::at(Endpoint::H2c(address.clone()), OFTEN);
    assert_eq!(prober.next().await, Seen::Passed);
    assert_eq!(node.seen()[0].uri.path(), "/healthz");
    let plain = Node::ok();
    let endpoint = Endpoint::H2c(proxy::config::Address {
        port: plain.address.port(),
        ..address
    });
    let mut prober = Prober::at(endpoint, OFTEN);
    failed(prober.next().await);
}

#[test]
fn over_tls_the_node_chooses_what_is_spoken() {
    use crate::encryption::Papers;
    use crate::harness::front::{Ending, Front};
    let papers = Papers::new();
    papers.make("a", &["127.0.0.1"]);
    let table = format!("[service.tls]\nca = {:?}\n", papers.cert("a"));
    let (new, old) = (Http2Node::start(100), Node::ok());
    let mut config = (*crate::trusting::showing(&papers, "a", None)).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let fronts = [
        Front::tls_at(new.address, config.clone().into(), Ending::Proper),
        {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Front::tls_at(old.address, config.into(), Ending::Proper)
        },
    ];
    for front in &fronts {
        let proxy = Setup::urls([&*front.url]).with(&table).start();
        let mut client = proxy.client();
        for _ in 0..3 {
            assert_eq!(client.ask(GET).text(), "ok");
        }
        assert_eq!(front.connections(), 1);
    }
    assert_eq!(new.seen()[0].uri, *"https://shop.test/a?b");
    assert_eq!(old.seen().field("host"), Some("shop.test"));
}
