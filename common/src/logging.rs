//! Where log lines go and in which form: stderr, as logfmt or JSON.

use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// A filter as tracing writes it (`info,kpulse_common=debug`); it wins over `--log.level`.
pub const FILTER_VARIABLE: &str = "KPULSE_LOG";

/// The lowest severity that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something that an operator must do something about.
    Error,
    /// Something is lost or degraded.
    Warn,
    /// Start, stop, changes of state.
    #[default]
    Info,
    /// What the program decides and why.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// The word of the command line and of a configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `ts=… level=info msg=…`
    #[default]
    Logfmt,
    /// One JSON object a line.
    Json,
}

impl Format {
    /// The word of the command line and of a configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Logfmt => "logfmt",
            Self::Json => "json",
        }
    }
}

/// The `log:` block of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The lowest severity that is written.
    pub level: Level,
    /// The form of a line.
    pub format: Format,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not one that tracing understands.
    #[error(
        "the environment variable {FILTER_VARIABLE} is not a log filter: {0}; write for example \"info,kpulse_common=debug\""
    )]
    Filter(String),
    /// Somebody else set a global subscriber before.
    #[error("logging was set up twice")]
    Twice,
}

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Sends all log lines of this process to stderr.
///
/// # Errors
/// When `KPULSE_LOG` is not a filter, or on a second call.
pub fn init(level: Level, format: Format) -> Result<(), LoggingError> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let lines = match format {
        Format::Logfmt => {
            tracing_logfmt::builder().with_span_path(false).layer().with_writer(std::io::stderr).boxed()
        }
        Format::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(std::io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| LoggingError::Twice)?;
    FILTER.set(handle).map_err(|_| LoggingError::Twice)
}

/// Changes the level of a running process; `KPULSE_LOG` still wins.
///
/// # Errors
/// When `KPULSE_LOG` is not a filter.
pub fn set_level(level: Level) -> Result<(), LoggingError> {
    if let Some(handle) = FILTER.get() {
        let filter = filter(level)?;
        handle.reload(filter).map_err(|error| LoggingError::Filter(error.to_string()))?;
    }
    Ok(())
}

fn filter(level: Level) -> Result<EnvFilter, LoggingError> {
    match std::env::var(FILTER_VARIABLE) {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(&text).map_err(|error| LoggingError::Filter(error.to_string()))
        }
        _ => Ok(EnvFilter::new(level.word())),
    }
}
