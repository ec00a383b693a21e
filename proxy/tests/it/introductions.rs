//! Connections through a load balancer that says for whom they are.

use std::io::{Read, Write};
use std::time::Duration;

use shared::clock;

use crate::harness::{Client, Node, Proxy, Setup};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const LINE: &str = "PROXY TCP4 192.0.2.7 10.0.0.9 56324 443\r\n";

/// Version 2, from 192.0.2.7 or of the load balancer's own.
fn binary(is_local: bool) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend([if is_local { 0x20 } else { 0x21 }, 0x11, 0, 17]);
    bytes.extend([192, 0, 2, 7, 10, 0, 0, 9, 0xdc, 4, 1, 0xbb]);
    bytes.extend([4, 0, 2, 0, 0]);
    bytes
}

fn refused(proxy: &Proxy, reason: &str) -> u64 {
    let listener = proxy.address.to_string();
    let family = &proxy.metrics.client_connections_refused;
    family.with_label_values(&[&listener, reason]).get()
}

/// Waits until nothing more comes; what came.
fn rest(client: &Client) -> Vec<u8> {
    let mut said = Vec::new();
    // What was not read of the client's may reset the connection.
    let _ = client.stream().read_to_end(&mut said);
    said
}

#[test]
fn the_client_is_whom_the_load_balancer_names() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .listener("proxy_protocol = \"accept\"\nproxy_protocol_from = [\"127.0.0.0/8\"]")
        .start();
    for (header, client) in [
        (LINE.as_bytes().to_vec(), "192.0.2.7"),
        (
            b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec(),
            "2001:db8::7",
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (binary(false), "192.0.2.7"),
        (binary(true), "127.0.0.1"),
    ] {
        // The address is taken for the client's also where it is trusted: a stranger's word is replaced.
        let said = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n";
        let mut at_once = proxy.client();
        at_once.send([&header[..], said.as_bytes(), said.as_bytes()].concat());
        assert_eq!(at_once.answer().status, 200);
        assert_eq!(at_once.answer().status, 200);
        let mut in_pieces = proxy.client();
        for byte in &header {
            in_pieces.send([*byte]);
        }
        assert_eq!(in_pieces.ask(said).status, 200);
        for _ in 0..3 {
            let chain = node.seen().field("x-forwarded-for").unwrap().to_owned();
            let believed = format!("9.9.9.9, {client}");
            let expected = if client == "127.0.0.1" {
                &believed
            } else {
                client
            };
            assert_eq!(chain, expected, "{client}");
        }
    }
    let log = proxy.log();
    let count = |client: &str| log.iter().filter(|line| line["client"] == client).count();
    assert_eq!((count("192.0.2.7"), count("2001:db8::7")), (6, 3));
}

#[test]
fn who_does_not_say_it_is_refused() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .listener("proxy_protocol = \"accept\"")
        .limits("header_timeout = \"300ms\"")
        .start();
    for begin in [
        GET,
        "PROXY TCP4 a b c d\r\n",
        "\r\n\r\n\0\r\nQUIT\n\x11\x11\0\0",
        "",
        "PROXY ",
    ] {
        let before = refused(&proxy, "proxy-protocol");
        let mut client = proxy.client();
        client.try_send(begin);
        assert_eq!(rest(&client), b"", "{begin:?}");
        proxy.until("it is counted", |proxy| {
            refused(proxy, "proxy-protocol") == before + 1
        });
    }
    // A look whether somebody listens is none.
    let before = refused(&proxy, "proxy-protocol");
    drop(proxy.client());
    assert_eq!(proxy.ask(&format!("{LINE}{GET}")).status, 200);
    assert_eq!(refused(&proxy, "proxy-protocol"), before);
    assert_eq!(node.rest().len(), 1);
}

#[test]
fn a_header_that_trickles_ends_by_the_head_s_deadline() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .listener("proxy_protocol = \"accept\"")
        .limits("header_timeout = \"400ms\"")
        .start();
    let began = clock::now();
    let mut client = proxy.client();
    let mut bytes = LINE.bytes();
    while client.is_silent(Duration::from_millis(50)) {
        let Some(byte) = bytes.next() else { break };
        client.try_send([byte]);
    }
    assert!(
        bytes.next().is_some(),
        "it was given all the time it wanted"
    );
    assert!(clock::now() - began >= Duration::from_millis(350));
}

#[test]
fn strangers_may_not_say_for_whom_they_come() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .listener("proxy_protocol = \"accept\"\nproxy_protocol_from = [\"10.0.0.0/8\", \"::1\"]")
        .start();
    let mut client = proxy.client();
    client.try_send(format!("{LINE}{GET}"));
    assert_eq!(rest(&client), b"");
    proxy.until("it is counted", |proxy| {
        refused(proxy, "untrusted-proxy") == 1
    });
    assert!(node.rest().is_empty());
}

#[test]
fn too_many_connections_are_told_so_behind_a_load_balancer_too() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .listener("proxy_protocol = \"accept\"")
        .limits("max_connections = 1")
        .start();
    let mut guest = proxy.client();
    assert_eq!(guest.ask(format!("{LINE}{GET}")).status, 200);
    let mut second = proxy.client();
    assert_eq!(second.ask(format!("{LINE}{GET}")).status, 503);
    assert_eq!(refused(&proxy, "too-many"), 1);
}

#[test]
fn a_drain_does_not_wait_for_a_header() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .listener("proxy_protocol = \"accept\"")
        .start();
    let mut client = proxy.client();
    client.send("PROXY TCP4");
    client.stream().flush().unwrap();
    proxy.until("it is there", |proxy| {
        let listener = proxy.address.to_string();
        let family = &proxy.metrics.client_connections;
        family.with_label_values(&[&listener]).get() == 1
    });
    proxy.begin_drain();
    assert_eq!(rest(&client), b"");
}
