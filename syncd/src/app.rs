//! Builds every part, starts every task, and ends them all. The only room that knows everybody.

use std::sync::Arc;
use std::time::Duration;

use shared::admin;
use shared::drain;
use shared::metrics::Registry;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::{Door, handle};
use crate::config::Settings;
use crate::link;
use crate::log::Retention;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::replica::{Replica, Setup};
use crate::store::Store;

/// How long requests and sessions under way may take to end.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// Runs until a signal ends it.
///
/// # Errors
/// Something could not be started, or a thread ended unexpectedly; the message says what to do.
pub async fn run(settings: Settings) -> Result<(), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let listener = admin::bind(settings.listen)
        .await
        .map_err(|error| error.to_string())?;
    let store = Store::new(settings.state_dir.clone());
    let held = store
        .load_held(&settings.node)
        .map_err(|error| error.to_string())?;
    let registry = Registry::new();
    let metrics = Metrics::register(&registry);
    let (replicas, mut threads) = start_replicas(&settings, &store, &metrics, &held)?;
    tracing::info!(node = settings.node, listen = %settings.listen, epoch = held.epoch.0, sources = replicas.len(), "started");
    let node = Node::new(&settings, held, store.clone(), replicas, metrics);
    let (signal, watch) = drain::channel();
    for replica in node.replicas() {
        tokio::spawn(link::pull(
            Arc::clone(&node),
            replica.clone(),
            settings.token.clone(),
            watch.clone(),
        ));
        tokio::spawn(tell_of_boards(
            Arc::clone(&node),
            replica.clone(),
            watch.clone(),
        ));
    }
    let door = Door {
        node: Arc::clone(&node),
        registry,
        store,
        token: settings.token,
        rate: settings.max_rate,
    };
    let door = Arc::new(door);
    tokio::spawn(admin::serve(listener, watch, move |request| {
        handle(Arc::clone(&door), request)
    }));

    let mut looked = tokio::time::interval(Duration::from_millis(100));
    let failed = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = looked.tick() => {
                if threads.iter().any(std::thread::JoinHandle::is_finished) {
                    break Some("the thread of a source ended unexpectedly; see the log above".to_owned());
                }
            }
        }
    };
    tracing::info!("ending");
    node.replicas().iter().for_each(Replica::stop);
    signal.drain(DRAIN_WITHIN).await;
    for thread in threads.drain(..) {
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
    failed.map_or(Ok(()), Err)
}

type Threads = Vec<std::thread::JoinHandle<()>>;

fn start_replicas(
    settings: &Settings,
    store: &Store,
    metrics: &Metrics,
    held: &crate::logic::station::Held,
) -> Result<(Vec<Replica>, Threads), String> {
    let (mut replicas, mut threads) = (Vec::new(), Vec::new());
    for source in &settings.sources {
        let setup = Setup {
            node: settings.node.clone(),
            metrics: metrics.source(&source.name),
            source: source.clone(),
            store: store.clone(),
            retention: Retention {
                bytes: settings.retention_bytes,
                age: settings.retention_age,
            },
            wanted: Node::wanted_at_boot(&settings.node, held),
        };
        let (replica, thread) =
            Replica::start(setup).map_err(|why| format!("source \"{}\": {why}", source.name))?;
        replicas.push(replica);
        threads.push(thread);
    }
    Ok((replicas, threads))
}

/// A change on a source's board is a change of the node's report.
async fn tell_of_boards(node: Arc<Node>, replica: Replica, mut drain: drain::Watch) {
    let mut boards = replica.boards();
    loop {
        tokio::select! {
            () = drain.begun() => return,
            changed = boards.changed() => if changed.is_err() { return },
        }
        node.touch();
    }
}
