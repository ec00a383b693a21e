//! What a client of HTTP/2 may take: in streams, in frames that carry nothing, in memory and in time.

use std::time::Duration;

use h2::Reason;

use crate::harness::http2::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw,
    SETTINGS, WINDOW_UPDATE, get, head,
};
use crate::harness::{Act, Node, Proxy, Setup};

const PRIORITY: u8 = 2;
const UNKNOWN: u8 = 99;

/// Sends until nobody listens any more; what the connection ended with.
fn flood(proxy: &Proxy, mut send: impl FnMut(&mut Raw, u32) -> bool) -> Option<Reason> {
    let mut raw = Raw::connect(proxy.address);
    // Far more than anybody needs; the end comes by the answer.
    for n in 0..20_000 {
        if !send(&mut raw, n) {
            break;
        }
    }
    raw.last_word()
}

/// Whoever comes next is served.
fn assert_well(proxy: &Proxy) {
    assert_eq!(proxy.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
}

#[test]
fn frames_that_carry_nothing_end_the_connection_before_they_are_a_burden() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    for (kind, payload) in [
        (PING, &[0; 8][..]),
        (SETTINGS, &[]),
        (PRIORITY, &[0, 0, 0, 0, 9]),
        (UNKNOWN, b"what"),
        (WINDOW_UPDATE, &[0, 0, 0, 1]),
    ] {
        let stream = u32::from(kind == PRIORITY);
        let ended = flood(&proxy, |raw, _| raw.try_send(kind, 0, stream, payload));
        assert!(
            matches!(ended, None | Some(Reason::ENHANCE_YOUR_CALM)),
            "{kind}: {ended:?}"
        );
    }
    assert_well(&proxy);
}

#[test]
fn a_body_of_crumbs_ends_the_connection() {
    let node = Node::start(|_| Act::Never);
    let proxy = Setup::new(&[&node]).start();
    for payload in [&b""[..], b"x"] {
        let ended = flood(&proxy, |raw, n| {
            let _ = n > 0 || raw.try_send(HEADERS, END_HEADERS, 1, &head("POST", &[("x", "y")]));
            raw.try_send(DATA, 0, 1, payload)
        });
        // Crumbs that a node takes as they come are borne; those that nobody takes are not.
        assert!(
            matches!(ended, None | Some(Reason::ENHANCE_YOUR_CALM)),
            "{ended:?}"
        );
    }
}

#[test]
fn a_header_block_without_end_ends_the_connection() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node]).start();
    for piece in [&b""[..], b"\x00\x01x\x01y"] {
        let ended = flood(&proxy, |raw, n| match n {
            0 => raw.try_send(HEADERS, END_STREAM, 1, &get(&[])),
            _ => raw.try_send(CONTINUATION, 0, 1, piece),
        });
        assert!(
            matches!(ended, None | Some(Reason::ENHANCE_YOUR_CALM)),
            "{ended:?}"
        );
    }
    assert_well(&proxy);
    assert_eq!(node.rest().len(), 1);
}

#[test]
fn requests_that_are_taken_back_as_fast_as_they_come_end_the_connection() {
    let node = Node::start(|seen| match seen.field("x-stay") {
        None => Act::ok("ok"),
        Some(_) => Act::Never,
    });
    let proxy = Setup::new(&[&node]).start();
    let mut raw = Raw::connect(proxy.address);
    let mut ended = false;
    for n in 0..5000_u32 {
        let stream = n * 2 + 1;
        ended = !raw.try_send(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream,
            &get(&[("x-stay", "1")]),
        ) || !raw.try_send(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
        if ended {
            break;
        }
        if n % 8 == 0 {
            // Not in one piece, so that they are begun.
            raw.try_send(PING, 0, 0, &[0; 8]);
            let Some(frame) = raw.find(|frame| matches!(frame.kind, PING | GOAWAY)) else {
                ended = true;
                break;
            };
            if frame.kind == GOAWAY {
                assert_eq!(frame.reason(), Reason::ENHANCE_YOUR_CALM);
                ended = true;
                break;
            }
        }
    }
    assert!(ended || raw.last_word() == Some(Reason::ENHANCE_YOUR_CALM));
    let begun = node.rest().len();
    assert!(begun < 600, "{begun}");
    assert_well(&proxy);
}

#[test]
fn requests_that_make_us_take_them_back_end_the_connection() {
    let node = Node::start(|seen| match seen.field("x-stay") {
        None => Act::ok("ok"),
        Some(_) => Act::Never,
    });
    let proxy = Setup::new(&[&node]).start();
    let mut raw = Raw::connect(proxy.address);
    let mut resets = 0;
    for n in 0..5000_u32 {
        let stream = n * 2 + 1;
        // A window that is opened too far is an error of the stream.
        let sent = raw.try_send(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream,
            &get(&[("x-stay", "1")]),
        ) && raw.try_send(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]);
        let frame = raw.find(|frame| matches!(frame.kind, RST_STREAM | GOAWAY));
        match frame {
            Some(frame) if frame.kind == RST_STREAM => resets += 1,
            _ => break,
        }
        assert!(sent);
    }
    assert!((100..1000).contains(&resets), "{resets}");
    assert_well(&proxy);
}

