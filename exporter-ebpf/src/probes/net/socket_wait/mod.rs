#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::features::{Feature, tick_ns};
use crate::flow::Flow;
use crate::hook::{Hook, tracepoint};
use crate::probe::{EventDef, InFlight, Priority, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, known, view};
use crate::stamps::{self, Stamps};
use kpulse_common::event::schema_of;
use schemars::JsonSchema;
use serde::Serialize;

abi!("socket_wait");

/// Names of `CALL_*`.
const CALLS: [&str; 10] =
    ["write", "writev", "sendto", "sendmsg", "sendmmsg", "read", "readv", "recvfrom", "recvmsg", "recvmmsg"];

/// The tracepoints of a system call's beginning and end, each with its program.
macro_rules! call {
    ($make:path, $name:literal, $begins:literal, $ends:literal) => {
        [
            $make(
                concat!("sys_enter_", $name),
                &[tracepoint($begins, "syscalls", concat!("sys_enter_", $name))],
            ),
            $make(concat!("sys_exit_", $name), &[tracepoint($ends, "syscalls", concat!("sys_exit_", $name))]),
        ]
    };
}

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "socket_wait",
    object: bpf_object!("socket_wait"),
    needs: &[Feature::RingBuffer],
    hooks: [
        call!(Hook::any, "sendto", "sendto_begins", "send_ends"),
        call!(Hook::any, "recvfrom", "recvfrom_begins", "receive_ends"),
        call!(Hook::optional, "write", "write_begins", "send_ends"),
        call!(Hook::optional, "writev", "writev_begins", "send_ends"),
        call!(Hook::optional, "sendmsg", "sendmsg_begins", "send_ends"),
        call!(Hook::optional, "sendmmsg", "sendmmsg_begins", "send_ends"),
        call!(Hook::optional, "read", "read_begins", "receive_ends"),
        call!(Hook::optional, "readv", "readv_begins", "receive_ends"),
        call!(Hook::optional, "recvmsg", "recvmsg_begins", "receive_ends"),
        call!(Hook::optional, "recvmmsg", "recvmmsg_begins", "receive_ends"),
    ]
    .as_flattened(),
    controller: "cpu",
    is_default: false,
    globals: || vec![("tick_ns", tick_ns())],
    prepare: |maps, _| stamps::set_clock(maps),
    thresholds: |thresholds| vec![thresholds.socket_wait.min_send, thresholds.socket_wait.min_receive],
    events: &[
        EventDef {
            kind: "socket_send_slow",
            help: "A system call that sends took long.",
            decode,
            body: schema_of::<Send>,
            names: |_| Names::new(),
        },
        EventDef {
            kind: "socket_receive_slow",
            help: "Data was in a socket for long before a system call took it.",
            decode,
            body: schema_of::<Receive>,
            names: |_| Names::new(),
        },
    ],
    upkeep: Some(|maps| Ok(Box::new(Stamps::open(maps)?))),
    in_flight: &[InFlight::all("sends"), InFlight::all("receives")],
    priority: Priority::Low,
    ..Probe::EMPTY
};

/// Fields of a slow call that sends, beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Send {
    #[serde(flatten)]
    call: Call,
    /// How much of the value the peer's window was full.
    #[serde(skip_serializing_if = "Option::is_none")]
    rwnd_limited_ns: Option<u64>,
    /// How much of the value TCP could have sent more than its send buffer held.
    #[serde(skip_serializing_if = "Option::is_none")]
    sndbuf_limited_ns: Option<u64>,
    /// Why the call failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<u32>,
    /// What was sent, or put into the send buffer.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_bytes: Option<u64>,
}

/// Fields of data that waited, beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Receive {
    #[serde(flatten)]
    call: Call,
    /// How long the call took that received it.
    call_ns: u64,
    /// What was received.
    #[serde(skip_serializing_if = "Option::is_none")]
    received_bytes: Option<u64>,
}

/// What both kinds tell.
#[derive(Debug, Serialize, JsonSchema)]
struct Call {
    #[serde(flatten)]
    flow: Option<Flow>,
    /// `tcp` or `udp`.
    protocol: &'static str,
    /// Name of the system call.
    call: &'static str,
    /// What the call was given, or has room for; absent for calls of several messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    asked_bytes: Option<u64>,
    /// How many messages a call of several sent or received.
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<u32>,
    /// What is in the receive queue, as Recv-Q of `ss`: before a call that receives, after one that sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_queue_bytes: Option<u64>,
    /// How much memory the receive queue may take.
    receive_buffer_bytes: u32,
    /// What is in the send queue after the call, as Send-Q of `ss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    send_queue_bytes: Option<u64>,
    /// How much memory the send queue may take.
    send_buffer_bytes: u32,
}

impl Call {
    fn of(record: &abi::socket_wait_record) -> Self {
        let has_messages = matches!(record.call, abi::CALL_SENDMMSG | abi::CALL_RECVMMSG);
        Self {
            flow: Flow::of(&record.flow),
            protocol: if record.is_tcp != 0 { "tcp" } else { "udp" },
            call: CALLS.get(record.call as usize).copied().unwrap_or("unknown"),
            asked_bytes: known(record.asked_bytes),
            messages: (has_messages && record.error == 0).then_some(record.messages),
            receive_queue_bytes: known(record.receive_queue_bytes),
            receive_buffer_bytes: record.receive_buffer_bytes,
            send_queue_bytes: known(record.send_queue_bytes),
            send_buffer_bytes: record.send_buffer_bytes,
        }
    }
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::socket_wait_record = view(bytes)?;
    let (header, call) = (Header::from(&record.header), Call::of(&record));
    if record.call >= abi::CALL_READ {
        let body = Receive { call, call_ns: record.call_ns, received_bytes: known(record.moved_bytes) };
        let decoded = Decoded { kind: Some("socket_receive_slow"), ..Decoded::new(header, &body)? };
        return Ok(decoded.with_stack_of_call(&record.user));
    }
    let body = Send {
        call,
        rwnd_limited_ns: known(record.rwnd_limited_ns),
        sndbuf_limited_ns: known(record.sndbuf_limited_ns),
        errno: (record.error != 0).then_some(record.error),
        sent_bytes: known(record.moved_bytes),
    };
    Ok(Decoded::new(header, &body)?.with_stack_of_call(&record.user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    #[test]
    fn a_real_record_of_a_slow_call_decodes() {
        let hex = include_str!("fixtures/socket_send_slow.hex");
        let json = include_str!("fixtures/socket_send_slow.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), hex, json);
        assert!(!decoded.header.comm.is_empty());
        assert!(decoded.header.value_ns >= decoded.header.threshold_ns);
    }

    #[test]
    fn a_real_record_of_data_that_waited_is_of_the_other_kind() {
        let hex = include_str!("fixtures/socket_receive_slow.hex");
        let json = include_str!("fixtures/socket_receive_slow.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), hex, json);
        assert_eq!(decoded.kind, Some("socket_receive_slow"));
    }

    #[test]
    fn each_call_has_a_name() {
        assert_eq!(CALLS[abi::CALL_WRITE as usize], "write");
        assert_eq!(CALLS[abi::CALL_READ as usize], "read");
        assert_eq!(CALLS[abi::CALL_RECVMMSG as usize], "recvmmsg");
    }
}
