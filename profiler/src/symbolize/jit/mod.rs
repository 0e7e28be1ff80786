//! What is code called that a program makes while it runs? A JVM's own descriptions tell of Java; of other programs, and
//! of JVMs that cannot be read, the map that they write for perf.

mod hotspot;
mod inlined;
mod perf_map;

use crate::deadline::Reading;
use crate::unwind::code;
use crate::unwind::hotspot::{Found, Missing, find};
use hotspot::{Code, Reader};
use kpulse_exporter_ebpf::probes::profile::cpu_sample::frame;
use kpulse_symbolize::process::Identity;
use kpulse_symbolize::{Nameless, Processes, Resolved, Unknown, cut};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Frames whose names are kept, over all processes, and those that are new in one drain.
const MAX_FRAMES: usize = 65_536;
const MAX_NEW_FRAMES: usize = 32_768;
/// Of a JVM the memory stays open.
const MAX_PROCESSES: usize = 256;
/// Names are looked up again after this time, since classes come and go.
const MAX_AGE: Duration = Duration::from_secs(120);
/// A map is read for a small part of the time only, however long it is.
const PAUSE_PER_READING: u32 = 50;
const MIN_PAUSE: Duration = Duration::from_secs(1);

const UNLOADED: &str = "[java: unloaded]";
const NO_UNWINDER: &str = "[java: no unwinder for this JVM]";
const GONE: Resolved = Err(Nameless { why: Unknown::ProcessGone, file: None });

struct Process {
    identity: Identity,
    found: Found,
    names: HashMap<u64, Resolved>,
    frames: usize,
    since: Instant,
    used: Instant,
    /// When its perf map may be read again.
    map_after: Instant,
}

/// Names of code without files.
pub struct Jit {
    source: Processes,
    reading: Reading,
    processes: HashMap<u32, Process>,
}

/// Whether a frame is more than an address, so that nothing else can name it.
pub fn is_tagged(word: u64) -> bool {
    word & (frame::COMPILED | frame::INTERPRETED) != 0
}

impl Jit {
    /// Reads nothing yet.
    pub fn new(source: Processes, reading: Reading) -> Self {
        Self { source, reading, processes: HashMap::new() }
    }

    /// Finds the names of frames of each process: tagged ones, and addresses in no file.
    pub fn resolve(
        &mut self,
        wanted: HashMap<u32, Vec<u64>>,
        now: Instant,
        name: &mut dyn FnMut(&str) -> Arc<str>,
    ) {
        self.bound(now);
        let mut room = MAX_NEW_FRAMES;
        for (pid, mut words) in wanted {
            words.sort_unstable();
            words.dedup();
            if !self.reading.begin(pid) {
                continue;
            }
            let Some(mut process) = self.recall(pid, now) else { continue };
            words.retain(|word| !process.names.contains_key(word));
            if !words.is_empty() {
                let named = self.name_words(pid, &mut process, &words, &mut room, now, name);
                // Whatever was read while it began another program is of neither.
                if self.source.process(pid).is_some_and(|again| again.identity == process.identity) {
                    process.frames += named.values().map(frames).sum::<usize>();
                    process.names.extend(named);
                }
            }
            self.processes.insert(pid, process);
        }
    }

    /// Takes what is known of a process, if it is still the same; of one that is gone, what was named stays.
    fn recall(&mut self, pid: u32, now: Instant) -> Option<Process> {
        let known = self.processes.remove(&pid);
        let Some(running) = self.source.process(pid) else { return known };
        let identity = running.identity;
        let mut process = known.filter(|known| known.identity == identity).unwrap_or_else(|| Process {
            identity,
            found: Found::Missing(Missing::NotYet),
            names: HashMap::new(),
            frames: 0,
            since: now,
            used: now,
            map_after: now,
        });
        let is_old = now - process.since >= MAX_AGE;
        if is_old {
            (process.names, process.frames, process.since) = (HashMap::new(), 0, now);
        }
        process.used = now;
        // A JVM may come late, as a library of a program.
        let is_found = matches!(process.found, Found::Ready(_));
        if !is_found && (is_old || matches!(process.found, Found::Missing(Missing::NotYet))) {
            process.found = find(&self.source, pid, &code::mapped(&self.source, pid));
        }
        Some(process)
    }

