//! How Kafka is reached: the `kafka` block of the configuration.

use crate::dataset::Dataset;
use anyhow::{Context, Result};
use kpulse_common::cli::Usage;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What the delivery of events rests on, so it cannot be set.
const OURS: [&str; 9] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "message.timeout.ms",
];

const QUEUE: &str = "queue.buffering.max.kbytes";
/// What librdkafka may hold of what is sent: five batches. An idempotent producer has so many on their way to a partition,
/// and while more are ready librdkafka asks all the time whether one may go. The rest waits in the spool.
const QUEUE_KBYTES: u64 = 5 * 256;

/// Where Kafka is and what it is told.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    /// `host:port`, several with commas between.
    pub brokers: String,
    /// Topic of the events.
    pub topic: String,
    /// Topic of profiles.
    pub profiles_topic: String,
    /// Topic of what was recorded around an event.
    pub camera_topic: String,
    /// Topic of the records that Elasticsearch will never take.
    pub dead_letter_topic: String,
    /// Group of the members of `index`, which share the partitions.
    pub group: String,
    /// Partitions that `setup` gives a new topic, but for that of dead letters: as many members of `index` can share it.
    pub partitions: i32,
    /// Copies of each partition that `setup` asks for; 0 for what the brokers have as their default.
    pub replication: i32,
    /// How long `setup` has Kafka keep events.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// More settings by librdkafka's names, as `security.protocol`; `_` may stand for a dot.
    pub properties: BTreeMap<String, String>,
    /// As `properties`, each with the path of the file that holds the value: for passwords.
    pub property_files: BTreeMap<String, PathBuf>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: String::new(),
            topic: "kpulse.events".to_owned(),
            profiles_topic: "kpulse.profiles".to_owned(),
            camera_topic: "kpulse.camera".to_owned(),
            dead_letter_topic: "kpulse.dead-letter".to_owned(),
            group: "kpulse-index".to_owned(),
            partitions: 12,
            replication: 0,
            retention: Duration::from_secs(7 * 24 * 3600),
            properties: BTreeMap::new(),
            property_files: BTreeMap::new(),
        }
    }
}

/// Without the values of properties: one may be a password.
impl fmt::Debug for KafkaConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.properties.keys().chain(self.property_files.keys()).collect();
        let Self { brokers, topic, .. } = self;
        formatter
            .debug_struct("KafkaConfig")
            .field("brokers", brokers)
            .field("topic", topic)
            .field("properties", &names)
            .finish()
    }
}

/// What a client is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sends events.
    Producer,
    /// Takes events, as a member of the group.
    Consumer,
    /// Makes topics.
    Admin,
}

