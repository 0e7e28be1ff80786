//! What does the gateway say about itself to Prometheus?

use crate::profiles::{REFUSALS, Taken};
use crate::sink::kafka::ProducerCounts;
use crate::spool::Spool;
use crate::spool::disk::{Bounds, LOSSES, State};
use crate::tally::Tally;
use kpulse_common::metric::{Label, MetricDef, Samples};

const PROBE: &[Label] = &[Label::Named("probe")];

const PRODUCED: MetricDef = MetricDef::counter(
    "kpulse_events_produced_total",
    "Times the kernel saw a threshold reached; equals stored, waiting and lost together.",
    PROBE,
);
const STORED: MetricDef =
    MetricDef::counter("kpulse_events_stored_total", "Events that the sink acknowledged.", PROBE);
const LOST: MetricDef = MetricDef::counter(
    "kpulse_records_lost_total",
    "Records that did not become stored events, by reason.",
    &[Label::Named("probe"), Label::Named("reason")],
);
const DELAY: MetricDef = MetricDef::histogram(
    "kpulse_event_delay_seconds",
    "Time from the kernel's stamp to the sink's acknowledgement.",
    &[],
);
const SPOOL_EVENTS: MetricDef = MetricDef::gauge(
    "kpulse_spool_events",
    "Events that wait for names, for the sink or for its acknowledgement.",
    &[],
);
const SPOOL_BYTES: MetricDef =
    MetricDef::gauge("kpulse_spool_bytes", "Size of the events that wait for the sink.", &[]);
const SPOOL_EVENTS_MAX: MetricDef =
    MetricDef::gauge("kpulse_spool_capacity_events", "Events that may wait for the sink.", &[]);
const SPOOL_BYTES_MAX: MetricDef =
    MetricDef::gauge("kpulse_spool_capacity_bytes", "Size that the waiting events may have.", &[]);
const SINK_BYTES: MetricDef =
    MetricDef::gauge("kpulse_sink_bytes", "Size of what the sink holds on disk.", &[Label::Named("sink")]);
/// Told by whoever writes to a sink.
pub const SINK_UP: MetricDef =
    MetricDef::gauge("kpulse_sink_up", "Whether the sink took the last batch.", &[Label::Named("sink")]);
const RETRIES: MetricDef = MetricDef::counter(
    "kpulse_sink_retries_total",
    "Batches that the sink could not take and that were tried again.",
    &[Label::Named("sink")],
);
const EXPIRED: MetricDef = MetricDef::counter(
    "kpulse_events_expired_total",
    "Stored events that retention removed.",
    &[Label::Named("reason")],
);
const FRAMES_UNNAMED: MetricDef = MetricDef::counter(
    "kpulse_user_frames_unnamed_total",
    "Frames of user stacks that no function's name was found for, by reason.",
    &[Label::Named("reason")],
);
const PROCESS_RECORDS: MetricDef = MetricDef::counter(
    "kpulse_process_records_total",
    "Beginnings and ends of processes that the kernel told, to name the process of an event.",
    &[],
);
const PROCESS_RECORDS_LOST: MetricDef = MetricDef::counter(
    "kpulse_process_records_lost_total",
    "Beginnings and ends of processes that did not arrive, by reason.",
    &[Label::Named("reason")],
);
const PROCESSES: MetricDef =
    MetricDef::gauge("kpulse_process_cache_entries", "Programs of processes that are remembered.", &[]);
const PROCESS_BYTES: MetricDef =
    MetricDef::gauge("kpulse_process_cache_bytes", "Size of the programs that are remembered.", &[]);
const PROCESSES_DISPLACED: MetricDef = MetricDef::counter(
    "kpulse_process_cache_displaced_total",
    "Programs that were forgotten within five minutes of their end, since there were too many.",
    &[],
);

const DISK_EVENTS: MetricDef =
    MetricDef::gauge("kpulse_disk_spool_events", "Events and profiles on disk that wait for Kafka.", &[]);
const DISK_BYTES: MetricDef = MetricDef::gauge(
    "kpulse_disk_spool_bytes",
    "Size of the events and profiles on disk that wait for Kafka.",
    &[],
);
const DISK_BYTES_MAX: MetricDef = MetricDef::gauge(
    "kpulse_disk_spool_capacity_bytes",
    "Size that the events and profiles on disk may have.",
    &[],
);
const DISK_OLDEST: MetricDef = MetricDef::gauge(
    "kpulse_disk_spool_oldest_seconds",
    "How long the oldest event or profile on disk has waited for Kafka.",
    &[],
);
const DISK_LOST: MetricDef = MetricDef::counter(
    "kpulse_disk_spool_lost_total",
    "Events that were on disk and never reached Kafka, by reason.",
    &[Label::Named("reason")],
);
const FORWARDED: MetricDef =
    MetricDef::counter("kpulse_events_forwarded_total", "Events that Kafka acknowledged.", &[]);
const FORWARD_RETRIES: MetricDef = MetricDef::counter(
    "kpulse_forward_retries_total",
    "Events and profiles that Kafka did not take and that were sent again, by its error.",
    &[Label::Named("cause")],
);
const FORWARD_DELAY: MetricDef = MetricDef::histogram(
    "kpulse_forward_delay_seconds",
    "Time from the spool's acknowledgement to that of Kafka.",
    &[],
);

