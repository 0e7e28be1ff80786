#![doc = include_str!("README.md")]

use crate::btf::KernelTypes;
use crate::error::ProbeError;
use crate::features::Feature;
use crate::flow::{Flow, tcp_state};
use crate::hook::{Hook, tp_btf};
use crate::keyed::KeyedByContainer;
use crate::probe::{Collector, EventDef, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, view};
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Label, MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;
use std::sync::Arc;

abi!("tcp_reset");

const RESETS: MetricDef = MetricDef::counter(
    "kpulse_tcp_resets_total",
    "TCP resets sent and received, and the kernel's reason for those sent where it gives one.",
    &[Label::Container, Label::Named("direction"), Label::Named("reason")],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "tcp_reset",
    object: bpf_object!("tcp_reset"),
    needs: &[Feature::RingBuffer],
    hooks: &[
        Hook::any(
            "tcp_send_reset",
            &[
                tp_btf("tcp_send_reset_with_reason", "tcp_send_reset"),
                tp_btf("tcp_send_reset", "tcp_send_reset"),
            ],
        ),
        Hook::any("tcp_receive_reset", &[tp_btf("tcp_receive_reset", "tcp_receive_reset")]),
    ],
    controller: "cpu",
    sized_by_containers: &[("resets", abi::SERIES_OF_ONE)],
    metrics: &[RESETS],
    events: &[EventDef {
        kind: "tcp_reset",
        help: "A TCP connection, or an attempt at one, was reset.",
        decode,
        body: schema_of::<Body>,
        names,
    }],
    collector: Some(|maps, kernel| {
        let names = names(kernel.types);
        let rest = [abi::DIRECTION_RECEIVED, abi::DIRECTION_SENT].map(|direction| abi::tcp_reset_key {
            cgroup_id: 0,
            direction,
            reason: abi::NO_REASON,
        });
        let describe = move |key: &abi::tcp_reset_key| {
            (key.cgroup_id, vec![direction(key.direction).into(), reason(&names, key.reason)])
        };
        let table = maps.table("resets")?;
        Ok(Box::new(Reader(KeyedByContainer::new(&RESETS, table, kernel.hierarchy, &rest, describe)?)))
    }),
    ..Probe::EMPTY
};

struct Reader(KeyedByContainer<abi::tcp_reset_key, u64, u64>);

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        self.0.collect(identities, out)
    }
}

fn direction(number: u32) -> &'static str {
    if number == abi::DIRECTION_SENT { "sent" } else { "received" }
}

/// Reasons have other numbers in every release: their names are the running kernel's.
fn names(types: &KernelTypes) -> Names {
    let reasons = types.members("sk_rst_reason", "SK_RST_REASON_");
    reasons.map(|(number, name)| (number, name.to_owned())).collect()
}

fn reason(names: &Names, number: u32) -> Arc<str> {
    match names.get(&number.into()) {
        Some(name) => name.as_str().into(),
        None if number == abi::NO_REASON => "".into(),
        None => format!("REASON_{number}").into(),
    }
}

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// Whether the reset was `sent` or `received`.
    direction: &'static str,
    /// The kernel's reason; absent for what is received, and where the kernel gives none.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(flatten)]
    flow: Option<Flow>,
    /// Absent where there is no socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
}

fn decode(bytes: &[u8], names: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::tcp_reset_record = view(bytes)?;
    let body = Body {
        direction: direction(record.direction),
        reason: (record.reason != abi::NO_REASON).then(|| reason(names, record.reason).to_string()),
        flow: Flow::of(&record.flow),
        state: tcp_state(record.state),
    };
    Ok(Decoded::new(Header::from(&record.header), &body)?.with_user_stack(&record.user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/tcp_reset.hex");

    #[test]
    fn a_real_record_decodes() {
        let names: Names = [(11, "TCP_ABORT_ON_CLOSE".to_owned())].into();
        let decoded = assert_decodes(&PROBE.events[0], &names, HEX, include_str!("fixtures/tcp_reset.json"));
        assert_eq!(decoded.header.value_ns, None);
        assert!(!decoded.header.stack.is_empty());
    }
}
