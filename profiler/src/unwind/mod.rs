//! How does the kernel's walk of a user stack find callers of code without frame pointers? By tables made from
//! `.eh_frame` when a process is sampled for the first time, and when its stack leads to code that it mapped since.

pub mod code;
mod eh_frame;
pub mod elf;
mod go;
pub mod hotspot;
mod pages;
mod ranges;
mod tables;

use crate::aggregate::Scope;
use crate::pipeline::Shared;
use anyhow::Context;
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::UnwindTables;
use kpulse_symbolize::Processes;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};
use tables::Tables;

pub use tables::Size;

/// How often the kernel is asked which processes it wants: what these run meanwhile is walked by frame pointers.
const INTERVAL: Duration = Duration::from_millis(50);
/// Processes read in one interval; a storm of short ones may not take the machine.
const MAX_READ: usize = 16;
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Keeps the tables until it is dropped; a file that is being read then delays nobody.
pub struct Unwinder {
    _stop: Sender<()>,
}

impl Unwinder {
    /// Starts to serve the wishes of the kernel. Of a process scope that process alone is read, before this returns.
    pub fn start(maps: UnwindTables, scope: Scope, paths: &Paths, shared: &Shared) -> anyhow::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (paths, shared) = (paths.clone(), shared.clone());
        let thread = thread::Builder::new().name("kpulse-unwind".into());
        let (ready, begun) = mpsc::channel::<()>();
        let work = move || {
            let stuck = shared.lock().stuck.clone();
            let mut tables = Tables::new(maps, Processes::new(&paths.procfs), stuck);
            if let Scope::Process(pid) = scope {
                warn(tables.learn(pid, Instant::now()));
            }
            drop(ready);
            run(tables, &scope, &stopped, &shared);
        };
        thread.spawn(work).context("cannot start a thread")?;
        // Nothing is ever sent: the wait ends when the thread is ready.
        let _: Result<(), _> = begun.recv();
        Ok(Self { _stop: stop })
    }
}

fn run(mut tables: Tables, scope: &Scope, stopped: &Receiver<()>, shared: &Shared) {
    let mut swept = Instant::now();
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(INTERVAL) {
        let now = Instant::now();
        warn(serve(&mut tables, scope, shared));
        warn(tables.await_jvms(now));
        if now - swept >= SWEEP_INTERVAL {
            warn(tables.sweep());
            swept = now;
        }
    }
}

fn serve(tables: &mut Tables, scope: &Scope, shared: &Shared) -> anyhow::Result<()> {
    let wanted = tables.wanted()?.into_iter();
    let in_scope = wanted.filter(|pid| !matches!(scope, Scope::Process(only) if only != pid));
    for pid in in_scope.take(MAX_READ) {
        tables.learn(pid, Instant::now())?;
        shared.lock().totals.tables = tables.size();
    }
    Ok(())
}

fn warn(outcome: anyhow::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(error = format!("{error:#}"), "stacks are walked by frame pointers");
    }
}
