//! gRPC from end to end, with the library that others use as client and as node.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use proxy::config::{Address, Endpoint, Question};
use proxy::upstream::probe::Seen;

use crate::harness::Setup;
use crate::harness::grpc::{Grpc, GrpcNode, grpc};
use crate::harness::program::Program;
use crate::watching::{OFTEN, Prober, failed};

/// Makes calls of one kind by way of a proxy.
fn calls(case: &str) {
    calls_with(case, |setup| setup);
}

fn calls_with(case: &str, more: impl Fn(Setup) -> Setup) {
    let Some(grpc) = grpc() else { return };
    let node = grpc.node("a", None);
    let proxy = more(Setup::urls([&*node.url()])).start();
    grpc.calls(proxy.address, case, "");
}

#[test]
fn unary_calls_keep_their_metadata_both_ways() {
    calls("unary");
}

#[test]
fn messages_are_streamed_to_clients() {
    calls("server_streaming");
}

#[test]
fn messages_are_streamed_to_nodes() {
    calls("client_streaming");
}

#[test]
fn a_dialogue_has_answers_before_the_request_ends() {
    calls("dialogue");
}

#[test]
fn much_flows_in_both_directions_of_a_call_at_once() {
    calls("both_at_once");
}

#[test]
fn a_client_may_be_quiet_while_its_node_speaks() {
    calls_with("quiet_client", |setup| {
        setup.limits("body_idle_timeout = \"500ms\"")
    });
}

#[test]
fn a_node_may_be_quiet_while_its_client_speaks() {
    calls_with("quiet_server", |setup| {
        setup.with("[service.timeouts]\nidle = \"500ms\"")
    });
}

#[test]
fn errors_keep_their_status_text_and_details() {
    calls("errors");
}

#[test]
fn a_deadline_is_known_to_the_node_and_ends_the_call_there() {
    calls("deadline");
}

#[test]
fn a_call_that_is_cancelled_ends_at_the_node() {
    calls("cancel");
}

fn endpoint(node: &GrpcNode) -> Endpoint {
    Endpoint::H2c(Address {
        host: node.address.ip().to_string(),
        port: node.address.port(),
    })
}

fn prober(node: &GrpcNode, service: &str) -> Prober {
    let question = Question::Grpc(service.to_owned());
    Prober::asking(endpoint(node), OFTEN, question)
}

#[tokio::test]
async fn health_is_asked_for_by_grpc_s_own_protocol() {
    let Some(grpc) = grpc() else { return };
    let node = grpc.node("a", None);
    let say = |status| grpc.calls(node.address, "set_health", status);
    for service in ["", "shop.v1.Orders"] {
        assert_eq!(prober(&node, service).next().await, Seen::Passed);
        say("NOT_SERVING");
        let (why, _) = failed(prober(&node, service).next().await);
        assert_eq!(why, "answered NOT_SERVING");
        say("SERVING");
        assert_eq!(prober(&node, service).next().await, Seen::Passed);
    }
    let (why, _) = failed(prober(&node, "shop.v2").next().await);
    assert!(why.starts_with("does not know the service"), "{why}");
}

#[tokio::test]
async fn a_server_that_is_not_grpc_s_does_not_pass_its_health_check() {
    use crate::harness::http2_node::Http2Node;
    let node = Http2Node::start(100);
    let endpoint = Endpoint::H2c(Address {
        host: "127.0.0.1".to_owned(),
        port: node.address.port(),
    });
    let question = Question::Grpc("shop".to_owned());
    let (why, _) = failed(Prober::asking(endpoint, OFTEN, question).next().await);
    assert_eq!(why, "answered with \"\", which is not gRPC");
    let head = node.seen().remove(0);
    assert_eq!(head.method, "POST");
    assert_eq!(head.uri.path(), "/grpc.health.v1.Health/Check");
    for (name, value) in [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("grpc-timeout", "1000m"),
    ] {
        assert_eq!(head.headers[name], value);
    }
}

/// A service of two nodes.
fn service(a: &GrpcNode, b: &GrpcNode) -> String {
    let mut text =
        "[[service]]\nname = \"shop\"\n[service.health]\ngrpc = \"\"\ninterval = \"50ms\"\n"
            .to_owned();
    for (name, node) in [("a", a), ("b", b)] {
        text += &format!(
            "[[service.node]]\nname = \"{name}\"\nurl = \"{}\"\n",
            node.url()
        );
    }
    text
}

/// Calls from eight threads by way of `program` while `during` happens, given a way to wait for more that succeed.
fn load(
    grpc: &Grpc,
    program: &Program,
    during: impl FnOnce(&mut dyn FnMut(usize)),
) -> Vec<(String, String, String)> {
    let mut child = grpc
        .client(program.listener, "load", "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut tell = child.stdin.take().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    during(&mut |more| {
        writeln!(tell, "{more}").unwrap();
        assert_eq!(said.next().unwrap().unwrap(), "so far", "{}", program.log());
    });
    writeln!(tell, "stop").unwrap();
    let results = said.map(|line| {
        let line = line.unwrap();
        let mut words = line.split(' ').map(str::to_owned);
        let mut next = || words.next().unwrap();
        (next(), next(), next())
    });
    let results = results.collect();
    assert!(child.wait().unwrap().success());
    results
}

#[test]
fn a_primary_that_is_killed_costs_at_most_the_calls_under_way_and_repeats_none() {
    let Some(grpc) = grpc() else { return };
    let journal = std::env::temp_dir().join(format!("hotwarm-journal-{}", std::process::id()));
    let _ = fs::remove_file(&journal);
    let mut a = grpc.node("a", Some(&journal));
    let b = grpc.node("b", Some(&journal));
    let program = Program::start(&service(&a, &b));
    let results = load(&grpc, &program, |succeed| {
        succeed(300);
        a.kill();
        succeed(300);
    });
    let mut done = HashMap::<String, usize>::new();
    for line in fs::read_to_string(&journal).unwrap().lines() {
        let (_, call) = line.split_once(' ').unwrap();
        *done.entry(call.to_owned()).or_default() += 1;
    }
    fs::remove_file(&journal).unwrap();
    let mut lost = 0;
    for (call, status, node) in &results {
        let times = done.get(call).copied().unwrap_or_default();
        match (&**status, &**node) {
            ("OK", "a" | "b") => assert_eq!(times, 1, "{call} at {node}"),
            // What may have been carried out is not declared fit to be made again; one whose response had begun is reset.
            ("UNKNOWN" | "INTERNAL", _) => {
                assert!(times <= 1, "{call}");
                lost += 1;
            }
            ("UNAVAILABLE", _) => {
                assert_eq!(times, 0, "{call}");
                lost += 1;
            }
            other => panic!("{call}: {other:?}"),
        }
    }
    assert!(lost <= 8, "{lost} of {}", results.len());
    let by = |name: &str| results.iter().filter(|result| result.2 == name).count();
    assert!(by("a") >= 300 && by("b") > 0, "{results:?}");
}
