//! Another process takes over the listening sockets while clients come and go.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use crate::harness::program::Program;
use crate::harness::{Act, Client, Node};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

fn service(name: &str, node: SocketAddr) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nhosts = [\"{name}\"]\n[[service.node]]\nname = \"a\"\nurl = \"http://{node}\"\n[service.health]\ninterval = \"50ms\"\n"
    )
}

/// Clients that stay, and clients that come anew for each request. None of them may see anything but a whole response.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    clients: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let client = |number: u32| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || {
                let mut client = Client::connect(address);
                while !stop.load(SeqCst) {
                    let answer = client.ask(GET);
                    assert_eq!((answer.status, answer.whole), (200, true), "{answer:?}");
                    done.fetch_add(1, SeqCst);
                    // Whoever is told that the connection ends does not use it again.
                    if number % 2 == 1 || answer.field("connection") == Some("close") {
                        client = Client::connect(address);
                    }
                }
            })
        };
        let clients = (0..6).map(client).collect();
        Self {
            stop,
            done,
            clients,
        }
    }

    fn goes_on(&self, program: &Program) {
        let before = self.done.load(SeqCst);
        program.until("requests go on", || self.done.load(SeqCst) > before + 20);
    }

    fn end(self) -> u32 {
        self.stop.store(true, SeqCst);
        self.clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
        self.done.load(SeqCst)
    }
}

/// Whether somebody has the right to decide.
fn is_held(program: &Program) -> bool {
    let lock = File::options()
        .write(true)
        .open(program.folder.join("state/lock"))
        .unwrap();
    lock.try_lock().is_err()
}

#[test]
fn twenty_takeovers_under_load_refuse_no_connection_reset_none_and_fail_no_request() {
    let node = Node::ok();
    let program = Program::start(&service("shop", node.address));
    let load = Load::start(program.listener);
    let mut threads = 2;
    for n in 0..20 {
        let before = program.pid();
        // Fewer threads than sockets, and more.
        let next = [1, 3, 2][n % 3];
        program.rewrite(
            &format!("threads = {threads}\n"),
            &format!("threads = {next}\n"),
        );
        threads = next;
        program.take_over();
        assert_ne!(program.pid(), before);
        assert!(is_held(&program));
        load.goes_on(&program);
    }
    assert!(load.end() > 400);
    program.until("the last one is ready", || {
        program.get("/readyz").status == 200
    });
    let log = program.log();
    assert!(!log.contains("ERROR"), "{log}");
    let reload = program.reload();
    assert_eq!(reload.status, 202, "{}", reload.text());
}

#[test]
fn what_is_under_way_is_finished_by_the_process_that_began_it() {
    let (go, slow) = Act::ok("before").when();
    let script = std::sync::Mutex::new(Some(slow));
    let node = Node::start(move |seen| {
        let mut act = script.lock().unwrap();
        act.take_if(|_| seen.target() == "/slow")
            .unwrap_or_else(|| Act::ok("ok"))
    });
    let program = Program::start(&service("shop", node.address));
    let (mut busy, mut idle, mut new) = (program.client(), program.client(), program.client());
    assert_eq!(idle.ask(GET).text(), "ok");
    busy.send(GET.replace("GET / ", "GET /slow "));
    while node.seen().target() != "/slow" {}
    let other = program.successor();
    program.until("it has taken over", || {
        program.log().contains("has taken over")
    });
    let last = new.ask(GET);
    assert_eq!(last.text(), "ok", "it owed its first request");
    let last = idle.ask(GET);
    assert_eq!(
        (last.text().as_str(), last.field("connection")),
        ("ok", Some("close")),
        "it was not cut off between two requests"
    );
    assert_eq!(program.client().ask(GET).text(), "ok");
    // Who would take over from the new one had to reach the former one through it.
    let early = program.successor().wait().unwrap();
    assert_eq!(early.code(), Some(1));
    assert!(program.log().contains("still finishes its requests"));
    go.send(()).unwrap();
    assert_eq!(busy.answer().text(), "before");
    program.until("the former one has ended", || program.has_ended());
    assert_eq!(program.client().ask(GET).text(), "ok");
    program.replace(other);
}

#[test]
fn one_that_cannot_start_changes_nothing() {
    let node = Node::ok();
    let good = service("shop", node.address);
    let program = Program::start(&good);
    let mut client = program.client();
    assert_eq!(client.ask(GET).text(), "ok");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let cases = [
        (good.replace("50ms", "0ms"), 2),
        (format!("{good}[[listener]]\nbind = \"{address}\"\n"), 1),
        (
            format!("access_log = {{ path = \"no/such/folder\" }}\n---\n{good}"),
            2,
        ),
    ];
    for (text, code) in cases {
        program.write(&text);
        let status = program.successor().wait().unwrap();
        assert_eq!(status.code(), Some(code), "{}", program.log());
        assert_eq!(client.ask(GET).text(), "ok", "the same connection goes on");
        assert!(is_held(&program));
    }
    program.write(&good);
    program.take_over();
    assert_eq!(program.client().ask(GET).text(), "ok");
}

