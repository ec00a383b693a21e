//! What is written down and counted.

use proxy::steer::View;
use shared::model::Epoch;

use crate::harness::program::Program;
use crate::harness::{A, Act, Node, Setup, open};

const GET: &str = "GET /x?y=1 HTTP/1.1\r\nHost: shop\r\n\r\n";

#[test]
fn every_request_leaves_one_line_that_says_what_happened() {
    let truncated = Act::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello".to_vec());
    let node = Node::acts([Act::ok("hello"), truncated, Act::Close, Act::Close]);
    let view = View {
        epoch: Epoch(4),
        ..open(4, A)
    };
    let proxy = Setup::new(&[&node]).view(view).start();
    let ids: Vec<_> = [
        GET,
        GET,
        &GET.replace("GET", "PATCH"),
        "GET / HTTP/1.1\r\n\r\n",
    ]
    .iter()
    .map(|request| proxy.ask(request).field("x-request-id").map(str::to_owned))
    .collect();
    let lines = proxy.log();
    assert_eq!(lines.len(), 4);
    let first = &lines[0];
    for (key, wanted) in [
        ("client", "\"127.0.0.1\""),
        ("method", "\"GET\""),
        ("host", "\"shop\""),
        ("path", "\"/x?y=1\""),
        ("status", "200"),
        ("bytes_in", "0"),
        ("bytes_out", "5"),
        ("service", "\"shop\""),
        ("node", "\"a\""),
        ("epoch", "4"),
        ("hold_ms", "0"),
        ("gate_ms", "0"),
        ("closed_by", "\"none\""),
    ] {
        assert_eq!(first[key].to_string(), wanted, "{key} in {first}");
    }
    assert!(first["total_ms"].as_f64() >= first["upstream_ms"].as_f64());
    assert!(
        first["time"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z'))
    );
    for (line, id) in lines.iter().zip(&ids) {
        // Of the answer that broke off, the client may have got nothing.
        assert!(id.is_none() || line["request_id"].as_str() == id.as_deref());
    }
    assert_eq!(
        ids.iter().filter(|id| id.is_none()).count(),
        usize::from(ids[1].is_none())
    );
    assert_eq!(
        (&lines[1]["closed_by"], &lines[1]["bytes_out"]),
        (&"upstream".into(), &5.into())
    );
    assert_eq!(
        (&lines[2]["closed_by"], &lines[2]["status"]),
        (&"proxy".into(), &502.into())
    );
    assert_eq!(lines[2]["attempts"][0]["result"], "maybe-processed");
    assert_eq!(
        (&lines[3]["status"], &lines[3]["service"]),
        (&400.into(), &"".into())
    );
}

#[test]
fn numbers_are_counted_by_node_method_and_code() {
    let node = Node::acts([Act::ok("x"), Act::status(404, ""), Act::ok("y")]);
    let mut proxy = Setup::new(&[&node]).threads(2).start();
    for method in ["GET", "GET", "POST"] {
        proxy.ask(&format!(
            "{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
        ));
    }
    proxy.ask("GET / HTTP/1.1\r\n\r\n");
    proxy.begin_drain();
    proxy.join();
    let count = |labels: &[&str]| proxy.metrics.requests.with_label_values(labels).get();
    assert_eq!(count(&["shop", "a", "GET", "200"]), 1);
    assert_eq!(count(&["shop", "a", "GET", "404"]), 1);
    assert_eq!(count(&["shop", "a", "POST", "200"]), 1);
    assert_eq!(count(&["", "", "GET", "400"]), 1);
    let seconds = proxy.metrics.request_seconds.with_label_values(&["shop"]);
    assert_eq!(seconds.get_sample_count(), 3);
    let upstream = proxy
        .metrics
        .upstream_seconds
        .with_label_values(&["shop", "a"]);
    assert_eq!(upstream.get_sample_count(), 3);
    for state in ["idle", "active"] {
        let labels = ["shop", "a", state];
        assert_eq!(
            proxy
                .metrics
                .upstream_connections
                .with_label_values(&labels)
                .get(),
            0
        );
    }
}

#[test]
fn the_log_is_near_at_hand_while_requests_go_on() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    proxy.ask(GET);
    proxy.until("the line is there", |proxy| {
        proxy.log_text().lines().count() == 1
    });
}

fn program(node: &Node, log: &str, stdout: std::process::Stdio) -> Program {
    let text = format!(
        "access_log = {{ {log} }}\n---\n[[service]]\nname = \"shop\"\n[[service.node]]\nname = \"a\"\nurl = \"http://{}\"\n",
        node.address
    );
    Program::start_into(&text, stdout)
}

#[test]
fn a_pipe_that_nobody_reads_slows_no_request_and_what_is_lost_is_counted() {
    let node = Node::ok();
    let program = program(&node, "path = \"-\"", std::process::Stdio::piped());
    let mut client = program.client();
    // Each line of the log is several KiB long, so that pipe and queue are soon full.
    let long = format!("GET /{} HTTP/1.1\r\nHost: shop\r\n\r\n", "x".repeat(8000));
    let mut slowest = std::time::Duration::ZERO;
    let lost = || {
        program
            .metric("hotwarm_access_log_dropped_total")
            .unwrap_or_default()
    };
    for n in 0..5000 {
        let began = shared::clock::now();
        assert_eq!(client.ask(&long).status, 200);
        slowest = slowest.max(shared::clock::now() - began);
        if n % 100 == 0 && lost() > 0.0 {
            break;
        }
    }
    assert!(lost() > 0.0, "the pipe took everything");
    assert!(slowest < std::time::Duration::from_secs(1), "{slowest:?}");
    program.signal("TERM");
    program.until("it ends all the same", || program.has_ended());
}

#[test]
fn a_file_that_was_moved_away_is_opened_again_when_told_so_and_by_itself() {
    let node = Node::ok();
    let program = program(&node, "path = \"access.log\"", std::process::Stdio::null());
    let (path, moved) = (
        program.folder.join("access.log"),
        program.folder.join("access.log.1"),
    );
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    for told in [Some("USR1"), Some("HUP"), None] {
        program.client().ask(GET);
        program.until("the line is there", || !read().is_empty());
        std::fs::rename(&path, &moved).unwrap();
        told.into_iter().for_each(|signal| program.signal(signal));
        program.until("it is there again", || path.exists());
        assert_eq!(read(), "");
    }
}
