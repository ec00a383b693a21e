//! Builds every part, starts every thread and task, and drains them. The only room that knows everybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shared::admin as door;
use shared::drain;
use shared::metrics::Registry;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::{Door, handle};
use crate::arbiter::Arbiter;
use crate::config::{Service, Settings};
use crate::control::{self, Chronicle, Control, Parts};
use crate::layer::access_log;
use crate::metrics::Metrics;
use crate::secret::Secret;
use crate::steer::{Members, Steering, View};
use crate::worker::{self, ServiceHandle};

/// The access log may take this long to write its last lines.
const LOG_WITHIN: Duration = Duration::from_secs(1);
/// Tasks of the control plane end at once when they are told to.
const CONTROL_WITHIN: Duration = Duration::from_secs(2);

/// Runs until a signal ends it, then finishes requests under way within `drain_timeout`.
///
/// # Errors
/// Something could not be started; the message says what to do.
pub async fn run(settings: Settings) -> Result<(), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    settings
        .notes
        .iter()
        .for_each(|note| tracing::warn!("{note}"));
    let settings = Arc::new(settings);
    let arbiter = Arbiter::open(&settings.state_dir).map_err(|error| error.to_string())?;
    let secret = Secret::open(&settings.state_dir).map_err(|error| error.to_string())?;
    let registry = Registry::new();
    let metrics = Metrics::register(&registry);
    let listener = door::bind(settings.admin.bind)
        .await
        .map_err(|error| format!("admin: {error}"))?;
    let (log, log_writer) = match &settings.access_log {
        Some(log) => {
            let dropped = metrics.access_log_dropped.with_label_values::<&str>(&[]);
            let opened =
                access_log::start(log, dropped).map_err(|error| format!("access log: {error}"))?;
            (Some(opened.0), Some(opened.1))
        }
        None => (None, None),
    };
    let chronicle = Chronicle::default();
    // The control plane must outlive the workers: requests that are being finished may still need a decision.
    let (end_control, control_watch) = drain::channel();
    let (end_workers, worker_watch) = drain::channel();
    let mut handles = Vec::new();
    let mut services = BTreeMap::new();
    for service in &settings.services {
        let (handle, control) = start_service(
            service,
            &settings,
            &arbiter,
            &chronicle,
            &metrics,
            &control_watch,
        )?;
        handles.push(handle.signed_with(secret.clone()));
        services.insert(service.name.to_string(), control);
    }
    let workers = worker::start(&settings, &handles, &metrics, log, worker_watch)
        .map_err(|error| error.to_string())?;
    let door_parts = Door {
        services,
        chronicle,
        registry,
        token: settings.admin.token.clone(),
    };
    let shared = Arc::new(door_parts);
    tokio::spawn(door::serve(listener, control_watch, move |request| {
        handle(Arc::clone(&shared), request)
    }));
    for address in workers.addresses() {
        tracing::info!(%address, admin = %settings.admin.bind, "listening");
    }

    tokio::select! {
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
    tracing::info!(within = ?settings.drain_timeout, "draining");
    end_workers.begin();
    let joined = tokio::task::spawn_blocking(move || workers.join());
    let _ = tokio::time::timeout(settings.drain_timeout + CONTROL_WITHIN, joined).await;
    end_control.drain(CONTROL_WITHIN).await;
    if let Some(writer) = log_writer {
        let _ = tokio::task::spawn_blocking(move || writer.finish(LOG_WITHIN)).await;
    }
    drop(arbiter);
    tracing::info!("ended");
    Ok(())
}

fn start_service(
    service: &Arc<Service>,
    settings: &Settings,
    arbiter: &Arbiter,
    chronicle: &Chronicle,
    metrics: &Metrics,
    drain: &drain::Watch,
) -> Result<(ServiceHandle, Control), String> {
    let lanes = settings.threads.max(1);
    let (steering, signs) = Steering::new(
        lanes,
        View {
            phase: "starting",
            members: service
                .is_balanced()
                .then(|| Members::none_of(service.nodes.len())),
            ..View::default()
        },
    );
    let handle = ServiceHandle::new(Arc::clone(service), steering, lanes, metrics);
    let nodes = service
        .nodes
        .iter()
        .map(|node| node.name.to_string())
        .collect();
    let parts = Parts {
        handle: handle.clone(),
        signs,
        place: arbiter.place(&service.name, nodes),
        chronicle: chronicle.clone(),
        metrics: metrics.clone(),
    };
    let control = control::start(parts, drain.clone()).map_err(|error| error.to_string())?;
    Ok((handle, control))
}
