//! The real binaries as a user meets them: wrong input, missing rights, signals, and what they serve.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod exporter;
mod exporter_bad_input;
mod exporter_restart;
mod exporter_serves;
mod exporter_web;
mod gateway;
mod gateway_events;
mod gateway_kafka;
mod gateway_rules;
mod gateway_stacks;
mod gateway_watches;
mod profiler;
mod prometheus;
