#![doc = include_str!("README.md")]

use crate::abi::histogram;
use crate::collect::{ByContainer, Entry};
use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, EventDef, InFlight, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, view};
use kpulse_common::clock::monotonic_ns;
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples, histogram_bound};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

abi!("compaction");

const DURATION: MetricDef = MetricDef::histogram(
    "kpulse_compaction_duration_seconds",
    "Time that allocations of adjoining pages spent moving others out of the way themselves.",
    &[Label::Container],
);
const UNMEASURED: MetricDef = MetricDef::counter(
    "kpulse_compaction_unmeasured_total",
    "Direct compactions that the histogram lacks, since too many tasks had one between two scrapes.",
    &[],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "compaction",
    object: bpf_object!("compaction"),
    needs: &[Feature::RingBuffer],
    hooks: &[
        Hook::any(
            "mm_compaction_try_to_compact_pages",
            &[tp_btf("mm_compaction_try_to_compact_pages", "mm_compaction_try_to_compact_pages")],
        ),
        Hook::any("mm_compaction_begin", &[tp_btf("mm_compaction_begin", "mm_compaction_begin")]),
        Hook::any(
            "mm_compaction_end",
            &[
                tp_btf("mm_compaction_end_of_pages", "mm_compaction_end"),
                tp_btf("mm_compaction_end", "mm_compaction_end"),
            ],
        ),
    ],
    controller: "memory",
    sized_by_containers: &[("duration", 1)],
    thresholds: |thresholds| vec![thresholds.compaction.min_duration],
    metrics: &[DURATION, UNMEASURED],
    events: &[EventDef {
        kind: "compaction",
        help: "An allocation had to move other pages out of the way itself, and that took long.",
        decode,
        body: schema_of::<Body>,
        names: |types| {
            let results = types.members("compact_result", "COMPACT_");
            results.map(|(number, name)| (number, name.to_owned())).collect()
        },
    }],
    collector: Some(|maps, kernel| {
        let duration: Table<u64, histogram> = maps.table("duration")?;
        // Holds what finds no room later.
        duration.set(&0, &histogram::default())?;
        Ok(Box::new(Reader {
            duration,
            calls: maps.table("calls")?,
            losses: maps.table("losses")?,
            ended: BTreeMap::new(),
            containers: ByContainer::new(kernel.hierarchy),
        }))
    }),
    in_flight: &[InFlight::all("calls")],
    ..Probe::EMPTY
};

struct Reader {
    duration: Table<u64, histogram>,
    calls: Table<u32, abi::compaction_call>,
    losses: Table<u32, u64>,
    /// Calls that the collector found ended, by cgroup. Bound: the capacity of `duration`.
    ended: BTreeMap<u64, Histogram>,
    containers: ByContainer<Histogram>,
}

impl Reader {
    /// Takes over calls that ended and that no other call of the same task has counted.
    ///
    /// A task that begins its next call in this very moment may count the last one too, or have the next one missed
    /// (racy on purpose: no hook tells the end).
    fn take_ended(&mut self) -> Result<(), ProbeError> {
        // The clock that the program reads.
        let now_ns = monotonic_ns();
        for (tid, call) in self.calls.entries()? {
            if call.attempt_ns != 0 || now_ns.saturating_sub(call.last_ns) < abi::CALL_GAP_U64 {
                continue;
            }
            self.calls.remove(&tid)?;
            if call.sum_ns > 0 {
                let has_room = self.ended.len() < self.duration.capacity() as usize;
                let id =
                    if has_room || self.ended.contains_key(&call.cgroup_id) { call.cgroup_id } else { 0 };
                add(self.ended.entry(id).or_default(), call.sum_ns);
            }
        }
        Ok(())
    }
}

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        self.take_ended()?;
        let entry = |cgroup_id, total| Entry { cgroup_id, labels: Vec::new(), total };
        let counted = self.duration.entries()?.into_iter().map(|(id, raw)| entry(id, Histogram::from(raw)));
        let ended = self.ended.iter().map(|(&id, histogram)| entry(id, histogram.clone()));
        let entries = counted.chain(ended).collect();
        for id in self.containers.report(&DURATION, entries, identities, out) {
            self.ended.remove(&id);
            self.duration.remove(&id)?;
        }
        out.count(&UNMEASURED, &[], self.losses.get(&0)?.unwrap_or(0));
        Ok(())
    }
}

/// As `histogram_add` in `histogram.h`.
fn add(histogram: &mut Histogram, ns: u64) {
    let seconds = ns as f64 / 1e9;
    let slot =
        (0..histogram.slots.len()).find(|&slot| histogram_bound(slot).is_none_or(|bound| seconds <= bound));
    histogram.slots[slot.unwrap_or(0)] += 1;
    histogram.sum_ns += ns;
}

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// The allocation was for 2^order pages.
    order: i32,
    /// How the attempt ended that reached the threshold, in the words of the running kernel (`enum compact_result`).
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<String>,
}

fn decode(bytes: &[u8], names: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::compaction_record = view(bytes)?;
    let body = Body { order: record.order, result: names.get(&record.result.into()).cloned() };
    Ok(Decoded::new(Header::from(&record.header), &body)?.with_user_stack(&record.user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/compaction.hex");

    #[test]
    fn a_real_record_decodes() {
        let json = include_str!("fixtures/compaction.json");
        let names: Names = [(6, "PARTIAL_SKIPPED".to_owned())].into();
        let decoded = assert_decodes(&PROBE.events[0], &names, HEX, json);
        assert!(!decoded.header.comm.is_empty() && !decoded.header.stack.is_empty());
        assert!(decoded.header.value_ns >= decoded.header.threshold_ns);
    }

    #[test]
    fn a_duration_falls_into_the_slot_that_its_bound_ends() {
        let mut histogram = Histogram::default();
        for ns in [1, 953, 954, 1_000_000_000, 1_000_000_001, u64::MAX / 4] {
            add(&mut histogram, ns);
        }
        let filled: Vec<_> = (0..histogram.slots.len()).filter(|&slot| histogram.slots[slot] > 0).collect();
        assert_eq!(filled, [0, 1, 20, 21, 26]);
        assert_eq!(histogram.slots[0], 2);
    }
}
