#![doc = include_str!("README.md")]

use crate::collect::{ByContainer, Entry};
use crate::error::ProbeError;
use crate::features::{Feature, page_bytes};
use crate::hook::{Hook, tp_btf};
use crate::maps::{Maps, Table};
use crate::probe::{Collector, EventDef, Kernel, Priority, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, comm, known, view};
use crate::symbols::ranges_by_function;
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Label, MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;

abi!("oom_kill");

const KILLS: MetricDef = MetricDef::counter(
    "kpulse_oom_kills_total",
    "Processes killed by the OOM killer, for the machine (global) or a memory cgroup (memcg), by the victim's container.",
    &[Label::Container, Label::Named("kind")],
);

/// In the order of `FUNCTION_*`.
const FUNCTIONS: [&str; abi::FUNCTIONS as usize] = [
    "mem_cgroup_out_of_memory",
    "mem_cgroup_out_of_memory.cold",
    "__oom_kill_process",
    "__oom_kill_process.cold",
];

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "oom_kill",
    object: bpf_object!("oom_kill"),
    needs: &[Feature::RingBuffer],
    hooks: &[Hook::any("mark_victim", &[tp_btf("mark_victim", "mark_victim")])],
    controller: "memory",
    sized_by_containers: &[("kills", abi::KINDS)],
    prepare,
    metrics: &[KILLS],
    events: &[EventDef {
        kind: "oom_kill",
        help: "The OOM killer chose a process.",
        decode,
        body: schema_of::<Body>,
        names: |_| Names::new(),
    }],
    collector: Some(|maps, kernel| {
        let kills: Table<abi::oom_kill_key, u64> = maps.table("kills")?;
        for kind in 0..u64::from(abi::KINDS) {
            // Holds what finds no room later.
            kills.set(&abi::oom_kill_key { cgroup_id: 0, kind }, &0)?;
        }
        Ok(Box::new(Reader { kills, containers: ByContainer::new(kernel.hierarchy) }))
    }),
    priority: Priority::High,
    ..Probe::EMPTY
};

/// Tells the program where the functions are; without, every kill is of the kind `unknown`.
fn prepare(maps: &Maps, kernel: &Kernel<'_>) -> Result<(), ProbeError> {
    let functions: Table<u32, abi::oom_kill_range> = maps.table("functions")?;
    let ranges = ranges_by_function(kernel.paths, &FUNCTIONS).unwrap_or_default();
    for (index, ranges) in (0..).zip(ranges) {
        // Two functions of one name cannot be told apart.
        if let [range] = ranges.as_slice() {
            functions.set(&index, &abi::oom_kill_range { start: range.start, end: range.end })?;
        }
    }
    Ok(())
}

struct Reader {
    kills: Table<abi::oom_kill_key, u64>,
    containers: ByContainer<u64>,
}

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let entries = self.kills.entries()?.into_iter().map(|(key, total)| Entry {
            cgroup_id: key.cgroup_id,
            labels: vec![kind(key.kind).into()],
            total,
        });
        let gone = self.containers.report(&KILLS, entries.collect(), identities, out);
        for cgroup_id in gone {
            for kind in 0..u64::from(abi::KINDS) {
                self.kills.remove(&abi::oom_kill_key { cgroup_id, kind })?;
            }
        }
        Ok(())
    }
}

fn kind(number: u64) -> &'static str {
    const NAMES: [&str; abi::KINDS as usize] = ["global", "memcg", "unknown"];
    usize::try_from(number).ok().and_then(|number| NAMES.get(number)).unwrap_or(&"unknown")
}

/// From this many pages on a limit is none: the kernel's largest counter, of 4 KiB pages.
const NO_LIMIT_PAGES: u64 = (i64::MAX as u64) >> 12;

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// Whether the machine (`global`) or a memory cgroup (`memcg`) was out of memory.
    kind: &'static str,
    /// Who found no memory.
    trigger: Trigger,
    /// The victim's `/proc/PID/oom_score_adj`.
    score_adjustment: i32,
    /// The victim's anonymous memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    anon_bytes: Option<u64>,
    /// The victim's mapped files.
    #[serde(skip_serializing_if = "Option::is_none")]
    file_bytes: Option<u64>,
    /// The victim's shared memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    shmem_bytes: Option<u64>,
    /// The victim's address space.
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_bytes: Option<u64>,
    /// What the victim's memory cgroup used.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_bytes: Option<u64>,
    /// The limit of the victim's memory cgroup; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_bytes: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Trigger {
    /// Process id.
    pid: u32,
    /// Thread id.
    tid: u32,
    /// Name of the thread.
    name: String,
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::oom_kill_record = view(bytes)?;
    let in_bytes = |pages| known(pages).map(|pages| pages.saturating_mul(page_bytes().into()));
    let body = Body {
        kind: kind(record.kind),
        trigger: Trigger {
            pid: record.trigger_tgid,
            tid: record.trigger_tid,
            name: comm(&record.trigger_comm),
        },
        score_adjustment: record.score_adjustment,
        anon_bytes: in_bytes(record.anon_pages),
        file_bytes: in_bytes(record.file_pages),
        shmem_bytes: in_bytes(record.shmem_pages),
        virtual_bytes: in_bytes(record.virtual_pages),
        usage_bytes: in_bytes(record.usage_pages),
        limit_bytes: in_bytes(record.limit_pages).filter(|_| record.limit_pages < NO_LIMIT_PAGES),
    };
    Ok(Decoded::new(Header::from(&record.header), &body)?.with_user_stack(&record.user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/oom_kill.hex");

    #[test]
    fn a_real_record_decodes() {
        let json = include_str!("fixtures/oom_kill.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), HEX, json);
        assert!(!decoded.header.comm.is_empty() && !decoded.header.stack.is_empty());
    }
}
