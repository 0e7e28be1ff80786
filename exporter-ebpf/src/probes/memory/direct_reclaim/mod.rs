#![doc = include_str!("README.md")]

use crate::abi::histogram;
use crate::collect::{ByContainer, Entry};
use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, EventDef, InFlight, Probe, Want};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, view};
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;

abi!("direct_reclaim");

const DURATION: MetricDef = MetricDef::histogram(
    "kpulse_direct_reclaim_duration_seconds",
    "Time that allocations spent freeing memory themselves, for the machine (global) or a memory cgroup's limit (memcg).",
    &[Label::Container, Label::Named("kind")],
);
const UNMEASURED: MetricDef = MetricDef::counter(
    "kpulse_direct_reclaim_unmeasured_total",
    "Direct reclaims that the histogram lacks, since too many tasks reclaimed at once.",
    &[],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "direct_reclaim",
    object: bpf_object!("direct_reclaim"),
    needs: &[Feature::RingBuffer],
    hooks: &[
        Hook::any(
            "mm_vmscan_direct_reclaim_begin",
            &[
                tp_btf("direct_reclaim_begin_with_memcg", "mm_vmscan_direct_reclaim_begin"),
                tp_btf("direct_reclaim_begin", "mm_vmscan_direct_reclaim_begin"),
            ],
        ),
        Hook::any(
            "mm_vmscan_direct_reclaim_end",
            &[tp_btf("direct_reclaim_end", "mm_vmscan_direct_reclaim_end")],
        ),
        Hook::any(
            "mm_vmscan_memcg_reclaim_begin",
            &[
                tp_btf("memcg_reclaim_begin_with_memcg", "mm_vmscan_memcg_reclaim_begin"),
                tp_btf("memcg_reclaim_begin", "mm_vmscan_memcg_reclaim_begin"),
            ],
        ),
        Hook::any(
            "mm_vmscan_memcg_reclaim_end",
            &[tp_btf("memcg_reclaim_end", "mm_vmscan_memcg_reclaim_end")],
        ),
        Hook::any(
            "mm_vmscan_lru_shrink_inactive",
            &[tp_btf("lru_shrink_inactive", "mm_vmscan_lru_shrink_inactive")],
        )
        .only(Want::Events),
    ],
    controller: "memory",
    sized_by_containers: &[("duration", abi::KINDS)],
    thresholds: |thresholds| vec![thresholds.direct_reclaim.min_duration],
    metrics: &[DURATION, UNMEASURED],
    events: &[EventDef {
        kind: "direct_reclaim",
        help: "An allocation had to free memory itself, and that took long.",
        decode,
        body: schema_of::<Body>,
        names: |_| Names::new(),
    }],
    collector: Some(|maps, kernel| {
        let duration: Table<abi::direct_reclaim_key, histogram> = maps.table("duration")?;
        for kind in 0..abi::KINDS {
            // Holds what finds no room later.
            duration
                .set(&abi::direct_reclaim_key { cgroup_id: 0, kind: kind.into() }, &histogram::default())?;
        }
        Ok(Box::new(Reader {
            duration,
            losses: maps.table("losses")?,
            containers: ByContainer::new(kernel.hierarchy),
        }))
    }),
    in_flight: &[InFlight::all("start")],
    ..Probe::EMPTY
};

struct Reader {
    duration: Table<abi::direct_reclaim_key, histogram>,
    losses: Table<u32, u64>,
    containers: ByContainer<Histogram>,
}

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let entries = self.duration.entries()?.into_iter().map(|(key, histogram)| Entry {
            cgroup_id: key.cgroup_id,
            labels: vec![kind(key.kind).into()],
            total: histogram.into(),
        });
        let gone = self.containers.report(&DURATION, entries.collect(), identities, out);
        for cgroup_id in gone {
            for kind in 0..abi::KINDS {
                self.duration.remove(&abi::direct_reclaim_key { cgroup_id, kind: kind.into() })?;
            }
        }
        out.count(&UNMEASURED, &[], self.losses.get(&0)?.unwrap_or(0));
        Ok(())
    }
}

fn kind(number: u64) -> &'static str {
    if number == u64::from(abi::KIND_MEMCG) { "memcg" } else { "global" }
}

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// Whether for the machine (`global`) or the limit of a memory cgroup (`memcg`).
    kind: &'static str,
    /// The allocation was for 2^order pages.
    order: i32,
    /// Pages that it freed.
    reclaimed_pages: u64,
    /// Pages that it took from the lists of those not used lately, and looked at.
    scanned_pages: u64,
    /// The cgroup whose limit was reached, where the kernel says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    target_cgroup_id: Option<u64>,
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::direct_reclaim_record = view(bytes)?;
    let body = Body {
        kind: kind(record.kind.into()),
        order: record.order,
        reclaimed_pages: record.reclaimed_pages,
        scanned_pages: record.scanned_pages,
        target_cgroup_id: (record.target_cgroup_id != 0).then_some(record.target_cgroup_id),
    };
    Ok(Decoded::new(Header::from(&record.header), &body)?.with_user_stack(&record.user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/direct_reclaim.hex");

    #[test]
    fn a_real_record_decodes() {
        let names: Names = Names::new();
        let decoded =
            assert_decodes(&PROBE.events[0], &names, HEX, include_str!("fixtures/direct_reclaim.json"));
        assert!(!decoded.header.comm.is_empty());
        assert!(!decoded.header.stack.is_empty());
    }
}
