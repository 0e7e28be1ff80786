//! Which function of a program is at this address? Symbol tables, and inlined functions from DWARF where they are wanted.
//!
//! Files are opened through `/proc/PID/map_files`, so a deleted, replaced or containerised file is the one that
//! runs. The names of a process are kept until it ends or starts another program.

use crate::demangle::demangle;
use crate::process::{Code, Files, Identity, MAX_PARTS, Mapping, Processes};
use crate::reader::Reader;
use crate::unnamed::{self, Functions, Part};
use crate::{Nameless, Resolved, Unknown, elf, go, truncation};
use blazesym::Pid;
use blazesym::symbolize::source::{Process as ProcessSource, Source};
use blazesym::symbolize::{Input, Reason, Sym, Symbolized};
use std::collections::{HashMap, HashSet};
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
    unnamed: Vec<Arc<Part>>,
    since: Instant,
    used: Instant,
    /// Read it again: some of its addresses were left out.
    is_stale: bool,
}

/// How much is read of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Debug information too, for the functions that are inlined; what has no symbol is named by its file and the address of
    /// its function there, `[libc.so.6+0x29d60]`, or by the file alone.
    Inlined,
    /// Symbol tables only; what has no symbol is named by its file and its place there, `[libc.so.6+0x29d90]`.
    Symbols,
}

/// Names of user-space addresses.
pub struct Native {
    detail: Detail,
    reader: Reader,
    processes: HashMap<u32, Process>,
    source: Processes,
    go: go::Files,
    /// Each once, shared by the processes.
    parts: HashSet<Arc<Part>>,
    addresses: usize,
    may_read: Box<dyn FnMut(u32) -> bool>,
}

impl Native {
    /// Reads nothing yet: the first batch does. From here on this thread survives files that shrink.
    pub fn new(source: Processes, detail: Detail) -> Self {
        if let Err(error) = truncation::survive() {
            tracing::warn!(%error, "a program's file that shrinks would end this process");
        }
        let (reader, go) = (Reader::new(Instant::now()), go::Files::default());
        let (processes, parts, may_read) = (HashMap::new(), HashSet::new(), Box::new(|_| true));
        Self { detail, reader, processes, source, go, parts, addresses: 0, may_read }
    }

