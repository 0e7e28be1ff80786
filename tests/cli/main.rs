//! The real binaries as a user meets them: wrong input, missing rights, signals, and what they serve.

mod exporter;
mod exporter_serves;
