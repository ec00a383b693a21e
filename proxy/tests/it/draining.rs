//! Stopping without breaking anything that is under way.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use proxy::config;
use proxy::metrics::Metrics;
use proxy::steer::Steering;
use proxy::worker::{ServiceHandle, start};
use shared::drain;

use crate::harness::{A, Act, Node, Setup, open};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn requests_under_way_are_finished_and_idle_connections_end() {
    let (go, slow) = Act::ok("finished").when();
    let node = Node::acts([Act::ok("first"), slow]);
    let mut proxy = Setup::new(&[&node]).threads(2).start();
    let mut idle = proxy.client();
    assert_eq!(idle.ask(GET).text(), "first");
    let mut busy = proxy.client();
    busy.send(GET);
    node.seen();
    node.seen();
    proxy.begin_drain();
    assert!(idle.is_closed(), "nobody waits for an idle client");
    proxy.until("nobody is accepted any more", |proxy| {
        TcpStream::connect(proxy.address).is_err()
    });
    go.send(()).unwrap();
    let last = busy.answer();
    assert_eq!(
        (last.text().as_str(), last.field("connection")),
        ("finished", Some("close"))
    );
    assert!(busy.is_closed());
    proxy.join();
}

#[test]
fn whoever_is_in_the_queue_when_it_begins_is_still_served() {
    let node = Node::ok();
    for _ in 0..10 {
        let mut proxy = Setup::new(&[&node]).threads(2).start();
        let mut clients: Vec<_> = (0..20).map(|_| proxy.client()).collect();
        let sent = clients
            .iter_mut()
            .map(|client| client.try_send(GET))
            .filter(|sent| *sent)
            .count();
        assert_eq!(sent, 20);
        proxy.begin_drain();
        for client in &mut clients {
            // Accepted and answered, or closed before a byte of it was read; never cut in between.
            let answer = client.answer();
            assert!(answer.status == 200 || answer.head.is_empty(), "{answer:?}");
        }
        proxy.join();
    }
}

#[test]
fn what_does_not_end_is_cut_off_when_the_time_is_over() {
    let node = Node::start(|_| Act::Never);
    let folder = std::env::temp_dir().join(format!("hotwarm-drain-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("hotwarm.toml");
    let text = format!(
        "state_dir = \"state\"\nthreads = 1\ndrain_timeout = \"200ms\"\n[[listener]]\nbind = \"127.0.0.1:0\"\n[[service]]\nname = \"s\"\n[[service.node]]\nname = \"a\"\nurl = \"http://{}\"\n",
        node.address
    );
    std::fs::write(&path, text).unwrap();
    let settings = Arc::new(config::load(&path).unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
    let metrics = Metrics::default();
    let (steering, _signs) = Steering::new(1, open(1, A));
    let handle = ServiceHandle::new(Arc::clone(&settings.services[0]), steering, 1, &metrics);
    let (signal, watch) = drain::channel();
    let workers = start(&settings, &[handle], &metrics, None, watch).unwrap();
    let mut client = crate::harness::Client::connect(workers.addresses()[0]);
    client.send(GET);
    node.seen();
    signal.begin();
    let began = shared::clock::now();
    workers.join();
    let took = shared::clock::now() - began;
    assert!(
        took >= Duration::from_millis(200) && took < Duration::from_secs(5),
        "{took:?}"
    );
    assert!(client.is_closed());
}

#[test]
fn a_port_that_is_taken_is_named_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let sharing = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    sharing.set_reuse_port(true).unwrap();
    sharing
        .bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    sharing.listen(1).unwrap();
    let shared_address = sharing.local_addr().unwrap().as_socket().unwrap();
    for address in [address, shared_address] {
        let folder = std::env::temp_dir().join(format!("hotwarm-bind-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("hotwarm.toml");
        let text = format!(
            "state_dir = \"state\"\n[[listener]]\nbind = \"{address}\"\n[[service]]\nname = \"s\"\n[[service.node]]\nname = \"a\"\nurl = \"http://127.0.0.1:1\"\n"
        );
        std::fs::write(&path, text).unwrap();
        let settings = Arc::new(config::load(&path).unwrap());
        std::fs::remove_dir_all(&folder).unwrap();
        let (_signal, watch) = drain::channel();
        let error = start(&settings, &[], &Metrics::default(), None, watch).unwrap_err();
        let words = error.to_string();
        assert!(
            words.starts_with(&format!("listen on {address}: ")),
            "{words}"
        );
        assert!(words.contains("another program listens there"), "{words}");
    }
}
