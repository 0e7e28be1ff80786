#![doc = include_str!("README.md")]

use crate::abi::histogram;
use crate::error::ProbeError;
use crate::features::{Feature, tick_ns};
use crate::flow::Flow;
use crate::hook::{Hook, fexit, tp_btf};
use crate::keyed::{KeyedByContainer, Nanoseconds};
use crate::maps::{Maps, Table};
use crate::probe::{Collector, EventDef, InFlight, Kernel, Probe, Want};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, view};
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;

abi!("tcp_connect");

const HANDSHAKE: MetricDef = MetricDef::histogram(
    "kpulse_tcp_handshake_seconds",
    "Time that TCP handshakes took: SYN to established for a client, SYN-ACK to its answer for a server.",
    &[Label::Container, Label::Named("role")],
);
const ACCEPT_WAIT: MetricDef = MetricDef::histogram(
    "kpulse_tcp_accept_wait_seconds",
    "Time that established TCP connections waited for accept().",
    &[Label::Container],
);
const RTT: MetricDef = MetricDef::histogram(
    "kpulse_tcp_rtt_seconds",
    "Smoothed round-trip time of TCP connections, taken when they ended.",
    &[Label::Container, Label::Named("role")],
);
const RWND_LIMITED: MetricDef = MetricDef::counter(
    "kpulse_tcp_rwnd_limited_seconds_total",
    "Time that TCP connections could not send since the peer's receive window was full, added when they ended.",
    &[Label::Container],
);
const UNMEASURED: MetricDef = MetricDef::counter(
    "kpulse_tcp_connect_unmeasured_total",
    "Handshakes and accepts that the histograms lack, since their start was not seen or has no time.",
    &[Label::Named("what")],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "tcp_connect",
    object: bpf_object!("tcp_connect"),
    needs: &[Feature::RingBuffer],
    hooks: &[
        Hook::any("inet_sock_set_state", &[tp_btf("inet_sock_set_state", "inet_sock_set_state")]),
        Hook::optional(
            "accept",
            &[
                fexit("inet_csk_accept_with_error", "inet_csk_accept"),
                fexit("inet_csk_accept", "inet_csk_accept"),
                tp_btf("sys_exit", "sys_exit"),
            ],
        )
        .only(Want::Metrics),
    ],
    controller: "cpu",
    sized_by_containers: &[
        ("handshake", abi::ROLES),
        ("rtt", abi::ROLES),
        ("accept_wait", 1),
        ("rwnd_limited", 1),
    ],
    globals: || vec![("tick_ns", tick_ns())],
    thresholds: |thresholds| vec![thresholds.tcp_connect.min_handshake],
    metrics: &[HANDSHAKE, ACCEPT_WAIT, RTT, RWND_LIMITED, UNMEASURED],
    events: &[EventDef {
        kind: "tcp_connect_slow",
        help: "A TCP handshake took long, or failed.",
        decode,
        body: schema_of::<Body>,
        names: |_| Names::new(),
    }],
    collector: Some(|maps, kernel| Ok(Box::new(Reader::open(maps, kernel)?))),
    in_flight: &[InFlight::all("connections")],
    ..Probe::EMPTY
};

struct Reader {
    handshake: KeyedByContainer<abi::tcp_connect_key, histogram, Histogram>,
    rtt: KeyedByContainer<abi::tcp_connect_key, histogram, Histogram>,
    accept_wait: KeyedByContainer<u64, histogram, Histogram>,
    rwnd_limited: KeyedByContainer<u64, u64, Nanoseconds>,
    losses: Table<u32, abi::tcp_connect_value>,
    has_accept: bool,
}

impl Reader {
    fn open(maps: &Maps, kernel: &Kernel<'_>) -> Result<Self, ProbeError> {
        let rest = [abi::ROLE_UNKNOWN, abi::ROLE_CLIENT, abi::ROLE_SERVER]
            .map(|role| abi::tcp_connect_key { cgroup_id: 0, role: role.into() });
        let by_role = |key: &abi::tcp_connect_key| (key.cgroup_id, vec![role(key.role).into()]);
        let plain = |cgroup_id: &u64| (*cgroup_id, Vec::new());
        let hierarchy = kernel.hierarchy;
        Ok(Self {
            handshake: KeyedByContainer::new(
                &HANDSHAKE,
                maps.table("handshake")?,
                hierarchy,
                &rest,
                by_role,
            )?,
            rtt: KeyedByContainer::new(&RTT, maps.table("rtt")?, hierarchy, &rest, by_role)?,
            accept_wait: KeyedByContainer::new(
                &ACCEPT_WAIT,
                maps.table("accept_wait")?,
                hierarchy,
                &[0],
                plain,
            )?,
            rwnd_limited: KeyedByContainer::new(
                &RWND_LIMITED,
                maps.table("rwnd_limited")?,
                hierarchy,
                &[0],
                plain,
            )?,
            losses: maps.table("losses")?,
            has_accept: kernel.has_hook("accept"),
        })
    }
}

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        self.handshake.collect(identities, out)?;
        self.accept_wait.collect(identities, out)?;
        self.rtt.collect(identities, out)?;
        self.rwnd_limited.collect(identities, out)?;
        let losses = self.losses.get(&0)?.unwrap_or_default();
        out.count(&UNMEASURED, &["handshake"], losses.handshakes);
        if self.has_accept {
            out.count(&UNMEASURED, &["accept"], losses.accepts);
        }
        Ok(())
    }
}

fn role(number: u64) -> &'static str {
    match u32::try_from(number) {
        Ok(abi::ROLE_CLIENT) => "client",
        Ok(abi::ROLE_SERVER) => "server",
        _ => "unknown",
    }
}

/// Fields of the event beyond the common ones. The source is this side.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// Whether it is the `client` or the `server`.
    role: &'static str,
    /// How the handshake ended.
    outcome: &'static str,
    #[serde(flatten)]
    flow: Option<Flow>,
    /// How often the SYN was sent again, or the SYN-ACK of a server.
    retransmits: u32,
    /// Why it failed, as connect() says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<u32>,
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::tcp_connect_record = view(bytes)?;
    let body = Body {
        role: role(record.role.into()),
        outcome: match record.outcome {
            abi::OUTCOME_ESTABLISHED => "established",
            abi::OUTCOME_FAILED => "failed",
            _ => "abandoned",
        },
        flow: Flow::of(&record.flow),
        retransmits: record.retransmits,
        errno: (record.error != 0).then_some(record.error),
    };
    Decoded::new(Header::from(&record.header), &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/tcp_connect_slow.hex");

    #[test]
    fn a_real_record_decodes() {
        let json = include_str!("fixtures/tcp_connect_slow.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), HEX, json);
        assert!(!decoded.header.comm.is_empty());
        assert!(decoded.header.value_ns >= Some(1_000_000_000));
    }
}
