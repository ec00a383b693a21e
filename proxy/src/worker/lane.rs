//! One worker from its first moment to its last.

use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use bytes::Bytes;
use rustls::ServerConfig;
use shared::metrics::IntGauge;
use shared::rng::Rng;
use shared::{clock, drain};
use tokio::net::TcpListener as TokioListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;

use crate::config::{Limits, Network, Settings};
use crate::exchange::{Deadlines, Fault, TICK, Unavailable};
use crate::layer::access_log::AccessLog;
use crate::layer::rescue;
use crate::metrics::Metrics;
use crate::server::{Dates, Entrance, Failures, Front, House, accept};
use crate::stack::{Plan, Shared, Stack, Works};

/// How long before the end of a drain the clients of tunnels are told of it.
const TUNNEL_GOODBYE: Duration = Duration::from_secs(2);
/// Every so many ticks connections are reaped and breakers add up.
const TIDY_EVERY: u32 = 5;

/// One listener, as one worker serves it.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) number: u64,
    pub(super) shown: String,
    pub(super) limits: Limits,
    pub(super) connected: Arc<AtomicUsize>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) asks_certificates: bool,
    pub(super) introducers: Option<Vec<Network>>,
}

/// A listener of present settings: one that is open, or sockets to open it with.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) sockets: Vec<TcpListener>,
    pub(super) door: Door,
}

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    /// To serve something else.
    Change(Box<Change>),
    /// To let somebody else accept from its sockets, too.
    Lend(oneshot::Sender<io::Result<Vec<OwnedFd>>>),
    /// That somebody else does, and will go on when it stops.
    Bequeath(oneshot::Sender<()>),
}

/// What a worker shall serve from now on.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) settings: Arc<Settings>,
    pub(super) services: Vec<Shared>,
    /// If it is another one.
    pub(super) log: Option<Option<AccessLog>>,
    pub(super) doors: Vec<Opening>,
    pub(super) done: oneshot::Sender<()>,
}

/// One worker before it runs.
pub(super) struct Worker {
    pub(super) lane: usize,
    pub(super) lanes: usize,
    pub(super) openings: Vec<Opening>,
    pub(super) settings: Arc<Settings>,
    pub(super) services: Vec<Shared>,
    pub(super) metrics: Metrics,
    pub(super) log: Option<AccessLog>,
    pub(super) drain: drain::Watch,
    pub(super) orders: mpsc::Receiver<Order>,
}

impl Worker {
    pub(super) fn run(self, started: &SyncSender<io::Result<()>>) {
        let mut builder = Builder::new_current_thread();
        match builder.enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime.block_on(self.serve(started)),
            Err(error) => {
                let _ = started.try_send(Err(error));
            }
        }
    }

    async fn serve(mut self, started: &SyncSender<io::Result<()>>) {
        let deadlines = Deadlines::default();
        let mut works = Works::new(Plan {
            lane: self.lane,
            lanes: self.lanes,
            metrics: &self.metrics,
            log: self.log,
            deadlines: deadlines.clone(),
            rng: Rng::with_seed(clock::unix_nanos() ^ (self.lane as u64) << 56),
        });
        let stack = works.build(&self.services, self.settings.syncd_token.as_deref());
        let lane = Rc::new(Lane {
            deadlines,
            works: RefCell::new(works),
            stack: Rc::new(RefCell::new(stack)),
            open: RefCell::default(),
            leaving: RefCell::default(),
            followed: RefCell::default(),
            metrics: self.metrics,
            too_many: rescue::raw(&Fault::Unavailable(Unavailable::Connections)),
        });
        for opening in self.openings {
            if let Err(error) = lane.open(opening) {
                let _ = started.try_send(Err(error));
                return;
            }
        }
        lane.follow(&self.services);
        spawn_local(Rc::clone(&lane).keep_up());
        let _ = started.try_send(Ok(()));
        let mut settings = self.settings;
        loop {
            tokio::select! {
                () = self.drain.begun() => break,
                Some(order) = self.orders.recv() => match order {
                    Order::Change(change) => {
                        settings = Arc::clone(&change.settings);
                        lane.obey(*change);
                    }
                    // Whoever gave the order may have stopped waiting.
                    Order::Lend(lent) => drop(lent.send(lane.lend())),
                    Order::Bequeath(done) => {
                        lane.open.borrow().iter().for_each(|open| open.house.bequeath());
                        let _ = done.send(());
                    }
                }
            }
        }
        lane.close_all();
        // What is not finished by then is cut off. Tunnels never finish; their clients are told, and given time to hear it.
        let all = settings.drain_timeout;
        let goodbye = TUNNEL_GOODBYE.min(all / 4);
        if timeout(all - goodbye, lane.empty()).await.is_err() {
            lane.end_tunnels();
            let _ = timeout(goodbye, lane.empty()).await;
        }
        lane.works.borrow().flush();
    }
}

/// A running worker.
struct Lane {
    deadlines: Deadlines,
    works: RefCell<Works>,
    stack: Rc<RefCell<Stack>>,
    open: RefCell<Vec<Open>>,
    /// Connections of listeners that are gone.
    leaving: RefCell<Vec<Rc<House>>>,
    /// The services whose views are followed.
    followed: RefCell<Vec<Shared>>,
    metrics: Metrics,
    too_many: Bytes,
}

