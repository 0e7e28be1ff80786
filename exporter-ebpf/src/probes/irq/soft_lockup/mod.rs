#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, cpu_clock_at};
use crate::maps::Table;
use crate::probe::{Collector, EventDef, InFlight, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, view};
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;
use std::mem::offset_of;

abi!("soft_lockup");

const LOCKUPS: MetricDef = MetricDef::counter(
    "kpulse_soft_lockups_total",
    "Times that a CPU stayed in the kernel without switching tasks, for as long as the threshold says (5 s), while another \
     task waited for it.",
    &[],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "soft_lockup",
    object: bpf_object!("soft_lockup"),
    needs: &[Feature::CpuClock, Feature::RingBuffer],
    hooks: &[Hook::any("cpu_clock", &[cpu_clock_at("cpu_clock", abi::SAMPLE_HZ as u64)])],
    thresholds: |thresholds| vec![thresholds.soft_lockup.min_duration],
    metrics: &[LOCKUPS],
    events: &[EventDef {
        kind: "soft_lockup",
        help: "A task keeps a CPU in the kernel without a switch while another one waits for it.",
        decode,
        body: schema_of::<Body>,
        names: |_| Names::new(),
    }],
    collector: Some(|maps, _| Ok(Box::new(Reader { stretches: maps.table("stretches")? }))),
    in_flight: &[InFlight::part(
        "stretches",
        offset_of!(abi::soft_lockup_value, since_ns)..size_of::<abi::soft_lockup_value>(),
    )],
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

/// The event has no fields beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::soft_lockup_record = view(bytes)?;
    Ok(Decoded::new(Header::from(&record.header), &Body {})?.with_user_stack(&record.user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/soft_lockup.hex");

    #[test]
    fn a_real_record_decodes() {
        let json = include_str!("fixtures/soft_lockup.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), HEX, json);
        assert!(!decoded.header.comm.is_empty() && !decoded.header.stack.is_empty());
        assert!(decoded.header.value_ns >= decoded.header.threshold_ns);
    }
}
