#![doc = include_str!("README.md")]

mod reason;

use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, EventDef, Kernel, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, comm, view};
use crate::symbols::KernelSymbols;
use kpulse_common::container::Identities;
use kpulse_common::metric::{Label, MetricDef, Samples};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

abi!("packet_drop");

const DROPS: MetricDef = MetricDef::counter(
    "kpulse_packets_dropped_total",
    "Packets that the kernel dropped, by its reason; the kernel function that dropped where it gives none.",
    &[Label::Named("reason"), Label::Named("protocol")],
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
    prepare,
    metrics: &[DROPS, OVERFLOW],
    events: &[EventDef {
        kind: "packet_drop",
        help: "The kernel dropped a packet, other than in the normal life of a connection.",
        decode,
        names: reason::names,
    }],
    collector: Some(|maps, kernel| {
        Ok(Box::new(Reader {
            drops: maps.table("drops")?,
            losses: maps.table("losses")?,
            names: reason::names(kernel.types),
            symbols: KernelSymbols::new(kernel.paths),
            places: HashMap::new(),
        }))
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
    drops: Table<abi::packet_drop_key, u64>,
    losses: Table<u32, u64>,
    names: Names,
    symbols: KernelSymbols,
    /// Functions by address, for kernels without reasons. Bound: the capacity of `drops`.
    places: HashMap<u64, Arc<str>>,
}

impl Reader {
    fn reason(&mut self, key: &abi::packet_drop_key) -> Arc<str> {
        if key.location == 0 {
            return reason::name(&self.names, key.reason).into();
        }
        let name = || self.symbols.names(&[key.location]).pop().unwrap_or_default().into();
        self.places.entry(key.location).or_insert_with(name).clone()
    }
}

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let mut series: BTreeMap<(Arc<str>, &str), u64> = BTreeMap::new();
        for (key, count) in self.drops.entries()? {
            *series.entry((self.reason(&key), protocol(key.ethertype, key.protocol))).or_default() += count;
        }
        for ((reason, protocol), count) in series {
            out.count(&DROPS, &[&reason, protocol], count);
        }
        out.count(&OVERFLOW, &[], self.losses.get(&0)?.unwrap_or(0));
        Ok(())
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
#[derive(Debug, Serialize)]
struct Body {
    reason: String,
    /// The kernel function that dropped the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    protocol: &'static str,
    source: Endpoint,
    destination: Endpoint,
    length: u32,
    direction: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Inode of the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<Tcp>,
}

#[derive(Debug, Serialize)]
struct Endpoint {
    ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Debug, Serialize)]
struct Tcp {
    flags: Vec<&'static str>,
    seq: u32,
}

fn decode(bytes: &[u8], names: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::packet_drop_record = view(bytes)?;
    let endpoint = |address, port| Endpoint {
        ip: ip(record.ip_version, address),
        port: (record.has_ports != 0).then_some(port),
    };
    let name = protocol(record.ethertype, record.protocol);
    let device = comm(&record.device_name);
    let body = Body {
        reason: reason::of_record(names, &record),
        location: None,
        protocol: name,
        source: endpoint(record.source, record.source_port),
        destination: endpoint(record.destination, record.destination_port),
        length: record.length,
        direction: if record.is_incoming == 0 { "out" } else { "in" },
        device: (!device.is_empty()).then_some(device),
        netns: (record.netns != 0).then_some(record.netns),
        tcp: (name == "tcp").then(|| Tcp { flags: tcp_flags(record.tcp_flags), seq: record.tcp_seq }),
    };
    let mut decoded = Decoded::new(Header::from(&record.header), &body)?;
    decoded.place = Some(("location", record.location));
    Ok(decoded)
}

fn ip(version: u8, bytes: [u8; 16]) -> IpAddr {
    if version == 4 {
        Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
    } else {
        Ipv6Addr::from(bytes).into()
    }
}

fn tcp_flags(bits: u8) -> Vec<&'static str> {
    const NAMES: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
    NAMES.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::{assert_decodes, assert_total};

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

    #[test]
    fn any_bytes_of_the_right_size_decode() {
        assert_total(&PROBE.events[0], HEX);
    }
}