impl KafkaConfig {
    /// Every topic with its key.
    pub fn topics(&self) -> [(&'static str, &str); 4] {
        [
            ("topic", &self.topic),
            ("profiles_topic", &self.profiles_topic),
            ("camera_topic", &self.camera_topic),
            ("dead_letter_topic", &self.dead_letter_topic),
        ]
    }

    /// The topic of a dataset.
    pub fn topic_of(&self, dataset: Dataset) -> &str {
        match dataset {
            Dataset::Events => &self.topic,
            Dataset::Profiles => &self.profiles_topic,
        }
    }

    /// The dataset of a topic.
    pub fn dataset_of(&self, topic: &str) -> Option<Dataset> {
        Dataset::ALL.into_iter().find(|dataset| self.topic_of(*dataset) == topic)
    }

    /// What is wrong with it, by key.
    pub fn check(&self) -> Result<(), (String, String)> {
        let topics = self.topics();
        for (index, (key, topic)) in topics.iter().enumerate() {
            let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
            if topic.is_empty() || topic.len() > 249 || !topic.chars().all(is_allowed) {
                let why = format!(
                    "is {topic:?}, which is no name of a topic: letters, digits, \".\", \"_\" and \"-\", at most 249"
                );
                return Err(((*key).to_owned(), why));
            }
            if let Some((other, _)) = topics[..index].iter().find(|(_, other)| other == topic) {
                return Err(((*key).to_owned(), format!("must be another one than {other}")));
            }
        }
        if self.group.is_empty() {
            return Err(("group".to_owned(), "must not be empty".to_owned()));
        }
        if self.partitions < 1 {
            return Err(("partitions".to_owned(), "must be at least 1".to_owned()));
        }
        let names = self.properties.keys().map(|name| ("properties", name));
        let in_files = self.property_files.keys().map(|name| ("property_files", name));
        for (block, name) in names.chain(in_files) {
            if OURS.contains(&dotted(name).as_str()) {
                let why = "cannot be set: that no event is lost rests on it";
                return Err((format!("{block}.{name}"), why.to_owned()));
            }
        }
        Ok(())
    }

    /// The settings of a client.
    pub fn client(&self, role: Role) -> Result<ClientConfig> {
        if self.brokers.is_empty() {
            return Err(Usage(
                "no Kafka is configured: set kafka.brokers, for example KPULSE_GATEWAY__KAFKA__BROKERS=broker:9092".to_owned(),
            )
            .into());
        }
        let mut client = ClientConfig::new();
        client.set("client.id", "kpulse-event-gateway");
        client.set("statistics.interval.ms", "5000");
        let defaults: &[(&str, &str)] = match role {
            Role::Producer => &[
                ("compression.type", "zstd"),
                ("linger.ms", "20"),
                // Whoever reads has a whole batch in memory.
                ("batch.size", "262144"),
            ],
            Role::Consumer => &[
                ("auto.offset.reset", "earliest"),
                ("partition.assignment.strategy", "cooperative-sticky"),
                // Fetches are bounded as they are compressed, some twenty times smaller than what then waits here.
                ("queued.max.messages.kbytes", "2048"),
                ("message.max.bytes", "131072"),
                ("fetch.max.bytes", "131072"),
                ("fetch.message.max.bytes", "32768"),
                ("fetch.queue.backoff.ms", "20"),
            ],
            Role::Admin => &[],
        };
        for (name, value) in defaults {
            client.set(*name, *value);
        }
        for (name, value) in &self.properties {
            client.set(dotted(name), value);
        }
        for (name, path) in &self.property_files {
            let value = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read kafka.property_files.{name}, {}", path.display()))?;
            client.set(dotted(name), value.trim_end_matches(['\n', '\r']));
        }
        client.set("bootstrap.servers", &self.brokers);
        match role {
            Role::Producer => {
                // An event waits for its acknowledgement for ever: the spool is what bounds the waiting.
                client.set("enable.idempotence", "true").set("acks", "all").set("message.timeout.ms", "0");
                // A record that is larger would wait for room in it for ever.
                let largest: u64 =
                    client.get("message.max.bytes").and_then(|it| it.parse().ok()).unwrap_or(0);
                if client.get(QUEUE).is_none() {
                    client.set(QUEUE, QUEUE_KBYTES.max(largest / 1024 + 1).to_string());
                }
            }
            Role::Consumer => {
                client.set("group.id", &self.group).set("enable.auto.commit", "false");
                client.set("enable.auto.offset.store", "false");
            }
            Role::Admin => {}
        }
        client.set_log_level(RDKafkaLogLevel::Warning);
        Ok(client)
    }
}

/// A variable of the environment can have no dots in its name, and no setting has an underscore.
fn dotted(name: &str) -> String {
    name.replace('_', ".")
}

/// What librdkafka says of a client that cannot be made, as a mistake of the configuration.
pub fn refused(error: KafkaError) -> anyhow::Error {
    match error {
        KafkaError::ClientConfig(_, why, name, _) => {
            // Without the value: it may be a password.
            Usage(format!("the configuration's kafka.properties.{name} is refused by librdkafka: {why}"))
                .into()
        }
        KafkaError::ClientCreation(why) => {
            Usage(format!("the configuration's kafka.properties are refused by librdkafka: {why}")).into()
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> KafkaConfig {
        KafkaConfig { brokers: "127.0.0.1:1".to_owned(), ..KafkaConfig::default() }
    }

    #[test]
    fn properties_have_the_names_of_librdkafka_and_may_come_from_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "s3cret\n").unwrap();
        let mut config = config();
        config.properties.insert("sasl_username".to_owned(), "me".to_owned());
        config.properties.insert("security.protocol".to_owned(), "SASL_SSL".to_owned());
        config.property_files.insert("sasl.password".to_owned(), file);
        let client = config.client(Role::Producer).unwrap();
        let of = |name| client.get(name).unwrap();
        assert_eq!(
            [of("sasl.username"), of("security.protocol"), of("sasl.password")],
            ["me", "SASL_SSL", "s3cret"]
        );
        assert!(!format!("{config:?}").contains("SASL_SSL"));
    }

    #[test]
    fn the_largest_record_finds_room_in_the_queue() {
        let mut config = config();
        let queue =
            |config: &KafkaConfig| config.client(Role::Producer).unwrap().get(QUEUE).unwrap().to_owned();
        assert_eq!(queue(&config), "1280");
        config.properties.insert("message.max.bytes".to_owned(), (5 << 20).to_string());
        assert_eq!(queue(&config), "5121");
        config.properties.insert("queue_buffering_max_kbytes".to_owned(), "9000".to_owned());
        assert_eq!(queue(&config), "9000");
    }

    #[test]
    fn what_delivery_rests_on_cannot_be_set() {
        for name in ["acks", "enable_idempotence", "group.id"] {
            let mut config = config();
            config.properties.insert(name.to_owned(), "1".to_owned());
            assert_eq!(config.check().unwrap_err().0, format!("properties.{name}"));
        }
        for topic in ["", "a b", "é"] {
            let config = KafkaConfig { topic: topic.to_owned(), ..config() };
            assert_eq!(config.check().unwrap_err().0, "topic", "{topic:?}");
        }
        assert_eq!(config().check(), Ok(()));
    }

    #[test]
    fn a_client_without_brokers_or_with_an_unknown_property_is_a_usage_error() {
        let none = KafkaConfig::default().client(Role::Producer).unwrap_err();
        assert!(none.is::<Usage>(), "{none}");
        for (name, value, word) in
            [("no.such", "1", "no.such"), ("ssl.ca.location", "/nonexistent", "ssl.ca.location")]
        {
            let mut config = config();
            config.properties.insert("security.protocol".to_owned(), "ssl".to_owned());
            config.properties.insert(name.to_owned(), value.to_owned());
            let made: Result<rdkafka::producer::BaseProducer, _> =
                config.client(Role::Producer).unwrap().create();
            let error = refused(made.err().unwrap());
            assert!(error.is::<Usage>() && error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn tls_and_sasl_are_built_in() {
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let mut config = config();
            for (name, value) in [
                ("security.protocol", "sasl_ssl"),
                ("sasl.mechanism", mechanism),
                ("sasl.username", "a"),
                ("sasl.password", "b"),
            ] {
                config.properties.insert(name.to_owned(), value.to_owned());
            }
            let made: Result<rdkafka::producer::BaseProducer, _> =
                config.client(Role::Producer).unwrap().create();
            assert!(made.is_ok(), "{mechanism}");
        }
    }
}
