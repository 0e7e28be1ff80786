//! The thread that reads: a member of the consumer group, which batches, pauses, and commits.
//!
//! It never waits for Elasticsearch for long, since a member that does not poll is put out of the group.

use super::counts::Counts;
use super::dead_letter::Rejected;
use super::deliver::Report;
use super::offsets::Offsets;
use super::record::parse;
use crate::dataset::Dataset;
use crate::sink::elasticsearch::{Batch, Decode, ElasticsearchConfig, Partition, Request};
use crate::sink::kafka::{Health, KafkaConfig, Role, known_id, original, refused};
use anyhow::Result;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// How long a batch waits for more events.
const LINGER: Duration = Duration::from_millis(200);
/// Longest wait for a record.
const POLL: Duration = Duration::from_millis(100);
/// Longest wait for Elasticsearch before reading pauses: what librdkafka has fetched by then is thrown away and fetched again.
const PAUSE_AFTER: Duration = Duration::from_secs(1);
/// Time between two commits.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// How long what is on its way may take once the process must end; the rest is read again by whoever comes next.
const GRACE: Duration = Duration::from_secs(10);

/// What the delivering thread gets; as many at once as [`State::limit`] says.
#[derive(Debug)]
pub enum Work {
    Request(Request),
    Rejected(Rejected),
}

/// A member of the group.
pub struct Member {
    consumer: BaseConsumer<Context>,
}

/// What librdkafka calls back, within a poll.
pub struct Context {
    state: Mutex<State>,
    health: Arc<Health>,
    kafka: KafkaConfig,
    /// How long a partition that is taken from us may be waited for.
    drain: Duration,
    stop: Arc<AtomicBool>,
}

/// What is on its way.
struct State {
    offsets: Offsets,
    /// One for each dataset.
    batches: [Batch; Dataset::ALL.len()],
    in_flight: usize,
    bytes: usize,
    /// How many batches may be on their way: one more after each success of all of them, half after a failure.
    limit: f64,
    /// Whether partitions may be paused.
    is_paused: bool,
    config: ElasticsearchConfig,
    work: UnboundedSender<Work>,
    reports: Receiver<Report>,
    counts: Arc<Counts>,
}

impl State {
    /// Whether the next one may be taken before anything else is looked at.
    fn take(&mut self, dataset: Dataset, message: &BorrowedMessage<'_>) -> bool {
        self.counts.update(|counts| counts.consumed += 1);
        let place = self.offsets.read(Partition { dataset, number: message.partition() }, message.offset());
        let decode = self.config.decode;
        let known_id = (decode == Decode::Verbatim).then(|| known_id(message)).flatten();
        match parse(message.payload(), known_id, decode, dataset) {
            Ok(parsed) => {
                self.batches[dataset as usize].push(place, &parsed.id, parsed.time_ns, &parsed.json);
                !self.is_full(dataset)
            }
            Err(refusal) => {
                let (key, payload) =
                    (message.key().map(<[u8]>::to_vec), message.payload().map(<[u8]>::to_vec));
                self.bytes += payload.as_ref().map_or(0, Vec::len);
                self.send(Work::Rejected(Rejected {
                    place,
                    key,
                    payload,
                    headers: original(message),
                    refusal,
                }));
                false
            }
        }
    }

    fn is_full(&self, dataset: Dataset) -> bool {
        self.batches[dataset as usize].bytes() >= self.config.max_bulk_bytes
    }

    /// A dataset whose batch is to be sent.
    fn due(&self) -> Option<Dataset> {
        let is_due = |dataset: &Dataset| {
            let batch = &self.batches[*dataset as usize];
            !batch.is_empty() && (self.is_full(*dataset) || batch.opened_at().elapsed() >= LINGER)
        };
        Dataset::ALL.into_iter().find(is_due)
    }

    /// Rejected records wait here too, so they count.
    fn has_room(&self) -> bool {
        (self.in_flight as f64) < self.limit.floor().max(1.0)
    }

    fn send_batch(&mut self, dataset: Dataset) {
        let batch = &mut self.batches[dataset as usize];
        if !batch.is_empty() {
            let batch = std::mem::replace(batch, Batch::new(dataset, self.config.max_bulk_bytes));
            self.bytes += batch.bytes();
            self.send(Work::Request(batch.into_request()));
        }
    }

