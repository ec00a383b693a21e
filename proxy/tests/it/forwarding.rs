//! What nodes get to know of the client, and what clients get to know of the proxy.

use crate::harness::{Act, Node, Setup};

const GET: &str = "GET /p HTTP/1.1\r\nHost: shop.example\r\n";

#[test]
fn the_trail_is_added_and_other_fields_pass() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    let answer = proxy.ask(&format!(
        "{GET}traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nCookie: a=b\r\nAuthorization: Basic x\r\nConnection: keep-alive\r\n\r\n"
    ));
    let seen = node.seen();
    assert_eq!(seen.fields("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.fields("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.fields("x-forwarded-host"), ["shop.example"]);
    assert_eq!(seen.fields("host"), ["shop.example"]);
    let ours = "for=127.0.0.1;proto=http;host=\"shop.example\"";
    assert_eq!(seen.fields("forwarded"), [ours]);
    assert_eq!(seen.fields("via"), ["1.1 hotwarm"]);
    assert!(
        seen.field("traceparent")
            .is_some_and(|value| value.ends_with("-01"))
    );
    assert_eq!(
        (seen.field("cookie"), seen.field("authorization")),
        (Some("a=b"), Some("Basic x"))
    );
    assert_eq!(seen.field("connection"), None);
    let id = seen.field("x-request-id").unwrap();
    assert_eq!(id.len(), 32);
    assert_eq!(answer.field("x-request-id"), Some(id));
}

#[test]
fn trusted_peers_are_believed_and_strangers_are_not() {
    let said = format!(
        "{GET}X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: public\r\nForwarded: for=1.2.3.4\r\nX-Request-Id: abc\r\nX-Real-IP: 1.2.3.4\r\n\r\n"
    );
    let node = Node::ok();
    let trusting = Setup::new(&[&node]).start_as("trusted_proxies = [\"127.0.0.0/8\"]");
    trusting.ask(&said);
    let seen = node.seen();
    assert_eq!(seen.fields("x-forwarded-for"), ["1.2.3.4, 127.0.0.1"]);
    assert_eq!(seen.fields("x-forwarded-proto"), ["https"]);
    assert_eq!(
        (seen.fields("forwarded"), seen.field("x-request-id")),
        (
            vec![
                "for=1.2.3.4",
                "for=127.0.0.1;proto=http;host=\"shop.example\""
            ],
            Some("abc")
        )
    );
    assert_eq!(trusting.log()[0]["client"], "1.2.3.4");

    let wary = Setup::new(&[&node]).start_as("trusted_proxies = [\"10.0.0.0/8\"]");
    wary.ask(&said);
    let seen = node.seen();
    assert_eq!(seen.fields("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.fields("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.fields("x-forwarded-host"), ["shop.example"]);
    let ours = "for=127.0.0.1;proto=http;host=\"shop.example\"";
    assert_eq!(seen.fields("forwarded"), [ours]);
    assert_eq!(seen.field("x-real-ip"), None);
    assert_ne!(seen.field("x-request-id"), Some("abc"));
    assert_eq!(wary.log()[0]["client"], "127.0.0.1");
}

#[test]
fn hosts_find_their_service_and_others_find_none() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start_as("hosts = [\"shop.example\", \"*.shop.example\"]");
    for (host, status) in [
        ("shop.example", 200),
        ("SHOP.example:8080", 200),
        ("www.shop.example", 200),
        ("example", 404),
        ("evilshop.example", 404),
    ] {
        let answer = proxy.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(answer.status, status, "{host}");
        if status == 404 {
            let words = answer.field("proxy-status").unwrap();
            assert!(
                words.starts_with("hotwarm; error=destination_not_found"),
                "{words}"
            );
            assert!(answer.field("x-request-id").is_some());
        }
    }
    let answer = proxy.ask("GET http://shop.example/ HTTP/1.1\r\nHost: example\r\n\r\n");
    assert_eq!(answer.status, 200, "the target's host counts");
}

#[test]
fn fields_of_the_node_s_connection_do_not_reach_the_client() {
    let text = "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nTrailer: T\r\nUpgrade: h2c\r\nX-End: 2\r\nContent-Length: 0\r\n\r\n";
    let node = Node::acts([Act::raw(text)]);
    let proxy = Setup::new(&[&node]).start();
    let answer = proxy.ask(&format!("{GET}\r\n"));
    assert_eq!(answer.field("x-end"), Some("2"));
    for name in [
        "connection",
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "trailer",
        "upgrade",
    ] {
        assert_eq!(answer.field(name), None, "{name}");
    }
}

#[test]
fn a_trace_that_cannot_be_followed_is_taken_away() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (parent, kept) in [(valid, true), ("00-0af7-b7ad-01", false)] {
        proxy.ask(&format!(
            "{GET}traceparent: {parent}\r\nTracestate: a=b\r\n\r\n"
        ));
        let seen = node.seen();
        assert_eq!(seen.field("traceparent"), kept.then_some(valid));
        assert_eq!(seen.field("tracestate"), kept.then_some("a=b"));
    }
}

#[test]
fn a_client_of_http_1_0_may_leave_out_the_host() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    assert_eq!(proxy.ask("GET /p HTTP/1.0\r\n\r\n").status, 200);
    let seen = node.seen();
    assert!(
        seen.head.starts_with("GET /p HTTP/1.1\r\n"),
        "{}",
        seen.head
    );
    assert!(seen.head.contains("\r\nHost: \r\n"), "{}", seen.head);
}

#[test]
fn people_get_a_page_programs_a_problem_and_grpc_a_status() {
    let proxy = Setup::addresses(&[crate::harness::nobody()])
        .with("[service.hold]\nmax_wait = \"1100ms\"\n[service.retry]\nattempts = 1")
        .start();
    let view = crate::harness::closed(1, "a secret of ours");
    proxy.steering.publish(view);
    let page = proxy.ask(&format!("{GET}Accept: text/html,*/*;q=0.8\r\n\r\n"));
    assert_eq!((page.status, page.field("retry-after")), (503, Some("1")));
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
    let (id, text) = (page.field("x-request-id").unwrap(), page.text());
    assert!(
        text.starts_with("<!doctype html>") && text.contains(id),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
    let problem = proxy.ask(&format!("{GET}Accept: */*\r\n\r\n"));
    let kind = problem.field("content-type");
    assert_eq!(
        (problem.status, kind),
        (503, Some("application/problem+json"))
    );
    let call = "POST /p.S/M HTTP/1.1\r\nHost: shop.example\r\nContent-Type: application/grpc+proto\r\nContent-Length: 5\r\n\r\n";
    let mut client = proxy.client();
    client.send(call);
    client.send([0; 5]);
    let grpc = client.answer();
    assert_eq!((grpc.status, grpc.field("grpc-status")), (200, Some("14")));
    assert!(grpc.body.is_empty() && grpc.field("proxy-status").is_some());
}
