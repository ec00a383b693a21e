//! One thread per core: a runtime, its listeners, its stack, its pools. Nothing on the request path is shared for writing.
//!
//! Every worker listens on a socket of its own with the same address (`SO_REUSEPORT`); the system deals connections out.
//! What workers serve, and where, can be changed while they run: they are told, change between two requests, and say so.

mod handle;
mod lane;
mod listen;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::ServerConfig;
use shared::drain;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub use self::handle::ServiceHandle;
use self::lane::{Change, Door, Opening, Order, Worker};
use self::listen::{distinct, take_or_bind};
use crate::config::{Endpoint, Listener, Next, Settings};
use crate::layer::access_log::AccessLog;
use crate::metrics::Metrics;
use crate::tls;

/// Orders to a worker that may wait: it obeys at once.
const ORDERS_MOST: usize = 4;
/// A worker that does not answer for so long hangs, and says nothing of the others.
const OBEY_WITHIN: Duration = Duration::from_secs(5);

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
    doors: Vec<Listened>,
    lanes: Vec<mpsc::Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
    metrics: Metrics,
    next_door: u64,
}

/// A listener, over all workers.
#[derive(Clone, Debug)]
struct Listened {
    door: u64,
    address: SocketAddr,
    connected: Arc<AtomicUsize>,
    tls: Option<Arc<ServerConfig>>,
}

/// Listeners that are bound and not in use yet. Dropped, they are given back.
#[derive(Debug)]
pub struct Prepared(Vec<Bound>);

/// A listener, and its sockets by worker; none if it is open already.
type Bound = (Listened, Vec<Vec<TcpListener>>);

impl Workers {
    /// Where clients can connect, listener by listener, with the ports that were found for port 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.doors.iter().map(|door| door.address).collect()
    }

    /// Waits for every worker to end. They end when the drain has begun and requests are finished, or its time is over.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }

    /// Binds what is new among `listeners` and loads what they need; `fates` are theirs, in the same order. Nothing changes yet.
    ///
    /// # Errors
    /// An address cannot be had, or TLS cannot be set up.
    pub fn prepare(
        &mut self,
        listeners: &[Listener],
        fates: &[Next],
    ) -> Result<Prepared, StartError> {
        let mut prepared = Vec::new();
        for (listener, fate) in listeners.iter().zip(fates) {
            let former = match *fate {
                Next::Kept(at) | Next::Changed(at) => self.doors.get(at),
                Next::Added => None,
            };
            prepared.push(match former {
                None => self.open(listener, &mut Vec::new())?,
                Some(former) if matches!(fate, Next::Kept(_)) => (former.clone(), Vec::new()),
                Some(former) => {
                    let tls = offer(listener, former.address, &self.metrics)?;
                    (
                        Listened {
                            tls,
                            ..former.clone()
                        },
                        Vec::new(),
                    )
                }
            });
        }
        Ok(Prepared(prepared))
    }

    fn open(
        &mut self,
        listener: &Listener,
        given: &mut Vec<TcpListener>,
    ) -> Result<Bound, StartError> {
        let (address, sockets) = take_or_bind(listener.bind, self.lanes.len(), given)?;
        self.next_door += 1;
        let listened = Listened {
            door: self.next_door,
            address,
            connected: Arc::default(),
            tls: offer(listener, address, &self.metrics)?,
        };
        Ok((listened, sockets))
    }

    /// Serves by `settings` from now on; `log` only if that is another one. Every worker has changed when this returns true;
    /// what is not there any more finishes what it has begun.
    pub async fn change(
        &mut self,
        settings: &Arc<Settings>,
        services: &[ServiceHandle],
        log: Option<Option<AccessLog>>,
        prepared: Prepared,
    ) -> bool {
        let mut prepared = prepared.0;
        let mut told = Vec::new();
        for lane in &self.lanes {
            let (done, obeyed) = oneshot::channel();
            let order = Change {
                settings: Arc::clone(settings),
                services: services.iter().map(ServiceHandle::shared).collect(),
                log: log.clone(),
                doors: openings(&mut prepared, settings),
                done,
            };
            // A worker that does not even take it has its queue full of orders that it does not obey.
            if lane.try_send(Order::Change(Box::new(order))).is_ok() {
                told.push(obeyed);
            }
        }
        let all = told.len() == self.lanes.len();
        let doors: Vec<_> = prepared.into_iter().map(|(door, _)| door).collect();
        let former = std::mem::replace(&mut self.doors, doors);
        let obeyed = timeout(OBEY_WITHIN, async {
            let mut all = true;
            for obeyed in told {
                all &= obeyed.await.is_ok();
            }
            all
        });
        let obeyed = obeyed.await.unwrap_or(false);
        for gone in former {
            if !self.doors.iter().any(|door| door.address == gone.address) {
                let gauge = &self.metrics.client_connections;
                // It is not there if no worker has shown it.
                let _ = gauge.remove_label_values(&[&gone.address.to_string()]);
            }
        }
        all && obeyed
    }

    /// All sockets that clients are accepted from, for another process to accept from, too; none if a worker hangs.
    ///
    /// # Errors
    /// A worker does not answer.
    pub async fn lend(&self) -> io::Result<Vec<OwnedFd>> {
        let sockets = self.ask(Order::Lend).await?;
        let sockets = sockets.into_iter().collect::<io::Result<Vec<_>>>()?;
        distinct(sockets.into_iter().flatten().collect())
    }

    /// Another process accepts from the sockets: the drain that follows leaves it what is in their queues.
    ///
    /// # Errors
    /// A worker does not answer.
    pub async fn bequeath(&self) -> io::Result<()> {
        self.ask(Order::Bequeath).await.map(drop)
    }

    /// Gives every worker an order, and waits for their answers.
    async fn ask<T>(&self, order: fn(oneshot::Sender<T>) -> Order) -> io::Result<Vec<T>> {
        let hangs = || io::Error::new(io::ErrorKind::TimedOut, "a worker hangs");
        let mut told = Vec::new();
        for lane in &self.lanes {
            let (done, obeyed) = oneshot::channel();
            lane.try_send(order(done)).map_err(|_| hangs())?;
            told.push(obeyed);
        }
        let answers = timeout(OBEY_WITHIN, async {
            let mut answers = Vec::new();
            for obeyed in told {
                answers.push(obeyed.await.map_err(|_| hangs())?);
            }
            Ok(answers)
        });
        answers.await.unwrap_or_else(|_| Err(hangs()))
    }
}

