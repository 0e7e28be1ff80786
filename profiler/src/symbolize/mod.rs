//! What are the functions of these samples called? One batch a drain, off the sampling path, cached by process.
//!
//! An address without a name becomes the frame `[unknown]`, or `[FILE]` where the file is known, and the reason is
//! counted.

pub mod demangle;
pub mod kernel;
pub mod native;
mod reader;
pub mod truncation;

use crate::aggregate::Losses;
use crate::names::{Interned, KERNEL_SUFFIX, UNKNOWN, cut};
use crate::sample::process::Processes;
use kernel::Kernel;
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::Sample;
use native::Native;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Why an address has no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// The process ended before its memory map was read.
    ProcessGone,
    /// Too many new processes in one drain.
    Budget,
    /// The address lies in no mapping: the stack was not one, or the library is gone.
    Unmapped,
    /// Code without a file, such as a JIT's.
    Anonymous,
    /// The file has no symbol there.
    NoSymbol,
    /// The file could not be read.
    Unreadable,
    /// The kernel shows no name.
    Kernel,
}

impl Unknown {
    /// The reason as a label.
    pub fn label(self) -> &'static str {
        match self {
            Self::ProcessGone => "process_gone",
            Self::Budget => "process_budget",
            Self::Unmapped => "unmapped",
            Self::Anonymous => "anonymous",
            Self::NoSymbol => "no_symbol",
            Self::Unreadable => "unreadable",
            Self::Kernel => "kernel",
        }
    }
}

/// An address without a name: why, and what stands for it where more is known than nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nameless {
    pub why: Unknown,
    /// `[libc.so.6]`: the file that has no symbol there.
    pub file: Option<Arc<str>>,
}

impl From<Unknown> for Nameless {
    fn from(why: Unknown) -> Self {
        Self { why, file: None }
    }
}

/// The frames at one address, outermost first, or why there are none.
pub type Resolved = Result<Box<[Arc<str>]>, Nameless>;

/// Names for samples.
pub struct Symbols {
    kernel: Kernel,
    native: Native,
    names: Interned<str>,
    unknown: Arc<str>,
    unsymbolized: Losses,
}

impl Symbols {
    /// Reads nothing yet: the first batch does.
    pub fn new(paths: &Paths) -> Self {
        let native = Native::new(Processes::new(&paths.procfs));
        let mut names = Interned::default();
        let unknown = names.intern(UNKNOWN);
        Self { kernel: Kernel::new(&paths.procfs), native, names, unknown, unsymbolized: Losses::new() }
    }

    /// Looks up every address of a batch that is not known yet.
    pub fn resolve<'a>(&mut self, samples: impl Iterator<Item = &'a Sample> + Clone, now: Instant) {
        self.kernel.refresh(now);
        let names = &mut self.names;
        let kernel = samples.clone().flat_map(|sample| instructions(&sample.kernel));
        self.kernel.resolve(kernel, |name| names.intern(&format!("{}{KERNEL_SUFFIX}", cut(name))));

        let mut by_process: HashMap<u32, (u64, Vec<u64>)> = HashMap::new();
        for sample in samples.filter(|sample| !sample.user.is_empty()) {
            let (count, addresses) = by_process.entry(sample.pid).or_default();
            *count += sample.count;
            addresses.extend(instructions(&sample.user));
        }
        let mut wanted: Vec<_> = by_process.into_iter().collect();
        wanted.sort_unstable_by_key(|(pid, (count, _))| (std::cmp::Reverse(*count), *pid));
        let wanted = wanted.into_iter().map(|(pid, (_, addresses))| (pid, addresses)).collect();
        self.native.resolve(wanted, now, &mut |name| names.intern(cut(name)));
    }

    /// The frames of a resolved sample from root to leaf. Neighbours without a name in one file are one frame.
    pub fn frames(&mut self, sample: &Sample, frames: &mut Vec<Arc<str>>) {
        frames.clear();
        let user = instructions(&sample.user).map(|address| self.native.name(sample.pid, address));
        let kernel = instructions(&sample.kernel).map(|address| self.kernel.name(address));
        // Both are leaf first, and the kernel was entered from the user's leaf.
        for resolved in kernel.chain(user) {
            match resolved {
                Ok(names) => frames.extend(names.iter().rev().cloned()),
                Err(Nameless { why, file }) => {
                    *self.unsymbolized.entry(why.label()).or_default() += sample.count;
                    let frame = file.as_ref().unwrap_or(&self.unknown);
                    if frames.last().is_none_or(|last| !Arc::ptr_eq(last, frame)) {
                        frames.push(frame.clone());
                    }
                }
            }
        }
        frames.reverse();
    }

    /// What the process of a resolved sample is called; `None` when it was gone before that was asked.
    pub fn process_name(&self, pid: u32) -> Option<Arc<str>> {
        self.native.process_name(pid).cloned()
    }

    /// The shared copy of a name.
    pub fn name(&mut self, name: &str) -> Arc<str> {
        self.names.intern(cut(name))
    }

    /// Forgets names that neither a cache nor the history uses.
    pub fn sweep(&mut self) {
        self.names.sweep();
    }

    /// Frames without a name so far, by reason.
    pub fn unsymbolized(&self) -> &Losses {
        &self.unsymbolized
    }

    /// Memory of all names.
    pub fn name_bytes(&self) -> usize {
        self.names.bytes()
    }

    /// Addresses of programs whose names are kept.
    pub fn addresses(&self) -> usize {
        self.native.addresses()
    }
}

/// Where to look: the leaf is what was about to run, the others are where a call returns to, and the call is
/// the instruction before.
fn instructions(stack: &[u64]) -> impl Iterator<Item = u64> + '_ {
    stack.iter().enumerate().map(|(depth, address)| address.saturating_sub(u64::from(depth > 0)))
}
