//! What librdkafka says of itself: into our log, each lasting error once a minute.

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A lasting error is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What a client is up to at present.
#[derive(Debug, Default)]
pub struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    error: Option<String>,
    logged_at: Option<Instant>,
}

impl Health {
    /// Why Kafka cannot be used at present.
    pub fn last_error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    /// Notes an error, and logs it unless one was logged a short time ago.
    pub fn failed(&self, what: String) {
        let mut state = self.lock();
        if state.logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            state.logged_at = Some(Instant::now());
            tracing::error!("Kafka cannot be used: {what}; it is tried again");
        }
        state.error = Some(what);
    }

    /// Kafka has taken or given something.
    pub fn works(&self) {
        let mut state = self.lock();
        if state.error.take().is_some() {
            state.logged_at = None;
            tracing::info!("Kafka can be used again");
        }
    }

    /// Both fields are set together, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Health {
    /// What matters comes as an error too.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "librdkafka: {message}");
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().map(|code| format!("{code:?}")).unwrap_or_default();
        self.failed(format!("{reason} ({code})"));
    }
}

impl ConsumerContext for Health {}
