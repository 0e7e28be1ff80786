//! From the spool to Kafka: a chunk leaves the spool when Kafka has acknowledged each of its records.

use super::client::Health;
use super::config::{KafkaConfig, Role, refused};
use super::headers::Headers;
use crate::dataset::Dataset;
use crate::spool::disk::{Chunk, DiskSpool, Loss, Record};
use crate::tally::observe;
use anyhow::Result;
use kpulse_common::metric::Histogram;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::statistics::Statistics;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Chunks of each dataset on their way at once: with librdkafka's own queue the bound of the memory that is used.
const IN_FLIGHT_MAX: [(Dataset, usize); 2] = [(Dataset::Events, 16), (Dataset::Profiles, 2)];
/// How soon a new chunk is found. A little more than whole milliseconds: librdkafka waits only those, and the rest of the last
/// one would be spent asking it again and again.
const POLL: Duration = Duration::from_micros(50_020);
/// Wait before a chunk is sent again.
const RETRY: Duration = Duration::from_secs(1);
/// How long Kafka may take for what is on its way once the process must end; the rest stays in the spool.
const GRACE: Duration = Duration::from_secs(5);

/// What became of what the spool held.
#[derive(Debug, Clone, Default)]
pub struct ProducerCounts {
    /// Events that Kafka acknowledged.
    pub sent: u64,
    /// Profiles that Kafka acknowledged.
    pub sent_profiles: u64,
    /// Records that Kafka did not take and that were sent again, by librdkafka's name of the error.
    pub retries: BTreeMap<String, u64>,
    /// From the spool's acknowledgement to Kafka's.
    pub delay: Histogram,
    /// Why Kafka does not take them at present.
    pub error: Option<String>,
}

/// Sends what the spool holds.
pub struct Producer {
    client: ClientConfig,
    config: KafkaConfig,
    spool: DiskSpool,
    counts: Arc<Mutex<ProducerCounts>>,
    health: Arc<Health>,
}

/// Whether the process must end.
struct Ending<'s> {
    stop: &'s AtomicBool,
    asked_at: Cell<Option<Instant>>,
}

impl Ending<'_> {
    fn is_asked(&self) -> bool {
        let is_asked = self.stop.load(Ordering::Acquire);
        if is_asked && self.asked_at.get().is_none() {
            self.asked_at.set(Some(Instant::now()));
        }
        is_asked
    }

    fn is_over(&self) -> bool {
        self.is_asked() && self.asked_at.get().is_some_and(|at| at.elapsed() >= GRACE)
    }
}

/// A chunk on its way.
struct Outstanding {
    left: u64,
    taken_at: SystemTime,
    has_failed: bool,
}

/// Takes what librdkafka reports; the opaque number of a record is its chunk's.
struct Context {
    health: Arc<Health>,
    delivered: Mutex<Vec<(usize, Option<RDKafkaErrorCode>)>>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.health.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.health.statistics(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.health.error(error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, chunk: usize) {
        let error = result.as_ref().err().and_then(|(error, _)| error.rdkafka_error_code());
        lock(&self.delivered).push((chunk, error));
    }
}

/// What is in it is whole at any time, so a poisoned lock is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Producer {
    /// A producer for this spool; an error when the settings cannot be used. Kafka need not be there.
    pub fn new(config: &KafkaConfig, spool: DiskSpool) -> Result<Self> {
        let producer = Self {
            client: config.client(Role::Producer)?,
            config: config.clone(),
            spool,
            counts: Arc::default(),
            health: Arc::default(),
        };
        producer.connect().map_err(refused)?;
        Ok(producer)
    }

    /// A look at the counts from any thread.
    pub fn counts(&self) -> impl Fn() -> ProducerCounts + Send + Sync + use<> {
        let (counts, health) = (self.counts.clone(), self.health.clone());
        move || ProducerCounts { error: health.last_error(), ..lock(&counts).clone() }
    }

