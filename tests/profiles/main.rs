//! Does a profile tell the truth? Programs whose stacks and shares are known, recorded by the real profiler.

mod faults;
mod files;
mod go;
#[cfg(target_arch = "x86_64")]
mod handlers;
#[cfg(target_arch = "x86_64")]
mod java;
mod outputs;
mod program;
mod record;
mod serve;
#[cfg(target_arch = "x86_64")]
mod unwind;

/// Ends the test, with the reason, where the CPUs cannot be sampled.
macro_rules! needs_root {
    ($test:expr) => {
        if !kpulse_tests::is_root() {
            return kpulse_tests::skip($test, "sampling the CPUs needs root");
        }
    };
}
use needs_root;

/// What could be built here; or ends the test with the reason why not.
macro_rules! built {
    ($test:expr, $result:expr) => {
        match $result {
            Ok(built) => built,
            Err(why) => return kpulse_tests::skip($test, &why),
        }
    };
}
use built;
