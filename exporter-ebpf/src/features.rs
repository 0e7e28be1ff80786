//! What the running kernel allows, found by trying and never by its version.

use crate::btf::KernelTypes;
use crate::cpu_clock;
use crate::error::{self, ProbeError};
use kpulse_common::paths::Paths;
use std::fs;
use std::io;

const MAP_CREATE: i32 = 0;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_RINGBUF: u32 = 27;

/// Something that a probe may need of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// The kernel's own types, for CO-RE. Since 5.2, with CONFIG_DEBUG_INFO_BTF.
    Btf,
    /// The bpf() system call, and the right to use it.
    Bpf,
    /// BPF ring buffers. Since 5.8.
    RingBuffer,
    /// Software perf events on whole CPUs.
    CpuClock,
    /// Names of kernel addresses: a readable kallsyms. No probe needs it; stacks have no names without.
    KernelSymbols,
    /// Reasons of packet drops. Since 5.17; before, the kernel function that dropped stands for it.
    DropReasons,
    /// The scheduler's own account of each task's waits, with CONFIG_SCHED_INFO; some option of statistics turns it on.
    WaitAccount,
    /// The journal of ext4 and OCFS2, built in or loaded.
    Jbd2,
    /// XFS, built in or loaded.
    Xfs,
}

impl Feature {
    const ALL: [Self; 7] = [
        Self::Btf,
        Self::Bpf,
        Self::RingBuffer,
        Self::CpuClock,
        Self::KernelSymbols,
        Self::DropReasons,
        Self::WaitAccount,
    ];

    /// `Ok` when the kernel has it, otherwise why not and what would help, in one sentence.
    pub fn check(self, paths: &Paths) -> Result<(), Lack> {
        match self {
            Self::Btf => {
                let path = paths.sysfs.join("kernel/btf/vmlinux");
                fs::File::open(&path).map(drop).map_err(|error| {
                    let why = format!("cannot read the kernel's types in {}: {error}; use a kernel with CONFIG_DEBUG_INFO_BTF=y, \
                             or point --path.sysfs at the host's /sys", path.display());
                    Lack::of(why, &error)
                })
            }
            Self::Bpf => create_map(MAP_TYPE_ARRAY, 4, 8, 1).map_err(|error| refused("bpf()", &error)),
            Self::RingBuffer => {
                create_map(MAP_TYPE_RINGBUF, 0, 0, page_bytes()).map_err(|error| refused("a BPF ring buffer", &error))
            }
            Self::CpuClock => cpu_clock::open(0, 1).map(drop).map_err(|error| {
                let why = format!("the kernel refused a perf event on a CPU: {error}; run as root or grant CAP_PERFMON, and see \
                         kernel.perf_event_paranoid");
                Lack::of(why, &error)
            }),
            Self::KernelSymbols => kallsyms_shown(paths).map_err(Lack::from),
            Self::DropReasons => match KernelTypes::read(paths, &["skb_drop_reason"]) {
                Ok(types) if types.enumeration("skb_drop_reason").is_some() => Ok(()),
                Ok(_) => Err(Lack::from("the kernel gives no reason for a dropped packet; use Linux 5.17 or newer".to_owned())),
                Err(error) => Err(Lack::from(format!("cannot read the kernel's types: {error}"))),
            },
            Self::WaitAccount => keeps_waits(paths).map_err(Lack::from),
            Self::Jbd2 => has_file_system(paths, "jbd2").map_err(Lack::from),
            Self::Xfs => has_file_system(paths, "xfs").map_err(Lack::from),
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Btf => "kernel types (BTF)",
            Self::Bpf => "BPF",
            Self::RingBuffer => "BPF ring buffers",
            Self::CpuClock => "CPU clock samples",
            Self::KernelSymbols => "kernel symbols",
            Self::DropReasons => "drop reasons",
            Self::WaitAccount => "account of waits for the CPU",
            Self::Jbd2 => "journals of ext4",
            Self::Xfs => "XFS",
        }
    }

    fn costs(self) -> &'static str {
        match self {
            Self::Btf | Self::Bpf => "every probe: only what /proc tells is left",
            Self::RingBuffer => "every event",
            Self::CpuClock => "CPU profiles",
            Self::KernelSymbols => "names in kernel stacks",
            Self::DropReasons => "the reason of a dropped packet: the kernel function stands for it",
            Self::WaitAccount => "waits for the CPU, by container",
            Self::Jbd2 => "commits of the journal of ext4",
            Self::Xfs => "waits for the journal of XFS",
        }
    }
}