const PROFILES_TAKEN: MetricDef = MetricDef::counter(
    "kpulse_profiles_taken_total",
    "Profiles of the profiler that the spool took; one that came twice counts twice.",
    &[],
);
const PROFILES_REFUSED: MetricDef = MetricDef::counter(
    "kpulse_profiles_refused_total",
    "Requests with profiles of which none was taken, by reason.",
    &[Label::Named("reason")],
);
const PROFILES_LOST: MetricDef = MetricDef::counter(
    "kpulse_profiles_lost_total",
    "Profiles that were on disk and never reached Kafka, by reason.",
    &[Label::Named("reason")],
);
const PROFILES_FORWARDED: MetricDef =
    MetricDef::counter("kpulse_profiles_forwarded_total", "Profiles that Kafka acknowledged.", &[]);

/// Every family that `run` and `forward` may tell, but for those of the process itself.
pub const FAMILIES: &[&MetricDef] = &[
    &PRODUCED,
    &STORED,
    &LOST,
    &DELAY,
    &SPOOL_EVENTS,
    &SPOOL_BYTES,
    &SPOOL_EVENTS_MAX,
    &SPOOL_BYTES_MAX,
    &SINK_BYTES,
    &SINK_UP,
    &RETRIES,
    &EXPIRED,
    &FRAMES_UNNAMED,
    &PROCESS_RECORDS,
    &PROCESS_RECORDS_LOST,
    &PROCESSES,
    &PROCESS_BYTES,
    &PROCESSES_DISPLACED,
    &DISK_EVENTS,
    &DISK_BYTES,
    &DISK_BYTES_MAX,
    &DISK_OLDEST,
    &DISK_LOST,
    &FORWARDED,
    &FORWARD_RETRIES,
    &FORWARD_DELAY,
    &PROFILES_TAKEN,
    &PROFILES_REFUSED,
    &PROFILES_LOST,
    &PROFILES_FORWARDED,
];

/// Adds what happens between the spool and Kafka.
pub fn forward(spool: &State, bounds: &Bounds, counts: &ProducerCounts, out: &mut Samples) {
    out.count(&DISK_EVENTS, &[], spool.events);
    out.count(&DISK_BYTES, &[], spool.bytes);
    out.count(&DISK_BYTES_MAX, &[], bounds.max_bytes);
    let oldest = spool.oldest.and_then(|at| at.elapsed().ok()).unwrap_or_default();
    out.number(&DISK_OLDEST, &[], oldest.as_secs_f64());
    // From 0 on, so that the first loss is seen as one.
    for reason in LOSSES {
        out.count(&DISK_LOST, &[reason], spool.dropped.get(reason).copied().unwrap_or(0));
        out.count(&PROFILES_LOST, &[reason], spool.dropped_profiles.get(reason).copied().unwrap_or(0));
    }
    out.count(&FORWARDED, &[], counts.sent);
    out.count(&PROFILES_FORWARDED, &[], counts.sent_profiles);
    for (cause, count) in &counts.retries {
        out.count(&FORWARD_RETRIES, &[cause], *count);
    }
    out.histogram(&FORWARD_DELAY, &[], counts.delay.clone());
    out.count(&SINK_UP, &["kafka"], u64::from(counts.error.is_none()));
}

/// Adds what came of profiles that were posted.
pub fn profiles(taken: &Taken, out: &mut Samples) {
    let (profiles, refused) = taken.counts();
    out.count(&PROFILES_TAKEN, &[], profiles);
    for reason in REFUSALS {
        out.count(&PROFILES_REFUSED, &[reason], refused.get(reason).copied().unwrap_or(0));
    }
}

/// Adds the pipeline's own families.
pub fn pipeline(spool: &Spool, tally: &Tally, sink: &str, out: &mut Samples) {
    let counts = tally.counts();
    for (probe, its) in &counts.probes {
        if let Some(produced) = its.produced {
            out.count(&PRODUCED, &[probe], produced);
        }
        out.count(&STORED, &[probe], its.stored);
        for (reason, count) in its.lost_in_kernel.iter().chain(&its.lost_here) {
            out.count(&LOST, &[probe, reason], *count);
        }
    }
    out.histogram(&DELAY, &[], counts.delay);
    let (depth, capacity) = (spool.depth(), spool.capacity());
    out.count(&SPOOL_EVENTS, &[], depth.events as u64 + counts.in_naming + counts.in_flight);
    out.count(&SPOOL_BYTES, &[], depth.bytes as u64);
    out.count(&SPOOL_EVENTS_MAX, &[], capacity.events as u64);
    out.count(&SPOOL_BYTES_MAX, &[], capacity.bytes as u64);
    if let Some(bytes) = counts.sink_bytes {
        out.count(&SINK_BYTES, &[sink], bytes);
    }
    out.count(&SINK_UP, &[sink], u64::from(counts.sink_error.is_none()));
    out.count(&RETRIES, &[sink], counts.retries);
    for (reason, count) in counts.expired {
        out.count(&EXPIRED, &[reason], count);
    }
    for (reason, count) in counts.frames_unnamed {
        out.count(&FRAMES_UNNAMED, &[reason], count);
    }
    if let Some(processes) = &counts.processes {
        out.count(&PROCESS_RECORDS, &[], processes.records);
        for (reason, count) in &processes.losses {
            out.count(&PROCESS_RECORDS_LOST, &[reason], *count);
        }
        out.count(&PROCESSES, &[], processes.depth.entries as u64);
        out.count(&PROCESS_BYTES, &[], processes.depth.bytes as u64);
        out.count(&PROCESSES_DISPLACED, &[], processes.depth.displaced);
    }
}
