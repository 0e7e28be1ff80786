//! `kpulse-event-gateway replay-dead-letters`: what Elasticsearch refused goes back to the topic that it was in.
//!
//! It reads up to what is there when it starts, so a record that is refused again does not go round for ever. A record
//! is committed once Kafka has its copy; what a crash repeats is one document by its id.

use crate::config::Config;
use crate::dataset::Dataset;
use crate::sink::kafka::{Health, KafkaConfig, Role, original, refused, topic_of_dead_letter};
use anyhow::{Context, Result, anyhow};
use kpulse_common::cli::CommonFlags;
use kpulse_common::logging;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::util::Timeout;
use std::io::Write;
use std::time::Duration;

/// How long Kafka may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Replays what is there, and says how much that was.
pub fn run(common: &CommonFlags) -> Result<()> {
    let config = Config::load(common, Vec::new())?;
    logging::init(config.log.level, config.log.format)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let replayed = runtime.block_on(replay(&config.kafka))?;
    for (dataset, count) in Dataset::ALL.into_iter().zip(replayed) {
        // Most have none of another dataset.
        if count > 0 || dataset == Dataset::Events {
            let topic = config.kafka.topic_of(dataset);
            writeln!(std::io::stdout(), "{count} dead letters went back to {topic}")
                .context("cannot write to stdout")?;
        }
    }
    Ok(())
}

/// How many of each dataset.
async fn replay(config: &KafkaConfig) -> Result<[u64; Dataset::ALL.len()]> {
    // A group of its own, which remembers what was replayed.
    let own = KafkaConfig { group: format!("{}-replay", config.group), ..config.clone() };
    let consumer: BaseConsumer<Health> =
        own.client(Role::Consumer)?.create_with_context(Health::default()).map_err(refused)?;
    let producer: FutureProducer<Health> =
        config.client(Role::Producer)?.create_with_context(Health::default()).map_err(refused)?;
    let dead_letters = &config.dead_letter_topic;
    let mut replayed = [0; Dataset::ALL.len()];
    for (partition, from, to) in ranges(&consumer, dead_letters)? {
        let mut start = TopicPartitionList::new();
        start.add_partition_offset(dead_letters, partition, Offset::Offset(from))?;
        consumer.assign(&start)?;
        let mut next = from;
        while next < to {
            let message = consumer
                .poll(TIMEOUT)
                .ok_or_else(|| anyhow!("Kafka gives nothing more of {dead_letters} within {TIMEOUT:?}"))?;
            let message = message.with_context(|| format!("cannot read {dead_letters}"))?;
            if message.offset() >= to {
                break;
            }
            let origin = topic_of_dead_letter(&message).and_then(|topic| config.dataset_of(topic));
            let dataset = origin.unwrap_or(Dataset::Events);
            let mut record: FutureRecord<'_, [u8], [u8]> =
                FutureRecord::to(config.topic_of(dataset)).headers(original(&message));
            record.key = message.key();
            record.payload = message.payload();
            producer.send(record, Timeout::Never).await.map_err(|(error, _)| error)?;
            replayed[dataset as usize] += 1;
            next = message.offset() + 1;
            // Of the last one, and now and then before: what is replayed twice costs little.
            if next >= to || next % 1_000 == 0 {
                let mut done = TopicPartitionList::new();
                done.add_partition_offset(dead_letters, partition, Offset::Offset(next))?;
                consumer.commit(&done, CommitMode::Sync)?;
            }
        }
    }
    Ok(replayed)
}

/// Partition, first offset that was not replayed, and the end of what is there.
fn ranges(consumer: &BaseConsumer<Health>, topic: &str) -> Result<Vec<(i32, i64, i64)>> {
    let reach = || {
        let why = consumer.context().last_error().map(|why| format!(": {why}")).unwrap_or_default();
        format!("cannot read the topic {topic}{why}")
    };
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).with_context(reach)?;
    let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions).map(MetadataPartition::id);
    let mut asked = TopicPartitionList::new();
    for partition in partitions {
        asked.add_partition(topic, partition);
    }
    if asked.count() == 0 {
        return Err(anyhow!("there is no topic {topic}; \"kpulse-event-gateway setup\" makes it"));
    }
    let committed = consumer.committed_offsets(asked, TIMEOUT).with_context(reach)?;
    let mut ranges = Vec::new();
    for element in committed.elements() {
        let (low, high) =
            consumer.fetch_watermarks(topic, element.partition(), TIMEOUT).with_context(reach)?;
        let from = element.offset().to_raw().filter(|offset| *offset >= low).unwrap_or(low);
        ranges.push((element.partition(), from, high));
    }
    Ok(ranges)
}
