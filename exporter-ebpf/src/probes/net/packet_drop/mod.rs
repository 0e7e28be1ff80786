#![doc = include_str!("README.md")]

mod filter;
pub(crate) mod reason;

use crate::error::ProbeError;
use crate::features::Feature;
use crate::flow::Flow;
use crate::hook::{Hook, tp_btf};
use crate::keyed::KeyedByContainer;
use crate::maps::Table;
use crate::probe::{Collector, EventDef, Kernel, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, comm, view};
use crate::symbols::KernelSymbols;
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Label, MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;

abi!("packet_drop");

const DROPS: MetricDef = MetricDef::counter(
    "kpulse_packets_dropped_total",
    "Packets that the kernel dropped, by its reason; the kernel function that dropped where it gives none.",
    &[Label::Container, Label::Named("reason"), Label::Named("protocol")],
);
const OVERFLOW: MetricDef = MetricDef::counter(
    "kpulse_packets_dropped_overflow_total",
    "Dropped packets that are in no series, since there are more reasons than the map holds.",
    &[],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "packet_drop",
    object: bpf_object!("packet_drop"),
    needs: &[Feature::RingBuffer],
    hooks: &[Hook::any(
        "kfree_skb",
        &[
            tp_btf("kfree_skb_with_socket", "kfree_skb"),
            tp_btf("kfree_skb_with_reason", "kfree_skb"),
            tp_btf("kfree_skb", "kfree_skb"),
        ],
    )],
    controller: "cpu",
    sized_by_containers: &[("drops", abi::SERIES_OF_ONE)],
    rule: Some(filter::rule),
    prepare,
    metrics: &[DROPS, OVERFLOW],
    events: &[EventDef {
        kind: "packet_drop",
        help: "The kernel dropped a packet, other than in the normal life of a connection.",
        decode,
        body: schema_of::<Body>,
        names: reason::names,
    }],
    collector: Some(|maps, kernel| {
        let drops = KeyedByContainer::new(
            &DROPS,
            maps.table("drops")?,
            kernel.hierarchy,
            &[],
            describe(reason::names(kernel.types), KernelSymbols::new(kernel.paths)),
        )?;
        Ok(Box::new(Reader { drops, losses: maps.table("losses")? }))
    }),
    ..Probe::EMPTY
};

/// Tells the programs which drops are normal life: by reason where there are reasons, else by kernel function.
fn prepare(maps: &crate::maps::Maps, kernel: &Kernel<'_>) -> Result<(), ProbeError> {
    let worth: Table<u32, u32> = maps.table("worth")?;
    let names = reason::names(kernel.types);
    for (&number, name) in names.range(..u64::from(abi::REASONS_MAX)) {
        worth.set(&u32::try_from(number).unwrap_or(0), &reason::worth(name))?;
    }
    if names.is_empty() {
        let normal: Table<u32, abi::packet_drop_range> = maps.table("normal_ranges")?;
        let ranges = reason::normal_functions(kernel.paths);
        for (index, range) in (0..abi::NORMAL_RANGES).zip(ranges) {
            normal.set(&index, &abi::packet_drop_range { start: range.start, end: range.end })?;
        }
    }
    Ok(())
}

struct Reader {
    drops: KeyedByContainer<abi::packet_drop_key, u64, u64>,
    losses: Table<u32, u64>,
}

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        self.drops.collect(identities, out)?;
        out.count(&OVERFLOW, &[], self.losses.get(&0)?.unwrap_or(0));
        Ok(())
    }
}

/// Names the reason and the protocol of a key; the kernel function stands for the reason where there are none.
fn describe(
    names: Names,
    mut symbols: KernelSymbols,
) -> impl FnMut(&abi::packet_drop_key) -> (u64, Vec<Arc<str>>) + Send {
    // Functions by address. Bound: the capacity of the map.
    let mut places: HashMap<u64, Arc<str>> = HashMap::new();
    move |key| {
        let reason = if key.location == 0 {
            reason::name(&names, key.reason).into()
        } else {
            let name = || symbols.names(&[key.location]).pop().unwrap_or_default().into();
            places.entry(key.location).or_insert_with(name).clone()
        };
        (key.cgroup_id, vec![reason, protocol(key.ethertype, key.protocol).into()])
    }
}

/// Name of what a packet carries, out of a fixed list.
fn protocol(ethertype: u16, protocol: u8) -> &'static str {
    match (ethertype, protocol) {
        (0x0806, _) => "arp",
        (0x0800 | 0x86dd, 6) => "tcp",
        (0x0800 | 0x86dd, 17) => "udp",
        (0x0800, 1) => "icmp",
        (0x86dd, 58) => "icmpv6",
        (0x0800 | 0x86dd, 132) => "sctp",
        (0x0800 | 0x86dd, _) => "other_ip",
        _ => "other",
    }
}

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// Why, in the words of the running kernel; where it gives none, the function that dropped.
    reason: String,
    /// The kernel function that dropped the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    /// What the packet carries: `tcp`, `udp`, `icmp` and the like.
    protocol: &'static str,
    #[serde(flatten)]
    flow: Option<Flow>,
    /// Length of the packet in bytes.
    length: u32,
    /// Whether it came `in` or went `out`.
    direction: &'static str,
    /// Name of the network device.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Inode of the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    /// What TCP wrote into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<Tcp>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Tcp {
    /// Flags that are set.
    flags: Vec<&'static str>,
    /// Sequence number.
    seq: u32,
}

fn decode(bytes: &[u8], names: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::packet_drop_record = view(bytes)?;
    let name = protocol(record.ethertype, record.protocol);
    let device = comm(&record.device_name);
    let body = Body {
        reason: reason::of_record(names, &record),
        location: None,
        protocol: name,
        flow: Flow::of(&record.flow),
        length: record.length,
        direction: if record.is_incoming == 0 { "out" } else { "in" },
        device: (!device.is_empty()).then_some(device),
        netns: (record.netns != 0).then_some(record.netns),
        tcp: (name == "tcp").then(|| Tcp { flags: tcp_flags(record.tcp_flags), seq: record.tcp_seq }),
    };
    let mut decoded = Decoded::new(Header::from(&record.header), &body)?.with_user_stack(&record.user);
    decoded.place = Some(("location", record.location));
    Ok(decoded)
}

fn tcp_flags(bits: u8) -> Vec<&'static str> {
    const NAMES: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
    NAMES.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/packet_drop.hex");

    #[test]
    fn a_real_record_decodes() {
        let names: Names = [(3, "NO_SOCKET".to_owned())].into();
        let decoded =
            assert_decodes(&PROBE.events[0], &names, HEX, include_str!("fixtures/packet_drop.json"));
        assert!(!decoded.header.comm.is_empty());
        assert_eq!(decoded.header.value_ns, None);
        assert!(decoded.place.is_some_and(|(field, address)| field == "location" && address != 0));
    }
}
