//! Another door to a node: what comes to it is passed on to the node's own socket, byte by byte.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, copy, copy_bidirectional, split};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::Node;

static SOCKETS: AtomicU32 = AtomicU32::new(0);

/// A path for a socket that nobody has used.
pub(crate) fn socket_path() -> PathBuf {
    let number = SOCKETS.fetch_add(1, SeqCst);
    let name = format!("hotwarm-{}-{number}.sock", std::process::id());
    std::env::temp_dir().join(name)
}

/// What becomes of a connection whose node has closed.
#[derive(Clone, Copy)]
pub(crate) enum Ending {
    /// It is closed with the word that TLS has for it.
    Proper,
    /// It is cut.
    Cut,
}

/// A node's door.
pub(crate) struct Front {
    /// As it is written into the configuration.
    pub(crate) url: String,
    accepted: Arc<AtomicUsize>,
    handshakes: Arc<Mutex<Vec<HandshakeKind>>>,
    path: Option<PathBuf>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    /// A socket in the file system.
    pub(crate) fn unix(node: &Node) -> Self {
        let path = socket_path();
        let (to, at) = (node.address, path.clone());
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let (ready, opened) = std::sync::mpsc::channel();
        let (stop, thread) = run(async move {
            let listener = UnixListener::bind(at).unwrap();
            ready.send(()).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, SeqCst);
                tokio::spawn(pass(stream, to));
            }
        });
        opened.recv().unwrap();
        Self {
            url: format!("unix:{}", path.display()),
            accepted,
            handshakes: Arc::default(),
            path: Some(path),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// TLS.
    pub(crate) fn tls(node: &Node, config: Arc<ServerConfig>, ending: Ending) -> Self {
        Self::tls_at(node.address, config, ending)
    }

    /// TLS before whatever is at an address.
    pub(crate) fn tls_at(to: SocketAddr, config: Arc<ServerConfig>, ending: Ending) -> Self {
        let accepted = Arc::new(AtomicUsize::new(0));
        let handshakes = Arc::<Mutex<Vec<_>>>::default();
        let (count, kinds) = (Arc::clone(&accepted), Arc::clone(&handshakes));
        let (ready, opened) = std::sync::mpsc::channel();
        let (stop, thread) = run(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ready.send(listener.local_addr().unwrap()).unwrap();
            let acceptor = TlsAcceptor::from(config);
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, SeqCst);
                let (acceptor, kinds) = (acceptor.clone(), Arc::clone(&kinds));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    kinds
                        .lock()
                        .unwrap()
                        .extend(stream.get_ref().1.handshake_kind());
                    match ending {
                        Ending::Proper => pass(stream, to).await,
                        Ending::Cut => pass_and_cut(stream, to).await,
                    }
                });
            }
        });
        Self {
            url: format!("https://{}", opened.recv().unwrap()),
            accepted,
            handshakes,
            path: None,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The handshakes that came to their end, in their order.
    pub(crate) fn handshakes(&self) -> Vec<HandshakeKind> {
        self.handshakes.lock().unwrap().clone()
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(SeqCst)
    }

    /// Where the socket is.
    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap()
    }

    /// Closes it, and all connections with it. A socket's file stays, as that of a killed process does.
    pub(crate) fn kill(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.kill();
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Runs `work` on a thread of its own until the sender is dropped.
pub(crate) fn run(
    work: impl Future<Output = ()> + Send + 'static,
) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = oneshot::channel();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            tokio::select! {
                () = work => (),
                _ = stopped => (),
            }
        });
    });
    (stop, thread)
}

async fn pass(mut stream: impl AsyncRead + AsyncWrite + Unpin, to: SocketAddr) {
    let Ok(mut inner) = TcpStream::connect(to).await else {
        return;
    };
    let _ = copy_bidirectional(&mut stream, &mut inner).await;
}

/// Passes on until one side ends.
async fn pass_and_cut(stream: impl AsyncRead + AsyncWrite, to: SocketAddr) {
    let Ok(inner) = TcpStream::connect(to).await else {
        return;
    };
    let (mut from_proxy, mut to_proxy) = split(stream);
    let (mut from_node, mut to_node) = inner.into_split();
    tokio::select! {
        _ = copy(&mut from_proxy, &mut to_node) => (),
        _ = copy(&mut from_node, &mut to_proxy) => (),
    }
}
