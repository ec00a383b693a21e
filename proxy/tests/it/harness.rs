//! What the tests share: a proxy steered by hand, nodes that follow a script, clients that say exactly what a test wants.

pub(crate) mod client;
pub(crate) mod front;
pub(crate) mod grpc;
pub(crate) mod gunicorn;
pub(crate) mod http2;
pub(crate) mod http2_node;
pub(crate) mod node;
pub(crate) mod program;
pub(crate) mod season;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use proxy::config::{self, Settings};
use proxy::layer::access_log;
use proxy::logic::NodeId;
use proxy::metrics::Metrics;
use proxy::steer::{Sign, Steering, View};
use proxy::worker::{ServiceHandle, Workers, start};
use shared::clock;
use shared::drain::{self, Signal};
use shared::model::{Epoch, Position, Positions};
use tokio::sync::mpsc;

pub(crate) use client::{Answer, Client};
pub(crate) use node::{Act, Node, Seen};

/// No step of a test takes this long unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const A: NodeId = NodeId(0);
pub(crate) const B: NodeId = NodeId(1);

/// Serving from node a in epoch 1.
pub(crate) fn open(epoch: u64, target: NodeId) -> View {
    View {
        epoch: Epoch(epoch),
        target: Some(target),
        phase: "serving",
        ..View::default()
    }
}

/// Nobody takes requests.
pub(crate) fn closed(epoch: u64, why: &str) -> View {
    View {
        target: None,
        why: Some(why.into()),
        ..open(epoch, A)
    }
}

/// A position of the only source.
pub(crate) fn at(epoch: u64, seq: u64) -> Positions {
    let position = Position {
        epoch: Epoch(epoch),
        generation: 0,
        seq,
    };
    Positions([("db".to_owned(), position)].into())
}

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// A running data plane of one service.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) steering: Arc<Steering>,
    pub(crate) handle: ServiceHandle,
    pub(crate) metrics: Metrics,
    signs: mpsc::Receiver<Sign>,
    signal: Option<Signal>,
    workers: Option<Workers>,
    writer: Option<access_log::Writer>,
    folder: PathBuf,
}

/// How a proxy is set up.
pub(crate) struct Setup {
    nodes: Vec<String>,
    syncds: Vec<SocketAddr>,
    first: View,
    tables: String,
    listener: String,
    threads: usize,
}

impl Setup {
    pub(crate) fn new(nodes: &[&Node]) -> Self {
        Self {
            nodes: nodes
                .iter()
                .map(|node| format!("http://{}", node.address))
                .collect(),
            syncds: Vec::new(),
            first: open(1, A),
            tables: String::new(),
            listener: String::new(),
            threads: 1,
        }
    }

    pub(crate) fn addresses(nodes: &[SocketAddr]) -> Self {
        Self {
            nodes: nodes.iter().map(|node| format!("http://{node}")).collect(),
            ..Self::new(&[])
        }
    }

    /// Nodes by their URLs.
    pub(crate) fn urls<'u>(urls: impl IntoIterator<Item = &'u str>) -> Self {
        Self {
            nodes: urls.into_iter().map(str::to_owned).collect(),
            ..Self::new(&[])
        }
    }

    pub(crate) fn syncds(mut self, syncds: &[&Node]) -> Self {
        self.syncds = syncds.iter().map(|node| node.address).collect();
        self
    }

    pub(crate) fn view(mut self, first: View) -> Self {
        self.first = first;
        self
    }

    /// Adds tables of the service, such as `[service.hold]`.
    pub(crate) fn with(mut self, tables: &str) -> Self {
        self.tables.push_str(tables);
        self.tables.push('\n');
        self
    }

    /// Adds keys to the listener's limits.
    pub(crate) fn limits(self, limits: &str) -> Self {
        self.listener(&format!("limits = {{ {limits} }}"))
    }

    /// Adds keys to the listener, such as `tls = …`.
    pub(crate) fn listener(mut self, keys: &str) -> Self {
        self.listener.push_str(keys);
        self.listener.push('\n');
        self
    }

    pub(crate) fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    fn text(&self, service: &str) -> String {
        let mut text = format!(
            "state_dir = \"state\"\nthreads = {}\ndrain_timeout = \"5s\"\naccess_log = {{ path = \"access.log\" }}\n[[listener]]\nbind = \"127.0.0.1:0\"\n{}\n[[service]]\nname = \"shop\"\n{service}\n",
            self.threads, self.listener
        );
        for (n, node) in self.nodes.iter().enumerate() {
            let name = char::from(b'a' + u8::try_from(n).unwrap());
            text += &format!("[[service.node]]\nname = \"{name}\"\nurl = \"{node}\"\n");
            if let Some(syncd) = self.syncds.get(n) {
                text += &format!("syncd = \"http://{syncd}\"\n");
            }
        }
        text + &self.tables
    }

    pub(crate) fn start(self) -> Proxy {
        self.start_as("")
    }

    /// With keys of the service itself, such as `hosts = …`.
    pub(crate) fn start_as(self, service: &str) -> Proxy {
        let number = FOLDERS.fetch_add(1, SeqCst);
        let name = format!("hotwarm-it-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("hotwarm.toml");
        fs::write(&path, self.text(service)).unwrap();
        let settings = config::load(&path).unwrap_or_else(|error| panic!("{error}"));
        Proxy::run(Arc::new(settings), self.first, folder)
    }
}

