#![doc = include_str!("README.md")]

use crate::collect::{HistogramByContainer, other};
use crate::error::ProbeError;
use crate::features::{Feature, page_bytes};
use crate::hook::{Hook, iter, raw_tp, tp_btf};
use crate::maps::{Maps, Table};
use crate::probe::{Collector, EventDef, InFlight, Kernel, Priority, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, comm, known, view};
use crate::scan::Scan;
use crate::symbols::function_ranges;
use kpulse_common::container::{CgroupId, Hierarchy, Identities};
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Label, MetricDef, Samples, Value};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

abi!("task_state");

const SLEPT: MetricDef = MetricDef::histogram(
    "kpulse_offcpu_uninterruptible_seconds",
    "Time that tasks slept uninterruptibly (state D), until they were woken.",
    &[Label::Container],
);
const UNMEASURED: MetricDef = MetricDef::counter(
    "kpulse_offcpu_uninterruptible_unmeasured_total",
    "Uninterruptible sleeps that are missing in the histogram, since another task's pid displaced them.",
    &[],
);
const TASKS: MetricDef =
    MetricDef::gauge("kpulse_tasks", "Tasks (threads) by state.", &[Label::Container, Label::Named("state")]);
const HUNG: MetricDef = MetricDef::counter(
    "kpulse_hung_tasks_total",
    "Times that the kernel found a task in uninterruptible sleep for longer than kernel.hung_task_timeout_secs.",
    &[],
);

/// Names of `STATE_*`.
const STATES: [&str; abi::STATES as usize] =
    ["running", "runnable", "interruptible", "uninterruptible", "stopped", "zombie", "idle"];
/// Shortest time between two counts of the tasks.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// A count that took long is kept for this many times as long: counting takes at most 5 % of a CPU.
const INTERVAL_FACTOR: u32 = 20;

/// What stops tasks over `memory.high`: without underscores in 6.12, with two in 6.18; and what compilers split off.
const STALL_FUNCTIONS: [&str; 4] = [
    "__mem_cgroup_handle_over_high",
    "mem_cgroup_handle_over_high",
    "__mem_cgroup_handle_over_high.cold",
    "mem_cgroup_handle_over_high.cold",
];

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "task_state",
    object: bpf_object!("task_state"),
    needs: &[Feature::RingBuffer],
    hooks: &[
        Hook::any(
            "sched_wakeup",
            &[tp_btf("sched_wakeup", "sched_wakeup"), raw_tp("sched_wakeup_raw", "sched_wakeup")],
        ),
        Hook::any(
            "sched_switch",
            &[tp_btf("sched_switch", "sched_switch"), raw_tp("sched_switch_raw", "sched_switch")],
        ),
        Hook::optional(
            "sched_process_hang",
            &[
                tp_btf("sched_process_hang", "sched_process_hang"),
                raw_tp("sched_process_hang_raw", "sched_process_hang"),
            ],
        ),
        Hook::optional("task", &[iter("count_task", "task")]),
    ],
    controller: "cpu",
    sized_by_containers: &[("slept", 1), ("tasks", abi::STATES)],
    thresholds: |thresholds| vec![thresholds.task_state.min_stuck, thresholds.task_state.min_memory_stall],
    prepare,
    metrics: &[SLEPT, UNMEASURED, TASKS, HUNG],
    events: &[
        EventDef {
            kind: "task_stuck",
            help: "A task slept uninterruptibly for long, or the kernel found it hung.",
            decode,
            body: schema_of::<Body>,
            names: |_| Names::new(),
        },
        EventDef {
            kind: "memory_stall",
            help: "A task was stopped for long, since a cgroup used more memory than its `memory.high`.",
            decode,
            body: schema_of::<Stall>,
            names: |_| Names::new(),
        },
    ],
    collector: Some(|maps, kernel| {
        let counter = kernel.has_hook("task").then(|| Scan::open(maps, "count_task")).transpose()?;
        let tasks = maps.table("tasks")?;
        Ok(Box::new(Reader {
            slept: HistogramByContainer::new(&SLEPT, maps.table("slept")?, kernel.hierarchy)?,
            tasks: counter.map(|counter| Tasks {
                counter,
                table: tasks,
                hierarchy: kernel.hierarchy,
                counted: None,
            }),
            totals: maps.table("totals")?,
            has_hangs: kernel.has_hook("sched_process_hang"),
        }))
    }),
    in_flight: &[InFlight::all("since")],
    priority: Priority::High,
    ..Probe::EMPTY
};

/// Tells the programs where tasks are stopped over `memory.high`; without, such a sleep is one like others.
fn prepare(maps: &Maps, kernel: &Kernel<'_>) -> Result<(), ProbeError> {
    let functions: Table<u32, abi::task_state_range> = maps.table("functions")?;
    let ranges = function_ranges(kernel.paths, &STALL_FUNCTIONS).unwrap_or_default();
    let ranges = ranges.iter().map(|range| abi::task_state_range { start: range.start, end: range.end });
    (0..abi::FUNCTIONS).zip(ranges).try_for_each(|(index, range)| functions.set(&index, &range))
}

