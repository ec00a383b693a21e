//! Claims about connections: which are given out, which are kept, and who waits.

use super::*;
use crate::config::Address;
use crate::exchange::{Body, Deadlines, Head, Upload};
use crate::logic::NodeId;
use http_body_util::BodyExt;
use shared::clock;
use std::cell::Cell;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

/// A node that counts connections and answers every request with a few fields and "ok".
struct Node {
    address: SocketAddr,
    accepted: Rc<Cell<usize>>,
}

async fn node(fields: &'static str, close_after: Option<usize>) -> Node {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (address, accepted) = (listener.local_addr().unwrap(), Rc::new(Cell::new(0)));
    let count = Rc::clone(&accepted);
    spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.set(count.get() + 1);
            spawn_local(async move {
                let mut served = 0;
                let mut request = [0; 1024];
                while stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nok");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    served += 1;
                    if close_after == Some(served) {
                        return;
                    }
                }
            });
        }
    });
    Node { address, accepted }
}

fn pool(address: SocketAddr, connections: usize) -> Rc<Pool> {
    let endpoint = Endpoint::Tcp(Address {
        host: address.ip().to_string(),
        port: address.port(),
    });
    let limits = PoolLimits {
        cap: Cap::new(connections, 1024, 1),
        lane: 0,
        connect: Duration::from_secs(1),
        wait: Duration::from_millis(200),
    };
    let terms = Terms {
        node: NodeId(0),
        idle: Duration::from_secs(1),
        deadlines: Deadlines::default(),
    };
    Pool::new(endpoint, limits, terms)
}

/// Lets time pass, as far as the pool is concerned.
fn pass(pool: &Pool, span: Duration) {
    for _ in 0..span.as_millis() / TICK.as_millis() {
        pool.terms.deadlines.tick();
    }
}

fn attempt(method: &str) -> Attempt {
    Attempt {
        head: Rc::new(Head::plain(method.parse().unwrap(), "/")),
        upload: Upload::none(),
        node: NodeId(0),
        began: clock::now(),
        fresh: false,
        trail: Rc::new(Trail::for_test()),
    }
}

async fn ask(pool: &Rc<Pool>, method: &str) -> Result<Body, Fault> {
    pool.exchange(attempt(method))
        .await
        .map(|response| response.body)
}

fn local(test: impl Future<Output = ()> + 'static) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default());
    runtime.unwrap().block_on(test);
}

#[test]
fn a_connection_is_used_again_until_it_has_been_idle_for_too_long() {
    local(async {
        let node = node("", None).await;
        let pool = pool(node.address, 8);
        for _ in 0..3 {
            let body = ask(&pool, "GET").await.unwrap();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "ok");
        }
        assert_eq!((node.accepted.get(), pool.count()), (1, (1, 1)));
        pass(&pool, Duration::from_secs(3));
        ask(&pool, "GET").await.unwrap();
        assert_eq!((node.accepted.get(), pool.count()), (2, (1, 1)));
        pass(&pool, Duration::from_secs(3));
        pool.reap();
        assert_eq!(pool.count(), (0, 0));
    });
}

#[test]
fn what_must_not_be_made_twice_gets_a_recent_connection_or_a_new_one() {
    local(async {
        let node = node("", None).await;
        let pool = pool(node.address, 8);
        ask(&pool, "GET").await.unwrap();
        pass(&pool, Duration::from_millis(100));
        ask(&pool, "POST").await.unwrap();
        assert_eq!(node.accepted.get(), 1);
        pass(&pool, Duration::from_secs(1));
        ask(&pool, "POST").await.unwrap();
        assert_eq!((node.accepted.get(), pool.count().0), (2, 2));
        let fresh = Attempt {
            fresh: true,
            ..attempt("GET")
        };
        pool.exchange(fresh).await.unwrap();
        assert_eq!(node.accepted.get(), 3);
    });
}

#[test]
fn the_node_s_own_word_on_keeping_connections_counts() {
    local(async {
        for (fields, later, again) in [
            ("Keep-Alive: timeout=5\r\n", 3, true),
            ("Keep-Alive: timeout=5\r\n", 6, false),
            ("Keep-Alive: timeout=1\r\n", 1, false),
        ] {
            let node = node(fields, None).await;
            let pool = pool(node.address, 8);
            ask(&pool, "GET").await.unwrap();
            pass(&pool, Duration::from_secs(later));
            ask(&pool, "GET").await.unwrap();
            assert_eq!(node.accepted.get() == 1, again, "{fields} after {later} s");
        }
    });
}

#[test]
fn a_connection_that_the_node_has_closed_is_not_given_out() {
    local(async {
        let node = node("", Some(1)).await;
        let pool = pool(node.address, 8);
        for n in 1..=20 {
            ask(&pool, "POST").await.unwrap();
            assert_eq!(node.accepted.get(), n);
            // The node's end is seen by the system before it is seen by the runtime; a careful look finds it.
            while is_silent(&mut pool.idle.borrow_mut()[0], true) {
                tokio::task::yield_now().await;
            }
        }
    });
}

#[test]
fn connections_are_bounded_and_those_who_wait_get_them_in_turn() {
    local(async {
        let node = node("", None).await;
        let pool = pool(node.address, 2);
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let pool = Rc::clone(&pool);
                spawn_local(async move { ask(&pool, "GET").await.is_ok() })
            })
            .collect();
        for task in tasks {
            assert!(task.await.unwrap());
        }
        assert_eq!((node.accepted.get(), pool.count().1), (2, 2));
        // Both taken by requests that nobody finishes: the third is told so in time.
        let _held = [pool.place().unwrap(), pool.place().unwrap()];
        let refused = ask(&pool, "GET").await;
        let full = matches!(refused, Err(Fault::Upstream(fault)) if fault.cause == Cause::Full);
        assert!(full && pool.limits.cap.waiting() == 0);
    });
}

#[test]
fn a_refused_connection_was_never_sent_and_gives_its_place_back() {
    local(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let pool = pool(address, 1);
        for _ in 0..3 {
            let Err(Fault::Upstream(fault)) = ask(&pool, "POST").await else {
                panic!("answered");
            };
            assert_eq!((fault.reach, fault.cause), (Reach::Connect, Cause::Refused));
        }
        assert_eq!(pool.count(), (0, 0));
        assert_eq!(knock(&pool, Duration::from_secs(1)).await, Some(false));
    });
}
