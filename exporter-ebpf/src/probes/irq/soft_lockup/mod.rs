#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, cpu_clock_at};
use crate::maps::Table;
use crate::probe::{Collector, Probe};
use crate::probes::{abi, bpf_object};
use kpulse_common::container::Identities;
use kpulse_common::metric::{MetricDef, Samples};

abi!("soft_lockup");

const LOCKUPS: MetricDef = MetricDef::counter(
    "kpulse_soft_lockups_total",
    "Times that a CPU stayed in the kernel for half a second without switching tasks while another task waited for it.",
    &[],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "soft_lockup",
    object: bpf_object!("soft_lockup"),
    needs: &[Feature::CpuClock],
    hooks: &[Hook::any("cpu_clock", &[cpu_clock_at("cpu_clock", abi::SAMPLE_HZ as u64)])],
    metrics: &[LOCKUPS],
    collector: Some(|maps, _| Ok(Box::new(Reader { stretches: maps.table("stretches")? }))),
    ..Probe::EMPTY
};

struct Reader {
    stretches: Table<u32, abi::soft_lockup_value>,
}

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        if let Some(value) = self.stretches.get(&0)? {
            out.count(&LOCKUPS, &[], value.lockups);
        }
        Ok(())
    }
}
