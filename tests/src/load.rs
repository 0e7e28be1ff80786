//! Work that provokes kernel facts: child processes of the test program itself, so that a guest needs nothing else.

use crate::cgroup::Cgroup;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
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

/// As [`in_child`]; gives the numbers that `work` returned.
pub fn ask_child(
    cgroup: Option<&Cgroup>,
    work: impl FnOnce() -> io::Result<Vec<u64>>,
) -> io::Result<Vec<u64>> {
    let (mut reader, mut writer) = io::pipe()?;
    let (_, went_well) = in_child(cgroup, || {
        let numbers: Vec<String> = work()?.iter().map(u64::to_string).collect();
        writer.write_all(numbers.join(" ").as_bytes())
    });
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    if !went_well {
        return Err(io::Error::other("the child failed"));
    }
    text.split_ascii_whitespace().map(|number| number.parse().map_err(io::Error::other)).collect()
}

/// Whether a process of one thread sleeps, interruptibly.
pub fn is_asleep(pid: u32) -> io::Result<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may hold anything.
    Ok(stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S')))
}

/// A forked child that works until it is dropped.
pub struct Worker {
    pid: libc::pid_t,
}

impl Worker {
    /// Runs `work` in a forked child, in a cgroup if one is given, and goes on; see [`in_child`].
    pub fn start(cgroup: Option<&Cgroup>, work: impl FnOnce() -> io::Result<()>) -> Self {
        // SAFETY: the child runs on its own copy of this one thread's memory and leaves by _exit.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            end_with_parent();
            let outcome = cgroup.map_or(Ok(()), Cgroup::enter).and_then(|()| work());
            // SAFETY: ends this process only.
            unsafe { libc::_exit(i32::from(outcome.is_err())) };
        }
        Self { pid }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: the child was not waited for, so the pid is ours; a null status is allowed.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// Has the calling child killed when the thread ends that made it, so that none outlives a test.
fn end_with_parent() {
    // SAFETY: prctl takes numbers only here, and cannot fail for a valid signal.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Sleeps until a child of vfork ends, which takes `time`: in state D, as no file or device is needed for.
pub fn sleep_uninterruptibly(time: Duration) -> io::Result<()> {
    // SAFETY: like fork, the child has its own copy of the memory, sleeps and leaves by _exit.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        end_with_parent();
        std::thread::sleep(time);
        // SAFETY: ends this process only.
        unsafe { libc::_exit(0) };
    }
    let pid = libc::pid_t::try_from(pid).unwrap_or(-1);
    // SAFETY: `pid` is our child; a null status is allowed.
    if unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } == pid {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives the calling thread a name, of 15 bytes at most.
pub fn rename(name: &std::ffi::CStr) {
    // SAFETY: the name is a C string that lives through the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
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
