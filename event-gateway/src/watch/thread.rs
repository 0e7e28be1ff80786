//! The thread that all watches share: it sleeps until one is woken or due.

use super::{ALL, Queue, Watch, Watcher};
use crate::config::Config;
use crate::policies::Rules;
use crate::ring::WAIT;
use anyhow::{Context, Result};
use kpulse_common::metric::{Label, MetricDef, Samples};
use kpulse_exporter_ebpf::{HookStatus, Pauses, ProbeState, ProbeStatus, tell_status};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Shortest time between two looks of a watch, so that what wakes it all the time does not keep a CPU busy.
const PACE: Duration = Duration::from_millis(100);

const RESYNCS: MetricDef = MetricDef::counter(
    "kpulse_watch_resyncs_total",
    "Times that the kernel had more to tell than its socket or its log holds: devices are read anew, lines are lost.",
    &[Label::Named("probe")],
);

/// All watches at work; dropping it ends them.
pub struct Watchers {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    rules: Mutex<Arc<Rules>>,
    status: Mutex<Vec<ProbeStatus>>,
    resyncs: Mutex<BTreeMap<&'static str, u64>>,
}

/// A watch that is not switched off and could get ready.
struct Active {
    watch: &'static Watch,
    watcher: Box<dyn Watcher>,
    looked_at: Option<Instant>,
}

impl Active {
    fn is_paced(&self) -> bool {
        self.looked_at.is_none_or(|at| at.elapsed() >= PACE)
    }

    fn resyncs(&self) -> Option<(&'static str, u64)> {
        Some((self.watch.kind.name, self.watcher.resyncs()?))
    }
}

impl Watchers {
    /// Starts every watch that is not switched off; what they find goes into `queue`.
    pub fn start(config: &Config, pauses: &Pauses, queue: &Queue) -> Result<Self> {
        let (active, status) = make(config, pauses);
        active.iter().for_each(|active| queue.open(active.watch));
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            rules: Mutex::new(Arc::new(Rules::of(config))),
            status: Mutex::new(status),
            resyncs: Mutex::new(active.iter().filter_map(Active::resyncs).collect()),
        });
        let (its, queue) = (shared.clone(), queue.clone());
        let thread = thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || run(active, &its, &queue))
            .context("cannot start the thread of the watches")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Goes on with the thresholds of this configuration.
    pub fn change(&self, config: &Config) {
        *lock(&self.shared.rules) = Arc::new(Rules::of(config));
    }

    /// How each watch is.
    pub fn status(&self) -> Vec<ProbeStatus> {
        lock(&self.shared.status).clone()
    }

    /// Adds what the watches say about themselves.
    pub fn self_metrics(&self, out: &mut Samples) {
        tell_status(&*lock(&self.shared.status), out);
        for (probe, count) in &*lock(&self.shared.resyncs) {
            out.count(&RESYNCS, &[probe], *count);
        }
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the watches had panicked");
        }
    }
}

/// How each watch would be with this configuration.
pub fn check(config: &Config) -> Vec<ProbeStatus> {
    make(config, &Pauses::default()).1
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn make(config: &Config, pauses: &Pauses) -> (Vec<Active>, Vec<ProbeStatus>) {
    let (mut all, mut status) = (Vec::new(), Vec::new());
    for watch in ALL {
        let state = if config.probes.get(watch.kind.name) == Some(&false) {
            ProbeState::Disabled { why: "turned off by the configuration".to_owned() }
        } else {
            match (watch.make)(config, pauses) {
                Ok(watcher) => {
                    all.push(Active { watch, watcher, looked_at: None });
                    ProbeState::Active
                }
                Err(error) => failed(watch, &error),
            }
        };
        status.push(status_of(watch, state));
    }
    (all, status)
}

fn failed(watch: &Watch, error: &anyhow::Error) -> ProbeState {
    tracing::warn!(probe = watch.kind.name, "probe is not active: {error:#}");
    ProbeState::Failed { why: format!("{error:#}") }
}

fn status_of(watch: &Watch, state: ProbeState) -> ProbeStatus {
    let hook = HookStatus { hook: watch.hook, kind: watch.hook_kind, program: watch.kind.name };
    let hooks = if state == ProbeState::Active { vec![hook] } else { Vec::new() };
    ProbeStatus { name: watch.kind.name, state, hooks, missing: Vec::new() }
}

fn run(mut all: Vec<Active>, shared: &Shared, queue: &Queue) {
    while !shared.stop.load(Ordering::Acquire) {
        let woken = wait(&all);
        let rules = lock(&shared.rules).clone();
        for (active, is_woken) in all.iter_mut().zip(woken) {
            let now = Instant::now();
            if is_woken || (active.is_paced() && now >= active.watcher.next()) {
                active.looked_at = Some(now);
                let watch = active.watch;
                let outcome = active.watcher.look(&rules, now, &mut |finding| queue.push(watch, finding));
                note(watch, outcome, shared);
                lock(&shared.resyncs).extend(active.resyncs());
            }
        }
    }
}

/// A watch that cannot look is told as failed until it can again.
fn note(watch: &'static Watch, outcome: Result<()>, shared: &Shared) {
    let mut status = lock(&shared.status);
    let Some(its) = status.iter_mut().find(|status| status.name == watch.kind.name) else { return };
    match outcome {
        Ok(()) if its.state != ProbeState::Active => *its = status_of(watch, ProbeState::Active),
        Err(error) if its.state == ProbeState::Active => *its = status_of(watch, failed(watch, &error)),
        Ok(()) | Err(_) => {}
    }
}

/// Waits until a watch is woken, [`WAIT`] at most; which ones were.
fn wait(all: &[Active]) -> Vec<bool> {
    let polled = |active: &Active| {
        // poll(2) passes over a negative descriptor.
        let (fd, events) = active.watcher.wakes().filter(|_| active.is_paced()).unwrap_or((-1, 0));
        libc::pollfd { fd, events, revents: 0 }
    };
    let mut polled: Vec<_> = all.iter().map(polled).collect();
    let (count, timeout) = (polled.len() as libc::nfds_t, WAIT.as_millis() as libc::c_int);
    // SAFETY: the array has as many entries as are given, and lives through the call.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), count, timeout) };
    if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
        thread::sleep(WAIT);
    }
    polled.iter().map(|polled| polled.revents != 0).collect()
}
