//! Logs, set up once by `main`: to stderr, as text for people or as JSON for machines.

use serde::Deserialize;
use tracing::Metadata;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// What is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Only what a person must look at.
    Error,
    /// And what may need one.
    Warn,
    /// And every change of state.
    #[default]
    Info,
    /// And every request.
    Debug,
    /// And every packet.
    Trace,
}

/// How it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One readable line an event.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The `log` key of both programs' configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is written.
    pub level: Level,
    /// How.
    pub format: Format,
}

/// The way to say how much is written, while the program runs.
#[derive(Clone, Debug, Default)]
pub struct Switch(Option<reload::Handle<LevelFilter, Registry>>);

impl Switch {
    /// Writes what `level` says from now on.
    pub fn set(&self, level: Level) {
        if let Some(handle) = &self.0 {
            // It is gone only when the program ends.
            let _ = handle.reload(filter(level));
        }
    }
}

const fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}

/// Begins writing logs. Later calls change nothing, and their switches are not connected.
pub fn start(log: Log) -> Switch {
    let (level, handle) = reload::Layer::new(filter(log.level));
    let lines = fmt::layer()
        .with_writer(std::io::stderr.with_filter(is_told))
        .with_target(false);
    let registry = tracing_subscriber::registry().with(level);
    // A second call (tests) finds a subscriber already in place, which is as good.
    let first = match log.format {
        Format::Text => registry.with(lines.with_ansi(false)).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    Switch(first.is_ok().then_some(handle))
}

/// The HTTP/2 library warns of what peers do, and anybody can do that any number of times. What it tells those who look closely
/// passes.
fn is_told(event: &Metadata<'_>) -> bool {
    *event.level() >= tracing::Level::DEBUG || !event.target().starts_with("h2")
}
