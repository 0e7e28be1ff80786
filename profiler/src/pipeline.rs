//! From the kernel's counts to named stacks: one thread drains, one names and counts.
//!
//! Naming may take longer than a drain. The samples then wait in the kernel's maps, which are bounded and count
//! what does not fit; nothing waits here but one batch.

use crate::aggregate::{Key, Losses, Scope};
use crate::deadline::{Reading, Stuck};
use crate::files::Counts;
use crate::history::{Bounds, History, Named};
use crate::symbolize::Symbols;
use crate::unwind::Size;
use anyhow::Context;
use kpulse_common::container::{ContainerIdentity, Identities};
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::{Drained, Sample};
use kpulse_symbolize::Processes;
use kpulse_symbolize::process::{Executable, Identity, note};
use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

/// Programs that are kept for the windows that name them.
const MAX_EXECUTABLES: usize = 4096;

/// How often it is looked whether the thread that names goes on.
const BEAT: Duration = Duration::from_millis(500);
/// Threads that name and are stuck; each keeps what it has read.
const MAX_NAMERS: usize = 4;
/// The reason of samples that a stuck thread was to name.
const STUCK: &str = "stuck";

/// The programs of processes, by pid and name.
type Executables = HashMap<(u32, Arc<str>), (Identity, Option<Arc<Executable>>)>;

/// Takes what was counted since the last call.
pub type Drain = Box<dyn FnMut() -> anyhow::Result<Drained> + Send>;

/// Sums since the start. `taken` = `stored` + `outside` + every loss.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    pub taken: u64,
    pub stored: u64,
    pub outside: u64,
    pub lost: Losses,
    /// Samples whose user stack may not be whole, by reason.
    pub cut: Losses,
    /// What the walk of stacks has to go by.
    pub tables: Size,
    /// Frames without a name, by reason.
    pub unsymbolized: Losses,
    /// Windows sent to a store, by what became of them.
    pub uploads: Losses,
    /// What was written into files; `None` where none are.
    pub files: Option<Counts>,
    pub drains: u64,
    pub drain_errors: u64,
    /// What the last drain failed with; `None` after a good one.
    pub failing: Option<String>,
    /// When samples were last counted.
    pub counted: Option<Instant>,
    /// Memory of all names.
    pub name_bytes: usize,
    /// Addresses whose names are cached.
    pub addresses: usize,
}