struct Reader {
    slept: HistogramByContainer,
    tasks: Option<Tasks>,
    totals: Table<u32, abi::task_state_value>,
    has_hangs: bool,
}

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        self.slept.collect(identities, out)?;
        let totals = self.totals.get(&0)?.unwrap_or_default();
        out.count(&UNMEASURED, &[], totals.displaced);
        if self.has_hangs {
            out.count(&HUNG, &[], totals.hangs);
        }
        self.tasks.as_mut().map_or(Ok(()), |tasks| tasks.collect(identities, out))
    }
}

/// Counts the tasks when it is asked, and remembers for a while what it counted.
struct Tasks {
    counter: Scan,
    table: Table<abi::task_state_key, u64>,
    hierarchy: Hierarchy,
    counted: Option<Counted>,
}

/// Tasks by cgroup and state.
struct Counted {
    until: Instant,
    /// Bound: the capacity of the map.
    tasks: Vec<(abi::task_state_key, u64)>,
}

impl Tasks {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let counted = match self.counted.take() {
            Some(counted) if Instant::now() < counted.until => counted,
            _ => self.count()?,
        };
        let mut containers: BTreeMap<[Arc<str>; 4], [u64; STATES.len()]> = BTreeMap::new();
        for (key, tasks) in &counted.tasks {
            let cgroup = CgroupId { hierarchy: self.hierarchy, id: key.cgroup_id };
            let is_known = key.cgroup_id != 0 && identities.path(cgroup).is_some();
            let labels = if is_known { identities.labels(cgroup) } else { other() };
            if let Some(sum) = containers.entry(labels).or_default().get_mut(key.state as usize) {
                *sum += tasks;
            }
        }
        for (container, sums) in containers {
            for (state, sum) in STATES.iter().zip(sums) {
                // Only threads of the kernel itself are ever idle in this sense.
                if sum > 0 || *state != "idle" {
                    let labels = container.iter().cloned().chain([(*state).into()]);
                    out.push(&TASKS, labels.collect::<Vec<_>>(), Value::Count(sum));
                }
            }
        }
        self.counted = Some(counted);
        Ok(())
    }

    fn count(&self) -> Result<Counted, ProbeError> {
        let begin = Instant::now();
        for state in 0..abi::STATES {
            // Holds what finds no room.
            self.table.set(&abi::task_state_key { cgroup_id: 0, state: state.into() }, &0)?;
        }
        self.counter.run().map_err(|source| ProbeError::Map { map: self.table.name().to_owned(), source })?;
        let tasks = self.table.drain()?.into_iter().filter(|(_, tasks)| *tasks > 0).collect();
        let interval = (begin.elapsed() * INTERVAL_FACTOR).max(INTERVAL_MIN);
        Ok(Counted { until: Instant::now() + interval, tasks })
    }
}

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// Whether it sleeps still, and the kernel has found it hung: the value is how long it has slept by then.
    is_hung: bool,
    /// The kernel function that it slept in, below those of the scheduler, as `/proc/PID/wchan`; absent without a stack.
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_channel: Option<String>,
    /// Who woke it; absent while it sleeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    waker: Option<Waker>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Waker {
    /// Process id.
    pid: u32,
    /// Thread id.
    tid: u32,
    /// Name of the thread.
    name: String,
}

/// Fields of a stop over `memory.high`, beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Stall {
    /// The cgroup over its limit: the task's, or one above.
    #[serde(skip_serializing_if = "Option::is_none")]
    limited_cgroup_id: Option<u64>,
    /// Its `memory.high`.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_bytes: Option<u64>,
    /// What it used when the task went on.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_bytes: Option<u64>,
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::task_state_record = view(bytes)?;
    if record.is_stall != 0 {
        return decode_stall(&record);
    }
    let is_hung = record.is_hung != 0;
    let waker = Waker { pid: record.other_tgid, tid: record.other_tid, name: comm(&record.other_comm) };
    let body = Body { is_hung, wait_channel: None, waker: (!is_hung).then_some(waker) };
    Ok(Decoded { slept_in: Some("wait_channel"), ..Decoded::new(Header::from(&record.header), &body)? })
}

fn decode_stall(record: &abi::task_state_record) -> Result<Decoded, ProbeError> {
    let in_bytes = |pages| known(pages).map(|pages| pages.saturating_mul(page_bytes().into()));
    let body = Stall {
        limited_cgroup_id: (record.limited_cgroup_id != 0).then_some(record.limited_cgroup_id),
        limit_bytes: in_bytes(record.limit_pages),
        usage_bytes: in_bytes(record.usage_pages),
    };
    Ok(Decoded { kind: Some("memory_stall"), ..Decoded::new(Header::from(&record.header), &body)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/task_stuck.hex");

    #[test]
    fn a_real_record_decodes() {
        let json = include_str!("fixtures/task_stuck.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), HEX, json);
        assert!(!decoded.header.comm.is_empty() && !decoded.header.stack.is_empty());
    }

    #[test]
    fn a_real_record_of_a_stop_over_a_limit_is_of_the_other_kind() {
        let hex = include_str!("fixtures/memory_stall.hex");
        let json = include_str!("fixtures/memory_stall.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), hex, json);
        assert_eq!(decoded.kind, Some("memory_stall"));
    }
}
