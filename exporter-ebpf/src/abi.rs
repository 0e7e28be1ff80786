//! Types that BPF programs and Rust share, generated from `record.h`, `histogram.h` and `flow.h` in `include`.
#![allow(
    missing_docs,
    dead_code,
    non_camel_case_types,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::undocumented_unsafe_blocks,
    reason = "generated from C headers"
)]

include!(concat!(env!("OUT_DIR"), "/abi.rs"));
