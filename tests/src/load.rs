//! Work that provokes kernel facts: child processes of the test program itself, so that a guest needs nothing else.

use crate::cgroup::Cgroup;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs `work` in a forked child, in a cgroup if one is given; gives the child's pid and whether it went well.
///
/// The child does only what `work` does and leaves without running destructors of the parent's state.
pub fn in_child(cgroup: Option<&Cgroup>, work: impl FnOnce() -> io::Result<()>) -> (u32, bool) {
    // SAFETY: the child runs on its own copy of this one thread's memory and leaves by _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        let entered = cgroup.map_or(Ok(()), Cgroup::enter);
        let outcome = entered.and_then(|()| work());
        if let Err(error) = &outcome {
            eprintln!("child: {error}");
        }
        // SAFETY: ends this process only.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    let mut status = 0;
    // SAFETY: `pid` is our child, and `status` lives through the call.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    (pid.unsigned_abs(), waited == pid && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0)
}

/// Lets the calling thread run on one CPU only.
pub fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: an empty set is valid, and `set` lives through both calls.
    let outcome = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps a CPU busy.
pub fn spin(time: Duration) {
    let begin = Instant::now();
    let mut value = 0u64;
    while begin.elapsed() < time {
        for step in 0..10_000u64 {
            value = std::hint::black_box(value ^ step);
        }
    }
}

/// Time that the calling thread waited for a CPU, as the scheduler itself counts it.
pub fn run_delay() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let field = text.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok());
    field.map(Duration::from_nanos).ok_or_else(|| io::Error::other("schedstat has another shape"))
}

/// Reads `count` blocks of 64 KiB past the page cache.
pub fn read_directly(path: &Path, count: u64) -> io::Result<()> {
    const BLOCK: usize = 65_536;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let layout = std::alloc::Layout::from_size_align(BLOCK, 4096).expect("both are powers of two");
    // SAFETY: the layout is not empty; the memory is freed below with the same layout, and used in between only.
    unsafe {
        let memory = std::alloc::alloc_zeroed(layout);
        let buffer = std::slice::from_raw_parts_mut(memory, BLOCK);
        let outcome = (0..count).try_for_each(|index| file.read_exact_at(buffer, index * BLOCK as u64));
        std::alloc::dealloc(memory, layout);
        outcome
    }
}

/// CPU time of the children that were waited for.
pub fn cpu_time() -> Duration {
    // SAFETY: an all-zero rusage is valid, and it lives through the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let duration = |time: libc::timeval| {
        Duration::from_micros(time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_usec.unsigned_abs())
    };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}
