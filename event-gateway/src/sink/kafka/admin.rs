//! The topics, made where they are missing and otherwise left as they are.

use super::client::Health;
use super::config::{KafkaConfig, Role, refused};
use anyhow::{Context, Result, anyhow};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long Kafka may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Dead letters wait for a person.
const DEAD_LETTER_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// A topic that the product needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// How many partitions it gets.
    pub partitions: i32,
    /// How long it keeps records.
    pub retention: Duration,
    /// Whether it is there already.
    pub exists: bool,
}

/// Makes the topics that are missing, or only finds out which are.
pub async fn create_topics(config: &KafkaConfig, is_dry_run: bool) -> Result<Vec<Topic>> {
    let context = Health::default();
    let admin: AdminClient<Health> =
        config.client(Role::Admin)?.create_with_context(context).map_err(refused)?;
    let existing = {
        let metadata = admin.inner().fetch_metadata(None, TIMEOUT);
        let metadata = metadata.map_err(|error| {
            let why = admin.inner().context().last_error();
            anyhow!(error).context(why.unwrap_or_else(|| "it does not answer".to_owned()))
        });
        let metadata = metadata.with_context(|| format!("cannot reach Kafka at {}", config.brokers))?;
        metadata.topics().iter().map(|topic| topic.name().to_owned()).collect::<BTreeSet<_>>()
    };
    let topics = config.topics().map(|(key, name)| {
        let (partitions, retention) = match key {
            "dead_letter_topic" => (1, DEAD_LETTER_RETENTION.max(config.retention)),
            _ => (config.partitions, config.retention),
        };
        Topic { name: name.to_owned(), partitions, retention, exists: existing.contains(name) }
    });
    if !is_dry_run {
        for topic in topics.iter().filter(|topic| !topic.exists) {
            create(&admin, topic, config.replication).await?;
        }
    }
    Ok(topics.into())
}

async fn create(admin: &AdminClient<Health>, topic: &Topic, replication: i32) -> Result<()> {
    let retention = topic.retention.as_millis().to_string();
    let copies = TopicReplication::Fixed(if replication == 0 { -1 } else { replication });
    let new = NewTopic::new(&topic.name, topic.partitions, copies).set("retention.ms", &retention);
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    let created = admin.create_topics([&new], &options).await;
    let created = created.with_context(|| format!("cannot make the topic {}", topic.name))?;
    match created.first() {
        // Somebody else was faster.
        Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, code))) => Err(anyhow!("Kafka does not make the topic {}: {code}", topic.name)),
        None => Err(anyhow!("Kafka does not say whether it made the topic {}", topic.name)),
    }
}
