//! Does a profile tell the truth? Programs whose stacks and shares are known, recorded by the real profiler.

mod faults;
mod go;
#[cfg(target_arch = "x86_64")]
mod java;
mod outputs;
mod program;
mod record;
mod serve;
#[cfg(target_arch = "x86_64")]
mod unwind;

/// Samples a second: enough for a share within three points in a few seconds.
const HZ: &str = "997";

/// Ends the test, with the reason, where the CPUs cannot be sampled.
macro_rules! needs_root {
    ($test:expr) => {
        if !kpulse_tests::is_root() {
            return kpulse_tests::skip($test, "sampling the CPUs needs root");
        }
    };
}
use needs_root;
