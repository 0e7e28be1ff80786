//! The product's table of contents. Adding a probe: one line in each list.

/// Block devices.
pub mod block {
    pub mod block_io;
}
/// File systems.
pub mod fs {
    pub mod jbd2;
    pub mod xfs_log;
}
/// The hardware's own condition.
pub mod hardware {
    pub mod hardware_error;
}
/// Interrupts.
pub mod irq {
    pub mod hardirq;
    pub mod irqs_off;
    pub mod soft_lockup;
    pub mod softirq;
}
/// Memory management.
pub mod memory {
    pub mod compaction;
    pub mod direct_reclaim;
    pub mod kswapd;
    pub mod oom_kill;
}
/// Networking.
pub mod net {
    pub mod packet_drop;
    pub mod qdisc;
    pub mod receive;
    pub mod socket_wait;
    pub mod tcp_connect;
    pub mod tcp_reset;
    pub mod tcp_retransmit;
    pub mod transmit;
    pub mod tx_timeout;
}
/// Profiling.
pub mod profile {
    pub mod cpu_sample;
}
/// The scheduler.
pub mod sched {
    pub mod process_life;
    pub mod runqueue_latency;
    pub mod task_state;
}

use crate::probe::Probe;

/// Every probe.
pub const ALL: &[&Probe] = &[
    &block::block_io::PROBE,
    &fs::jbd2::PROBE,
    &fs::xfs_log::PROBE,
    &hardware::hardware_error::PROBE,
    &irq::hardirq::PROBE,
    &irq::irqs_off::PROBE,
    &irq::soft_lockup::PROBE,
    &irq::softirq::PROBE,
    &memory::compaction::PROBE,
    &memory::direct_reclaim::PROBE,
    &memory::kswapd::PROBE,
    &memory::oom_kill::PROBE,
    &net::packet_drop::PROBE,
    &net::qdisc::PROBE,
    &net::receive::PROBE,
    &net::socket_wait::PROBE,
    &net::tcp_connect::PROBE,
    &net::tcp_reset::PROBE,
    &net::tcp_retransmit::PROBE,
    &net::transmit::PROBE,
    &net::tx_timeout::PROBE,
    &profile::cpu_sample::PROBE,
    &sched::process_life::PROBE,
    &sched::runqueue_latency::PROBE,
    &sched::task_state::PROBE,
];

/// The compiled object of a probe, aligned as the ELF parser needs it.
macro_rules! bpf_object {
    ($name:literal) => {
        aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/", $name, ".bpf.o"))
    };
}

/// The Rust types of a probe's ABI header.
macro_rules! abi {
    ($name:literal) => {
        mod abi {
            #![allow(
                missing_docs,
                non_camel_case_types,
                unused_imports,
                dead_code,
                clippy::all,
                clippy::pedantic,
                clippy::allow_attributes_without_reason,
                clippy::undocumented_unsafe_blocks,
                reason = "generated from the probe's header"
            )]
            include!(concat!(env!("OUT_DIR"), "/", $name, ".rs"));
        }
    };
}

pub(crate) use {abi, bpf_object};