    /// Asks, before anything of a process is read that may never come, whether it is to be read.
    pub fn asking(self, may_read: impl FnMut(u32) -> bool + 'static) -> Self {
        Self { may_read: Box::new(may_read), ..self }
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
                let refused = match processes_read {
                    ..=MAX_PROCESSES if (self.may_read)(pid) => None,
                    ..=MAX_PROCESSES => Some(Unknown::Stuck),
                    _ => Some(Unknown::Budget),
                };
                if let Some(why) = refused {
                    process.names.extend(missing.into_iter().map(|address| (address, Err(why.into()))));
                    process.is_stale = true;
                } else {
                    self.read(pid, &missing, &mut process, name);
                    // Whatever was read while it began another program is of neither.
                    if self.source.process(pid).is_none_or(|now| now.identity != process.identity) {
                        process.names.extend(missing.into_iter().map(|address| (address, Err(GONE))));
                        process.is_stale = true;
                    }
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
                    let (names, unnamed, is_stale) = (HashMap::new(), Vec::new(), false);
                    let name = name(&running.name);
                    Process { identity, name, names, unnamed, since: now, used: now, is_stale }
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

    /// The parts of files of a process that was asked for whose functions have no names but by their addresses.
    pub fn unnamed(&self, pid: u32) -> &[Arc<Part>] {
        self.processes.get(&pid).map_or(&[], |process| &process.unnamed)
    }

    /// The process, or what it was when it ended, whose addresses have names.
    pub fn identity(&self, pid: u32) -> Option<Identity> {
        self.processes.get(&pid).map(|process| process.identity)
    }

    /// Addresses whose names are kept.
    pub fn addresses(&self) -> usize {
        self.addresses
    }

    fn read(
        &mut self,
        pid: u32,
        missing: &[u64],
        process: &mut Process,
        name: &mut dyn FnMut(&str) -> Arc<str>,
    ) {
        let mut source = ProcessSource::new(Pid::from(pid));
        let (files, code) = (self.source.files(pid), self.source.code(pid));
        let names = &mut process.names;
        let missing = &self.read_go(pid, &code, files, missing, names, name)[..];
        if missing.is_empty() {
            return;
        }
        let mut may_read = self.may_read(pid, files);
        let mut readable = Vec::new();
        for address in missing {
            let why = match code.at(*address) {
                Some(mapping) if may_read(mapping) => {
                    readable.push(*address);
                    continue;
                }
                Some(_) => Unknown::Unreadable,
                None if code.is_empty() => Unknown::ProcessGone,
                None => Unknown::Unmapped,
            };
            names.insert(*address, Err(why.into()));
        }
        drop(may_read);
        if readable.is_empty() {
            return self.name_files(pid, &code, files, missing, process, name);
        }
        source.map_files = files != Files::ByPath;
        // A perf map lies where the program may put a pipe that never ends, and so may what a debug link names.
        source.perf_map = false;
        source.debug_syms = self.detail == Detail::Inlined && files != Files::Mapped { is_host: false };
        if let Err(error) = self.reader.remember(Pid::from(pid)) {
            tracing::debug!(pid, %error, "no memory map");
            names.extend(readable.into_iter().map(|address| (address, Err(Unknown::ProcessGone.into()))));
            return;
        }
        self.read_part(&Source::Process(source), &readable, names, name);
        self.name_files(pid, &code, files, missing, process, name);
        self.reader.forget(Pid::from(pid));
    }

    /// Names what Go programs name themselves, stripped or not; returns the other addresses.
    fn read_go(
        &mut self,
        pid: u32,
        code: &Code,
        files: Files,
        missing: &[u64],
        names: &mut HashMap<u64, Resolved>,
        name: &mut dyn FnMut(&str) -> Arc<str>,
    ) -> Vec<u64> {
        let mut identities = HashMap::new();
        let mut others = Vec::new();
        for address in missing {
            let mut find = || {
                let mapping = code.at(*address).filter(|mapping| mapping.file_name().is_some())?;
                let identity = identities
                    .entry(mapping.range.start)
                    .or_insert_with(|| self.go.identify(&self.source, pid, mapping, files));
                let table = self.go.table((*identity)?, || self.source.open(pid, mapping, files).ok())?;
                let address = table.address(mapping.offset_of(*address))?;
                table.names(address, self.detail == Detail::Inlined)
            };
            match find() {
                Some(found) => {
                    names.insert(*address, Ok(found.iter().map(|found| name(found)).collect()));
                }
                None => others.push(*address),
            }
        }
        others
    }

    /// Whether the file of a mapping can be reached, and has no more symbols than can be sorted.
    fn may_read(&self, pid: u32, files: Files) -> impl FnMut(&Mapping) -> bool + use<'_> {
        let mut seen: HashMap<u64, bool> = HashMap::new();
        move |mapping| {
            let is_small = || {
                let symbols = self.source.open(pid, mapping, files).and_then(|file| elf::symbol_bytes(&file));
                symbols.is_ok_and(|bytes| bytes <= elf::SYMBOL_BYTES_MAX)
            };
            let is_file = mapping.file_name().is_some();
            !is_file
                || files != Files::Unreachable && *seen.entry(mapping.range.start).or_insert_with(is_small)
        }
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
        &mut self,
        pid: u32,
        code: &Code,
        files: Files,
        missing: &[u64],
        process: &mut Process,
        name: &mut dyn FnMut(&str) -> Arc<str>,
    ) {
        let mut opened = HashMap::new();
        for address in missing {
            let Some(Err(nameless)) = process.names.get_mut(address) else { continue };
            let Some(mapping) = code.at(*address) else { continue };
            let Some(file) = mapping.file_name() else { continue };
            let frame = match (nameless.why, self.detail) {
                (Unknown::NoSymbol | Unknown::Unreadable, Detail::Symbols) => {
                    unnamed::frame(file, mapping.offset_of(*address))
                }
                (Unknown::NoSymbol, Detail::Inlined) => {
                    let functions = opened
                        .entry(mapping.range.start)
                        .or_insert_with(|| Functions::read(self.source.open(pid, mapping, files).ok()?));
                    let found = functions.as_ref().and_then(|functions| {
                        let (code, address) = functions.find(mapping.offset_of(*address))?;
                        Some((functions.part(mapping.path()?, code), address))
                    });
                    match found {
                        Some((part, address)) => {
                            add(&mut process.unnamed, &mut self.parts, part);
                            unnamed::frame(file, address)
                        }
                        None => format!("[{file}]"),
                    }
                }
                (Unknown::Unreadable, Detail::Inlined) => format!("[{file}]"),
                _ => continue,
            };
            nameless.file = Some(name(&frame));
        }
    }

    /// Makes room before a batch, so that what the batch finds stays until it is used: processes that did not run
    /// lately go, and of a crowd those that ran longest ago.
    fn bound_addresses(&mut self, now: Instant) {
        self.processes.retain(|_, process| now - process.used < MAX_AGE);
        self.parts.retain(|part| Arc::strong_count(part) > 1);
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

/// Notes a part of a process once.
fn add(unnamed: &mut Vec<Arc<Part>>, parts: &mut HashSet<Arc<Part>>, part: Part) {
    if unnamed.len() >= MAX_PARTS || unnamed.iter().any(|known| **known == part) {
        return;
    }
    let shared = parts.get(&part).cloned().unwrap_or_else(|| Arc::new(part));
    parts.insert(shared.clone());
    unnamed.push(shared);
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
        let mut native = Native::new(Processes::new(Path::new("/proc")), Detail::Inlined);
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
        let mut native = Native::new(Processes::new(Path::new("/proc")), Detail::Inlined);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        native.resolve(vec![(child.id(), vec![4096])], Instant::now(), &mut |name| Arc::from(name));
        assert_eq!(native.name(child.id(), 4096), &Err(GONE));
    }
}
