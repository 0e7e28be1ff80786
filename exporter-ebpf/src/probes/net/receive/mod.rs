#![doc = include_str!("README.md")]

use crate::abi::histogram;
use crate::error::ProbeError;
use crate::hook::{Hook, tp_btf};
use crate::keyed::KeyedByContainer;
use crate::maps::{Maps, Table};
use crate::probe::{Collector, Kernel, Probe};
use crate::probes::{abi, bpf_object};
use kpulse_common::container::Identities;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;

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
    hooks: &[
        Hook::any("tcp_probe", &[tp_btf("tcp_probe", "tcp_probe")]),
        Hook::any("skb_copy_datagram_iovec", &[tp_btf("skb_copy_datagram_iovec", "skb_copy_datagram_iovec")]),
        Hook::any("sys_enter", &[tp_btf("sys_enter", "sys_enter")]),
    ],
    controller: "cpu",
    sized_by_containers: &[("latency", abi::PATHS)],
    is_default: false,
    prepare: |maps, _| maps.table("real_offset")?.set(&0u32, &real_offset_ns()),
    metrics: &[LATENCY, UNMEASURED],
    collector: Some(|maps, kernel| Ok(Box::new(Reader::open(maps, kernel)?))),
    ..Probe::EMPTY
};

struct Reader {
    latency: KeyedByContainer<abi::receive_key, histogram, Histogram>,
    losses: Table<u32, u64>,
    real_offset: Table<u32, u64>,
    /// While it is open, the kernel stamps every packet that arrives.
    _stamps: UdpSocket,
}

impl Reader {
    fn open(maps: &Maps, kernel: &Kernel<'_>) -> Result<Self, ProbeError> {
        let rest = [abi::TCP_TO_SOCKET, abi::TCP_TO_USER, abi::UDP_TO_USER]
            .map(|path| abi::receive_key { cgroup_id: 0, path: path.into() });
        let describe = |key: &abi::receive_key| (key.cgroup_id, labels(key.path));
        let stamps = ask_for_stamps().map_err(|error| {
            ProbeError::MissingFeature(format!("the kernel refused to stamp packets: {error}"))
        })?;
        Ok(Self {
            latency: KeyedByContainer::new(
                &LATENCY,
                maps.table("latency")?,
                kernel.hierarchy,
                &rest,
                describe,
            )?,
            losses: maps.table("losses")?,
            real_offset: maps.table("real_offset")?,
            _stamps: stamps,
        })
    }
}

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        // Both clocks run at one rate; only setting the time moves them against each other.
        self.real_offset.set(&0, &real_offset_ns())?;
        self.latency.collect(identities, out)?;
        out.count(&UNMEASURED, &[], self.losses.get(&0)?.unwrap_or(0));
        Ok(())
    }
}

fn labels(path: u64) -> Vec<Arc<str>> {
    let (protocol, stage) = match u32::try_from(path) {
        Ok(abi::TCP_TO_SOCKET) => ("tcp", "socket"),
        Ok(abi::TCP_TO_USER) => ("tcp", "user"),
        _ => ("udp", "user"),
    };
    vec![protocol.into(), stage.into()]
}

/// A socket that nothing is ever sent to, and that wants to know when its packets arrive.
fn ask_for_stamps() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let yes: libc::c_int = 1;
    // SAFETY: the value has the size that is given, and lives through the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const yes).cast(),
            size_of_val(&yes) as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// CLOCK_REALTIME minus CLOCK_MONOTONIC.
fn real_offset_ns() -> u64 {
    let (before, real, after) =
        (now_ns(libc::CLOCK_MONOTONIC), now_ns(libc::CLOCK_REALTIME), now_ns(libc::CLOCK_MONOTONIC));
    real.wrapping_sub(before + after.saturating_sub(before) / 2)
}

fn now_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both clocks exist on every Linux, and `time` lives through the call.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
