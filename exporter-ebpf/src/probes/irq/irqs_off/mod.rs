#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, raw_tp, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, EventDef, InFlight, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, known, view};
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;
use std::mem::offset_of;

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
    needs: &[Feature::RingBuffer],
    hooks: &[Hook::any(
        "hrtimer_expire_entry",
        &[
            tp_btf("hrtimer_expire_entry", "hrtimer_expire_entry"),
            raw_tp("hrtimer_expire_entry_raw", "hrtimer_expire_entry"),
        ],
    )],
    thresholds: |thresholds| vec![thresholds.irqs_off.min_duration],
    metrics: &[IRQS_OFF, STOLEN],
    events: &[EventDef {
        kind: "irqs_off",
        help: "A CPU kept interrupts off for long while one was due.",
        decode,
        body: schema_of::<Body>,
        names: |_| Names::new(),
    }],
    collector: Some(|maps, _| Ok(Box::new(Reader { late: maps.table("late")? }))),
    in_interrupt: true,
    in_flight: &[InFlight::part(
        "late",
        offset_of!(abi::irqs_off_value, served_ns)..size_of::<abi::irqs_off_value>(),
    )],
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

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// What the hypervisor took of the same stretch, which the value leaves out; absent where the kernel does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    stolen_ns: Option<u64>,
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::irqs_off_record = view(bytes)?;
    let body = Body { stolen_ns: known(record.stolen_ns) };
    Ok(Decoded::new(Header::from(&record.header), &body)?.with_user_stack(&record.user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/irqs_off.hex");

    #[test]
    fn a_real_record_decodes() {
        let json = include_str!("fixtures/irqs_off.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), HEX, json);
        assert!(!decoded.header.comm.is_empty() && !decoded.header.stack.is_empty());
        assert!(decoded.header.value_ns >= decoded.header.threshold_ns);
    }
}
