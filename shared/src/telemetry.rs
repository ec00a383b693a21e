//! Logs, set up once by `main`: to stderr, as text for people or as JSON for machines.

use serde::Deserialize;
use tracing_subscriber::filter::LevelFilter;

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

/// Begins writing logs. Later calls change nothing.
pub fn start(log: Log) {
    let level = match log.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second call (tests) finds a subscriber already in place, which is as good.
    let _ = match log.format {
        Format::Text => builder.with_ansi(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
