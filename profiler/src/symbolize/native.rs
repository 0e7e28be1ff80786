//! Which function of a program is at this address? Symbol tables, and inlined functions from DWARF.
//!
//! Files are opened through `/proc/PID/map_files`, so a deleted, replaced or containerised file is the one that
//! runs. The names of a process are kept until it ends or starts another program.

use super::demangle::demangle;
use super::reader::Reader;
use super::{Nameless, Resolved, Unknown};
use crate::sample::process::{Files, Identity, Processes};
use blazesym::Pid;
use blazesym::symbolize::source::{Process as ProcessSource, Source};
use blazesym::symbolize::{Input, Reason, Sym, Symbolized};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Addresses whose names are kept, over all processes.
const MAX_ADDRESSES: usize = 131_072;
/// Names of a process are looked up again after this time, for libraries that came and went.
const MAX_AGE: Duration = Duration::from_secs(120);
/// Processes that are read for one drain; a storm of short ones may not take the machine.
const MAX_PROCESSES: usize = 512;

const GONE: Nameless = Nameless { why: Unknown::ProcessGone, file: None };

struct Process {
    identity: Identity,
    name: Arc<str>,
    names: HashMap<u64, Resolved>,
    since: Instant,
    used: Instant,
    /// Read it again: some of its addresses were left out.
    is_stale: bool,
}

/// Names of user-space addresses.
pub struct Native {
    reader: Reader,
    processes: HashMap<u32, Process>,
    source: Processes,
    addresses: usize,
}

impl Native {
    /// Reads nothing yet: the first batch does.
    pub fn new(source: Processes) -> Self {
        Self { reader: Reader::new(Instant::now()), processes: HashMap::new(), source, addresses: 0 }
    }

    /// Finds the names of the addresses of each process, the busiest first.
    pub fn resolve(
        &mut self,
        wanted: Vec<(u32, Vec<u64>)>,
        now: Instant,
        name: &mut dyn FnMut(&str) -> Arc<str>,
    ) {
        self.reader.refresh(now);
        self.bound_addresses(now);
        let mut processes_read = 0;
        for (pid, addresses) in wanted {
            let (process, is_running) = self.recall(pid, now, name);
            let Some(mut process) = process else { continue };
            let mut missing: Vec<u64> =
                addresses.into_iter().filter(|address| !process.names.contains_key(address)).collect();
            missing.sort_unstable();
            missing.dedup();
            if is_running && !missing.is_empty() {
                processes_read += 1;
                if processes_read <= MAX_PROCESSES {
                    self.read(pid, &missing, &mut process.names, name);
                } else {
                    let unnamed = missing.into_iter().map(|address| (address, Err(Unknown::Budget.into())));
                    process.names.extend(unnamed);
                    process.is_stale = true;
                }
            }
            self.processes.insert(pid, process);
        }
        self.count_addresses();
    }

    /// Takes what is known of a process, if it is still the same, and says whether it runs.
    fn recall(
        &mut self,
        pid: u32,
        now: Instant,
        name: &mut dyn FnMut(&str) -> Arc<str>,
    ) -> (Option<Process>, bool) {
        let known = self.processes.remove(&pid);
        // What was named while it lived is right for its last samples too.
        let Some(running) = self.source.process(pid) else { return (known, false) };
        let identity = running.identity;
        let process = known
            .filter(|known| known.identity == identity && !known.is_stale && now - known.since < MAX_AGE)
            .map_or_else(
                || {
                    let (names, is_stale) = (HashMap::new(), false);
                    Process { identity, name: name(&running.name), names, since: now, used: now, is_stale }
                },
                |known| Process { used: now, ..known },
            );
        (Some(process), true)
    }

    /// The name of an address that was asked for.
    pub fn name(&self, pid: u32, address: u64) -> &Resolved {
        let process = self.processes.get(&pid);
        process.and_then(|process| process.names.get(&address)).unwrap_or(&Err(GONE))
    }

    /// What a process that was asked for is called.
    pub fn process_name(&self, pid: u32) -> Option<&Arc<str>> {
        self.processes.get(&pid).map(|process| &process.name)
    }

    /// Addresses whose names are kept.
    pub fn addresses(&self) -> usize {
        self.addresses
    }

    fn read(
        &mut self,
        pid: u32,
        missing: &[u64],
        names: &mut HashMap<u64, Resolved>,
        name: &mut dyn FnMut(&str) -> Arc<str>,
    ) {
        let mut source = ProcessSource::new(Pid::from(pid));
        let files = self.source.files(pid);
        if files == Files::Unreachable {
            names.extend(missing.iter().map(|address| (*address, Err(Unknown::Unreadable.into()))));
            return self.name_files(pid, missing, names, name);
        }
        source.map_files = files != Files::ByPath;
        // A perf map lies where the program may put a pipe that never ends, and so may what a debug link names.
        source.perf_map = false;
        source.debug_syms = files != Files::Mapped { is_host: false };
        if let Err(error) = self.reader.remember(Pid::from(pid)) {
            tracing::debug!(pid, %error, "no memory map");
            names.extend(missing.iter().map(|address| (*address, Err(Unknown::ProcessGone.into()))));
            return;
        }
        self.read_part(&Source::Process(source), missing, names, name);
        self.name_files(pid, missing, names, name);
        self.reader.forget(Pid::from(pid));
    }