    fn send(&mut self, work: Work) {
        self.in_flight += 1;
        // The other thread is gone only when the process ends.
        let _ = self.work.send(work);
    }

    /// Takes what is reported within this time; whether there was anything.
    fn take_reports(&mut self, patience: Duration) -> bool {
        let first = if patience.is_zero() {
            self.reports.try_recv().ok()
        } else {
            self.reports.recv_timeout(patience).ok()
        };
        if first.is_none() {
            return false;
        }
        let mut next = first;
        while let Some(report) = next {
            self.apply(report);
            next = self.reports.try_recv().ok();
        }
        let gathered: usize = self.batches.iter().map(Batch::bytes).sum();
        let (in_flight, bytes, limit) = (self.in_flight, self.bytes + gathered, self.limit);
        self.counts.update(|counts| {
            counts.in_flight = in_flight as u64;
            counts.waiting_bytes = bytes as u64;
            counts.in_flight_max = limit as u64;
        });
        true
    }

    fn apply(&mut self, report: Report) {
        match report {
            Report::Done(places) => places.into_iter().for_each(|place| self.offsets.done(place)),
            Report::Relief => {
                self.limit = (self.limit + 1.0 / self.limit).min(self.config.max_in_flight as f64);
            }
            Report::Pressure => self.limit = (self.limit / 2.0).max(1.0),
            Report::Finished(bytes) => {
                self.in_flight -= 1;
                self.bytes -= bytes;
            }
        }
    }

    /// Waits until the fate of what was read of these partitions is known, at most this long.
    fn drain(&mut self, partitions: &[Partition], time: Duration) {
        Dataset::ALL.into_iter().for_each(|dataset| self.send_batch(dataset));
        let deadline = Instant::now() + time;
        while self.offsets.is_pending(partitions) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            self.take_reports(left.min(POLL));
        }
    }
}

impl Context {
    /// Each change of the state is complete before anything can panic, so a poisoned lock is still whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partitions(&self, list: &TopicPartitionList) -> Vec<Partition> {
        let partition = |element: &TopicPartitionListElem<'_>| {
            Some(Partition { dataset: self.kafka.dataset_of(element.topic())?, number: element.partition() })
        };
        list.elements().iter().filter_map(partition).collect()
    }

    /// Pauses or resumes all partitions.
    fn pause(&self, consumer: &BaseConsumer<Self>, pause: bool) {
        let done = consumer
            .assignment()
            .and_then(|list| if pause { consumer.pause(&list) } else { consumer.resume(&list) });
        match done {
            Ok(()) => {
                let mut state = self.state();
                state.is_paused = pause;
                state.counts.update(|counts| counts.is_paused = pause);
            }
            Err(error) => tracing::debug!("partitions were not paused or resumed: {error}"),
        }
    }

    fn commit(&self, consumer: &BaseConsumer<Self>, mode: CommitMode) {
        let offsets = self.state().offsets.to_commit();
        if offsets.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (partition, offset) in &offsets {
            // Only an offset that is none is refused.
            let topic = self.kafka.topic_of(partition.dataset);
            let _ = list.add_partition_offset(topic, partition.number, Offset::Offset(*offset));
        }
        match consumer.commit(&list, mode) {
            Ok(()) => self.state().offsets.committed(&offsets),
            // What is not committed now is with the next commit, or read again.
            Err(error) => tracing::debug!("offsets were not committed: {error}"),
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.health.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.health.statistics(&statistics);
        let topic = |dataset| Some((dataset, statistics.topics.get(self.kafka.topic_of(dataset))?));
        let topics = Dataset::ALL.into_iter().filter_map(topic);
        let partitions = topics.flat_map(|(dataset, topic)| {
            topic.partitions.iter().map(move |(&number, its)| (Partition { dataset, number }, its))
        });
        let state = self.state();
        let lag = partitions.filter_map(|(partition, its)| {
            // The position is ours; before the first commit it is where the group was.
            let position = state.offsets.position(partition).unwrap_or(its.committed_offset);
            let is_ours = state.offsets.partitions().contains(&partition) || its.fetch_state == "active";
            let known = is_ours && its.hi_offset >= 0 && position >= 0;
            known.then(|| (partition, u64::try_from(its.hi_offset - position).unwrap_or(0)))
        });
        let lag = lag.collect();
        state.counts.update(|counts| counts.lag = lag);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.health.error(error, reason);
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Revoke(list) = rebalance else { return };
        let partitions = self.partitions(list);
        // At the end it was waited for already.
        if !self.stop.load(Ordering::Acquire) {
            self.state().drain(&partitions, self.drain);
        }
        if !consumer.assignment_lost() {
            self.commit(consumer, CommitMode::Sync);
        }
        self.state().offsets.forget(&partitions);
        tracing::info!(?partitions, "partitions go to other members");
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = rebalance {
            let partitions = self.partitions(list);
            // What an earlier assignment left would hide that these are read anew.
            self.state().offsets.forget(&partitions);
            // A partition that went while it was paused comes back paused, and one that comes during a pause is not
            // paused: none is from here on, until the next look at the batches.
            self.pause(consumer, false);
            tracing::info!(?partitions, "partitions are ours");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, list: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!("offsets were not committed: {error}");
            self.state().offsets.not_committed(&self.partitions(list));
        }
    }
}

