//! What became of the records that were read.

use crate::metrics::SINK_UP;
use crate::sink::elasticsearch::Partition;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The counts, shared by the threads.
#[derive(Debug, Default)]
pub struct Counts(Mutex<State>);

/// A moment's view of them.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Records read from Kafka; after a failure some are read again.
    pub consumed: u64,
    /// New documents.
    pub indexed: u64,
    /// Documents that were there already.
    pub duplicates: u64,
    /// Records in the dead-letter topic, by cause.
    pub dead_lettered: BTreeMap<&'static str, u64>,
    /// Records that not even the dead-letter topic took.
    pub dropped: u64,
    /// Events and requests that were tried again, by cause.
    pub retries: BTreeMap<&'static str, u64>,
    /// Bulk requests that were answered.
    pub bulks: u64,
    /// Bytes of them.
    pub bulk_bytes: u64,
    /// Time that they took.
    pub bulk_time: Histogram,
    /// From the event's own time to its acknowledgement.
    pub end_to_end: Histogram,
    /// Requests on their way.
    pub in_flight: u64,
    /// Requests that may be on their way.
    pub in_flight_max: u64,
    /// Bytes that wait here.
    pub waiting_bytes: u64,
    /// Whether reading waits for Elasticsearch.
    pub is_paused: bool,
    /// Records that are in Kafka and not committed, by partition.
    pub lag: BTreeMap<Partition, u64>,
    /// Why Elasticsearch does not take events at present.
    pub error: Option<String>,
}

impl Counts {
    /// Changes several counts at once.
    pub fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.lock())
    }

    /// Counts something that is tried again.
    pub fn retry(&self, cause: &'static str, count: u64) {
        self.update(|state| *state.retries.entry(cause).or_default() += count);
    }

    /// A copy.
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// Each update leaves the counts usable, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a record can be no document.
const DEAD_CAUSES: [&str; 4] = ["undecodable", "schema", "refused", "too_large"];

const NONE: &[Label] = &[];
const CONSUMED: MetricDef = MetricDef::counter(
    "kpulse_index_consumed_total",
    "Records read from Kafka; those that were not committed at a restart are read again.",
    NONE,
);
const INDEXED: MetricDef =
    MetricDef::counter("kpulse_index_documents_total", "Events and profiles that became documents.", NONE);
const DUPLICATES: MetricDef = MetricDef::counter(
    "kpulse_index_duplicates_total",
    "Events and profiles that were documents already: sent or read twice, and visible once.",
    NONE,
);
const DEAD: MetricDef = MetricDef::counter(
    "kpulse_index_dead_letters_total",
    "Records that can be no documents and went to the dead-letter topic, by cause.",
    &[Label::Named("cause")],
);
const DROPPED: MetricDef = MetricDef::counter(
    "kpulse_index_dropped_total",
    "Records that can be no documents and that the dead-letter topic refused.",
    NONE,
);
const RETRIES: MetricDef = MetricDef::counter(
    "kpulse_index_retries_total",
    "Events and profiles that Elasticsearch did not take and that were sent again, by cause.",
    &[Label::Named("cause")],
);
const BULKS: MetricDef =
    MetricDef::counter("kpulse_index_bulks_total", "Bulk requests that were answered.", NONE);
const BULK_BYTES: MetricDef =
    MetricDef::counter("kpulse_index_bulk_bytes_total", "Bytes of bulk requests that were answered.", NONE);
const BULK_TIME: MetricDef =
    MetricDef::histogram("kpulse_index_bulk_seconds", "Time that bulk requests took.", NONE);
const END_TO_END: MetricDef = MetricDef::histogram(
    "kpulse_index_delay_seconds",
    "Time from what happened in the kernel, or from the end of a profile, to the acknowledged document.",
    NONE,
);
const IN_FLIGHT: MetricDef = MetricDef::gauge("kpulse_index_in_flight", "Bulk requests on their way.", NONE);
const IN_FLIGHT_MAX: MetricDef = MetricDef::gauge(
    "kpulse_index_in_flight_max",
    "Bulk requests that may be on their way: fewer while Elasticsearch has too much to do.",
    NONE,
);
const WAITING: MetricDef =
    MetricDef::gauge("kpulse_index_waiting_bytes", "Bytes read from Kafka and not acknowledged yet.", NONE);
const PAUSED: MetricDef =
    MetricDef::gauge("kpulse_index_paused", "Whether reading from Kafka waits for Elasticsearch.", NONE);
const LAG: MetricDef = MetricDef::gauge(
    "kpulse_index_lag",
    "Records in Kafka behind the committed offset, by partition of this member.",
    &[Label::Named("dataset"), Label::Named("partition")],
);

/// Every family that `index` may tell, but for those that it shares.
pub const FAMILIES: &[&MetricDef] = &[
    &CONSUMED,
    &INDEXED,
    &DUPLICATES,
    &DEAD,
    &DROPPED,
    &RETRIES,
    &BULKS,
    &BULK_BYTES,
    &BULK_TIME,
    &END_TO_END,
    &IN_FLIGHT,
    &IN_FLIGHT_MAX,
    &WAITING,
    &PAUSED,
    &LAG,
];

/// Adds all families.
pub fn samples(state: &State, kafka_error: Option<&str>, out: &mut Samples) {
    for (family, count) in [
        (&CONSUMED, state.consumed),
        (&INDEXED, state.indexed),
        (&DUPLICATES, state.duplicates),
        (&DROPPED, state.dropped),
        (&BULKS, state.bulks),
        (&BULK_BYTES, state.bulk_bytes),
        (&IN_FLIGHT, state.in_flight),
        (&IN_FLIGHT_MAX, state.in_flight_max),
        (&WAITING, state.waiting_bytes),
        (&PAUSED, u64::from(state.is_paused)),
    ] {
        out.count(family, &[], count);
    }
    // From 0 on, so that the first one is seen as one.
    for cause in DEAD_CAUSES {
        out.count(&DEAD, &[cause], state.dead_lettered.get(cause).copied().unwrap_or(0));
    }
    for (cause, count) in &state.retries {
        out.count(&RETRIES, &[cause], *count);
    }
    for (partition, lag) in &state.lag {
        out.count(&LAG, &[partition.dataset.name(), &partition.number.to_string()], *lag);
    }
    out.histogram(&BULK_TIME, &[], state.bulk_time.clone());
    out.histogram(&END_TO_END, &[], state.end_to_end.clone());
    out.count(&SINK_UP, &["elasticsearch"], u64::from(state.error.is_none()));
    out.count(&SINK_UP, &["kafka"], u64::from(kafka_error.is_none()));
}
