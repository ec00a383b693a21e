//! A node that speaks HTTP/2, by the library that others use, too.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use super::front::run;

/// A request as the node saw it.
pub(crate) type SeenHead = http::request::Parts;

/// It answers `/echo` with the body, `/trailers` with trailers, `/big` with 2 MiB, `/wait` when it is told to, and anything
/// else with "ok".
pub(crate) struct Http2Node {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    go: watch::Sender<bool>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    connections: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    seen: Mutex<Vec<SeenHead>>,
}

impl Http2Node {
    pub(crate) fn start(streams: u32) -> Self {
        let state = Arc::<State>::default();
        let (go, told) = watch::channel(false);
        let (ready, opened) = std::sync::mpsc::channel();
        let shared = Arc::clone(&state);
        let (stop, thread) = run(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ready.send(listener.local_addr().unwrap()).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, told) = (Arc::clone(&shared), told.clone());
                tokio::spawn(async move {
                    let mut builder = Builder::new();
                    builder.max_concurrent_streams(streams);
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
                        return;
                    };
                    state.connections.fetch_add(1, SeqCst);
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(answer(request, respond, Arc::clone(&state), told.clone()));
                    }
                });
            }
        });
        Self {
            address: opened.recv().unwrap(),
            state,
            go,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("h2c://{}", self.address)
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// Requests that wait to be answered now, and the most that did at once.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.state.now.load(SeqCst), self.state.most.load(SeqCst))
    }

    /// Answers what waits.
    pub(crate) fn go(&self) {
        self.go.send_replace(true);
    }

    /// The heads of all requests so far.
    pub(crate) fn seen(&self) -> Vec<SeenHead> {
        self.state.seen.lock().unwrap().clone()
    }
}

impl Drop for Http2Node {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Counts as waiting.
struct Here(Arc<State>);

impl Drop for Here {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    state: Arc<State>,
    mut told: watch::Receiver<bool>,
) {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    state.seen.lock().unwrap().push(head);
    let now = state.now.fetch_add(1, SeqCst) + 1;
    state.most.fetch_max(now, SeqCst);
    let here = Here(state);
    let mut trailers = None;
    let text = match &*path {
        "/wait" => {
            let gone = std::future::poll_fn(|context| respond.poll_reset(context));
            tokio::select! {
                _ = told.wait_for(|go| *go) => (),
                _ = gone => return,
            }
            Bytes::from("waited")
        }
        "/big" => Bytes::from(vec![b'x'; 2 << 20]),
        "/trailers" => {
            let mut fields = HeaderMap::new();
            fields.insert("grpc-status", "0".parse().unwrap());
            trailers = Some(fields);
            Bytes::from("message")
        }
        "/echo" => {
            let mut all = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                all.extend_from_slice(&data);
            }
            Bytes::from(all)
        }
        _ => Bytes::from("ok"),
    };
    drop(here);
    let mut response = Response::new(());
    response
        .headers_mut()
        .insert("x-served", "yes".parse().unwrap());
    let Ok(stream) = respond.send_response(response, false) else {
        return;
    };
    send(stream, text, trailers).await;
}

async fn send(mut stream: SendStream<Bytes>, mut text: Bytes, trailers: Option<HeaderMap>) {
    while !text.is_empty() {
        stream.reserve_capacity(text.len());
        let capacity = std::future::poll_fn(|context| stream.poll_capacity(context)).await;
        let Some(Ok(capacity)) = capacity else { return };
        let piece = text.split_to(capacity.min(text.len()));
        if stream.send_data(piece, false).is_err() {
            return;
        }
    }
    let _ = match trailers {
        Some(trailers) => stream.send_trailers(trailers),
        None => stream.send_data(Bytes::new(), true),
    };
}