/// An open listener.
struct Open {
    number: u64,
    accepting: Vec<JoinHandle<()>>,
    sockets: Vec<Rc<TokioListener>>,
    entrance: Rc<Entrance<Stack>>,
    house: Rc<House>,
    connected: Arc<AtomicUsize>,
    gauge: IntGauge,
}

impl Lane {
    /// Begins to accept there.
    fn open(&self, Opening { sockets, door }: Opening) -> io::Result<()> {
        let sockets = sockets.into_iter();
        let sockets = sockets.map(|socket| TokioListener::from_std(socket).map(Rc::new));
        let sockets: Vec<_> = sockets.collect::<io::Result<_>>()?;
        let house = Rc::<House>::default();
        let gauge = self
            .metrics
            .client_connections
            .with_label_values(&[&door.shown]);
        let (number, connected) = (door.number, Arc::clone(&door.connected));
        let entrance = Entrance::new(self.front(door, &house));
        let accepting = sockets
            .iter()
            .map(|socket| spawn_local(accept(Rc::clone(socket), Rc::clone(&entrance))))
            .collect();
        self.open.borrow_mut().push(Open {
            number,
            accepting,
            sockets,
            entrance,
            house,
            connected,
            gauge,
        });
        Ok(())
    }

    fn front(&self, door: Door, house: &Rc<House>) -> Front<Stack> {
        Front {
            service: Rc::clone(&self.stack),
            limits: door.limits,
            deadlines: self.deadlines.clone(),
            connected: door.connected,
            too_many: self.too_many.clone(),
            dates: Dates::default(),
            house: Rc::clone(house),
            tls: door.tls.map(TlsAcceptor::from),
            asks_certificates: door.asks_certificates,
            introducers: door.introducers,
            failures: Failures::new(&door.shown, &self.metrics),
        }
    }

    /// Changes everything between two requests.
    fn obey(&self, order: Change) {
        let mut works = self.works.borrow_mut();
        if let Some(log) = order.log {
            works.write_to(log);
        }
        let stack = works.build(&order.services, order.settings.syncd_token.as_deref());
        let former = self.stack.replace(stack);
        drop((works, former));
        let gone = |open: &mut Open| {
            let there = order
                .doors
                .iter()
                .any(|opening| opening.door.number == open.number);
            !there
        };
        let gone: Vec<_> = self.open.borrow_mut().extract_if(.., gone).collect();
        let mut closing = Vec::new();
        for open in gone {
            open.house.close();
            let (house, deadlines) = (Rc::clone(&open.house), self.deadlines.clone());
            let within = order.settings.drain_timeout;
            spawn_local(async move {
                if timeout(within, house.empty()).await.is_err() {
                    house.end();
                    deadlines.wake_all();
                }
            });
            self.leaving.borrow_mut().push(open.house);
            closing.extend(open.accepting);
        }
        for opening in order.doors {
            if opening.sockets.is_empty() {
                self.change(opening.door);
            } else if let Err(error) = self.open(opening) {
                tracing::error!(%error, "one worker cannot listen; the others do");
            }
        }
        self.follow(&order.services);
        self.deadlines.wake_all();
        spawn_local(async move {
            for accepting in closing {
                let _ = accepting.await;
            }
            // Whoever gave the order may have stopped waiting.
            let _ = order.done.send(());
        });
    }

    fn lend(&self) -> io::Result<Vec<OwnedFd>> {
        let open = self.open.borrow();
        let sockets = open.iter().flat_map(|open| &open.sockets);
        sockets
            .map(|socket| socket.as_fd().try_clone_to_owned())
            .collect()
    }

    fn change(&self, door: Door) {
        let open = self.open.borrow();
        if let Some(open) = open.iter().find(|open| open.number == door.number) {
            open.entrance.change(self.front(door, &open.house));
        }
    }

    /// Wakes everything that waits when a view changes, so that requests at a node that lost its role are given up at once.
    fn follow(&self, services: &[Shared]) {
        let mut followed = self.followed.borrow_mut();
        for shared in services {
            let same = |other: &Shared| other.steering.is_kin(&shared.steering);
            if !followed.iter().any(same) {
                let changes = shared.steering.changes();
                spawn_local(wake_at(changes, self.deadlines.clone()));
            }
        }
        *followed = services.to_vec();
    }

    async fn keep_up(self: Rc<Self>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.deadlines.tick();
            self.works.borrow().flush();
            for open in &*self.open.borrow() {
                let connected = open.connected.load(Relaxed);
                open.gauge.set(i64::try_from(connected).unwrap_or(i64::MAX));
            }
            if self.deadlines.ticks().is_multiple_of(TIDY_EVERY) {
                self.works.borrow_mut().tidy(clock::now());
                self.leaving.borrow_mut().retain(|house| !house.is_empty());
            }
        }
    }

    fn close_all(&self) {
        for open in self.open.take() {
            open.house.close();
            self.leaving.borrow_mut().push(open.house);
        }
        self.deadlines.wake_all();
    }

    fn end_tunnels(&self) {
        self.leaving.borrow().iter().for_each(|house| house.end());
        self.deadlines.wake_all();
    }

    async fn empty(&self) {
        let leaving = self.leaving.borrow().clone();
        for house in leaving {
            house.empty().await;
        }
    }
}

/// Ends when the service is gone.
async fn wake_at(mut changes: watch::Receiver<u64>, deadlines: Deadlines) {
    while changes.changed().await.is_ok() {
        deadlines.wake_all();
    }
}
