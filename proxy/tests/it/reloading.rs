//! The configuration is read again while the program works.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;

use crate::harness::program::Program;
use crate::harness::{Act, Client, Node, nobody};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
const OTHER: &str = "GET / HTTP/1.1\r\nHost: other\r\n\r\n";

/// A service of one node, for the host of its name.
fn service(name: &str, node: SocketAddr) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nhosts = [\"{name}\"]\n[[service.node]]\nname = \"a\"\nurl = \"http://{node}\"\n[service.health]\ninterval = \"50ms\"\n"
    )
}

fn listener(address: SocketAddr) -> String {
    format!("[[listener]]\nbind = \"{address}\"\n")
}

#[test]
fn a_hundred_reloads_under_load_fail_no_request_and_what_is_untouched_goes_on_counting() {
    let (node, other) = (Node::ok(), Node::ok());
    // An address of its own: nobody connects from there, so that the port is free whenever it is bound again.
    let extra = TcpListener::bind("127.0.0.77:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let base = service("shop", node.address);
    let changing = |n: u32| {
        let timeouts = format!("[service.timeouts]\nidle = \"{}s\"\n", 60 + n % 7);
        let more = if n.is_multiple_of(2) {
            listener(extra) + &service("guest", node.address)
        } else {
            String::new()
        };
        format!("{base}{}{timeouts}{more}", service("other", other.address))
    };
    let program = Program::start(&changing(1));
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU32::new(0));
    let load: Vec<_> = [GET, OTHER, GET, OTHER]
        .map(|request| {
            let (address, stop, done) = (program.listener, Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || {
                let mut client = Client::connect(address);
                while !stop.load(SeqCst) {
                    let answer = client.ask(request);
                    assert_eq!((answer.status, answer.whole), (200, true), "{answer:?}");
                    done.fetch_add(1, SeqCst);
                }
            })
        })
        .into();
    let mut memory = 0;
    for n in 0..100 {
        let answer = program.change(&changing(n));
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert_eq!(TcpStream::connect(extra).is_ok(), n.is_multiple_of(2));
        let before = done.load(SeqCst);
        program.until("requests go on", || done.load(SeqCst) > before + 8);
        if n == 40 {
            memory = program.memory();
        }
    }
    stop.store(true, SeqCst);
    load.into_iter().for_each(|client| client.join().unwrap());
    let grown = program.memory().saturating_sub(memory);
    assert!(grown < 4 << 10, "{grown} KiB more after 60 reloads");
    let count = |service: &str| {
        let line = format!(
            "hotwarm_requests_total{{code=\"200\",method=\"GET\",node=\"a\",service=\"{service}\"}}"
        );
        program.metric(&line).unwrap_or_default()
    };
    program.until("every request is counted", || {
        count("shop") + count("other") == f64::from(done.load(SeqCst))
    });
    assert_eq!(
        program.metric("hotwarm_config_reloads_total{result=\"ok\"}"),
        Some(100.0)
    );
    program.until("nothing is left of what was removed", || {
        !program.metrics().contains("guest")
    });
    let log = program.log();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn a_file_with_a_fault_changes_nothing_and_the_fault_is_named_by_its_place() {
    let node = Node::ok();
    let good = service("shop", node.address);
    let program = Program::start(&good);
    let mut client = program.client();
    assert_eq!(client.ask(GET).text(), "ok");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let cases = [
        (good.replace("50ms", "50"), "hotwarm.toml:"),
        (good.replace("50ms", "0ms"), "service.0.health.interval"),
        (format!("threads = 3\n---\n{good}"), "duplicate key"),
        (
            good.clone() + &listener(taken.local_addr().unwrap()),
            "another program listens there",
        ),
        (
            format!("log = {{ format = \"json\" }}\n---\n{good}"),
            "a change needs a restart",
        ),
        (
            format!("access_log = {{ path = \"no/such/folder\" }}\n---\n{good}"),
            "access_log.path",
        ),
    ];
    for (text, words) in &cases {
        let answer = program.change(text);
        assert_eq!(answer.status, 409, "{}", answer.text());
        assert!(answer.text().contains(words), "{}", answer.text());
        assert_eq!(client.ask(GET).text(), "ok", "the same connection goes on");
    }
    assert_eq!(
        program.metric("hotwarm_config_reloads_total{result=\"refused\"}"),
        Some(6.0)
    );
    assert!(program.log().contains("what was in force stays"));
    assert_eq!(program.change(&good).status, 202);
}

#[test]
fn held_requests_go_to_the_corrected_address() {
    let node = Node::ok();
    let wrong = nobody();
    let fine = Node::ok();
    let program = Program::start(&service("shop", fine.address));
    let both = |address| service("shop", fine.address) + &service("other", address);
    assert_eq!(program.change(&both(wrong)).status, 202);
    let mut held: Vec<_> = (0..5).map(|_| program.client()).collect();
    held.iter_mut().for_each(|client| client.send(OTHER));
    program.until("they are held", || {
        program.metric("hotwarm_held_requests{service=\"other\"}") == Some(5.0)
    });
    assert_eq!(program.change(&both(node.address)).status, 202);
    for client in &mut held {
        assert_eq!(client.answer().text(), "ok");
    }
}

#[test]
fn what_is_under_way_when_its_service_changes_or_goes_is_finished_there() {
    let (go, slow) = Act::ok("before").when();
    let (go_too, slow_too) = Act::ok("before").when();
    let first = std::sync::Mutex::new(Some(slow));
    let second = std::sync::Mutex::new(Some(slow_too));
    let scripted = |act: std::sync::Mutex<Option<Act>>| {
        Node::start(move |seen| {
            let mut act = act.lock().unwrap();
            act.take_if(|_| seen.target() == "/slow")
                .unwrap_or_else(|| Act::ok("ok"))
        })
    };
    let (changed, removed, next) = (scripted(first), scripted(second), Node::ok());
    let program =
        Program::start(&(service("shop", changed.address) + &service("other", removed.address)));
    let slow = |request: &str| request.replace("GET / ", "GET /slow ");
    let (mut one, mut two) = (program.client(), program.client());
    one.send(slow(GET));
    two.send(slow(OTHER));
    while changed.seen().target() != "/slow" {}
    while removed.seen().target() != "/slow" {}
    assert_eq!(program.change(&service("shop", next.address)).status, 202);
    assert_eq!(program.client().ask(GET).text(), "ok");
    assert_eq!(program.client().ask(OTHER).status, 404);
    assert!(
        program.metrics().contains("service=\"other\""),
        "it is not over"
    );
    go.send(()).unwrap();
    go_too.send(()).unwrap();
    assert_eq!(one.answer().text(), "before");
    assert_eq!(two.answer().text(), "before");
    assert_eq!(one.ask(GET).text(), "ok", "its connection goes on");
    program.until("nothing is left of it", || {
        !program.metrics().contains("service=\"other\"")
    });
}

#[test]
fn hanging_up_on_the_program_has_the_file_read_again_and_limits_hold_for_new_connections() {
    let node = Node::ok();
    let text = service("shop", node.address);
    let program = Program::start(&text);
    let mut before = program.client();
    assert_eq!(before.ask(GET).text(), "ok");
    let connections = node.connections();
    program.write(&format!("limits = {{ max_headers = 1 }}\n{text}"));
    program.signal("HUP");
    let many = "GET / HTTP/1.1\r\nHost: shop\r\nA: 1\r\nB: 2\r\n\r\n";
    program.until("the limit holds", || {
        program.client().ask(many).status == 431
    });
    assert_eq!(
        before.ask(many).status,
        200,
        "an older connection keeps its own"
    );
    let probed = node
        .rest()
        .iter()
        .filter(|seen| seen.target() == "/healthz")
        .count();
    assert!(
        node.connections() <= connections + probed + 2,
        "the pool is the same"
    );
}
