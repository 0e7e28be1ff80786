//! What a process has used, also when it has ended and nobody has waited for it yet.

use kpulse_tests::process::status;
use std::time::Duration;

/// CPU time in user and kernel, and the most memory.
pub struct Usage {
    pub cpu: Duration,
    pub peak_mib: f64,
}

impl Usage {
    pub fn of(pid: u32) -> Self {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        // SAFETY: sysconf has no preconditions.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Self { cpu: Duration::from_secs_f64(ticks as f64 / per_second as f64), peak_mib: peak_mib(pid) }
    }
}

/// 0 once it has ended.
pub fn peak_mib(pid: u32) -> f64 {
    status::<u64>(pid, "VmHWM").map_or(0.0, |kib| kib as f64 / 1024.0)
}