#[test]
fn one_that_dies_on_the_way_changes_nothing() {
    let node = Node::ok();
    let program = Program::start(&service("shop", node.address));
    let load = Load::start(program.listener);
    for words in [&[][..], &["ready"], &["ready", "close shop"]] {
        let mut stream = UnixStream::connect(program.folder.join("state/takeover.sock")).unwrap();
        hear(&mut stream, "all");
        for word in words {
            stream.write_all(format!("{word}\n").as_bytes()).unwrap();
            let answer = match *word {
                "ready" => "yours",
                _ => "closed 0 shop",
            };
            hear(&mut stream, answer);
            assert!(!is_held(&program), "it has given up the right to decide");
        }
        drop(stream);
        program.until("it decides again", || is_held(&program));
        load.goes_on(&program);
        let client = |_| program.client().ask(GET).text();
        assert!((0..32).map(client).all(|answer| answer == "ok"));
    }
    program.until("it is ready", || program.get("/readyz").status == 200);
    assert_eq!(program.reload().status, 202);
    program.take_over();
    load.goes_on(&program);
    load.end();
}

#[test]
fn there_is_nobody_to_take_over_from_and_no_stranger_gets_the_sockets() {
    let node = Node::ok();
    let program = Program::start(&service("shop", node.address));
    use std::os::unix::fs::PermissionsExt;
    let door = program.folder.join("state/takeover.sock");
    let mode = fs::metadata(&door).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fs::remove_file(door).unwrap();
    let status = program.successor().wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(program.log().contains("start without --takeover"));
    assert_eq!(program.client().ask(GET).text(), "ok");
}

#[test]
fn a_former_process_sends_nothing_to_a_node_that_has_lost_its_role() {
    let (first, second) = (Node::ok(), Node::ok());
    let both = format!(
        "{}[[service.node]]\nname = \"b\"\nurl = \"http://{}\"\n",
        service("shop", first.address),
        second.address
    );
    // The table of the service's health stands before its second node.
    let text = both.replace("[service.health]\ninterval = \"50ms\"\n", "")
        + "[service.health]\ninterval = \"50ms\"\n";
    let program = Program::start(&text);
    assert_eq!(program.client().ask(GET).text(), "ok");
    let mut late = program.client();
    let mut stream = UnixStream::connect(program.folder.join("state/takeover.sock")).unwrap();
    hear(&mut stream, "all");
    for (word, answer) in [
        ("ready", "yours"),
        ("done", "agreed"),
        ("close shop", "closed 0 shop"),
    ] {
        stream.write_all(format!("{word}\n").as_bytes()).unwrap();
        hear(&mut stream, answer);
    }
    first.rest();
    late.send(
        GET.replace("GET / ", "POST /late ")
            .replace("shop\r\n", "shop\r\nContent-Length: 0\r\n"),
    );
    assert!(late.is_silent(Duration::from_millis(200)));
    program.until("it has ended", || program.has_ended());
    let came = |node: &Node| node.rest().iter().any(|seen| seen.target() == "/late");
    assert!(!came(&first) && !came(&second));
}

#[test]
fn sockets_that_the_system_listens_on_keep_their_queues_over_a_restart() {
    let node = Node::ok();
    let program = Program::start(&service("shop", node.address));
    program.signal("TERM");
    program.until("it has ended", || program.has_ended());
    let socket = TcpListener::bind(program.listener).unwrap();
    // Nobody accepts yet, and nobody is refused.
    let mut early = program.client();
    early.send(GET);
    for _ in 0..2 {
        program.replace(program.activated(&socket));
        assert_eq!(early.answer().text(), "ok");
        program.until("it is ready", || program.is_ready());
        assert_eq!(program.client().ask(GET).text(), "ok");
        program.signal("TERM");
        program.until("it has ended", || program.has_ended());
        early = program.client();
        early.send(GET);
    }
}

/// Reads lines up to this one.
fn hear(stream: &mut UnixStream, line: &str) {
    stream
        .set_read_timeout(Some(crate::harness::PATIENCE))
        .unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(format!("{line}\n").as_bytes()) {
        let mut byte = [0];
        let read = stream.read(&mut byte).unwrap();
        assert_eq!(read, 1, "{}", String::from_utf8_lossy(&heard));
        heard.push(byte[0]);
    }
}
