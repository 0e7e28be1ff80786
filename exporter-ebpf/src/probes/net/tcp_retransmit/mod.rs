#![doc = include_str!("README.md")]

use super::packet_drop::reason as drop_reason;
use crate::error::ProbeError;
use crate::features::Feature;
use crate::flow::{Flow, tcp_state};
use crate::hook::{Hook, tp_btf};
use crate::keyed::KeyedByContainer;
use crate::probe::{Collector, EventDef, Probe, Want};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, known, view};
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Label, MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;

abi!("tcp_retransmit");

const RETRANSMITS: MetricDef = MetricDef::counter(
    "kpulse_tcp_retransmits_total",
    "TCP segments sent again: after a timeout (rto), in fast recovery (fast), as a loss probe (tlp), or to open a connection (syn, synack).",
    &[Label::Container, Label::Named("reason")],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "tcp_retransmit",
    object: bpf_object!("tcp_retransmit"),
    needs: &[Feature::RingBuffer],
    hooks: &[
        Hook::any(
            "tcp_retransmit_skb",
            &[
                tp_btf("tcp_retransmit_skb_with_error", "tcp_retransmit_skb"),
                tp_btf("tcp_retransmit_skb", "tcp_retransmit_skb"),
            ],
        ),
        Hook::any("tcp_retransmit_synack", &[tp_btf("tcp_retransmit_synack", "tcp_retransmit_synack")]),
        Hook::optional("kfree_skb", &[tp_btf("kfree_skb_with_reason", "kfree_skb")]).only(Want::Events),
    ],
    controller: "cpu",
    sized_by_containers: &[("retransmits", abi::REASONS)],
    metrics: &[RETRANSMITS],
    events: &[EventDef {
        kind: "tcp_retransmit",
        help: "TCP sent a segment again.",
        decode,
        body: schema_of::<Body>,
        names: drop_reason::names,
    }],
    collector: Some(|maps, kernel| {
        let rest: Vec<_> = (0..abi::REASONS).map(|reason| key(0, reason)).collect();
        let retransmits = KeyedByContainer::new(
            &RETRANSMITS,
            maps.table("retransmits")?,
            kernel.hierarchy,
            &rest,
            |key| {
                let key: &abi::tcp_retransmit_key = key;
                (key.cgroup_id, vec![reason(key.reason).into()])
            },
        )?;
        Ok(Box::new(Reader(retransmits)))
    }),
    ..Probe::EMPTY
};

struct Reader(KeyedByContainer<abi::tcp_retransmit_key, u64, u64>);

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        self.0.collect(identities, out)
    }
}

fn key(cgroup_id: u64, reason: u32) -> abi::tcp_retransmit_key {
    abi::tcp_retransmit_key { cgroup_id, reason: reason.into() }
}

fn reason(number: u64) -> &'static str {
    match u32::try_from(number) {
        Ok(abi::REASON_RTO) => "rto",
        Ok(abi::REASON_FAST) => "fast",
        Ok(abi::REASON_TLP) => "tlp",
        Ok(abi::REASON_SYN) => "syn",
        _ => "synack",
    }
}

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    #[serde(flatten)]
    flow: Option<Flow>,
    /// What made TCP send it again.
    reason: &'static str,
    /// State of the connection; absent where there is no socket.
    state: Option<&'static str>,
    /// Sequence number of the first byte.
    seq: u32,
    /// Segments that were sent again.
    segments: u32,
    /// Segments on their way, this one not yet.
    in_flight: u32,
    /// Smoothed round-trip time; absent before the first sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt_ns: Option<u64>,
    /// How this kernel itself dropped the segment before, where it was seen to.
    #[serde(skip_serializing_if = "Option::is_none")]
    drop: Option<Drop>,
    /// The kernel function that dropped it.
    #[serde(skip_serializing_if = "Option::is_none")]
    drop_location: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Drop {
    /// Why, in the words of the running kernel.
    reason: String,
    /// How long before.
    age_ns: u64,
}

fn decode(bytes: &[u8], names: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::tcp_retransmit_record = view(bytes)?;
    let drop = known(record.drop_age_ns)
        .map(|age_ns| Drop { reason: drop_reason::name(names, record.drop_reason), age_ns });
    let place = drop.as_ref().map(|_| ("drop_location", record.drop_location));
    let body = Body {
        flow: Flow::of(&record.flow),
        reason: reason(record.reason.into()),
        state: tcp_state(record.state),
        seq: record.seq,
        segments: record.segments,
        in_flight: record.in_flight,
        rtt_ns: known(record.rtt_ns),
        drop,
        drop_location: None,
    };
    let decoded = Decoded::new(Header::from(&record.header), &body)?.with_user_stack(&record.user);
    Ok(Decoded { place, ..decoded })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/tcp_retransmit.hex");

    #[test]
    fn a_real_record_decodes() {
        let json = include_str!("fixtures/tcp_retransmit.json");
        let names: Names = [(5, "SOCKET_FILTER".to_owned())].into();
        let decoded = assert_decodes(&PROBE.events[0], &names, HEX, json);
        assert_eq!(decoded.header.value_ns, None);
        assert!(decoded.place.is_some_and(|(field, address)| field == "drop_location" && address != 0));
        assert!(!decoded.header.stack.is_empty());
    }
}
