//! What do the probes themselves cost: how often and how long their programs run, and how full their maps are.
//!
//! The kernel counts runs only while it is asked to, and counting costs tens of nanoseconds a run. So it is asked for
//! one second in thirty, and what it counted then stands for the whole thirty: an estimate, which bursts between two
//! windows escape. Over the budget, probes are detached for a while. Maps are looked at after each window, and before it
//! CPUs that came online.

use crate::attached::{self, Attached};
use crate::cpu_clock;
use crate::governor::{self, Excess, Governor, Pauses};
use crate::loader::{Loaded, ProbeSet};
use crate::maps::{self, RawMap};
use crate::probe::Probe;
use aya::programs::Program;
use aya::sys::{Stats, enable_stats};
use kpulse_common::governor::Governor as Bounds;
use kpulse_common::metric::{Label, MetricDef, Samples};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From one window to the next.
const PERIOD: Duration = Duration::from_secs(30);
/// The same after a window that was over the budget.
const PERIOD_PRESSED: Duration = Duration::from_secs(5);
/// How long the kernel counts.
const WINDOW: Duration = Duration::from_secs(1);
/// Room for `struct bpf_prog_info` as far as its counters.
const PROG_INFO_BYTES: usize = 208;
const RUN_TIME_OFFSET: usize = 192;
const RUN_COUNT_OFFSET: usize = 200;
const OBJ_GET_INFO_BY_FD: i32 = 15;

const RUNS: MetricDef = MetricDef::counter(
    "kpulse_probe_runs_total",
    "Runs of the probe's programs, estimated from one second in thirty.",
    &[Label::Named("probe")],
);
const RUN_SECONDS: MetricDef = MetricDef::counter(
    "kpulse_probe_run_seconds_total",
    "CPU time of the probe's programs, estimated from one second in thirty.",
    &[Label::Named("probe")],
);
const MAP_ENTRIES: MetricDef = MetricDef::gauge(
    "kpulse_map_entries",
    "Entries of a hash map of the probe, counted every thirty seconds.",
    &[Label::Named("probe"), Label::Named("map")],
);
const MAP_CAPACITY: MetricDef = MetricDef::gauge(
    "kpulse_map_capacity",
    "Entries that a hash map of the probe can hold.",
    &[Label::Named("probe"), Label::Named("map")],
);

/// The families of this module.
pub(crate) const METRICS: [MetricDef; 6] = {
    let [budget, used] = governor::METRICS;
    [RUNS, RUN_SECONDS, MAP_ENTRIES, MAP_CAPACITY, budget, used]
};

/// Counts on a thread of its own, until it is dropped.
pub(crate) struct Statistics {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    found: Mutex<Found>,
    /// What is to be watched from the next window on.
    added: Mutex<Vec<WatchedProbe>>,
    is_over: Mutex<bool>,
    wake: Condvar,
}

#[derive(Default)]
struct Found {
    costs: BTreeMap<&'static str, Cost>,
    maps: Vec<(&'static str, String, u32, u32)>,
    governed: Samples,
}

/// What the programs of one probe did, in all or in one window.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    runs: f64,
    seconds: f64,
}

impl Cost {
    fn since(self, before: &Self) -> Self {
        Self { runs: (self.runs - before.runs).max(0.0), seconds: (self.seconds - before.seconds).max(0.0) }
    }
}