/// What the threads fill and the answers read.
pub struct State {
    pub history: History,
    pub totals: Totals,
    executables: Executables,
    /// What is never to be read again.
    pub stuck: Stuck,
    /// Which thread names, counted from 0, and what it is to name: taken and lost.
    namer: usize,
    naming: Option<(u64, Vec<(&'static str, u64)>)>,
}

/// The state, shared.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<State>>);

impl Shared {
    /// An empty history with these bounds.
    pub fn new(bounds: Bounds) -> Self {
        let (history, totals) = (History::new(bounds), Totals::default());
        let (executables, stuck, namer, naming) = (Executables::new(), Stuck::default(), 0, None);
        Self(Arc::new(Mutex::new(State { history, totals, executables, stuck, namer, naming })))
    }

    /// Locks the state. A panic elsewhere leaves counts that are still counts.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The two threads.
pub struct Pipeline {
    stop: Sender<()>,
    threads: [JoinHandle<()>; 2],
}

impl Pipeline {
    /// Starts draining every `interval`; only samples of `scope` are named and stored.
    pub fn start(
        drain: Drain,
        interval: Duration,
        scope: Scope,
        paths: &Paths,
        shared: &Shared,
    ) -> anyhow::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (batches, waiting) = mpsc::sync_channel(1);
        let (paths, sampled, counted) = (paths.clone(), shared.clone(), shared.clone());
        let sampler = spawn("kpulse-sample", move || sample(drain, interval, &stopped, &batches, &sampled))?;
        let namer =
            spawn("kpulse-named", move || name(&Arc::new(Mutex::new(waiting)), &scope, &paths, &counted))?;
        Ok(Self { stop, threads: [sampler, namer] })
    }

    /// Drains once more and waits until everything is counted.
    pub fn finish(self) {
        drop(self.stop);
        for thread in self.threads {
            // A thread that panicked has said so on stderr; what it counted is still there.
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(work).context("cannot start a thread")
}

fn sample(
    mut drain: Drain,
    interval: Duration,
    stopped: &Receiver<()>,
    batches: &SyncSender<Drained>,
    shared: &Shared,
) {
    let mut next = Instant::now() + interval;
    loop {
        let waited = stopped.recv_timeout(next.saturating_duration_since(Instant::now()));
        let is_last = !matches!(waited, Err(RecvTimeoutError::Timeout));
        let drained = drain();
        {
            let mut state = shared.lock();
            state.totals.drains += 1;
            state.totals.drain_errors += u64::from(drained.is_err());
            state.totals.failing = drained.as_ref().err().map(|error| format!("{error:#}"));
        }
        match drained {
            Ok(drained) => {
                if batches.send(drained).is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "samples cannot be read"),
        }
        if is_last {
            return;
        }
        // After a long wait the beat goes on from here instead of catching up.
        next = (next + interval).max(Instant::now());
    }
}

/// Batches that no thread names yet.
type Waiting = Arc<Mutex<Receiver<Drained>>>;

/// Keeps a thread that names; one that is held up by what it reads loses its batch, and another takes its place.
fn name(waiting: &Waiting, scope: &Scope, paths: &Paths, shared: &Shared) {
    let source = Processes::new(&paths.procfs);
    let mut stuck: Vec<JoinHandle<()>> = Vec::new();
    for number in 0.. {
        let reading = Reading::new(source.clone(), shared.lock().stuck.clone());
        let (running, ended) = mpsc::channel::<()>();
        let work = {
            let (waiting, reading) = (waiting.clone(), reading.clone());
            let (scope, paths, shared) = (scope.clone(), paths.clone(), shared.clone());
            move || {
                let _running = running;
                // The symbol reader has to stay on the thread that makes it.
                Counting::new(number, shared, scope, &paths, reading).run(&waiting);
            }
        };
        let thread = match spawn("kpulse-name", work) {
            Ok(thread) => thread,
            Err(error) => return tracing::error!(error = format!("{error:#}"), "nothing is named any more"),
        };
        loop {
            // Nothing is ever sent: it ends with the thread.
            if ended.recv_timeout(BEAT) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            stuck.retain(|thread| !thread.is_finished());
            if stuck.len() < MAX_NAMERS && reading.is_stuck(&thread) {
                break;
            }
        }
        stuck.push(thread);
        shared.lock().replace_namer(Instant::now());
        shared.pack();
    }
}

impl State {
    fn replace_namer(&mut self, now: Instant) {
        self.namer += 1;
        let Some((taken, mut lost)) = self.naming.take() else { return };
        let before: u64 = lost.iter().map(|(_, count)| count).sum();
        lost.push((STUCK, taken.saturating_sub(before)));
        add(self, Named { taken, lost, ..Named::default() }, now);
    }
}

/// Names samples and counts them.
struct Counting {
    number: usize,
    shared: Shared,
    symbols: Symbols,
    identities: Identities,
    source: Processes,
    scope: Scope,
    reading: Reading,
}

impl Counting {
    fn new(number: usize, shared: Shared, scope: Scope, paths: &Paths, reading: Reading) -> Self {
        let (source, symbols) = (Processes::new(&paths.procfs), Symbols::new(paths, &reading));
        Self { number, shared, symbols, identities: Identities::new(paths), source, scope, reading }
    }

    fn run(&mut self, waiting: &Mutex<Receiver<Drained>>) {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(drained) = next else { return };
            if !self.count(drained, Instant::now()) {
                return;
            }
            self.shared.pack();
        }
    }

    /// Whether this thread still is the one that names.
    fn count(&mut self, drained: Drained, now: Instant) -> bool {
        self.shared.lock().naming = Some((drained.taken, drained.lost.clone()));
        let mut named = Named { taken: drained.taken, ..Named::default() };
        for (reason, count) in drained.lost {
            if count > 0 {
                named.lost.push((reason, count));
            }
        }
        let cut = drained.cut;
        let mut wanted: Vec<(Sample, Option<Arc<ContainerIdentity>>)> = Vec::new();
        for sample in drained.samples {
            let container = self.identities.container(sample.cgroup);
            if self.scope.matches(sample.pid, container.as_ref().map(|container| container.id.as_str())) {
                wanted.push((sample, container));
            } else {
                named.outside += sample.count;
            }
        }
        self.symbols.resolve(wanted.iter().map(|(sample, _)| sample), now);
        let running = self.running(wanted.iter().map(|(sample, _)| sample));
        let programs = self.executables(&running);
        self.reading.end();
        let mut frames = Vec::new();
        let mut state = self.shared.lock();
        if state.namer != self.number {
            return false;
        }
        state.naming = None;
        if state.executables.len() + programs.len() > MAX_EXECUTABLES {
            state.executables.clear();
        }
        state.executables.extend(programs);
        for process in running.keys() {
            if let Some((_, Some(program))) = state.executables.get_mut(process) {
                note(program, self.symbols.unnamed(process.0));
            }
        }
        for (sample, container) in wanted {
            self.symbols.frames(&sample, &mut frames);
            let thread = self.symbols.name(&sample.comm);
            let container = container.map(|identity| {
                let id = self.symbols.name(&identity.id);
                named.containers.entry(id.clone()).or_insert(identity);
                id
            });
            // A kernel thread has no other name, and a process that is gone left none.
            let process = self.symbols.process_name(sample.pid).unwrap_or_else(|| thread.clone());
            let known = state.executables.get(&(sample.pid, process.clone()));
            if let Some((_, Some(program))) = known {
                named.programs.insert((sample.pid, process.clone()), program.clone());
            }
            let stack = state.history.stack(&frames);
            named.entries.push((Key { pid: sample.pid, process, thread, container, stack }, sample.count));
        }
        add(&mut state, named, now);
        self.symbols.sweep();
        let totals = &mut state.totals;
        for (reason, count) in cut {
            *totals.cut.entry(reason).or_default() += count;
        }
        totals.unsymbolized.clone_from(self.symbols.unsymbolized());
        totals.name_bytes = self.symbols.name_bytes();
        totals.addresses = self.symbols.addresses();
        totals.counted = Some(now);
        true
    }

    /// What the processes of samples are called, and which they are.
    fn running<'a>(&self, samples: impl Iterator<Item = &'a Sample>) -> HashMap<(u32, Arc<str>), Identity> {
        let mut processes = HashMap::new();
        for sample in samples {
            if let Some(identity) = self.symbols.identity(sample.pid)
                && let Some(name) = self.symbols.process_name(sample.pid)
            {
                processes.insert((sample.pid, name), identity);
            }
        }
        processes
    }

    /// The programs of these processes that are not known as they are.
    fn executables(&self, running: &HashMap<(u32, Arc<str>), Identity>) -> Executables {
        let mut new = running.clone();
        {
            let state = self.shared.lock();
            let is_new = |process: &(u32, Arc<str>), identity: &mut Identity| {
                state.executables.get(process).is_none_or(|(known, _)| known != identity)
            };
            new.retain(is_new);
        }
        let read = |(process, identity): ((u32, Arc<str>), Identity)| {
            let may_read = self.reading.begin(process.0);
            let executable = may_read.then(|| self.source.executable(process.0)).flatten();
            (process, (identity, executable.map(Arc::new)))
        };
        new.into_iter().map(read).collect()
    }
}

fn add(state: &mut State, named: Named, now: Instant) {
    let totals = &mut state.totals;
    totals.taken += named.taken;
    totals.outside += named.outside;
    for (reason, count) in &named.lost {
        *totals.lost.entry(reason).or_default() += count;
    }
    let offered: u64 = named.entries.iter().map(|(_, count)| count).sum();
    let stored = state.history.absorb(named, now, SystemTime::now());
    totals.stored += stored;
    if offered > stored {
        *totals.lost.entry(crate::aggregate::WINDOW_FULL).or_default() += offered - stored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpulse_common::container::{CgroupId, Hierarchy};

    fn sample(pid: u32, count: u64) -> Sample {
        let cgroup = CgroupId { hierarchy: Hierarchy::Unified, id: 1 };
        Sample { pid, tid: pid, comm: "t".into(), cgroup, user: vec![pid.into()], kernel: Vec::new(), count }
    }

    fn bounds(window_entries: usize) -> Bounds {
        let window = Duration::from_secs(3600);
        Bounds { window, window_entries, max_age: window, max_bytes: 1 << 20 }
    }

    #[test]
    fn every_sample_is_accounted_for() {
        let shared = Shared::new(bounds(1));
        let mut left = 3;
        let drain = move || {
            left -= 1;
            match left {
                0 => Err(anyhow::anyhow!("passing")),
                _ => Ok(Drained {
                    samples: vec![
                        sample(u32::MAX - 1, 5),
                        sample(u32::MAX - 2, 7),
                        Sample { comm: "u".into(), ..sample(u32::MAX - 2, 2) },
                    ],
                    taken: 20,
                    lost: vec![("stack_collision", 3), ("map_full", 3)],
                    cut: vec![("unmapped", 1)],
                }),
            }
        };
        let interval = Duration::from_millis(1);
        let pipeline = Pipeline::start(
            Box::new(drain),
            interval,
            Scope::Process(u32::MAX - 2),
            &Paths::default(),
            &shared,
        )
        .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while shared.lock().totals.drains < 4 && Instant::now() < deadline {
            thread::yield_now();
        }
        pipeline.finish();
        let totals = shared.lock().totals.clone();
        assert!(totals.drains >= 4 && totals.drain_errors == 1, "{totals:?}");
        assert!(totals.failing.is_none() && totals.counted.is_some());
        let good = totals.drains - 1;
        assert_eq!((totals.taken, totals.stored, totals.outside), (20 * good, 7 * good, 5 * good));
        assert_eq!(
            (totals.lost["stack_collision"], totals.lost["map_full"], totals.lost["window_full"]),
            (3 * good, 3 * good, 2 * good)
        );
        let lost: u64 = totals.lost.values().sum();
        assert_eq!(totals.taken, totals.stored + totals.outside + lost);
        assert_eq!((totals.unsymbolized["process_gone"], totals.cut["unmapped"]), (9 * good, good));
    }
}
