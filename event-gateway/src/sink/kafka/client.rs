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
pub struct Health {
    state: Mutex<State>,
    is_quiet: bool,
}

#[derive(Debug, Default)]
struct State {
    error: Option<String>,
    /// Whether it is one of reaching Kafka, which a connection puts right.
    is_away: bool,
    logged_at: Option<Instant>,
}

impl Health {
    /// Of a second client with the same settings: the first one logs what is wrong with them.
    pub fn quiet() -> Self {
        Self { is_quiet: true, ..Self::default() }
    }

    /// Why Kafka cannot be used at present.
    pub fn last_error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    /// Notes an error, and logs it unless one was logged a short time ago.
    pub fn failed(&self, what: String) {
        self.note(what, false);
    }

    /// The same of what librdkafka refuses, with what may help.
    pub fn refused(&self, error: &KafkaError) {
        self.note(with_help(error.rdkafka_error_code(), error.to_string()), false);
    }

    fn note(&self, what: String, is_away: bool) {
        let mut state = self.lock();
        let what = match &state.error {
            // That says less than what came before it.
            Some(before) if state.is_away && what.contains("brokers are down") => before.clone(),
            _ => what,
        };
        if !self.is_quiet && state.logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
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
            if !self.is_quiet {
                tracing::info!("Kafka can be used again");
            }
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        const AWAY: [RDKafkaErrorCode; 5] = [
            RDKafkaErrorCode::AllBrokersDown,
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::Resolve,
            RDKafkaErrorCode::SSL,
            RDKafkaErrorCode::Authentication,
        ];
        let code = error.rdkafka_error_code();
        let what = format!("{reason} ({})", code.map(|code| format!("{code:?}")).unwrap_or_default());
        self.note(with_help(code, what), code.is_some_and(|code| AWAY.contains(&code)));
    }
}

fn with_help(code: Option<RDKafkaErrorCode>, what: String) -> String {
    match code.and_then(|code| help(code, &what)) {
        Some(help) => format!("{what}; {help}"),
        None => what,
    }
}

/// What of the configuration is likely to be wrong.
fn help(code: RDKafkaErrorCode, reason: &str) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    match code {
        Code::Authentication => {
            Some("kafka.properties sasl.mechanism, sasl.username and sasl.password must be what Kafka knows")
        }
        // Only by these words of OpenSSL can it be told.
        _ if reason.contains(" alert ") => Some(
            "kafka.properties ssl.certificate.location and ssl.key.location must be what Kafka accepts as a client's",
        ),
        Code::SSL if reason.contains("certificate verify failed") => Some(
            "the broker's certificate must not have expired, must hold for the name in kafka.brokers, and must be signed by \
             the authority in kafka.properties ssl.ca.location",
        ),
        Code::Resolve => Some("kafka.brokers must have names that can be resolved here"),
        Code::SSL | Code::BrokerTransportFailure | Code::AllBrokersDown => {
            Some("kafka.brokers and kafka.properties security.protocol must be those of a listener of Kafka")
        }
        Code::UnknownTopic | Code::UnknownTopicOrPartition => {
            Some("\"kpulse-event-gateway setup\" makes the topics that are missing")
        }
        Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed => {
            Some("who logs in needs the right to read or write it")
        }
        _ => None,
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
        assert!(
            health.last_error().unwrap().starts_with("1/1 brokers are down (AllBrokersDown); kafka.brokers ")
        );
        health.statistics(&seen("UP"));
        assert_eq!(health.last_error(), None);
        health.error(KafkaError::Global(RDKafkaErrorCode::TopicAuthorizationFailed), "not allowed");
        health.statistics(&seen("UP"));
        assert!(health.last_error().is_some(), "a connection alone allows nothing");
    }

    #[test]
    fn what_was_wrong_is_not_hidden_by_what_follows_from_it() {
        let health = Health::default();
        health.error(KafkaError::Global(RDKafkaErrorCode::Authentication), "invalid credentials");
        health.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        let error = health.last_error().unwrap();
        assert!(error.contains("invalid credentials") && error.contains("sasl.password"), "{error}");
        health.statistics(&seen("UP"));
        assert_eq!(health.last_error(), None);
    }
}
