//! Reads that may never come back: memory behind `userfaultfd`, files of a FUSE file system. Whoever made them holds up
//! one thread, and only for so long; nothing of that process is read again.

use kpulse_symbolize::Processes;
use std::collections::HashMap;
use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A thread that reads and uses no CPU for so long is held up: not even a slow disk takes that long.
const DEADLINE: Duration = Duration::from_secs(5);
/// Threads that wait at once; beyond them nothing new is read until one comes back.
const MAX_STUCK: usize = 64;
/// After this time a process is tried again.
const PAUSE: Duration = Duration::from_secs(600);
/// Processes and containers that are remembered.
const MAX_OWNERS: usize = 4096;

/// Whose memory or files did not come, shared by all threads that read.
#[derive(Clone, Default)]
pub struct Stuck(Arc<Mutex<HashMap<Owner, Instant>>>);

/// All processes with a mount namespace of their own, as a container has it: it could start ever new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    Mounts(u64, u64),
    Process(u32),
}

impl Owner {
    fn of(source: &Processes, pid: u32) -> Self {
        source.own_mounts(pid).map_or(Self::Process(pid), |(device, inode)| Self::Mounts(device, inode))
    }
}

impl Stuck {
    /// Notes the owner of a process.
    pub fn note(&self, source: &Processes, pid: u32) {
        tracing::warn!(
            pid,
            "its memory or one of its files does not come: it is left out, with its container"
        );
        let mut known = lock(&self.0);
        if known.len() >= MAX_OWNERS {
            known.clear();
        }
        known.insert(Owner::of(source, pid), Instant::now());
    }

    /// Whether that was noted lately.
    pub fn has(&self, source: &Processes, pid: u32) -> bool {
        let known = lock(&self.0);
        !known.is_empty() && known.get(&Owner::of(source, pid)).is_some_and(|since| since.elapsed() < PAUSE)
    }
}

/// What a thread reads that cannot be watched read by read.
#[derive(Clone)]
pub struct Reading {
    source: Processes,
    stuck: Stuck,
    current: Arc<Mutex<Option<Current>>>,
}

/// A process, and when the thread was last seen to use the CPU, which it had used for so long.
#[derive(Clone, Copy)]
struct Current {
    pid: u32,
    seen: Instant,
    used: Duration,
}

impl Reading {
    /// Nothing yet.
    pub fn new(source: Processes, stuck: Stuck) -> Self {
        Self { source, stuck, current: Arc::default() }
    }

    /// Notes that something of a process is read from here on, unless its owner is stuck.
    pub fn begin(&self, pid: u32) -> bool {
        let may_read = !self.stuck.has(&self.source, pid);
        *lock(&self.current) = may_read.then(|| Current { pid, seen: Instant::now(), used: Duration::ZERO });
        may_read
    }

    /// Nothing is read any more.
    pub fn end(&self) {
        *lock(&self.current) = None;
    }

    /// Whether a process does not let go the thread that reads, whose owner is stuck then.
    pub fn is_stuck(&self, thread: &JoinHandle<()>) -> bool {
        let mut current = lock(&self.current);
        let Some(current) = current.as_mut() else { return false };
        let used = cpu_time(thread);
        if used > current.used {
            (current.seen, current.used) = (Instant::now(), used);
        }
        let is_stuck = current.seen.elapsed() > DEADLINE;
        if is_stuck {
            self.stuck.note(&self.source, current.pid);
        }
        is_stuck
    }
}

/// CPU time that a thread has used.
fn cpu_time(thread: &JoinHandle<()>) -> Duration {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the thread was not joined, so that it is known, and both places are written for the calls only.
    let is_read = unsafe {
        libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    if is_read { Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32) } else { Duration::ZERO }
}

/// What is guarded here has no broken state to be found in.
fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread for reads, and another one in its place when it does not come back.
#[derive(Default)]
pub struct Bounded {
    worker: Option<(SyncSender<Job>, JoinHandle<()>)>,
    stuck: Vec<JoinHandle<()>>,
}

impl Bounded {
    /// What `work` gives; `None` when that takes too long.
    pub fn run<T: Send + 'static>(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        self.stuck.retain(|thread| !thread.is_finished());
        let (answer, answered) = mpsc::sync_channel(1);
        let (jobs, worker) = match self.worker.take() {
            Some(worker) => worker,
            None if self.stuck.len() >= MAX_STUCK => return None,
            None => start()?,
        };
        // Nobody waits for what comes late.
        jobs.send(Box::new(move || drop(answer.send(work())))).ok()?;
        let mut used = cpu_time(&worker);
        let outcome = loop {
            let outcome = answered.recv_timeout(DEADLINE);
            let before = std::mem::replace(&mut used, cpu_time(&worker));
            if !matches!(outcome, Err(RecvTimeoutError::Timeout)) || used <= before {
                break outcome;
            }
        };
        match outcome {
            Err(RecvTimeoutError::Timeout) => self.stuck.push(worker),
            _ => self.worker = Some((jobs, worker)),
        }
        outcome.ok()
    }
}

fn start() -> Option<(SyncSender<Job>, JoinHandle<()>)> {
    let (jobs, waiting) = mpsc::sync_channel::<Job>(1);
    let work = move || waiting.into_iter().for_each(|job| job());
    let thread = thread::Builder::new().name("kpulse-read".into()).spawn(work);
    let thread = thread.inspect_err(|error| tracing::warn!(%error, "cannot start a thread")).ok()?;
    Some((jobs, thread))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_comes_back_holds_up_nobody_else() {
        let mut bounded = Bounded::default();
        assert_eq!(bounded.run(|| 7), Some(7));
        let (release, released) = mpsc::channel::<()>();
        let begun = Instant::now();
        assert_eq!(bounded.run(move || released.recv().is_ok()), None);
        assert!(begun.elapsed() >= DEADLINE);
        assert_eq!((bounded.run(|| 8), bounded.stuck.len()), (Some(8), 1));
        drop(release);
        bounded.stuck.pop().unwrap().join().unwrap();
        assert_eq!(bounded.run(|| 9), Some(9));
    }
}
