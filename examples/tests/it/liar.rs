//! The audit must be able to fail: a proxy that lies in each of the ways that are promised not to happen is found out.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use examples::audit::{Books, Verdict};
use examples::client::Client;
use examples::load::{Load, Plan};
use examples::stack::Side;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use shared::clock;
use tokio::net::TcpListener;

use crate::{rehearse, shop};

static ORDERS: AtomicU64 = AtomicU64::new(0);

/// Passes everything on, but of every ten orders it swallows one that it says was accepted, sends one twice, and refuses one
/// after it has sent it.
async fn lie(shop: &Client, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let within = Duration::from_secs(10);
    let path = request.uri().path().to_owned();
    if request.method() == Method::GET {
        return relay(shop.get(&path, within).await.unwrap());
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    match ORDERS.fetch_add(1, Ordering::Relaxed) % 10 {
        3 => {
            let order: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let told = format!(r#"{{"id":1,"ref":{}}}"#, order["ref"]);
            answer(StatusCode::CREATED, told.into())
        }
        5 => {
            shop.post(&path, body.clone(), within).await.unwrap();
            relay(shop.post(&path, body, within).await.unwrap())
        }
        7 => {
            shop.post(&path, body, within).await.unwrap();
            answer(StatusCode::SERVICE_UNAVAILABLE, Bytes::new())
        }
        _ => relay(shop.post(&path, body, within).await.unwrap()),
    }
}

fn relay(from: examples::client::Answer) -> Response<Full<Bytes>> {
    answer(from.status, from.body)
}

fn answer(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer
}

async fn serve(shop: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let shop = std::sync::Arc::new(Client::new(shop));
        while let Ok((socket, _)) = listener.accept().await {
            let shop = std::sync::Arc::clone(&shop);
            tokio::spawn(async move {
                let lie = service_fn(|request| async {
                    Ok::<_, std::convert::Infallible>(lie(&shop, request).await)
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), lie)
                    .await;
            });
        }
    });
    address
}

#[test]
fn a_proxy_that_loses_doubles_or_contradicts_itself_is_found_out() {
    rehearse(async {
        let (stack, _) = shop::alone().await?;
        let liar = serve(stack.app(Side::A)).await;
        let load = Load::start(liar, Plan::standard("liar", 3));
        clock::sleep(Duration::from_secs(2)).await;
        let ledger = load.finish().await;
        let verdict = Verdict::of(&ledger, &Books::read(&stack.database(Side::A))?.orders);
        let orders = ledger.orders.len();
        for (what, found) in [
            ("lost", &verdict.lost),
            ("doubled", &verdict.doubled),
            ("contradicted", &verdict.contradicted),
        ] {
            let tenth = orders / 10;
            assert!(
                found.len().abs_diff(tenth) <= 1,
                "{what}: {} of {orders}",
                found.len()
            );
        }
        assert_eq!(verdict.broken(0).len(), 3);
        Ok(())
    });
}
