#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, raw_tp, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, EventDef, InFlight, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, view};
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;
use std::mem::offset_of;

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
    needs: &[Feature::RingBuffer],
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
    thresholds: |thresholds| vec![thresholds.softirq.min_delay],
    metrics: &[LATENCY, DURATION],
    events: &[EventDef {
        kind: "softirq_delay",
        help: "A softirq waited for long between its raise and its handler.",
        decode,
        body: schema_of::<Body>,
        names: |_| Names::new(),
    }],
    collector: Some(|maps, _| Ok(Box::new(Reader { vectors: maps.table("vectors")? }))),
    in_flight: &[InFlight::part("vectors", 0..offset_of!(abi::softirq_value, latency))],
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

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// Kind of softirq: `timer`, `net_rx` and the like.
    vector: &'static str,
    /// The handler that ended on the CPU just before: what kept it, where that was another softirq.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Run>,
}

/// A run of a handler.
#[derive(Debug, Serialize, JsonSchema)]
struct Run {
    /// Kind of softirq: `timer`, `net_rx` and the like.
    vector: &'static str,
    /// How long it ran.
    duration_ns: u64,
}

fn vector(number: u32) -> &'static str {
    usize::try_from(number).ok().and_then(|number| VECTORS.get(number)).unwrap_or(&"unknown")
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::softirq_record = view(bytes)?;
    let last = Run { vector: vector(record.last.vector), duration_ns: record.last.duration_ns };
    let body = Body { vector: vector(record.vector), last: (record.last.is_known != 0).then_some(last) };
    Decoded::new(Header::from(&record.header), &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/softirq_delay.hex");

    #[test]
    fn a_real_record_decodes() {
        let json = include_str!("fixtures/softirq_delay.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), HEX, json);
        assert!(!decoded.header.comm.is_empty() && !decoded.header.stack.is_empty());
        assert!(decoded.header.value_ns >= decoded.header.threshold_ns);
    }
}
