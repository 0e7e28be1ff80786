//! Names of drop reasons, and which of them are normal life.
//!
//! Numbers change with every kernel release, so names come from the running kernel's BTF.

use super::abi;
use crate::btf::KernelTypes;
use crate::record::Names;
use crate::symbols::function_ranges;
use kpulse_common::paths::Paths;
use std::ops::Range;

/// Enumerations of reasons, and what their names begin with.
const ENUMERATIONS: [(&str, &str); 2] =
    [("skb_drop_reason", "SKB_DROP_REASON_"), ("qdisc_drop_reason", "QDISC_DROP_REASON_")];

/// Drops that tell of no fault: counted, without an event. A duplicate or late segment, a closed socket's queue, a
/// frame for someone else, a filter on a packet socket, a neighbour that is gone.
const NORMAL: [&str; 23] = [
    "TCP_INVALID_SEQUENCE",
    "TCP_OLD_DATA",
    "TCP_OLD_ACK",
    "TCP_OLD_SEQUENCE",
    "TCP_OFOMERGE",
    "TCP_CLOSE",
    "TCP_RESET",
    "TCP_RFC7323_PAWS",
    "TCP_RFC7323_PAWS_ACK",
    "TCP_TOO_OLD_ACK",
    "TCP_ABORT_ON_DATA",
    "TCP_FLAGS",
    "QUEUE_PURGE",
    "SOCKET_CLOSE",
    "OTHERHOST",
    "UNHANDLED_PROTO",
    "SOCKET_FILTER",
    "IPV6_NDISC_BAD_CODE",
    "IPV6_NDISC_BAD_OPTIONS",
    "IPV6_NDISC_NS_OTHERHOST",
    "NEIGH_DEAD",
    "NEIGH_FAILED",
    "IPV6DISABLED",
];

/// Normal for TCP, where a refused connection gets an RST that says so; a fact for other protocols.
const NORMAL_FOR_TCP: [&str; 2] = ["NO_SOCKET", "NOT_SPECIFIED"];

/// The same for kernels without reasons: functions whose drops are normal life.
const NORMAL_FUNCTIONS: [&str; 18] = [
    "tcp_v4_rcv",
    "tcp_v6_rcv",
    "tcp_v4_do_rcv",
    "tcp_v6_do_rcv",
    "tcp_data_queue",
    "tcp_rcv_established",
    "tcp_rcv_state_process",
    "tcp_validate_incoming",
    "sk_stream_kill_queues",
    "inet_sock_destruct",
    "__skb_queue_purge",
    "skb_queue_purge",
    "tcp_close",
    "__tcp_close",
    "packet_rcv",
    "tpacket_rcv",
    "unix_release_sock",
    "__netif_receive_skb_core",
];

/// Names by number; empty on a kernel that gives no reasons.
pub(crate) fn names(types: &KernelTypes) -> Names {
    let mut names = Names::new();
    for (enumeration, prefix) in ENUMERATIONS {
        for (number, name) in types.members(enumeration, prefix) {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

/// The name of a reason; a subsystem's own number where the kernel's types do not name it.
pub(crate) fn name(names: &Names, number: u32) -> String {
    names.get(&u64::from(number)).cloned().unwrap_or_else(|| match number >> 16 {
        0 => format!("REASON_{number}"),
        subsystem => format!("SUBSYSTEM_{subsystem}_REASON_{}", number & 0xffff),
    })
}

/// The reason of a record; `UNKNOWN` on a kernel that gives none.
pub(super) fn of_record(names: &Names, record: &abi::packet_drop_record) -> String {
    if record.has_reason == 0 { "UNKNOWN".into() } else { name(names, record.reason) }
}

/// What a drop for this reason is worth.
pub(super) fn worth(name: &str) -> u32 {
    if NORMAL.contains(&name) {
        abi::WORTH_COUNT
    } else if NORMAL_FOR_TCP.contains(&name) {
        abi::WORTH_EVENT_UNLESS_TCP
    } else {
        abi::WORTH_EVENT
    }
}

/// Where in the running kernel drops are normal life; nothing when kallsyms is hidden, and then every drop is told.
pub(super) fn normal_functions(paths: &Paths) -> Vec<Range<u64>> {
    function_ranges(paths, &NORMAL_FUNCTIONS).unwrap_or_default()
}
