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

abi!("transmit");

const LATENCY: MetricDef = MetricDef::histogram(
    "kpulse_net_transmit_latency_seconds",
    "Time that outgoing packets took to reach the driver of a device that has a queue.",
    &[Label::Named("device")],
);
const UNMEASURED: MetricDef = MetricDef::counter(
    "kpulse_net_transmit_unmeasured_total",
    "Outgoing packets that the histogram lacks, since their start was not seen.",
    &[],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "transmit",
    object: bpf_object!("transmit"),
    hooks: &[
        Hook::any("net_dev_queue", &[tp_btf("net_dev_queue", "net_dev_queue")]),
        Hook::any("net_dev_start_xmit", &[tp_btf("net_dev_start_xmit", "net_dev_start_xmit")]),
    ],
    metrics: &[LATENCY, UNMEASURED],
    collector: Some(|maps, kernel| {
        let labels = |key: &abi::transmit_key| vec![comm(&key.device).into()];
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
    latency: ByNetDevice<abi::transmit_key, histogram, Histogram>,
    losses: Table<u32, u64>,
}

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        self.latency.collect(out)?;
        out.count(&UNMEASURED, &[], self.losses.get(&0)?.unwrap_or(0));
        Ok(())
    }
}
