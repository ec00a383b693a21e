//! Builds every part, starts every thread and task, changes them while they run, and drains them. The only room that knows
//! everybody.

mod reload;
mod services;
mod succession;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use shared::admin as door;
use shared::drain;
use shared::metrics::Registry;
use shared::telemetry::Switch;
use tokio::net::TcpListener as Accepting;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use self::services::Services;
use self::succession::{Next, Succession};
use crate::admin::{Door, Reload, handle};
use crate::arbiter::Arbiter;
use crate::config::Settings;
use crate::control::Chronicle;
use crate::layer::access_log::{self, AccessLog, Writer};
use crate::metrics::Metrics;
use crate::secret::Secret;
use crate::supervisor::{self, State};
use crate::takeover::Predecessor;
use crate::worker::{self, Workers};

/// The access log may take this long to write its last lines.
const LOG_WITHIN: Duration = Duration::from_secs(1);
/// Tasks of the control plane end at once when they are told to.
const CONTROL_WITHIN: Duration = Duration::from_secs(2);
/// Reloads that may wait for each other.
const RELOADS_MOST: usize = 4;
/// How often it is looked whether what was removed has ended.
const SWEEP_EVERY: Duration = Duration::from_millis(250);

/// Everything that runs.
struct App {
    settings: Arc<Settings>,
    metrics: Metrics,
    chronicle: Chronicle,
    services: Services,
    workers: Workers,
    door: Arc<Door>,
    /// What the door listens on.
    admin: TcpListener,
    log: Option<(AccessLog, Writer)>,
    switch: Switch,
}

/// Runs until a signal or another process ends it, then finishes requests under way within `drain_timeout`. With `takeover`
/// the listening sockets, and the right to decide, are those of the hotwarm that runs with the same `state_dir`.
///
/// # Errors
/// Something could not be started; the message says what to do. Whoever runs then goes on.
pub async fn run(settings: Settings, switch: Switch, takeover: bool) -> Result<(), String> {
    let mut signals = Signals::new().map_err(|error| error.to_string())?;
    settings
        .notes
        .iter()
        .for_each(|note| tracing::warn!("{note}"));
    let settings = Arc::new(settings);
    let (former, mut given) = if takeover {
        let (former, given) = Predecessor::ask(&settings.state_dir)?;
        (Some(Arc::new(former)), given)
    } else {
        (None, supervisor::sockets()?)
    };
    let registry = Registry::new();
    let metrics = Metrics::register(&registry);
    // Everything that can fail, before the right to decide is asked for.
    // Two proxies with one folder are told so, and not that a port is in use.
    let arbiter = match &former {
        None => Some(open_arbiter(&settings)?),
        Some(_) => None,
    };
    let ready = worker::bind(&settings, &metrics, &mut given).map_err(|error| error.to_string())?;
    let admin = open_door(&settings, &mut given).await?;
    if former.is_none() {
        for unwanted in given.iter().filter_map(|socket| socket.local_addr().ok()) {
            tracing::warn!(address = %unwanted, "a socket was given that no listener binds; it is not accepted from");
        }
    }
    drop(given);
    let log = start_log(&settings, &metrics)?;
    if let Some(former) = &former {
        former.succeed()?;
    }
    let mut arbiter = arbiter.map_or_else(|| open_arbiter(&settings), Ok)?;
    if let Some(former) = &former {
        arbiter.follow(Arc::clone(former));
    }
    let secret = Secret::open(&settings.state_dir).map_err(|error| error.to_string())?;
    let chronicle = Chronicle::default();
    let (end_door, door_watch) = drain::channel();
    let (end_workers, worker_watch) = drain::channel();
    let lanes = settings.threads.max(1);
    let mut services = Services::new(arbiter, secret, lanes, chronicle.clone(), metrics.clone());
    services.start(&settings.services)?;
    let lines = log.as_ref().map(|(log, _)| log.clone());
    let workers = ready
        .start(&settings, &services.handles(), lines, worker_watch)
        .map_err(|error| error.to_string())?;
    let (reloads, mut asked) = mpsc::channel(RELOADS_MOST);
    let token = settings.admin.token.clone();
    let door = Door::new(chronicle.clone(), registry, reloads);
    door.change(services.controls(), token);
    let door = Arc::new(door);
    let shared = Arc::clone(&door);
    if let Some(former) = &former {
        former.done()?;
    }
    let listener = admin.try_clone().and_then(Accepting::from_std);
    let listener = listener.map_err(|error| format!("admin: {error}"))?;
    tokio::spawn(door::serve(listener, door_watch, move |request| {
        handle(Arc::clone(&shared), request)
    }));
    for address in workers.addresses() {
        tracing::info!(%address, admin = %settings.admin.bind, "listening");
    }
    supervisor::tell(State::Ready);
    let next = Next::listen(&settings.state_dir);
    let mut app = App {
        settings,
        metrics,
        chronicle,
        services,
        workers,
        door,
        admin,
        log,
        switch,
    };
    let end = app.serve(&mut signals, &mut asked, next).await;

    let drain_timeout = app.settings.drain_timeout;
    let App {
        services,
        workers,
        admin,
        log,
        ..
    } = app;
    if let End::Succeeded(succession) = end {
        // The door's and the workers' queues are the next process's.
        drop(admin);
        end_door.begin();
        succession.begin(&workers).await;
    } else {
        supervisor::tell(State::Stopping);
    }
    tracing::info!(within = ?drain_timeout, "draining");
    end_workers.begin();
    // The control plane must outlive the workers: requests that are being finished may still need a decision.
    let joined = tokio::task::spawn_blocking(move || workers.join());
    let _ = tokio::time::timeout(drain_timeout + CONTROL_WITHIN, joined).await;
    services.end(CONTROL_WITHIN).await;
    end_door.drain(CONTROL_WITHIN).await;
    if let Some((log, writer)) = log {
        drop(log);
        let _ = tokio::task::spawn_blocking(move || writer.finish(LOG_WITHIN)).await;
    }
    tracing::info!("ended");
    Ok(())
}