impl Member {
    /// Joins the group; Kafka need not be there.
    pub fn join(
        kafka: &KafkaConfig,
        elasticsearch: &ElasticsearchConfig,
        (work, reports): (UnboundedSender<Work>, Receiver<Report>),
        counts: Arc<Counts>,
        health: Arc<Health>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self> {
        let client = kafka.client(Role::Consumer)?;
        let session = client.get("session.timeout.ms").and_then(|text| text.parse().ok()).unwrap_or(45_000);
        let state = State {
            offsets: Offsets::default(),
            batches: Dataset::ALL.map(|dataset| Batch::new(dataset, elasticsearch.max_bulk_bytes)),
            in_flight: 0,
            bytes: 0,
            limit: 1.0,
            is_paused: false,
            config: elasticsearch.clone(),
            work,
            reports,
            counts,
        };
        let drain = Duration::from_millis(session / 2);
        let context = Context { state: Mutex::new(state), health, kafka: kafka.clone(), drain, stop };
        let consumer: BaseConsumer<Context> = client.create_with_context(context).map_err(refused)?;
        consumer.subscribe(&Dataset::ALL.map(|dataset| kafka.topic_of(dataset)))?;
        Ok(Self { consumer })
    }

    /// Reads until the stop, and then until what was read is where it should be, within the grace.
    pub fn run(self) {
        let context = self.consumer.context();
        let mut committed_at = Instant::now();
        while !context.stop.load(Ordering::Acquire) {
            context.state().take_reports(Duration::ZERO);
            if committed_at.elapsed() >= COMMIT_INTERVAL {
                committed_at = Instant::now();
                context.commit(&self.consumer, CommitMode::Async);
            }
            let is_blocked = self.send_due();
            if is_blocked != context.state().is_paused {
                context.pause(&self.consumer, is_blocked);
            }
            let is_idle = context.state().batches.iter().all(Batch::is_empty);
            let patience = if is_idle { POLL } else { POLL / 4 };
            let mut next = self.consumer.poll(patience);
            while let Some(read) = next.take() {
                match read {
                    Ok(message) => {
                        context.health.works();
                        let Some(dataset) = context.kafka.dataset_of(message.topic()) else { continue };
                        let has_room = context.state().take(dataset, &message);
                        next = if has_room { self.consumer.poll(Duration::ZERO) } else { None };
                    }
                    Err(error) => context.health.refused(&error),
                }
            }
        }
        let all = context.state().offsets.partitions();
        context.state().drain(&all, GRACE);
        context.commit(&self.consumer, CommitMode::Sync);
    }

    /// Sends the batches for which it is time; whether one has to wait although it is.
    fn send_due(&self) -> bool {
        let context = self.consumer.context();
        let mut state = context.state();
        let deadline = Instant::now() + PAUSE_AFTER;
        while let Some(dataset) = state.due() {
            while !state.has_room() && Instant::now() < deadline && !context.stop.load(Ordering::Acquire) {
                state.take_reports(POLL);
            }
            if !state.has_room() {
                return true;
            }
            state.send_batch(dataset);
        }
        // Rejected records go at once and must not pile up either.
        state.in_flight > 4 * state.config.max_in_flight
    }
}
