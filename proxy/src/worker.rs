//! One thread per core: a runtime, its listeners, its stack, its pools. Nothing on the request path is shared for writing.
//!
//! Every worker listens on a socket of its own with the same address (`SO_REUSEPORT`); the system deals connections out.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use shared::rng::Rng;
use shared::{clock, drain};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::spawn_local;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;

use crate::config::{self, Limits, Settings};
use crate::exchange::{Deadlines, Fault, TICK, Unavailable};
use crate::layer::access_log::{AccessLog, Lines};
use crate::layer::breaker::Breakers;
use crate::layer::rescue;
use crate::logic::NodeId;
use crate::logic::breaker::Phase;
use crate::metrics::Metrics;
use crate::secret::Secret;
use crate::server::{Dates, Failures, Front, House, accept};
use crate::stack::{self, Built, Plan, Shared, Stack, Upkeep};
use crate::steer::Steering;
use crate::tls;

/// Connections that may wait to be accepted, for each worker.
const BACKLOG: i32 = 4096;
/// How long before the end of a drain the clients of tunnels are told of it.
const TUNNEL_GOODBYE: Duration = Duration::from_secs(2);
/// Every so many ticks connections are reaped and breakers add up.
const TIDY_EVERY: u32 = 5;

/// What the data plane needs of one service, and shows of it.
#[derive(Clone, Debug)]
pub struct ServiceHandle(Shared);

impl ServiceHandle {
    /// For `service`, steered by `steering`, which must have one lane per worker (`settings.threads`).
    #[must_use]
    pub fn new(
        service: Arc<config::Service>,
        steering: Arc<Steering>,
        lanes: usize,
        metrics: &Metrics,
    ) -> Self {
        let gauge = |node: &config::Node| {
            let labels = [&*service.name, &*node.name];
            metrics.breaker_state.with_label_values(&labels)
        };
        let gauges = service.nodes.iter().map(gauge).collect();
        let breakers = Breakers::new(service.breaker, gauges, lanes, Arc::clone(&steering));
        Self(Shared {
            service,
            steering,
            breakers,
            secret: Secret::fresh(),
        })
    }

    /// With cookies that other proxies with the same secret, and this one after a restart, know again.
    #[must_use]
    pub fn signed_with(mut self, secret: Secret) -> Self {
        self.0.secret = secret;
        self
    }

    /// What happens to the next request for `node`.
    #[must_use]
    pub fn breaker(&self, node: NodeId) -> Phase {
        self.0.breakers.phase(node)
    }

    /// How many requests `node` has answered well since the start.
    #[must_use]
    pub fn answers(&self, node: NodeId) -> u64 {
        self.0.breakers.successes(node)
    }

    /// The service's settings.
    #[must_use]
    pub const fn service(&self) -> &Arc<config::Service> {
        &self.0.service
    }

    /// The service's steering.
    #[must_use]
    pub const fn steering(&self) -> &Arc<Steering> {
        &self.0.steering
    }
}

/// Why the data plane does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A listener's address cannot be had.
    #[error("listen on {address}: {source}; {advice}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] tls::SetUpError),
    /// A worker cannot run.
    #[error("start a worker: {0}")]
    Worker(#[source] io::Error),
}

