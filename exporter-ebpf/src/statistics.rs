//! What do the probes themselves cost: how often and how long their programs run, and how full their maps are.
//!
//! The kernel counts runs only while it is asked to, and counting costs tens of nanoseconds a run. So it is asked for
//! one second in thirty, and what it counted then stands for the whole thirty: an estimate, which bursts between two
//! windows escape. Maps are looked at after each window, and before it CPUs that came online.

use crate::cpu_clock::{self, CpuClock};
use crate::loader::Loaded;
use crate::maps::{self, RawMap};
use aya::maps::Map;
use aya::programs::Program;
use aya::sys::{Stats, enable_stats};
use kpulse_common::metric::{Label, MetricDef, Samples};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From one window to the next.
const PERIOD: Duration = Duration::from_secs(30);
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
pub(crate) const METRICS: [MetricDef; 4] = [RUNS, RUN_SECONDS, MAP_ENTRIES, MAP_CAPACITY];

/// Counts on a thread of its own, until it is dropped.
pub(crate) struct Statistics {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    found: Mutex<Found>,
    /// What is to be watched from the next window on.
    added: Mutex<Vec<Watched>>,
    is_over: Mutex<bool>,
    wake: Condvar,
}

#[derive(Default)]
struct Found {
    costs: BTreeMap<&'static str, Cost>,
    maps: Vec<(&'static str, String, u32, u32)>,
}

/// What the programs of one probe did, in all or in one window.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    runs: f64,
    seconds: f64,
}

impl Statistics {
    /// Watches what is loaded. `begin` runs first on the new thread, which needs CAP_SYS_ADMIN and nothing else.
    pub(crate) fn start(loaded: &[Loaded], begin: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let mut watched = Watched::of(loaded)?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("statistics".to_owned());
        let of_thread = Arc::clone(&shared);
        let thread = thread.spawn(move || {
            begin();
            watched.run(&of_thread);
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Watches more, from the next window on, which begins at once.
    pub(crate) fn add(&self, loaded: &[Loaded]) -> io::Result<()> {
        let watched = Watched::of(loaded)?;
        lock(&self.shared.added).push(watched);
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

/// Programs and maps by descriptors of our own, so that the probes can be read meanwhile.
struct Watched {
    programs: Vec<(&'static str, OwnedFd)>,
    maps: Vec<WatchedMap>,
    clocks: Vec<Weak<CpuClock>>,
}

struct WatchedMap {
    probe: &'static str,
    name: String,
    map: RawMap,
}

impl Watched {
    fn of(loaded: &[Loaded]) -> io::Result<Self> {
        let mut watched = Self { programs: Vec::new(), maps: Vec::new(), clocks: Vec::new() };
        watched.clocks.extend(loaded.iter().flat_map(|it| &it.clocks).map(Arc::downgrade));
        for (probe, ebpf) in loaded.iter().filter_map(|it| Some((it.probe.name, it.ebpf.as_ref()?))) {
            // What is not attached has no descriptor.
            let attached = ebpf.programs().filter_map(|(_, program)| descriptor(program));
            watched.programs.extend(attached.map(|fd| (probe, fd)));
            for (name, map) in ebpf.maps() {
                watched.maps.extend(WatchedMap::of(probe, name, map)?);
            }
        }
        Ok(watched)
    }

    fn run(&mut self, shared: &Shared) {
        let mut since = Instant::now();
        let mut is_told = false;
        loop {
            for added in lock(&shared.added).drain(..) {
                self.programs.extend(added.programs);
                self.maps.extend(added.maps);
                self.clocks.extend(added.clocks);
            }
            cpu_clock::follow(&self.clocks);
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
            let maps = self.maps.iter().filter_map(|map| {
                Some((map.probe, map.name.clone(), map.map.count().ok()?, map.map.capacity()))
            });
            let maps = maps.collect();
            lock(&shared.found).maps = maps;
            if !shared.sleep_unless(PERIOD - WINDOW, || !lock(&shared.added).is_empty()) {
                return;
            }
        }
    }

    /// Lets the kernel count for a while, and adds what that says of the time since the last window ended.
    fn window(&self, shared: &Shared, since: &mut Instant) -> io::Result<bool> {
        let counting = enable_stats(Stats::RunTime).map_err(|error| error.io_error)?;
        let (start, before) = (Instant::now(), self.costs()?);
        if !shared.sleep(WINDOW) {
            return Ok(false);
        }
        let (end, after) = (Instant::now(), self.costs()?);
        drop(counting);
        let scale = end.duration_since(*since).as_secs_f64() / end.duration_since(start).as_secs_f64();
        *since = end;
        let mut found = lock(&shared.found);
        for ((probe, before), (_, after)) in before.iter().zip(&after) {
            let total = found.costs.entry(probe).or_default();
            total.runs += (after.runs - before.runs).max(0.0) * scale;
            total.seconds += (after.seconds - before.seconds).max(0.0) * scale;
        }
        Ok(true)
    }

    fn costs(&self) -> io::Result<Vec<(&'static str, Cost)>> {
        self.programs.iter().map(|(probe, fd)| Ok((*probe, cost(fd)?))).collect()
    }
}

/// `info` of `union bpf_attr`.
#[repr(C)]
struct InfoAttributes {
    fd: u32,
    bytes: u32,
    info: u64,
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

impl WatchedMap {
    /// `None` for a map that is no hash: its entries are all there from the start, or cannot be counted.
    fn of(probe: &'static str, name: &str, map: &Map) -> io::Result<Option<Self>> {
        let is_hash = matches!(
            map,
            Map::HashMap(_) | Map::LruHashMap(_) | Map::PerCpuHashMap(_) | Map::PerCpuLruHashMap(_)
        );
        let opened = if is_hash { RawMap::open(map)? } else { None };
        Ok(opened.map(|map| Self { probe, name: name.to_owned(), map }))
    }
}