    /// One file that cannot be read fails a whole batch, so a failed batch is halved until that file's are alone.
    fn read_part(
        &self,
        source: &Source<'_>,
        missing: &[u64],
        names: &mut HashMap<u64, Resolved>,
        name: &mut dyn FnMut(&str) -> Arc<str>,
    ) {
        match self.reader.symbolize(source, Input::AbsAddr(missing)) {
            Ok(symbols) => {
                for (address, symbol) in missing.iter().zip(symbols) {
                    let resolved = match symbol {
                        Symbolized::Sym(symbol) => Ok(frames(&symbol, name)),
                        Symbolized::Unknown(reason) => Err(unknown(reason).into()),
                    };
                    names.insert(*address, resolved);
                }
            }
            Err(error) if missing.len() == 1 => {
                tracing::debug!(%error, "no symbol");
                names.insert(missing[0], Err(Unknown::Unreadable.into()));
            }
            Err(_) => {
                let (low, high) = missing.split_at(missing.len() / 2);
                self.read_part(source, low, names, name);
                self.read_part(source, high, names, name);
            }
        }
    }

    /// Where a file has no symbol, its own name says more than nothing.
    fn name_files(
        &self,
        pid: u32,
        missing: &[u64],
        names: &mut HashMap<u64, Resolved>,
        name: &mut dyn FnMut(&str) -> Arc<str>,
    ) {
        let mut files = None;
        for address in missing {
            if let Some(Err(nameless)) = names.get_mut(address)
                && matches!(nameless.why, Unknown::NoSymbol | Unknown::Unreadable)
            {
                let files = files.get_or_insert_with(|| self.source.code_files(pid));
                nameless.file = files.name(*address).map(|file| name(&format!("[{file}]")));
            }
        }
    }

    /// Makes room before a batch, so that what the batch finds stays until it is used: processes that did not run
    /// lately go, and of a crowd those that ran longest ago.
    fn bound_addresses(&mut self, now: Instant) {
        self.processes.retain(|_, process| now - process.used < MAX_AGE);
        self.count_addresses();
        if self.addresses <= MAX_ADDRESSES {
            return;
        }
        let mut by_use: Vec<(Instant, u32)> =
            self.processes.iter().map(|(pid, process)| (process.used, *pid)).collect();
        by_use.sort_unstable();
        for (_, pid) in by_use {
            if self.addresses <= MAX_ADDRESSES / 2 {
                break;
            }
            self.addresses -= self.processes.remove(&pid).map_or(0, |process| process.names.len());
        }
    }

    fn count_addresses(&mut self) {
        self.addresses = self.processes.values().map(|process| process.names.len()).sum();
    }
}

/// The function at an address and what is inlined there, outermost first.
fn frames(symbol: &Sym<'_>, name: &mut dyn FnMut(&str) -> Arc<str>) -> Box<[Arc<str>]> {
    let inlined = symbol.inlined.iter().map(|function| function.name.as_ref());
    std::iter::once(symbol.name.as_ref()).chain(inlined).map(|mangled| name(&demangle(mangled))).collect()
}

fn unknown(reason: Reason) -> Unknown {
    match reason {
        Reason::Unmapped => Unknown::Unmapped,
        Reason::MissingSyms | Reason::UnknownAddr => Unknown::NoSymbol,
        Reason::MissingComponent | Reason::Unsupported => Unknown::Anonymous,
        _ => Unknown::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[inline(never)]
    fn a_function_of_this_test() -> usize {
        std::hint::black_box(a_function_of_this_test as fn() -> usize as usize)
    }

    #[test]
    fn names_this_process_and_keeps_what_it_named() {
        let mut native = Native::new(Processes::new(Path::new("/proc")));
        let pid = std::process::id();
        let address = a_function_of_this_test() as u64;
        let now = Instant::now();
        native.resolve(vec![(pid, vec![address, 16])], now, &mut |name| Arc::from(name));
        let frames = native.name(pid, address).as_ref().unwrap();
        assert!(frames[0].contains("a_function_of_this_test"), "{frames:?}");
        assert_eq!(native.name(pid, 16), &Err(Unknown::Unmapped.into()));
        let mut asked = 0;
        native.resolve(vec![(pid, vec![address])], now, &mut |name| {
            asked += 1;
            Arc::from(name)
        });
        assert_eq!(asked, 0, "it was known");
    }

    #[test]
    fn a_process_that_is_gone_is_unknown_for_that_reason() {
        let mut native = Native::new(Processes::new(Path::new("/proc")));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        native.resolve(vec![(child.id(), vec![4096])], Instant::now(), &mut |name| Arc::from(name));
        assert_eq!(native.name(child.id(), 4096), &Err(GONE));
    }
}