impl Statistics {
    /// Watches what is loaded, and what of the machine's CPU time it takes against the budget. `begin` runs first on
    /// the new thread, which needs CAP_SYS_ADMIN, and CAP_DAC_READ_SEARCH to attach again what it detached.
    pub(crate) fn start(
        loaded: &[Loaded],
        bounds: &Bounds,
        pauses: Pauses,
        begin: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let mut watcher = Watcher {
            probes: WatchedProbe::of_all(loaded)?,
            cpus: aya::util::nr_cpus().map_err(|(_, error)| error)? as f64,
            governor: Governor::new(bounds),
            pauses,
        };
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("statistics".to_owned());
        let of_thread = Arc::clone(&shared);
        let thread = thread.spawn(move || {
            begin();
            watcher.run(&of_thread);
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Watches more, from the next window on, which begins at once.
    pub(crate) fn add(&self, loaded: &[Loaded]) -> io::Result<()> {
        let watched = WatchedProbe::of_all(loaded)?;
        lock(&self.shared.added).extend(watched);
        self.shared.wake.notify_all();
        Ok(())
    }

    /// What was found until now; what the kernel does not count is absent.
    pub(crate) fn tell(&self, out: &mut Samples) {
        let found = lock(&self.shared.found);
        for (probe, cost) in &found.costs {
            out.count(&RUNS, &[probe], cost.runs.round() as u64);
        }
        for (probe, cost) in &found.costs {
            out.number(&RUN_SECONDS, &[probe], cost.seconds);
        }
        for (probe, map, entries, _) in &found.maps {
            out.count(&MAP_ENTRIES, &[probe, map], u64::from(*entries));
        }
        for (probe, map, _, capacity) in &found.maps {
            out.count(&MAP_CAPACITY, &[probe, map], u64::from(*capacity));
        }
        out.append(found.governed.clone());
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        *lock(&self.shared.is_over) = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was told by its hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Waits; `false` when it is over.
    fn sleep(&self, time: Duration) -> bool {
        self.sleep_unless(time, || false)
    }

    fn sleep_unless(&self, time: Duration, is_awake: impl Fn() -> bool) -> bool {
        let end = Instant::now() + time;
        let mut is_over = lock(&self.is_over);
        while !*is_over {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || is_awake() {
                return true;
            }
            is_over = self.wake.wait_timeout(is_over, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A probe by descriptors of our own, so that it can be read meanwhile.
struct WatchedProbe {
    probe: &'static Probe,
    /// Gone when the probe is.
    attached: Weak<Mutex<Attached>>,
    programs: Vec<OwnedFd>,
    maps: Vec<(String, RawMap)>,
}

impl WatchedProbe {
    fn of_all(loaded: &[Loaded]) -> io::Result<Vec<Self>> {
        let active = loaded.iter().filter_map(|it| Some((it.probe, it.attached.as_ref()?)));
        active.map(|(probe, attached)| Self::of(probe, attached)).collect()
    }

    fn of(probe: &'static Probe, attached: &attached::Shared) -> io::Result<Self> {
        let locked = attached::lock(attached);
        let mut maps = Vec::new();
        for (name, map) in locked.ebpf.maps() {
            // The entries of others are all there from the start, or cannot be counted.
            let map = RawMap::open(map)?.filter(RawMap::is_hash);
            maps.extend(map.map(|map| (name.to_owned(), map)));
        }
        // What is not loaded has no descriptor.
        let programs = locked.ebpf.programs().filter_map(|(_, program)| descriptor(program)).collect();
        Ok(Self { probe, attached: Arc::downgrade(attached), programs, maps })
    }

    fn cost(&self) -> io::Result<Cost> {
        self.programs.iter().try_fold(Cost::default(), |sum, program| {
            let more = cost(program)?;
            Ok(Cost { runs: sum.runs + more.runs, seconds: sum.seconds + more.seconds })
        })
    }
}

/// What the thread works with.
struct Watcher {
    probes: Vec<WatchedProbe>,
    cpus: f64,
    governor: Governor,
    pauses: Pauses,
}

impl Watcher {
    fn run(&mut self, shared: &Shared) {
        let mut since = Instant::now();
        let mut is_told = false;
        loop {
            self.probes.append(&mut lock(&shared.added));
            self.resume();
            cpu_clock::follow(&self.clocks());
            match self.window(shared, &mut since) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    if !is_told {
                        tracing::info!(%error, "the kernel does not count the probes' runs, so their cost is not told");
                    }
                    is_told = true;
                }
            }
            lock(&shared.found).maps = self.maps();
            let period = if self.governor.is_pressed() { PERIOD_PRESSED } else { PERIOD };
            let pause = self.governor.next_due(Instant::now()).map_or(period, |due| due.min(period));
            if !shared.sleep_unless(pause.saturating_sub(WINDOW), || !lock(&shared.added).is_empty()) {
                return;
            }
        }
    }

    fn clocks(&self) -> Vec<Weak<cpu_clock::CpuClock>> {
        let attached = self.probes.iter().filter_map(|it| it.attached.upgrade());
        attached.flat_map(|it| attached::lock(&it).clocks()).collect()
    }

    fn maps(&self) -> Vec<(&'static str, String, u32, u32)> {
        let maps =
            self.probes.iter().flat_map(|it| it.maps.iter().map(|(name, map)| (it.probe.name, name, map)));
        maps.filter_map(|(probe, name, map)| Some((probe, name.clone(), map.count().ok()?, map.capacity())))
            .collect()
    }

    /// Lets the kernel count for a while, and adds what that says of the time since the last window ended.
    fn window(&mut self, shared: &Shared, since: &mut Instant) -> io::Result<bool> {
        let counting = count_runs()?;
        let (start, before) = (Instant::now(), self.costs()?);
        if !shared.sleep(WINDOW) {
            return Ok(false);
        }
        let (end, after) = (Instant::now(), self.costs()?);
        drop(counting);
        let window = end.duration_since(start).as_secs_f64();
        let scale = end.duration_since(*since).as_secs_f64() / window;
        *since = end;
        let spent: Vec<Cost> = before.iter().zip(&after).map(|(before, after)| after.since(before)).collect();
        let parts = self.probes.iter().zip(&spent).map(|(watched, spent)| governor::Cost {
            probe: watched.probe.name,
            priority: watched.probe.priority,
            part: spent.seconds / window / self.cpus,
        });
        let parts = parts.collect();
        let mut found = lock(&shared.found);
        for (watched, spent) in self.probes.iter().zip(&spent) {
            let total = found.costs.entry(watched.probe.name).or_default();
            total.runs += spent.runs * scale;
            total.seconds += spent.seconds * scale;
        }
        for (probe, why) in self.governor.judge(parts, end) {
            self.pause(probe, why);
        }
        found.governed = Samples::default();
        self.governor.tell(&mut found.governed);
        Ok(true)
    }

    fn costs(&self) -> io::Result<Vec<Cost>> {
        self.probes.iter().map(WatchedProbe::cost).collect()
    }

    fn attached(&self, probe: &str) -> Option<(&'static Probe, attached::Shared)> {
        let watched = self.probes.iter().find(|watched| watched.probe.name == probe)?;
        Some((watched.probe, watched.attached.upgrade()?))
    }

    fn pause(&self, probe: &'static str, why: Excess) {
        let Some((_, attached)) = self.attached(probe) else { return };
        attached::lock(&attached).pause();
        tracing::warn!(probe, %why, "probe is not active");
        self.pauses.begin(probe, why);
    }

    fn resume(&mut self) {
        let now = Instant::now();
        for probe in self.governor.due(now) {
            let Some((def, attached)) = self.attached(probe) else { continue };
            let outcome = attached::lock(&attached).resume(def.in_flight);
            match outcome {
                Ok(()) => {
                    self.pauses.end(probe);
                    tracing::info!(probe, "probe is active again");
                }
                Err(error) => {
                    tracing::warn!(probe, %error, "probe stays detached for as long again");
                    self.governor.put_off(probe, now);
                }
            }
        }
    }
}

/// `info` of `union bpf_attr`.
#[repr(C)]
struct InfoAttributes {
    fd: u32,
    bytes: u32,
    info: u64,
}

/// What one program did while the kernel counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramCost {
    /// Function name in the object.
    pub program: &'static str,
    /// How often it ran.
    pub runs: u64,
    /// CPU time of all runs.
    pub ns: u64,
}

/// Has the kernel count the runs of BPF programs without a pause, for as long as the value lives.
pub fn count_runs() -> io::Result<OwnedFd> {
    enable_stats(Stats::RunTime).map_err(|error| error.io_error)
}

impl ProbeSet {
    /// What the kernel has counted for every program that is attached.
    pub fn program_costs(&self) -> io::Result<Vec<ProgramCost>> {
        let mut costs = Vec::new();
        for (loaded, attached) in self.loaded.iter().filter_map(|it| Some((it, it.attached.as_ref()?))) {
            let attached = attached::lock(attached);
            // One program may serve several hooks.
            let programs: BTreeSet<_> = loaded.status.hooks.iter().map(|hook| hook.program).collect();
            for program in programs {
                let Some(fd) = attached.ebpf.program(program).and_then(descriptor) else { continue };
                let Cost { runs, seconds } = cost(&fd)?;
                costs.push(ProgramCost { program, runs: runs as u64, ns: (seconds * 1e9).round() as u64 });
            }
        }
        Ok(costs)
    }
}

/// What the kernel has counted for a program.
fn cost(program: &OwnedFd) -> io::Result<Cost> {
    let mut info = [0u64; PROG_INFO_BYTES / 8];
    let mut attributes = InfoAttributes {
        fd: program.as_raw_fd().unsigned_abs(),
        bytes: PROG_INFO_BYTES as u32,
        info: info.as_mut_ptr() as u64,
    };
    maps::bpf(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let [time, count] = [RUN_TIME_OFFSET, RUN_COUNT_OFFSET].map(|offset| info[offset / 8] as f64);
    Ok(Cost { runs: count, seconds: time / 1e9 })
}

fn descriptor(program: &Program) -> Option<OwnedFd> {
    program.fd().ok()?.as_fd().try_clone_to_owned().ok()
}
