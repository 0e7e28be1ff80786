//! Does a profile tell the truth? Programs whose stacks and shares are known, recorded by the real profiler.

mod program;
mod record;
mod serve;

/// Samples a second: enough for a share within three points in a few seconds.
const HZ: &str = "997";

/// Prints why a test cannot run here.
fn skip() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    if !is_root {
        println!("skipped: sampling the CPUs needs root");
    }
    !is_root
}
