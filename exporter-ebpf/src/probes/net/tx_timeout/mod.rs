#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::hook::{Hook, tp_btf};
use crate::net_devices::ByNetDevice;
use crate::probe::{Collector, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::comm;
use kpulse_common::container::Identities;
use kpulse_common::metric::{Label, MetricDef, Samples};

abi!("tx_timeout");

const TIMEOUTS: MetricDef = MetricDef::counter(
    "kpulse_tx_timeouts_total",
    "Times that a network device did not send for so long that the kernel reset it.",
    &[Label::Named("device")],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "tx_timeout",
    object: bpf_object!("tx_timeout"),
    hooks: &[Hook::any("net_dev_xmit_timeout", &[tp_btf("net_dev_xmit_timeout", "net_dev_xmit_timeout")])],
    metrics: &[TIMEOUTS],
    collector: Some(|maps, kernel| {
        let labels = |key: &abi::tx_timeout_key| vec![comm(&key.device).into()];
        Ok(Box::new(Reader(ByNetDevice::new(&TIMEOUTS, maps.table("timeouts")?, kernel.paths, labels)?)))
    }),
    ..Probe::EMPTY
};

struct Reader(ByNetDevice<abi::tx_timeout_key, u64, u64>);

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        self.0.collect(out)
    }
}