/// The running data plane.
#[derive(Debug)]
pub struct Workers {
    addresses: Vec<SocketAddr>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Where clients can connect, listener by listener, with the ports that were found for port 0.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits for every worker to end. They end when the drain has begun and requests are finished, or its time is over.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

/// Binds every listener and starts every worker. Requests are taken as soon as this returns.
///
/// # Errors
/// An address cannot be had, or a thread or its runtime cannot be made. Nothing is left running then.
pub fn start(
    settings: &Arc<Settings>,
    services: &[ServiceHandle],
    metrics: &Metrics,
    log: Option<AccessLog>,
    drain: drain::Watch,
) -> Result<Workers, StartError> {
    let lanes = settings.threads.max(1);
    tls::outgoing::watch(&encrypted(services))?;
    let mut sockets: Vec<Vec<Door>> = (0..lanes).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for listener in &settings.listeners {
        let (address, bound) = bind_all(listener.bind, lanes)?;
        addresses.push(address);
        let tls = match &*listener.tls {
            [] => None,
            certificates => {
                let numbers = tls::Numbers {
                    listener: address.to_string(),
                    expiry: metrics.tls_certificate_expiry.clone(),
                    reloads: metrics.tls_reloads.clone(),
                };
                let clients = listener.clients.clone();
                let offer = tls::offer(certificates.to_vec(), clients, numbers)?;
                Some(TlsAcceptor::from(offer))
            }
        };
        let connected = Arc::new(AtomicUsize::new(0));
        for (socket, lane) in bound.into_iter().zip(&mut sockets) {
            lane.push(Door {
                socket,
                shown: address.to_string(),
                limits: listener.limits,
                connected: Arc::clone(&connected),
                tls: tls.clone(),
                asks_certificates: listener.clients.is_some(),
                introducers: listener.introducers.clone(),
            });
        }
    }
    let (tell, told) = sync_channel(lanes);
    let mut threads = Vec::new();
    for (lane, doors) in sockets.into_iter().enumerate() {
        let worker = Worker {
            lane,
            lanes,
            doors,
            settings: Arc::clone(settings),
            services: services.iter().map(|handle| handle.0.clone()).collect(),
            metrics: metrics.clone(),
            log: log.clone(),
            drain: drain.clone(),
        };
        let tell = tell.clone();
        let name = format!("worker-{lane}");
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || worker.run(&tell));
        threads.push(thread.map_err(StartError::Worker)?);
    }
    drop(tell);
    for _ in 0..lanes {
        let started = told
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("it ended at once")));
        started.map_err(StartError::Worker)?;
    }
    Ok(Workers { addresses, threads })
}

/// How nodes are reached that speak TLS.
fn encrypted(services: &[ServiceHandle]) -> Vec<Arc<tls::outgoing::Outgoing>> {
    let nodes = services.iter().flat_map(|one| &one.0.service.nodes);
    nodes
        .filter_map(|node| match &node.endpoint {
            config::Endpoint::Tls(_, outgoing) => Some(Arc::clone(outgoing)),
            config::Endpoint::Tcp(_) | config::Endpoint::Unix(_) => None,
        })
        .collect()
}

/// One listener of one worker.
struct Door {
    socket: TcpListener,
    shown: String,
    limits: Limits,
    connected: Arc<AtomicUsize>,
    tls: Option<TlsAcceptor>,
    asks_certificates: bool,
    introducers: Option<Vec<config::Network>>,
}

/// One socket per lane on the same address.
fn bind_all(
    address: SocketAddr,
    lanes: usize,
) -> Result<(SocketAddr, Vec<TcpListener>), StartError> {
    let fail = |source: io::Error| StartError::Bind {
        advice: advice(&source),
        address,
        source,
    };
    // Sockets that share an address would share it with another program that does the same; so it is tried alone first.
    if address.port() != 0 {
        socket(address, false).map_err(fail)?;
    }
    let mut bound: Vec<TcpListener> = Vec::new();
    let mut found = address;
    for _ in 0..lanes {
        let listener = socket(found, true).and_then(|socket| {
            socket.listen(BACKLOG)?;
            let listener = TcpListener::from(socket);
            found = listener.local_addr()?;
            Ok(listener)
        });
        bound.push(listener.map_err(fail)?);
    }
    Ok((found, bound))
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    // Accepted connections inherit it.
    socket.set_tcp_nodelay(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn advice(error: &io::Error) -> &'static str {
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        "another program listens there: stop it (ss -ltnp shows which it is), or choose another port"
    } else if kind == io::ErrorKind::PermissionDenied {
        "ports below 1024 need root or CAP_NET_BIND_SERVICE: grant it, or choose another port"
    } else if kind == io::ErrorKind::AddrNotAvailable {
        "no interface of this machine has that address: choose one that it has, or 0.0.0.0"
    } else {
        "check the address"
    }
}

/// One worker before it runs.
struct Worker {
    lane: usize,
    lanes: usize,
    doors: Vec<Door>,
    settings: Arc<Settings>,
    services: Vec<Shared>,
    metrics: Metrics,
    log: Option<AccessLog>,
    drain: drain::Watch,
}

