//! Shared by the test programs of this crate.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

pub mod burn;
pub mod cgroup;
pub mod disk;
pub mod http;
pub mod kernel_log;
pub mod load;
pub mod memory;
pub mod memory_controller;
pub mod network;
pub mod pressure;
pub mod process;
pub mod profile;
pub mod root_port;
pub mod services;
pub mod shaper;
pub mod stuck_page;
pub mod workload;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a fact may take to appear; generous, since a machine under test is busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How long a fact may take that the exporter reads by walking a table of the kernel: such walks take a thousandth of the
/// time at most, so that tens of seconds lie between them on a busy machine.
pub const PACED: Duration = Duration::from_secs(120);

/// A binary of this workspace, which `make` builds before the tests.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().unwrap();
    // A guest of the kernel matrix has the programs and the binaries in one folder.
    let is_below = ["deps", "examples"].iter().any(|name| folder.ends_with(name));
    let folder = if is_below { folder.parent().unwrap() } else { folder };
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace` first", path.display());
    path
}

/// Asks until there is an answer, at most [`DEADLINE`].
pub fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    within(DEADLINE, what, ask)
}

/// The same with a deadline of its own, for what is slow by design.
pub fn within<T>(deadline: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < deadline, "no {what} within {deadline:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says why a test did nothing.
pub fn skip(test: &str, why: &str) {
    println!("SKIP {test}: {why}");
}

/// Whether this machine is a guest of the kernel matrix, which is there for the tests alone.
pub fn is_guest() -> bool {
    std::env::var_os("KPULSE_MATRIX").is_some()
}

/// Whether this is root, as most kernel facts need.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
