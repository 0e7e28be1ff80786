#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::hook::{Hook, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, InFlight, Probe};
use crate::probes::{abi, bpf_object};
use kpulse_common::container::Identities;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};
use std::mem::offset_of;
use threads::Threads;

mod threads;

abi!("kswapd");

const BY_NODE: &[Label] = &[Label::Named("node")];
const ACTIVE: MetricDef = MetricDef::histogram(
    "kpulse_kswapd_active_seconds",
    "Episodes of background reclaim, from the first pass until kswapd sleeps again.",
    BY_NODE,
);
const CPU: MetricDef =
    MetricDef::counter("kpulse_kswapd_cpu_seconds_total", "CPU time of background reclaim.", BY_NODE);
const WAKEUPS: MetricDef =
    MetricDef::counter("kpulse_kswapd_wakeups_total", "Passes of background reclaim over a node.", BY_NODE);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "kswapd",
    object: bpf_object!("kswapd"),
    hooks: &[
        Hook::any("mm_vmscan_kswapd_wake", &[tp_btf("mm_vmscan_kswapd_wake", "mm_vmscan_kswapd_wake")]),
        Hook::any("mm_vmscan_kswapd_sleep", &[tp_btf("mm_vmscan_kswapd_sleep", "mm_vmscan_kswapd_sleep")]),
    ],
    metrics: &[ACTIVE, CPU, WAKEUPS],
    collector: Some(|maps, kernel| {
        Ok(Box::new(Reader { nodes: maps.table("nodes")?, threads: Threads::find(&kernel.paths.procfs) }))
    }),
    in_flight: &[InFlight::part(
        "nodes",
        offset_of!(abi::kswapd_value, awake_since_ns)..size_of::<abi::kswapd_value>(),
    )],
    ..Probe::EMPTY
};

struct Reader {
    nodes: Table<u32, abi::kswapd_value>,
    threads: Threads,
}

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let mut nodes = self.nodes.entries()?;
        let cpu = self.threads.cpu_ns();
        // A node whose kswapd was never woken since the probe came: that is known, and zero.
        let quiet = cpu.keys().filter(|node| !nodes.iter().any(|(other, _)| other == *node)).copied();
        nodes.extend(quiet.collect::<Vec<_>>().into_iter().map(|node| (node, abi::kswapd_value::default())));
        nodes.sort_unstable_by_key(|(node, _)| *node);
        for (node, value) in &nodes {
            out.histogram(&ACTIVE, &[&node.to_string()], Histogram::from(value.active));
        }
        for (node, value) in &nodes {
            out.count(&WAKEUPS, &[&node.to_string()], value.wakeups);
        }
        for (node, ns) in cpu {
            out.number(&CPU, &[&node.to_string()], ns as f64 / 1e9);
        }
        Ok(())
    }
}
