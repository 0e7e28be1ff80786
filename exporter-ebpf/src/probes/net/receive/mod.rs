#![doc = include_str!("README.md")]

use crate::abi::histogram;
use crate::error::ProbeError;
use crate::features::Feature;
use crate::flow::Flow;
use crate::hook::{Hook, tp_btf};
use crate::keyed::KeyedByContainer;
use crate::maps::{Maps, Table};
use crate::probe::{Collector, EventDef, Kernel, Priority, Probe, Upkeep};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, known, view};
use crate::stamps::{self, Stamps};
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;

abi!("receive");

const LATENCY: MetricDef = MetricDef::histogram(
    "kpulse_net_receive_latency_seconds",
    "Time of received packets from the device to their socket (socket), and to the program that reads it (user).",
    &[Label::Container, Label::Named("protocol"), Label::Named("stage")],
);
const UNMEASURED: MetricDef = MetricDef::counter(
    "kpulse_net_receive_unmeasured_total",
    "Received packets that the histogram lacks, since they have no usable time stamp.",
    &[],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "receive",
    object: bpf_object!("receive"),
    needs: &[Feature::RingBuffer],
    hooks: &[
        Hook::any("tcp_probe", &[tp_btf("tcp_probe", "tcp_probe")]),
        Hook::any("skb_copy_datagram_iovec", &[tp_btf("skb_copy_datagram_iovec", "skb_copy_datagram_iovec")]),
        Hook::any("sys_enter", &[tp_btf("sys_enter", "sys_enter")]),
    ],
    controller: "cpu",
    sized_by_containers: &[("latency", abi::PATHS)],
    is_default: false,
    prepare: |maps, _| stamps::set_clock(maps),
    thresholds: |thresholds| vec![thresholds.receive.min_to_user, thresholds.receive.min_to_socket],
    metrics: &[LATENCY, UNMEASURED],
    events: &[EventDef {
        kind: "net_receive_delay",
        help: "A packet waited for long on its way from the device to its socket, or to the program that reads it.",
        decode,
        body: schema_of::<Body>,
        names: |_| Names::new(),
    }],
    upkeep: Some(|maps| Ok(Box::new(Stamps::open(maps)?))),
    collector: Some(|maps, kernel| Ok(Box::new(Reader::open(maps, kernel)?))),
    priority: Priority::Low,
    ..Probe::EMPTY
};

struct Reader {
    latency: KeyedByContainer<abi::receive_key, histogram, Histogram>,
    losses: Table<u32, u64>,
    stamps: Stamps,
}

impl Reader {
    fn open(maps: &Maps, kernel: &Kernel<'_>) -> Result<Self, ProbeError> {
        let rest = [abi::TCP_TO_SOCKET, abi::TCP_TO_USER, abi::UDP_TO_USER]
            .map(|path| abi::receive_key { cgroup_id: 0, path: path.into() });
        let describe = |key: &abi::receive_key| {
            let (protocol, stage) = way(key.path);
            (key.cgroup_id, vec![protocol.into(), stage.into()])
        };
        Ok(Self {
            latency: KeyedByContainer::new(
                &LATENCY,
                maps.table("latency")?,
                kernel.hierarchy,
                &rest,
                describe,
            )?,
            losses: maps.table("losses")?,
            stamps: Stamps::open(maps)?,
        })
    }
}

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        self.stamps.keep()?;
        self.latency.collect(identities, out)?;
        out.count(&UNMEASURED, &[], self.losses.get(&0)?.unwrap_or(0));
        Ok(())
    }
}

/// Protocol and stage.
fn way(path: u64) -> (&'static str, &'static str) {
    match u32::try_from(path) {
        Ok(abi::TCP_TO_SOCKET) => ("tcp", "socket"),
        Ok(abi::TCP_TO_USER) => ("tcp", "user"),
        _ => ("udp", "user"),
    }
}

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    #[serde(flatten)]
    flow: Option<Flow>,
    /// `tcp` or `udp`.
    protocol: &'static str,
    /// Where it came to after the wait: `socket`, or `user`, the program that reads it.
    stage: &'static str,
    /// What is in the socket's receive queue: bytes of a stream, for datagrams the memory that they take.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_bytes: Option<u64>,
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::receive_record = view(bytes)?;
    let (protocol, stage) = way(record.path);
    let body = Body { flow: Flow::of(&record.flow), protocol, stage, queue_bytes: known(record.queue_bytes) };
    Ok(Decoded::new(Header::from(&record.header), &body)?.with_user_stack(&record.user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::{assert_decodes, bytes};

    const HEX: &str = include_str!("fixtures/net_receive_delay.hex");

    #[test]
    fn a_real_record_decodes() {
        let json = include_str!("fixtures/net_receive_delay.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), HEX, json);
        assert!(!decoded.header.comm.is_empty() && !decoded.header.stack.is_empty());
        assert!(decoded.header.value_ns >= decoded.header.threshold_ns);
    }

    #[test]
    fn a_queue_that_nobody_could_read_is_absent() {
        let mut record: abi::receive_record = view(&bytes(HEX)).unwrap();
        record.queue_bytes = crate::abi::UNKNOWN_U64;
        // SAFETY: the record is plain bytes, and lives through the call.
        let raw = unsafe {
            std::slice::from_raw_parts((&raw const record).cast::<u8>(), size_of::<abi::receive_record>())
        };
        let decoded = decode(raw, &Names::new()).unwrap();
        assert!(decoded.body.get("queue_bytes").is_none() && decoded.body["stage"].is_string());
    }
}
