//! Records that can be no documents: kept in a topic of their own, with the reason, for a person to look at.

use super::counts::Counts;
use crate::dataset::Dataset;
use crate::sink::elasticsearch::Place;
use crate::sink::kafka::{Headers, Health, KafkaConfig, Refusal, Role, refused};
use crate::spool::disk::Record;
use anyhow::Result;
use kpulse_common::event::Event;
use kpulse_common::profile::Profile;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Wait before a dead letter is sent again.
const RETRY: Duration = Duration::from_secs(1);

/// The topic of dead letters.
pub struct DeadLetters {
    client: ClientConfig,
    /// Made for the first of them, which may never come: its thread takes a hundredth of a core.
    producer: Mutex<Option<FutureProducer<Health>>>,
    config: KafkaConfig,
    counts: Arc<Counts>,
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("DeadLetters").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A record as it was read.
#[derive(Debug)]
pub struct Rejected {
    pub place: Place,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: OwnedHeaders,
    pub refusal: Refusal,
}

impl DeadLetters {
    /// Kafka need not be there.
    pub fn new(config: &KafkaConfig, counts: Arc<Counts>) -> Result<Self> {
        let client = config.client(Role::Producer)?;
        client.create_native_config().map_err(refused)?;
        Ok(Self { client, producer: Mutex::default(), config: config.clone(), counts })
    }

    /// It is set whole, so a poisoned lock is still good.
    fn producer(&self) -> KafkaResult<FutureProducer<Health>> {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*producer {
            return Ok(made.clone());
        }
        let made: FutureProducer<Health> = self.client.create_with_context(Health::quiet())?;
        Ok(producer.insert(made).clone())
    }

    /// Sends a document that Elasticsearch refused, with the key and the headers that it had.
    pub async fn send_document(&self, place: Place, json: &[u8], refusal: &Refusal) {
        let record = match place.partition.dataset {
            Dataset::Events => {
                serde_json::from_slice::<Event>(json).ok().map(|event| Record::of(&event, String::new()))
            }
            Dataset::Profiles => serde_json::from_slice::<Profile>(json)
                .ok()
                .map(|profile| Record::of_profile(&profile, String::new())),
        };
        let headers = record.as_ref().map(Headers::of);
        let key = record.map(|record| record.key.into_owned().into_bytes());
        self.send(place, key.as_deref(), Some(json), headers, refusal).await;
    }

    /// Sends a record that can be no document.
    pub async fn send_record(&self, it: Rejected) {
        self.send(it.place, it.key.as_deref(), it.payload.as_deref(), Some(it.headers), &it.refusal).await;
    }

    /// Returns when Kafka has it, however long that takes.
    async fn send(
        &self,
        place: Place,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
        refusal: &Refusal,
    ) {
        let origin = self.config.topic_of(place.partition.dataset);
        let from = (origin, place.partition.number, place.offset);
        let headers = Headers::of_dead_letter(headers, from, refusal);
        loop {
            let mut record: FutureRecord<'_, [u8], [u8]> =
                FutureRecord::to(&self.config.dead_letter_topic).headers(headers.clone());
            record.key = key;
            record.payload = payload;
            let sent = match self.producer() {
                Ok(producer) => producer.send(record, Timeout::Never).await.map_err(|(error, _)| error),
                Err(error) => Err(error),
            };
            match sent {
                Ok(_) => {
                    break self
                        .counts
                        .update(|counts| *counts.dead_lettered.entry(refusal.cause).or_default() += 1);
                }
                Err(error) if is_final(&error) => {
                    let (partition, offset) = (place.partition.number, place.offset);
                    tracing::error!(
                        topic = origin,
                        partition,
                        offset,
                        "a record is lost, not even a dead letter: {error}"
                    );
                    break self.counts.update(|counts| counts.dropped += 1);
                }
                Err(error) => {
                    self.counts.retry("dead_letter", 1);
                    tracing::error!("a dead letter waits for Kafka: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

fn is_final(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::InvalidRecord)
    )
}