fn offer(
    listener: &Listener,
    address: SocketAddr,
    metrics: &Metrics,
) -> Result<Option<Arc<ServerConfig>>, StartError> {
    if listener.tls.is_empty() {
        return Ok(None);
    }
    let numbers = tls::Numbers {
        listener: address.to_string(),
        expiry: metrics.tls_certificate_expiry.clone(),
        reloads: metrics.tls_reloads.clone(),
    };
    let clients = listener.clients.clone();
    Ok(Some(tls::offer(listener.tls.clone(), clients, numbers)?))
}

/// The next worker's share of the listeners.
fn openings(prepared: &mut [Bound], settings: &Settings) -> Vec<Opening> {
    let listeners = prepared.iter_mut().zip(&settings.listeners);
    listeners
        .map(|((listened, sockets), listener)| Opening {
            sockets: sockets.pop().unwrap_or_default(),
            door: Door {
                number: listened.door,
                shown: listened.address.to_string(),
                limits: listener.limits,
                connected: Arc::clone(&listened.connected),
                tls: listened.tls.clone(),
                asks_certificates: listener.clients.is_some(),
                introducers: listener.introducers.clone(),
            },
        })
        .collect()
}

/// Watches the files that these services' nodes are reached with. Once for each service and its settings.
///
/// # Errors
/// There is no thread to do it.
pub fn watch_files(services: &[ServiceHandle]) -> Result<(), StartError> {
    let nodes = services.iter().flat_map(|one| &one.service().nodes);
    let encrypted: Vec<_> = nodes
        .filter_map(|node| match &node.endpoint {
            Endpoint::Tls(_, outgoing) => Some(Arc::clone(outgoing)),
            Endpoint::Tcp(_) | Endpoint::H2c(_) | Endpoint::Unix(_) => None,
        })
        .collect();
    Ok(tls::outgoing::watch(&encrypted)?)
}

/// The data plane with its sockets, before it runs. Dropped, they are given back.
#[derive(Debug)]
pub struct Ready {
    workers: Workers,
    orders: Vec<mpsc::Receiver<Order>>,
    prepared: Vec<Bound>,
}

/// Takes every listener from `given`, by its address, or binds it. What nobody wants of `given` stays there.
///
/// # Errors
/// An address cannot be had, or TLS cannot be set up.
pub fn bind(
    settings: &Settings,
    metrics: &Metrics,
    given: &mut Vec<TcpListener>,
) -> Result<Ready, StartError> {
    let lanes = settings.threads.max(1);
    let (senders, orders) = (0..lanes).map(|_| mpsc::channel(ORDERS_MOST)).unzip();
    let mut workers = Workers {
        doors: Vec::new(),
        lanes: senders,
        threads: Vec::new(),
        metrics: metrics.clone(),
        next_door: 0,
    };
    let listeners = settings.listeners.iter();
    let prepared = listeners.map(|listener| workers.open(listener, given));
    Ok(Ready {
        prepared: prepared.collect::<Result<_, _>>()?,
        workers,
        orders,
    })
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
    bind(settings, metrics, &mut Vec::new())?.start(settings, services, log, drain)
}

impl Ready {
    /// Starts every worker, by the settings that it was bound for. Requests are taken as soon as this returns.
    ///
    /// # Errors
    /// A thread or its runtime cannot be made. Nothing is left running then.
    pub fn start(
        self,
        settings: &Arc<Settings>,
        services: &[ServiceHandle],
        log: Option<AccessLog>,
        drain: drain::Watch,
    ) -> Result<Workers, StartError> {
        let Self {
            mut workers,
            orders,
            mut prepared,
        } = self;
        watch_files(services)?;
        let lanes = orders.len();
        let (tell, told) = sync_channel(lanes);
        for (lane, orders) in orders.into_iter().enumerate() {
            let worker = Worker {
                lane,
                lanes,
                openings: openings(&mut prepared, settings),
                settings: Arc::clone(settings),
                services: services.iter().map(ServiceHandle::shared).collect(),
                metrics: workers.metrics.clone(),
                log: log.clone(),
                drain: drain.clone(),
                orders,
            };
            let tell = tell.clone();
            let name = format!("worker-{lane}");
            let thread = thread::Builder::new()
                .name(name)
                .spawn(move || worker.run(&tell));
            workers.threads.push(thread.map_err(StartError::Worker)?);
        }
        drop(tell);
        for _ in 0..lanes {
            let started = told
                .recv()
                .unwrap_or_else(|_| Err(io::Error::other("it ended at once")));
            started.map_err(StartError::Worker)?;
        }
        workers.doors = prepared.into_iter().map(|(door, _)| door).collect();
        Ok(workers)
    }
}