fn open_arbiter(settings: &Settings) -> Result<Arbiter, String> {
    Arbiter::open(&settings.state_dir).map_err(|error| error.to_string())
}

/// The admin door's socket: one of `given`, by its address, or a new one.
async fn open_door(
    settings: &Settings,
    given: &mut Vec<TcpListener>,
) -> Result<TcpListener, String> {
    let fits = |socket: &mut TcpListener| {
        socket
            .local_addr()
            .is_ok_and(|address| address == settings.admin.bind)
    };
    let opened = match given.extract_if(.., fits).next() {
        Some(socket) => socket.set_nonblocking(true).map(|()| socket),
        None => match door::bind(settings.admin.bind).await {
            Ok(socket) => socket.into_std(),
            Err(error) => Err(error),
        },
    };
    opened.map_err(|error| format!("admin: {error}"))
}

fn start_log(
    settings: &Settings,
    metrics: &Metrics,
) -> Result<Option<(AccessLog, Writer)>, String> {
    let dropped = metrics.access_log_dropped.with_label_values::<&str>(&[]);
    let started = settings
        .access_log
        .as_ref()
        .map(|log| access_log::start(log, dropped).map_err(|error| format!("access log: {error}")));
    started.transpose()
}

/// What the system may say.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    rotated: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            rotated: signal(SignalKind::user_defined1())?,
        })
    }
}

/// Why the program ends.
enum End {
    /// It was told to.
    Signal,
    /// Another one goes on.
    Succeeded(Succession),
}

impl App {
    /// Carries out what is asked for until the program shall end.
    async fn serve(
        &mut self,
        signals: &mut Signals,
        asked: &mut mpsc::Receiver<Reload>,
        mut next: Next,
    ) -> End {
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return End::Signal,
                _ = signals.interrupt.recv() => return End::Signal,
                _ = signals.hangup.recv() => drop(self.reload().await),
                Some(Reload { answer }) = asked.recv() => {
                    // Whoever asked may have stopped waiting; the log has it, too.
                    let _ = answer.send(self.reload().await);
                }
                _ = signals.rotated.recv() => self.reopen_log(),
                _ = sweep.tick() => self.services.sweep().await,
                word = next.word() => {
                    if let Some(succession) = self.answer(word, &mut next).await {
                        return End::Succeeded(succession);
                    }
                }
            }
        }
    }

    /// The access log was moved away, perhaps.
    fn reopen_log(&self) {
        if let Some((log, _)) = &self.log {
            log.reopen();
        }
    }
}
