//! What are the functions of these samples called? One batch a drain, off the sampling path, cached by process.
//!
//! An address without a name becomes the frame `[unknown]`, or `[FILE+0xADDRESS]` or `[FILE]` where its function in a file or
//! the file is known, and the reason is counted.

mod jit;
mod kernel;

use crate::aggregate::Losses;
use crate::deadline::Reading;
use crate::names::{Interned, KERNEL_SUFFIX, UNKNOWN};
use jit::{Jit, is_tagged};
use kernel::Kernel;
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::Sample;
use kpulse_symbolize::native::Detail;
use kpulse_symbolize::process::Identity;
use kpulse_symbolize::unnamed::{self, Part};
use kpulse_symbolize::{Nameless, Native, Processes, Unknown, cut, instructions};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Names for samples.
pub struct Symbols {
    kernel: Kernel,
    native: Native,
    jit: Jit,
    names: Interned<str>,
    unknown: Arc<str>,
    unsymbolized: Losses,
}

impl Symbols {
    /// Reads nothing yet: the first batch does.
    pub fn new(paths: &Paths, reading: &Reading) -> Self {
        let (source, asked) = (Processes::new(&paths.procfs), reading.clone());
        let native = Native::new(source.clone(), Detail::Inlined).asking(move |pid| asked.begin(pid));
        let jit = Jit::new(source, reading.clone());
        let mut names = Interned::default();
        let unknown = names.intern(UNKNOWN);
        Self { kernel: Kernel::new(paths), native, jit, names, unknown, unsymbolized: Losses::new() }
    }

    /// Looks up every address of a batch that is not known yet.
    pub fn resolve<'a>(&mut self, samples: impl Iterator<Item = &'a Sample> + Clone, now: Instant) {
        self.kernel.refresh(now);
        let names = &mut self.names;
        let kernel = samples.clone().flat_map(|sample| instructions(&sample.kernel));
        self.kernel.resolve(kernel, |name| names.intern(&format!("{}{KERNEL_SUFFIX}", cut(name))));

        let mut by_process: HashMap<u32, (u64, Vec<u64>)> = HashMap::new();
        let mut without_file: HashMap<u32, Vec<u64>> = HashMap::new();
        let user = samples.filter(|sample| !sample.user.is_empty());
        for sample in user.clone() {
            let (count, addresses) = by_process.entry(sample.pid).or_default();
            *count += sample.count;
            addresses.extend(instructions(&sample.user).filter(|address| !is_tagged(*address)));
        }
        let mut wanted: Vec<_> = by_process.into_iter().collect();
        wanted.sort_unstable_by_key(|(pid, (count, _))| (std::cmp::Reverse(*count), *pid));
        let wanted = wanted.into_iter().map(|(pid, (_, addresses))| (pid, addresses)).collect();
        self.native.resolve(wanted, now, &mut |name| names.intern(cut(name)));
        for sample in user {
            for address in instructions(&sample.user) {
                let is_anonymous = || {
                    let name = self.native.name(sample.pid, address);
                    matches!(name, Err(Nameless { why: Unknown::Anonymous | Unknown::NoSymbol, file: None }))
                };
                if is_tagged(address) || is_anonymous() {
                    without_file.entry(sample.pid).or_default().push(address);
                }
            }
        }
        self.jit.resolve(without_file, now, &mut |name| names.intern(cut(name)));
    }

    /// The frames of a resolved sample from root to leaf. Neighbours of which nothing but the file is known are one frame.
    pub fn frames(&mut self, sample: &Sample, frames: &mut Vec<Arc<str>>) {
        frames.clear();
        let user = instructions(&sample.user).map(|address| {
            let jit = self.jit.name(sample.pid, address);
            jit.unwrap_or_else(|| self.native.name(sample.pid, address))
        });
        let kernel = instructions(&sample.kernel).map(|address| self.kernel.name(address));
        // Both are leaf first, and the kernel was entered from the user's leaf.
        for resolved in kernel.chain(user) {
            match resolved {
                Ok(names) => frames.extend(names.iter().rev().cloned()),
                Err(Nameless { why, file }) => {
                    *self.unsymbolized.entry(why.label()).or_default() += sample.count;
                    let frame = file.as_ref().unwrap_or(&self.unknown);
                    let is_same = frames.last().is_some_and(|last| Arc::ptr_eq(last, frame));
                    if !is_same || unnamed::function(frame).is_some() {
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

    /// The parts of files of that process whose functions have no names but by their addresses.
    pub fn unnamed(&self, pid: u32) -> &[Arc<Part>] {
        self.native.unnamed(pid)
    }

    /// Which program the process of a resolved sample runs, as far as that is known.
    pub fn identity(&self, pid: u32) -> Option<Identity> {
        self.native.identity(pid)
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
        self.native.addresses() + self.jit.addresses()
    }
}
