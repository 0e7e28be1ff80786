#![doc = include_str!("README.md")]

use crate::abi::histogram;
use crate::error::ProbeError;
use crate::hook::{Hook, tp_btf};
use crate::maps::Table;
use crate::net_devices::ByNetDevice;
use crate::probe::{Collector, InFlight, Priority, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::comm;
use kpulse_common::container::Identities;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};

abi!("qdisc");

const LATENCY: MetricDef = MetricDef::histogram(
    "kpulse_qdisc_latency_seconds",
    "Time that packets waited in a device's queueing discipline.",
    &[Label::Named("device"), Label::Named("kind")],
);
const UNMEASURED: MetricDef = MetricDef::counter(
    "kpulse_qdisc_unmeasured_total",
    "Packets that left a queueing discipline and that the histogram lacks, since their start was not seen.",
    &[],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "qdisc",
    object: bpf_object!("qdisc"),
    hooks: &[
        Hook::any(
            "qdisc_enqueue",
            &[tp_btf("qdisc_enqueue", "qdisc_enqueue"), tp_btf("net_dev_queue", "net_dev_queue")],
        ),
        Hook::any("qdisc_dequeue", &[tp_btf("qdisc_dequeue", "qdisc_dequeue")]),
    ],
    metrics: &[LATENCY, UNMEASURED],
    collector: Some(|maps, kernel| {
        let labels = |key: &abi::qdisc_key| vec![comm(&key.device).into(), comm(&key.kind).into()];
        Ok(Box::new(Reader {
            latency: ByNetDevice::new(&LATENCY, maps.table("latency")?, kernel.paths, labels)?,
            losses: maps.table("losses")?,
        }))
    }),
    in_flight: &[InFlight::all("queued")],
    priority: Priority::Low,
    ..Probe::EMPTY
};

struct Reader {
    latency: ByNetDevice<abi::qdisc_key, histogram, Histogram>,
    losses: Table<u32, u64>,
}

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        self.latency.collect(out)?;
        out.count(&UNMEASURED, &[], self.losses.get(&0)?.unwrap_or(0));
        Ok(())
    }
}
