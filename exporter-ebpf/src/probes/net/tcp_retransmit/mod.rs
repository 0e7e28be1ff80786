#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::hook::{Hook, tp_btf};
use crate::keyed::KeyedByContainer;
use crate::probe::{Collector, Probe};
use crate::probes::{abi, bpf_object};
use kpulse_common::container::Identities;
use kpulse_common::metric::{Label, MetricDef, Samples};

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
    hooks: &[
        Hook::any(
            "tcp_retransmit_skb",
            &[
                tp_btf("tcp_retransmit_skb_with_error", "tcp_retransmit_skb"),
                tp_btf("tcp_retransmit_skb", "tcp_retransmit_skb"),
            ],
        ),
        Hook::any("tcp_retransmit_synack", &[tp_btf("tcp_retransmit_synack", "tcp_retransmit_synack")]),
    ],
    controller: "cpu",
    sized_by_containers: &[("retransmits", abi::REASONS)],
    metrics: &[RETRANSMITS],
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