impl Proxy {
    fn run(settings: Arc<Settings>, first: View, folder: PathBuf) -> Self {
        let metrics = Metrics::default();
        let lanes = settings.threads;
        let (steering, signs) = Steering::new(lanes, first);
        let service = Arc::clone(&settings.services[0]);
        let handle = ServiceHandle::new(service, Arc::clone(&steering), lanes, &metrics);
        let log = settings.access_log.as_ref().map(|log| {
            let dropped = metrics.access_log_dropped.with_label_values::<&str>(&[]);
            access_log::start(log, dropped).unwrap()
        });
        let (log, writer) = log.unzip();
        let (signal, watch) = drain::channel();
        let handles = [handle.clone()];
        let workers = start(&settings, &handles, &metrics, log, watch).unwrap();
        Self {
            address: workers.addresses()[0],
            steering,
            handle,
            metrics,
            signs,
            signal: Some(signal),
            workers: Some(workers),
            writer,
            folder,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// One request on a connection of its own.
    pub(crate) fn ask(&self, request: &str) -> Answer {
        self.client().ask(request)
    }

    /// The next thing that the data plane said.
    pub(crate) fn sign(&mut self) -> Sign {
        let until = clock::now() + PATIENCE;
        loop {
            match self.signs.try_recv() {
                Ok(sign) => return sign,
                Err(_) if clock::now() < until => clock::pause_thread(Duration::from_millis(1)),
                Err(_) => panic!("no sign"),
            }
        }
    }

    /// Reads signs until this one; others may come before.
    pub(crate) fn await_sign(&mut self, wanted: Sign) {
        while self.sign() != wanted {}
    }

    /// Everything that was said so far.
    pub(crate) fn signs(&mut self) -> Vec<Sign> {
        std::iter::from_fn(|| self.signs.try_recv().ok()).collect()
    }

    /// Waits until something is so.
    pub(crate) fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = clock::now() + PATIENCE;
        while !is_so(self) {
            assert!(clock::now() < until, "in vain: {what}");
            clock::pause_thread(Duration::from_millis(1));
        }
    }

    /// Tells the workers to finish, without waiting.
    pub(crate) fn begin_drain(&self) {
        if let Some(signal) = &self.signal {
            signal.begin();
        }
    }

    /// Waits until every worker has ended.
    pub(crate) fn join(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.join();
        }
    }

    /// The access log as it is now.
    pub(crate) fn log_text(&self) -> String {
        fs::read_to_string(self.folder.join("access.log")).unwrap()
    }

    /// Ends it; returns the lines of its access log.
    pub(crate) fn log(mut self) -> Vec<serde_json::Value> {
        self.finish();
        let text = self.log_text();
        let parse = |line| serde_json::from_str(line).unwrap();
        text.lines().map(parse).collect()
    }

    fn finish(&mut self) {
        self.begin_drain();
        self.join();
        if let Some(writer) = self.writer.take() {
            writer.finish(PATIENCE);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.finish();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// An address where nobody listens.
pub(crate) fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}
