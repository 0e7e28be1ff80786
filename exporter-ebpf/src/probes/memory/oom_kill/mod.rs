#![doc = include_str!("README.md")]

use crate::collect::{ByContainer, Entry};
use crate::error::ProbeError;
use crate::hook::{Hook, tp_btf};
use crate::maps::{Maps, Table};
use crate::probe::{Collector, Kernel, Probe};
use crate::probes::{abi, bpf_object};
use crate::symbols::ranges_by_function;
use kpulse_common::container::Identities;
use kpulse_common::metric::{Label, MetricDef, Samples};

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
    hooks: &[Hook::any("mark_victim", &[tp_btf("mark_victim", "mark_victim")])],
    controller: "memory",
    sized_by_containers: &[("kills", abi::KINDS)],
    prepare,
    metrics: &[KILLS],
    collector: Some(|maps, kernel| {
        let kills: Table<abi::oom_kill_key, u64> = maps.table("kills")?;
        for kind in 0..u64::from(abi::KINDS) {
            // Holds what finds no room later.
            kills.set(&abi::oom_kill_key { cgroup_id: 0, kind }, &0)?;
        }
        Ok(Box::new(Reader { kills, containers: ByContainer::new(kernel.hierarchy) }))
    }),
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