#[test]
fn more_streams_than_allowed_are_refused_and_the_others_go_on() {
    let (go, slow) = Act::ok("ok").when();
    let node = Node::acts([slow]);
    let proxy = Setup::new(&[&node]).limits("max_streams = 1").start();
    let mut raw = Raw::silent(proxy.address);
    raw.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    raw.send(SETTINGS, 0, 0, &[]);
    let settings = raw.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0);
    let told = settings.payload.chunks(6).find(|one| one[..2] == [0, 3]);
    assert_eq!(told, Some(&[0, 3, 0, 0, 0, 1][..]));
    raw.send(HEADERS, END_HEADERS | END_STREAM, 1, &get(&[]));
    raw.send(HEADERS, END_HEADERS | END_STREAM, 3, &get(&[]));
    let refused = raw.until(|frame| frame.kind == RST_STREAM);
    assert_eq!(
        (refused.stream, refused.reason()),
        (3, Reason::REFUSED_STREAM)
    );
    go.send(()).unwrap();
    assert_eq!(raw.until(|frame| frame.kind == HEADERS).stream, 1);
    assert_eq!(node.rest().len(), 1);
}

#[test]
fn a_head_that_is_too_large_is_refused_and_the_connection_goes_on() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("max_header_bytes = \"8KiB\", max_headers = 10")
        .start();
    let mut raw = Raw::connect(proxy.address);
    let (long, huge) = ("x".repeat(9000), "x".repeat(15_000));
    let crumbs = [("cookie", "a=1"); 50];
    for (n, (more, status)) in [
        (&[("x", "y"); 20][..], 431),
        (&[("x", long.as_str())], 431),
        // Beyond this the library answers.
        (&[("x", huge.as_str())], 431),
        (&crumbs, 200),
        (&[("x", "y"); 5], 200),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = u32::try_from(n * 2 + 1).unwrap();
        raw.send(HEADERS, END_HEADERS | END_STREAM, stream, &get(more));
        let answer = raw.until(|frame| frame.kind == HEADERS);
        assert_eq!((answer.stream, answer.status()), (stream, status));
    }
    let lines = proxy.log();
    let refused = lines.iter().filter(|line| line["status"] == 431);
    assert_eq!(refused.count(), 3);
}

#[test]
fn whoever_is_slow_with_the_beginning_is_not_waited_for() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("header_timeout = \"300ms\", idle_timeout = \"60s\"")
        .start();
    let mut preface = Raw::silent(proxy.address);
    preface.write(b"PRI * HTTP/2.0\r\n\r\nSM");
    preface.find(|_| false);
    let mut block = Raw::connect(proxy.address);
    block.send(HEADERS, END_STREAM, 1, &get(&[]));
    assert_eq!(block.last_word(), Some(Reason::ENHANCE_YOUR_CALM));
    let mut cut = Raw::connect(proxy.address);
    cut.write(&[
        0,
        0,
        50,
        HEADERS,
        END_HEADERS | END_STREAM,
        0,
        0,
        0,
        1,
        0x82,
    ]);
    assert_eq!(cut.last_word(), Some(Reason::ENHANCE_YOUR_CALM));
    assert!(node.rest().is_empty());
}

