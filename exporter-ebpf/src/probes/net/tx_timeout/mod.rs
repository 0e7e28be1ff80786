#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, tp_btf};
use crate::net_devices::ByNetDevice;
use crate::probe::{Collector, EventDef, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, comm, view};
use kpulse_common::container::Identities;
use kpulse_common::event::{Affected, schema_of};
use kpulse_common::metric::{Label, MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;

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
    needs: &[Feature::RingBuffer],
    hooks: &[Hook::any("net_dev_xmit_timeout", &[tp_btf("net_dev_xmit_timeout", "net_dev_xmit_timeout")])],
    metrics: &[TIMEOUTS],
    events: &[EventDef {
        kind: "tx_timeout",
        help: "A network device did not send for so long that the kernel reset it.",
        decode,
        body: schema_of::<Body>,
        names: |_| Names::new(),
    }],
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

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// Name of the device.
    device: String,
    /// Absent for a device without hardware.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    /// Number of its transmit queue.
    queue: u32,
    /// Inode of the network namespace.
    netns: u32,
    /// Who used the device; added where the document is made, and absent for a device of another namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    affected: Option<Affected>,
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::tx_timeout_record = view(bytes)?;
    let driver = comm(&record.driver);
    let body = Body {
        device: comm(&record.device),
        driver: (!driver.is_empty()).then_some(driver),
        queue: record.queue,
        netns: record.netns,
        affected: None,
    };
    Decoded::new(Header::from(&record.header), &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/tx_timeout.hex");

    #[test]
    fn a_real_record_decodes() {
        let json = include_str!("fixtures/tx_timeout.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), HEX, json);
        assert_eq!((decoded.header.pid, decoded.header.value_ns), (0, None));
    }
}
