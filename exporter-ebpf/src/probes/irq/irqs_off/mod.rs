#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::hook::{Hook, raw_tp, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, Probe};
use crate::probes::{abi, bpf_object};
use kpulse_common::container::Identities;
use kpulse_common::metric::{MetricDef, Samples};

abi!("irqs_off");

const IRQS_OFF: MetricDef = MetricDef::histogram(
    "kpulse_irqs_off_seconds",
    "Time that a CPU kept interrupts off while one was due, as seen by a late high-resolution timer.",
    &[],
);
const STOLEN: MetricDef = MetricDef::counter(
    "kpulse_irqs_off_stolen_seconds_total",
    "Lateness of timers that the histogram leaves out, since the hypervisor ran something else then.",
    &[],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "irqs_off",
    object: bpf_object!("irqs_off"),
    hooks: &[Hook::any(
        "hrtimer_expire_entry",
        &[
            tp_btf("hrtimer_expire_entry", "hrtimer_expire_entry"),
            raw_tp("hrtimer_expire_entry_raw", "hrtimer_expire_entry"),
        ],
    )],
    metrics: &[IRQS_OFF, STOLEN],
    collector: Some(|maps, _| Ok(Box::new(Reader { late: maps.table("late")? }))),
    ..Probe::EMPTY
};

struct Reader {
    late: Table<u32, abi::irqs_off_value>,
}

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let Some(value) = self.late.get(&0)? else { return Ok(()) };
        out.histogram(&IRQS_OFF, &[], value.late.into());
        if value.knows_steal > 0 {
            out.number(&STOLEN, &[], value.stolen_ns as f64 / 1e9);
        }
        Ok(())
    }
}