    fn connect(&self) -> Result<BaseProducer<Context>, KafkaError> {
        self.client.create_with_context(Context { health: self.health.clone(), delivered: Mutex::default() })
    }

    /// Sends until `stop` is set and the spool is empty, or the grace is over.
    pub fn run(&self, stop: &AtomicBool) {
        let ending = Ending { stop, asked_at: Cell::default() };
        while !(ending.is_over() || ending.is_asked() && self.spool.state().events == 0) {
            match self.connect() {
                Ok(producer) => Sending::new(self, producer, &ending).run(),
                Err(error) => {
                    self.health.failed(error.to_string());
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}

/// One connection's life.
struct Sending<'p> {
    its: &'p Producer,
    producer: BaseProducer<Context>,
    /// Events first.
    lanes: [Lane; 2],
    arrived: Vec<i64>,
    ending: &'p Ending<'p>,
}

/// The chunks of one dataset, which do not wait for the other's topic.
struct Lane {
    dataset: Dataset,
    in_flight_max: usize,
    outstanding: BTreeMap<i64, Outstanding>,
    /// Chunks to be sent again, and when.
    again: Vec<(i64, Instant)>,
    /// Every chunk up to this one was sent.
    cursor: i64,
}

impl Lane {
    fn new((dataset, in_flight_max): (Dataset, usize)) -> Self {
        Self { dataset, in_flight_max, outstanding: BTreeMap::new(), again: Vec::new(), cursor: 0 }
    }

    fn is_empty(&self) -> bool {
        self.outstanding.is_empty() && self.again.is_empty()
    }
}

impl<'p> Sending<'p> {
    fn new(its: &'p Producer, producer: BaseProducer<Context>, ending: &'p Ending<'p>) -> Self {
        Self { its, producer, lanes: IN_FLIGHT_MAX.map(Lane::new), arrived: Vec::new(), ending }
    }

    /// Returns when the process must end, or when this producer will never send again.
    fn run(&mut self) {
        loop {
            let is_idle = self.send_next();
            self.producer.poll(if is_idle { POLL } else { Duration::ZERO });
            self.take_deliveries();
            if let Some((_, why)) = self.producer.client().fatal_error() {
                return self.its.health.failed(why);
            }
            let is_empty = is_idle && self.lanes.iter().all(Lane::is_empty);
            if self.ending.is_over() || (self.ending.is_asked() && is_empty) {
                return;
            }
        }
    }

    /// Sends one chunk; whether there was nothing to be sent.
    fn send_next(&mut self) -> bool {
        (0..self.lanes.len()).all(|lane| self.send_next_of(lane))
    }

    fn send_next_of(&mut self, lane: usize) -> bool {
        let its = &mut self.lanes[lane];
        if its.outstanding.len() >= its.in_flight_max {
            return true;
        }
        let now = Instant::now();
        let due = its.again.iter().position(|(_, at)| *at <= now);
        let seq = due.map(|index| its.again.swap_remove(index).0);
        let chunk = match self.its.spool.after(its.dataset, seq.map_or(its.cursor, |seq| seq - 1)) {
            Ok(chunk) => chunk,
            Err(error) => {
                self.its.health.failed(format!("{error:#}"));
                return true;
            }
        };
        match (chunk, seq) {
            (None, _) => true,
            // The spool's bounds have taken it meanwhile.
            (Some(chunk), Some(seq)) if chunk.seq != seq => false,
            (Some(chunk), seq) => {
                if seq.is_none() {
                    its.cursor = chunk.seq;
                }
                self.send(lane, &chunk);
                false
            }
        }
    }

    fn send(&mut self, lane: usize, chunk: &Chunk) {
        let records = match chunk.records() {
            Ok(records) => records,
            Err(error) => {
                let (records, dataset) = (chunk.events, chunk.dataset.name());
                tracing::error!(records, dataset, "a part of the spool is lost: {error:#}");
                return self.remove(&[chunk.seq], Some("spool_corrupt"));
            }
        };
        let waiting = Outstanding { left: records.len() as u64, taken_at: chunk.taken_at, has_failed: false };
        self.lanes[lane].outstanding.insert(chunk.seq, waiting);
        for record in &records {
            if let Err(code) = self.send_one(record, chunk.seq) {
                self.delivered(chunk.seq, Some(code));
            }
        }
    }

    fn send_one(&self, record: &Record<'_>, seq: i64) -> Result<(), RDKafkaErrorCode> {
        let seq = usize::try_from(seq).expect("places are positive");
        let mut message = BaseRecord::with_opaque_to(self.its.config.topic_of(record.dataset()), seq)
            .key(&*record.key)
            .payload(&*record.json)
            .headers(Headers::of(record));
        loop {
            let (error, unsent) = match self.producer.send(message) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            };
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => {
                    // Kafka is slower than the disk, or away: the process may have to end meanwhile.
                    if self.ending.is_over() || self.producer.client().fatal_error().is_some() {
                        return Err(RDKafkaErrorCode::QueueFull);
                    }
                    self.producer.poll(POLL);
                    message = unsent;
                }
                code => return Err(code.unwrap_or(RDKafkaErrorCode::Fail)),
            }
        }
    }

    fn take_deliveries(&mut self) {
        let delivered = std::mem::take(&mut *lock(&self.producer.context().delivered));
        for (chunk, error) in delivered {
            self.delivered(i64::try_from(chunk).expect("it was an i64"), error);
        }
        let arrived = std::mem::take(&mut self.arrived);
        if !arrived.is_empty() {
            self.remove(&arrived, None);
        }
    }

    fn delivered(&mut self, seq: i64, error: Option<RDKafkaErrorCode>) {
        use RDKafkaErrorCode as Code;
        let lane = self.lanes.iter_mut().find(|lane| lane.outstanding.contains_key(&seq));
        let Some(lane) = lane else { return };
        let Some(chunk) = lane.outstanding.get_mut(&seq) else { return };
        chunk.left -= 1;
        match error {
            None => {
                self.its.health.works();
                let delay = chunk.taken_at.elapsed().unwrap_or_default();
                let mut counts = lock(&self.its.counts);
                match lane.dataset {
                    Dataset::Events => counts.sent += 1,
                    Dataset::Profiles => counts.sent_profiles += 1,
                }
                observe(&mut counts.delay, u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX));
            }
            // Of this record alone, and for ever.
            Some(code @ (Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::InvalidRecord)) => {
                let dataset = lane.dataset;
                tracing::error!(
                    document = dataset.document(),
                    "a record that Kafka refuses is lost: {code}; kafka.properties message.max.bytes and the topic's \
                     max.message.bytes bound its size"
                );
                self.its.spool.count_dropped([Loss { reason: "kafka_refused", dataset, records: 1 }]);
            }
            Some(code) => {
                chunk.has_failed = true;
                self.its.health.refused(&KafkaError::MessageProduction(code));
                *lock(&self.its.counts).retries.entry(format!("{code:?}")).or_default() += 1;
            }
        }
        if chunk.left > 0 {
            return;
        }
        let has_failed = chunk.has_failed;
        lane.outstanding.remove(&seq);
        if has_failed {
            lane.again.push((seq, Instant::now() + RETRY));
        } else {
            self.arrived.push(seq);
        }
    }

    /// What cannot be removed is sent once more at the next start, and stays one document by its id.
    fn remove(&mut self, chunks: &[i64], lost: Option<&'static str>) {
        if let Err(error) = self.its.spool.remove(chunks, lost) {
            self.its.health.failed(format!("{error:#}"));
            if lost.is_none() {
                self.arrived.extend(chunks);
            }
        }
    }
}

#[cfg(test)]
#[path = "producer_tests.rs"]
mod tests;