impl Worker {
    fn run(self, started: &SyncSender<io::Result<()>>) {
        let mut builder = Builder::new_current_thread();
        match builder.enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime.block_on(self.serve(started)),
            Err(error) => {
                let _ = started.try_send(Err(error));
            }
        }
    }

    async fn serve(self, started: &SyncSender<io::Result<()>>) {
        let deadlines = Deadlines::default();
        let Built { stack, upkeep } = stack::build(Plan {
            lane: self.lane,
            lanes: self.lanes,
            services: &self.services,
            syncd_token: self.settings.syncd_token.as_deref(),
            metrics: &self.metrics,
            log: self.log.map(Lines::new),
            deadlines: deadlines.clone(),
            rng: Rng::with_seed(clock::unix_nanos() ^ (self.lane as u64) << 56),
        });
        let house = Rc::new(House::default());
        let upkeep = Rc::new(upkeep);
        let opened = open(self.doors, stack, &deadlines, &house, &self.metrics);
        let failed = opened.is_err();
        let accepting = match opened {
            Ok(accepting) => accepting,
            Err(error) => {
                let _ = started.try_send(Err(error));
                Vec::new()
            }
        };
        if failed {
            return;
        }
        for shared in &self.services {
            spawn_local(follow(Arc::clone(&shared.steering), deadlines.clone()));
        }
        spawn_local(keep_up(Rc::clone(&upkeep), deadlines.clone(), accepting));
        let _ = started.try_send(Ok(()));
        let mut drain = self.drain;
        drain.begun().await;
        house.close();
        deadlines.wake_all();
        // What is not finished by then is cut off. Tunnels never finish; their clients are told, and given time to hear it.
        let all = self.settings.drain_timeout;
        let goodbye = TUNNEL_GOODBYE.min(all / 4);
        if timeout(all - goodbye, house.empty()).await.is_err() {
            house.end();
            deadlines.wake_all();
            let _ = timeout(goodbye, house.empty()).await;
        }
        upkeep.flush();
    }
}

/// What is shown of a listener.
struct Shown {
    connected: Arc<AtomicUsize>,
    gauge: shared::metrics::IntGauge,
}

/// Begins to accept at every door.
fn open(
    doors: Vec<Door>,
    stack: Stack,
    deadlines: &Deadlines,
    house: &Rc<House>,
    metrics: &Metrics,
) -> io::Result<Vec<Shown>> {
    let service = Rc::new(RefCell::new(stack));
    let too_many = rescue::raw(&Fault::Unavailable(Unavailable::Connections));
    let mut shown = Vec::new();
    for door in doors {
        let listener = tokio::net::TcpListener::from_std(door.socket)?;
        let front = Front {
            service: Rc::clone(&service),
            limits: door.limits,
            deadlines: deadlines.clone(),
            connected: Arc::clone(&door.connected),
            too_many: too_many.clone(),
            dates: Dates::default(),
            house: Rc::clone(house),
            tls: door.tls,
            asks_certificates: door.asks_certificates,
            introducers: door.introducers,
            failures: Failures::new(&door.shown, metrics),
        };
        spawn_local(accept(listener, Rc::new(front)));
        shown.push(Shown {
            connected: door.connected,
            gauge: metrics.client_connections.with_label_values(&[&door.shown]),
        });
    }
    Ok(shown)
}

/// Wakes everything that waits when a view changes, so that requests at a node that lost its role are given up at once.
async fn follow(steering: Arc<Steering>, deadlines: Deadlines) {
    let mut changes = steering.changes();
    while changes.changed().await.is_ok() {
        deadlines.wake_all();
    }
}

async fn keep_up(upkeep: Rc<Upkeep>, deadlines: Deadlines, listeners: Vec<Shown>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        deadlines.tick();
        upkeep.flush();
        for listener in &listeners {
            let connected = listener.connected.load(Relaxed);
            listener
                .gauge
                .set(i64::try_from(connected).unwrap_or(i64::MAX));
        }
        if deadlines.ticks().is_multiple_of(TIDY_EVERY) {
            upkeep.tidy(clock::now());
        }
    }
}

/// How long a worker may take to end after its drain began, at most.
#[must_use]
pub const fn grace(settings: &Settings) -> Duration {
    settings.drain_timeout
}