#[test]
fn an_idle_connection_is_told_to_go_and_a_busy_one_is_not() {
    let (go, slow) = Act::ok("ok").when();
    let node = Node::acts([slow]);
    let proxy = Setup::new(&[&node])
        .limits("idle_timeout = \"300ms\"")
        .start();
    let mut busy = Raw::connect(proxy.address);
    busy.send(HEADERS, END_HEADERS | END_STREAM, 1, &get(&[]));
    node.seen();
    let mut idle = Raw::connect(proxy.address);
    assert_eq!(idle.last_word(), Some(Reason::NO_ERROR));
    go.send(()).unwrap();
    assert_eq!(busy.until(|frame| frame.kind == HEADERS).status(), 200);
    assert_eq!(busy.last_word(), Some(Reason::NO_ERROR));
}

#[test]
fn a_window_that_does_not_open_costs_the_stream_and_not_the_connection() {
    let node = Node::start(|_| Act::ok(&"x".repeat(100_000)));
    let proxy = Setup::new(&[&node])
        .limits("body_idle_timeout = \"300ms\"")
        .start();
    let mut raw = Raw::silent(proxy.address);
    raw.begin(&[(4, 1000)]);
    raw.send(HEADERS, END_HEADERS | END_STREAM, 1, &get(&[]));
    let reset = raw.until(|frame| frame.kind == RST_STREAM);
    assert_eq!((reset.stream, reset.reason()), (1, Reason::CANCEL));
    raw.send(PING, 0, 0, &[0; 8]);
    raw.until(|frame| frame.kind == PING);
    assert_eq!(proxy.log()[0]["closed_by"], "client");
}

#[test]
fn a_client_that_does_not_read_costs_a_bounded_amount_and_only_for_a_while() {
    let node = Node::start(|_| Act::ok(&"x".repeat(8 << 20)));
    let proxy = Setup::new(&[&node])
        .limits("body_idle_timeout = \"500ms\"")
        .start();
    let mut raw = Raw::silent(proxy.address);
    raw.begin(&[(4, (1 << 31) - 1)]);
    raw.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    for n in 0..10 {
        raw.send(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, &get(&[]));
    }
    proxy.until("it is given up", |proxy| {
        proxy.log_text().lines().count() == 10
    });
    for line in proxy.log() {
        assert_eq!(line["closed_by"], "client");
        // What the system's buffers took, and ours.
        assert!(line["bytes_out"].as_u64() < Some(7 << 20), "{line}");
    }
    let _ = raw.stream();
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("body_idle_timeout = \"300ms\"")
        .start();
    let mut raw = Raw::connect(proxy.address);
    raw.send(
        HEADERS,
        END_HEADERS,
        1,
        &head("POST", &[("content-length", "5")]),
    );
    raw.send(DATA, 0, 1, b"he");
    assert_eq!(raw.until(|frame| frame.kind == HEADERS).status(), 408);
}

#[test]
fn a_connection_of_many_quick_requests_is_not_idle() {
    let node = Node::ok();
    let proxy = Setup::new(&[&node])
        .limits("idle_timeout = \"300ms\"")
        .start();
    let mut raw = Raw::connect(proxy.address);
    let began = shared::clock::now();
    let mut stream = 1;
    while shared::clock::now() - began < Duration::from_secs(2) {
        raw.send(HEADERS, END_HEADERS | END_STREAM, stream, &get(&[]));
        let answer = raw.until(|frame| {
            assert_ne!(frame.kind, GOAWAY);
            frame.kind == DATA
        });
        assert_eq!(answer.stream, stream);
        stream += 2;
    }
}

#[test]
fn every_stream_of_a_slow_reader_gets_its_turn() {
    const STREAMS: u32 = 4;
    // More than the buffers of the system take from whoever is first.
    const LENGTH: usize = 16 << 20;
    let node = Node::start(|_| Act::ok(&"x".repeat(LENGTH)));
    let proxy = Setup::new(&[&node]).start();
    let mut raw = Raw::silent(proxy.address);
    raw.begin(&[(4, (1 << 31) - 1)]);
    raw.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    for n in 0..STREAMS {
        raw.send(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, &get(&[]));
    }
    (0..STREAMS).for_each(|_| drop(node.seen()));
    let (mut left, mut came) = (STREAMS, vec![0; STREAMS as usize]);
    while left > 0 {
        let data = raw.until(|frame| frame.kind == DATA);
        came[data.stream as usize / 2] += data.payload.len();
        if data.flags & END_STREAM != 0 {
            left -= 1;
            let least = came.iter().min();
            assert!(
                least > Some(&(1 << 20)),
                "one is done before others have begun: {came:?}"
            );
        }
    }
    assert!(came.iter().all(|length| *length == LENGTH));
}
