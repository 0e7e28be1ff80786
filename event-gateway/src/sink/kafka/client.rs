//! What librdkafka says of itself: into our log, each lasting error once a minute.

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
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
    /// Whether it is one of reaching Kafka, which a connection puts right.
    is_away: bool,
    logged_at: Option<Instant>,
}

impl Health {
    /// Why Kafka cannot be used at present.
    pub fn last_error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    /// Notes an error, and logs it unless one was logged a short time ago.
    pub fn failed(&self, what: String) {
        self.note(what, false);
    }

    fn note(&self, what: String, is_away: bool) {
        let mut state = self.lock();
        if state.logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            state.logged_at = Some(Instant::now());
            tracing::error!("Kafka cannot be used: {what}; it is tried again");
        }
        state.error = Some(what);
        state.is_away = is_away;
    }

    /// Kafka has taken or given something.
    pub fn works(&self) {
        let mut state = self.lock();
        if state.error.take().is_some() {
            state.logged_at = None;
            tracing::info!("Kafka can be used again");
        }
    }

    /// A broker that can be reached again says so long before the next event, which may be hours away.
    pub fn statistics(&self, statistics: &Statistics) {
        if self.lock().is_away && statistics.brokers.values().any(|broker| broker.state == "UP") {
            self.works();
        }
    }

    /// All fields are set together, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Health {
    /// What matters comes as an error too.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "librdkafka: {message}");
    }

    fn stats(&self, statistics: Statistics) {
        self.statistics(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        const AWAY: [RDKafkaErrorCode; 3] = [
            RDKafkaErrorCode::AllBrokersDown,
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::Resolve,
        ];
        let code = error.rdkafka_error_code();
        let what = format!("{reason} ({})", code.map(|code| format!("{code:?}")).unwrap_or_default());
        self.note(what, code.is_some_and(|code| AWAY.contains(&code)));
    }
}

impl ConsumerContext for Health {}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::statistics::Broker;

    fn seen(state: &str) -> Statistics {
        let broker = Broker { state: state.to_owned(), ..Broker::default() };
        Statistics { brokers: [("b:9092/1".to_owned(), broker)].into(), ..Statistics::default() }
    }

    #[test]
    fn a_broker_that_is_back_ends_only_the_error_that_it_was_away() {
        let health = Health::default();
        health.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        health.statistics(&seen("CONNECT"));
        assert_eq!(health.last_error().as_deref(), Some("1/1 brokers are down (AllBrokersDown)"));
        health.statistics(&seen("UP"));
        assert_eq!(health.last_error(), None);
        health.error(KafkaError::Global(RDKafkaErrorCode::TopicAuthorizationFailed), "not allowed");
        health.statistics(&seen("UP"));
        assert!(health.last_error().is_some(), "a connection alone allows nothing");
    }
}
