#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::hook::{Hook, raw_tp, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, Probe};
use crate::probes::{abi, bpf_object};
use kpulse_common::container::Identities;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};

abi!("softirq");

const LATENCY: MetricDef = MetricDef::histogram(
    "kpulse_softirq_latency_seconds",
    "Time from raising a softirq to the entry of its handler.",
    &[Label::Named("vector")],
);
const DURATION: MetricDef = MetricDef::histogram(
    "kpulse_softirq_duration_seconds",
    "Time that the handler of a softirq ran, interrupts in between included.",
    &[Label::Named("vector")],
);

/// Names of the vectors by number, as in `/proc/softirqs`.
const VECTORS: [&str; abi::VECTORS as usize] =
    ["hi", "timer", "net_tx", "net_rx", "block", "irq_poll", "tasklet", "sched", "hrtimer", "rcu"];

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "softirq",
    object: bpf_object!("softirq"),
    hooks: &[
        Hook::any(
            "softirq_raise",
            &[tp_btf("softirq_raise", "softirq_raise"), raw_tp("softirq_raise_raw", "softirq_raise")],
        ),
        // Before the entry, so that no entry is without its exit.
        Hook::any(
            "softirq_exit",
            &[tp_btf("softirq_exit", "softirq_exit"), raw_tp("softirq_exit_raw", "softirq_exit")],
        ),
        Hook::any(
            "softirq_entry",
            &[tp_btf("softirq_entry", "softirq_entry"), raw_tp("softirq_entry_raw", "softirq_entry")],
        ),
    ],
    metrics: &[LATENCY, DURATION],
    collector: Some(|maps, _| Ok(Box::new(Reader { vectors: maps.table("vectors")? }))),
    ..Probe::EMPTY
};

struct Reader {
    vectors: Table<u32, abi::softirq_value>,
}

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let vectors = self.vectors.entries()?;
        for (def, part) in [
            (&LATENCY, (|value| value.latency) as fn(&abi::softirq_value) -> _),
            (&DURATION, |value| value.duration),
        ] {
            for (number, value) in &vectors {
                let histogram = Histogram::from(part(value));
                let name = VECTORS.get(*number as usize);
                if let Some(name) = name.filter(|_| histogram.count() > 0) {
                    out.histogram(def, &[name], histogram);
                }
            }
        }
        Ok(())
    }
}
