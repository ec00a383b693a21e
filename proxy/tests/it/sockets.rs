//! Nodes behind a socket in the file system.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use proxy::config::Endpoint;
use proxy::steer::Sign;
use proxy::upstream::probe::{How, Seen};
use shared::clock::pause_thread;

use crate::harness::front::{Front, socket_path};
use crate::harness::gunicorn::gunicorn;
use crate::harness::{A, Client, Node, Setup};
use crate::watching::{OFTEN, Prober, failed};

const GET: &str = "GET /a?b HTTP/1.1\r\nHost: shop.test\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn a_node_behind_a_socket_is_asked_as_any_other_and_its_connection_is_kept() {
    let node = Node::ok();
    let front = Front::unix(&node);
    let proxy = Setup::urls([&*front.url]).start();
    for request in [GET, POST, GET] {
        assert_eq!(proxy.ask(request).text(), "ok");
    }
    assert_eq!(front.connections(), 1);
    let seen = node.seen();
    assert_eq!(
        (seen.target(), seen.field("host")),
        ("/a?b", Some("shop.test"))
    );
    assert_eq!(node.seen().body, b"hi");
}

#[test]
fn a_socket_that_is_missing_or_that_nobody_listens_at_refuses_and_a_write_is_made_when_it_is_back()
{
    let path = socket_path();
    let url = format!("unix:{}", path.display());
    let mut proxy = Setup::urls([&*url]).start();
    let address = proxy.address;
    let asking = std::thread::spawn(move || Client::connect(address).ask(POST));
    proxy.await_sign(Sign::Refused(A));
    // What a killed process leaves behind.
    drop(UnixListener::bind(&path).unwrap());
    proxy.await_sign(Sign::Refused(A));
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    answer(&mut stream);
    assert_eq!(asking.join().unwrap().text(), "hi");
    let log = proxy.log();
    let attempts = log[0]["attempts"].as_array().unwrap();
    let results: Vec<_> = attempts.iter().map(|tried| &tried["result"]).collect();
    assert_eq!(results.last().unwrap(), &"ok");
    assert!(
        results[..results.len() - 1]
            .iter()
            .all(|r| *r == "never-sent")
    );
    std::fs::remove_file(&path).unwrap();
}

fn answer(stream: &mut UnixStream) {
    use std::io::{Read, Write};
    let mut bytes = [0; 4096];
    let mut read = 0;
    while !bytes[..read].ends_with(b"\r\n\r\nhi") {
        read += stream.read(&mut bytes[read..]).unwrap();
    }
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    stream.write_all(answer).unwrap();
}

#[test]
fn a_socket_whose_queue_is_full_is_waited_for_as_long_as_connecting_may_take() {
    let path = socket_path();
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&socket2::SockAddr::unix(&path).unwrap())
        .unwrap();
    socket.listen(0).unwrap();
    let listener = UnixListener::from(std::os::fd::OwnedFd::from(socket));
    // The queue holds one more than was asked for.
    let first = UnixStream::connect(&path).unwrap();
    let url = format!("unix:{}", path.display());
    let tables = "[service.timeouts]\nconnect = \"200ms\"\n[service.hold]\nmax_wait = \"300ms\"";
    let proxy = Setup::urls([&*url]).with(tables).start();
    let late = proxy.ask(POST);
    assert_eq!(late.status, 504);
    assert!(late.text().contains("not accepted in time"), "{late:?}");
    assert!(late.text().contains("was not sent"), "{late:?}");
    let address = proxy.address;
    let asking = std::thread::spawn(move || Client::connect(address).ask(POST));
    drop((first, listener.accept().unwrap()));
    let (mut stream, _) = listener.accept().unwrap();
    answer(&mut stream);
    assert_eq!(asking.join().unwrap().text(), "hi");
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn health_is_asked_for_over_the_socket_and_a_missing_one_is_a_crash() {
    let node = Node::ok();
    let mut front = Front::unix(&node);
    let endpoint = Endpoint::Unix(front.path().to_owned());
    let mut prober = Prober::at(endpoint, OFTEN);
    assert_eq!(prober.next().await, Seen::Passed);
    assert_eq!(node.seen().field("host"), Some("localhost"));
    front.kill();
    let mut seen = prober.next().await;
    while seen == Seen::Passed {
        seen = prober.next().await;
    }
    assert_eq!(failed(seen).1, How::Refused);
    std::fs::remove_file(front.path()).unwrap();
    let (why, how) = failed(prober.next().await);
    assert_eq!(how, How::Refused, "{why}");
    prober.alarm();
    while prober.next().await != Seen::Refused {}
}

#[test]
fn gunicorn_on_a_socket_is_waited_for_while_it_is_killed_and_started_again() {
    let Some(gunicorn) = gunicorn() else { return };
    let path = socket_path();
    let bind = format!("unix:{}", path.display());
    let options = ["--bind", &bind];
    let mut proxy = Setup::urls([&*bind]).start();
    let mut running = gunicorn.start(&options);
    for n in 0..50 {
        let (request, wanted) = [(GET, "shop.test"), (POST, "ahi")][n % 2];
        let answer = proxy.ask(request);
        assert_eq!((answer.status, &*answer.text()), (200, wanted), "{n}");
    }
    running.kill();
    // Its workers let go of the socket a moment after it.
    while UnixStream::connect(&path).is_ok() {
        pause_thread(Duration::from_millis(1));
    }
    proxy.signs();
    let address = proxy.address;
    let asking = std::thread::spawn(move || Client::connect(address).ask(POST));
    proxy.await_sign(Sign::Refused(A));
    let _running = gunicorn.start(&options);
    assert_eq!(asking.join().unwrap().text(), "ahi");
    let _ = std::fs::remove_file(&path);
}