    fn name_words(
        &self,
        pid: u32,
        process: &mut Process,
        words: &[u64],
        room: &mut usize,
        now: Instant,
        name: &mut dyn FnMut(&str) -> Arc<str>,
    ) -> HashMap<u64, Resolved> {
        let mut named = HashMap::new();
        let mut others = Vec::new();
        for &word in words {
            let reader = match &process.found {
                Found::Ready(jvm) => Some(Reader { memory: &jvm.memory, layout: &jvm.layout }),
                _ => None,
            };
            match reader.filter(|reader| is_tagged(word) || reader.has_code_at(word)) {
                // What a program has too much of is left out.
                Some(_) if *room == 0 => {}
                Some(reader) => {
                    let resolved = resolved(reader.name(word), name);
                    *room = room.saturating_sub(frames(&resolved));
                    named.insert(word, resolved);
                }
                None if !is_tagged(word) => others.push(word),
                None => {}
            }
        }
        if others.is_empty() || now < process.map_after {
            return named;
        }
        let begun = Instant::now();
        let mut mapped = perf_map::names(&self.source, pid, &others);
        process.map_after = now + (begun.elapsed() * PAUSE_PER_READING).max(MIN_PAUSE);
        for word in others {
            let without = match process.found {
                Found::Missing(Missing::Unknown) => {
                    Some(Nameless { why: Unknown::Anonymous, file: Some(name(NO_UNWINDER)) })
                }
                _ => None,
            };
            match (mapped.remove(&word), without) {
                (Some(found), _) => drop(named.insert(word, Ok([name(&found)].into()))),
                (None, Some(nameless)) => drop(named.insert(word, Err(nameless))),
                (None, None) => {}
            }
        }
        named
    }

    /// The name of a frame that was asked for; `None` where this knows nothing of it.
    pub fn name(&self, pid: u32, word: u64) -> Option<&Resolved> {
        let named = self.processes.get(&pid).and_then(|process| process.names.get(&word));
        named.or_else(|| is_tagged(word).then_some(&GONE))
    }

    /// Frames whose names are kept.
    pub fn addresses(&self) -> usize {
        self.processes.values().map(|process| process.frames).sum()
    }

    /// Makes room before a batch: processes that did not run lately go, and of a crowd those that ran longest ago.
    fn bound(&mut self, now: Instant) {
        self.processes.retain(|_, process| now - process.used < MAX_AGE);
        let mut kept = self.addresses();
        if kept <= MAX_FRAMES && self.processes.len() <= MAX_PROCESSES {
            return;
        }
        let mut by_use: Vec<_> = self.processes.iter().map(|(pid, process)| (process.used, *pid)).collect();
        by_use.sort_unstable();
        for (_, pid) in by_use {
            if kept <= MAX_FRAMES / 2 && self.processes.len() <= MAX_PROCESSES / 2 {
                break;
            }
            kept -= self.processes.remove(&pid).map_or(0, |process| process.frames);
        }
    }
}

fn frames(resolved: &Resolved) -> usize {
    resolved.as_ref().map_or(1, |names| names.len())
}

fn resolved(code: Code, name: &mut dyn FnMut(&str) -> Arc<str>) -> Resolved {
    match code {
        Code::Methods(methods) => Ok(methods.iter().map(|method| name(cut(method))).collect()),
        Code::Stub(stub) => Ok([name(cut(&stub))].into()),
        Code::Unloaded => Err(Nameless { why: Unknown::Unloaded, file: Some(name(UNLOADED)) }),
    }
}
