//! The product's table of contents. Adding a probe: one line in each list.

/// Block devices.
pub mod block {
    pub mod block_io;
}
/// Memory management.
pub mod memory {
    pub mod direct_reclaim;
}
/// Networking.
pub mod net {
    pub mod packet_drop;
}
/// Profiling.
pub mod profile {
    pub mod cpu_sample;
}
/// The scheduler.
pub mod sched {
    pub mod runqueue_latency;
}

use crate::probe::Probe;

/// Every probe.
pub const ALL: &[&Probe] = &[
    &block::block_io::PROBE,
    &memory::direct_reclaim::PROBE,
    &net::packet_drop::PROBE,
    &profile::cpu_sample::PROBE,
    &sched::runqueue_latency::PROBE,
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