/// What is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// Why, and what would help, in one sentence.
    pub why: String,
    /// Whether it may be there later.
    pub may_pass: bool,
}

impl Lack {
    fn of(why: String, error: &io::Error) -> Self {
        Self { why, may_pass: error::may_pass(error) }
    }
}

impl From<String> for Lack {
    fn from(why: String) -> Self {
        Self { why, may_pass: false }
    }
}

impl From<Lack> for ProbeError {
    fn from(Lack { why, may_pass }: Lack) -> Self {
        if may_pass { Self::Passing(why) } else { Self::MissingFeature(why) }
    }
}

/// One line of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked for.
    pub what: String,
    /// Whether the kernel has it and allows it.
    pub available: bool,
    /// What is lost without it.
    pub costs: String,
    /// Why it is missing and how to get it; empty when it is there.
    pub help: String,
}

/// What this kernel allows this process, what a lack costs, and how to get more.
pub fn doctor(paths: &Paths) -> Vec<Finding> {
    let finding = |feature: Feature| {
        let outcome = feature.check(paths);
        Finding {
            what: feature.what().into(),
            available: outcome.is_ok(),
            costs: feature.costs().into(),
            help: outcome.err().map(|lack| lack.why).unwrap_or_default(),
        }
    };
    Feature::ALL.into_iter().map(finding).collect()
}

/// A file system shows itself under `/proc/fs` as soon as its code is there.
/// A task that runs has used some CPU time: zeros are from a kernel that keeps no account.
fn keeps_waits(paths: &Paths) -> Result<(), String> {
    match fs::read_to_string(paths.procfs.join("self/schedstat")) {
        Ok(text) if !text.starts_with("0 0") => Ok(()),
        _ => Err("this kernel keeps no account of how long tasks wait for a CPU; use one with CONFIG_SCHED_INFO=y, which \
                  CONFIG_SCHEDSTATS and CONFIG_TASK_DELAY_ACCT bring".to_owned()),
    }
}

fn has_file_system(paths: &Paths, name: &str) -> Result<(), String> {
    if paths.procfs.join("fs").join(name).exists() {
        return Ok(());
    }
    Err(format!("this kernel has no {name}, or not yet; restart after its module is loaded"))
}

fn refused(what: &str, error: &io::Error) -> Lack {
    let help = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "run as root, or grant CAP_BPF and CAP_PERFMON (before Linux 5.11 also CAP_SYS_RESOURCE)"
        }
        Some(libc::EINVAL) => "use Linux 5.10 or newer",
        _ => "see the kernel log",
    };
    Lack::of(format!("the kernel refused {what}: {error}; {help}"), error)
}

fn create_map(kind: u32, key_bytes: u32, value_bytes: u32, entries: u32) -> io::Result<()> {
    let attributes: [u32; 8] = [kind, key_bytes, value_bytes, entries, 0, 0, 0, 0];
    // SAFETY: the attributes live through the call and the kernel only reads them.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, attributes.as_ptr(), size_of_val(&attributes)) };
    close(fd)
}

/// Turns the result of a system call that makes a descriptor into a verdict, and closes the descriptor.
fn close(fd: libc::c_long) -> io::Result<()> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nothing else knows it.
    unsafe { libc::close(i32::try_from(fd).unwrap_or(-1)) };
    Ok(())
}

/// The kernel's page, which is the least size of a ring.
pub(crate) fn page_bytes() -> u32 {
    // SAFETY: sysconf only reads a constant.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(bytes).unwrap_or(4096)
}

/// Length of a jiffy: the resolution of the clock that moves with them.
pub(crate) fn tick_ns() -> u64 {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Linux, and `resolution` lives through the call.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) };
    resolution.tv_nsec.unsigned_abs()
}

fn kallsyms_shown(paths: &Paths) -> Result<(), String> {
    use std::io::{BufRead, BufReader};
    let path = paths.procfs.join("kallsyms");
    let help = "run as root, or grant CAP_SYSLOG, and see kernel.kptr_restrict";
    let file =
        fs::File::open(&path).map_err(|error| format!("cannot read {}: {error}; {help}", path.display()))?;
    let has_address = |line: String| !line.starts_with("0000000000000000");
    let shown = BufReader::new(file).lines().take(64).map_while(Result::ok).any(has_address);
    if shown { Ok(()) } else { Err(format!("{} hides its addresses; {help}", path.display())) }
}
