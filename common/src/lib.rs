//! What the three kpulse binaries share. It knows neither BPF nor any sink.
#![warn(missing_docs)]

pub mod cli;
pub mod clock;
pub mod config;
pub mod container;
pub mod event;
pub mod exposition;
pub mod governor;
pub mod host;
pub mod http;
pub mod logging;
pub mod memory;
pub mod metric;
pub mod mount;
pub mod netns;
pub mod packet_filter;
pub mod paths;
pub mod profile;
pub mod self_metrics;
pub mod thresholds;
