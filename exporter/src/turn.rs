//! Who reads now? Scrapes take turns, and a collector that hangs costs its own series only.
//!
//! The collectors share one [`Host`], so one of them runs at a time, on a thread beside the scrape. A scrape that hears
//! nothing for a while leaves the thread to its collector and goes on with a new `Host` on another; the collector is
//! skipped until it comes back. So as many threads can hang as there are collectors, and no more.

use crate::collectors::{Collect, Host};
use crate::privileges;
use kpulse_common::metric::Samples;
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::ProbeSet;
use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, SendError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// How long after its own end a scrape may still hold what the next one needs.
const GRACE: Duration = Duration::from_secs(1);
/// A scrape that hears nothing for this part of its time, or for [`PATIENCE_MAX`], goes on without the collector that
/// runs.
const PATIENCE_PART: u32 = 4;
const PATIENCE_MAX: Duration = Duration::from_secs(2);

/// How long a thread waits for the next scrape before it goes, with its stack: to make one costs as much as to read a few
/// collectors, and Prometheus asks once a minute or more often.
pub const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(90);

/// How one collector fared.
pub struct Reading {
    pub name: &'static str,
    pub found: Result<Samples, String>,
    pub took: Duration,
}

/// What one scrape brought.
#[derive(Default)]
pub struct Outcome {
    /// In the order in which they ended.
    pub readings: Vec<Reading>,
    /// What the probes and the shared host tell of themselves.
    pub about: Samples,
}

/// Totals of a host, which must not go back when another takes its place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostTotals {
    pub hits: u64,
    pub misses: u64,
    pub overflow: u64,
}

impl HostTotals {
    fn of(host: &Host) -> Self {
        let identities = &host.identities;
        Self { hits: identities.hits(), misses: identities.misses(), overflow: host.overflow() }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            overflow: self.overflow + other.overflow,
        }
    }
}

type Named = (&'static str, Option<Box<dyn Collect>>);

/// Everything that scrapes share.
pub struct Turns {
    paths: Paths,
    container_max: u32,
    state: Mutex<State>,
    /// Told when the host is back.
    free: Condvar,
}

struct State {
    /// Which host is the valid one; one that comes back with an older number is dropped.
    generation: u64,
    /// `None` while a scrape reads.
    host: Option<Host>,
    /// When the scrape that reads gives up.
    until: Instant,
    /// Each is `None` while it runs.
    collectors: Vec<Named>,
    /// `None` until they are loaded, and while a scrape reads them.
    probes: Option<ProbeSet>,
    probe_names: Vec<&'static str>,
    /// A thread that has nothing to read.
    idle: Option<(ThreadId, Sender<Reader>)>,
    /// Of the hosts that were given up, and of the one that is valid, when it last came back.
    before: HostTotals,
    current: HostTotals,
}

impl Turns {
    pub fn new(
        paths: &Paths,
        container_max: u32,
        collectors: Vec<(&'static str, Box<dyn Collect>)>,
    ) -> Arc<Self> {
        let state = State {
            generation: 0,
            host: Some(Host::new(paths, container_max)),
            until: Instant::now(),
            collectors: collectors.into_iter().map(|(name, collector)| (name, Some(collector))).collect(),
            probes: None,
            probe_names: Vec::new(),
            idle: None,
            before: HostTotals::default(),
            current: HostTotals::default(),
        };
        let paths = paths.clone();
        Arc::new(Self { paths, container_max, state: Mutex::new(state), free: Condvar::new() })
    }

    /// Takes in the probes once they are loaded.
    pub fn add_probes(&self, probes: ProbeSet) {
        let mut state = self.lock();
        state.probe_names = probes.collectors();
        state.probes = Some(probes);
    }

    /// Puts what a later attempt has loaded in the place of what had failed, as soon as no scrape reads the probes.
    pub fn adopt_probes(&self, later: ProbeSet) {
        let mut state = self.lock();
        loop {
            if let Some(probes) = &mut state.probes {
                probes.adopt(later);
                state.probe_names = probes.collectors();
                return;
            }
            state = self.free.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The totals of the shared host, over all that there were.
    pub fn totals(&self) -> HostTotals {
        let state = self.lock();
        state.before.plus(state.current)
    }

    /// Runs the collectors that are wanted. What is not there at the deadline is told as late.
    pub fn scrape(self: &Arc<Self>, wanted: impl Fn(&str) -> bool, deadline: Instant) -> Outcome {
        let start = Instant::now();
        let mut missing = self.names(wanted);
        let mut outcome = Outcome::default();
        let patience = (deadline.saturating_duration_since(start) / PATIENCE_PART).min(PATIENCE_MAX);
        let mut is_done = false;
        let queue: Queue = Arc::new(Mutex::new(missing.iter().copied().collect()));
        let (sender, receiver) = channel();
        let mut reader = self.take(deadline).map(|taken| self.start(taken, &queue, &sender));
        while let Some(Ok(generation)) = reader {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left.min(patience)) {
                Ok(Message::Reading(reading)) => {
                    missing.retain(|name| *name != reading.name);
                    outcome.readings.push(reading);
                }
                Ok(Message::Done(about)) => (outcome.about, is_done) = (about, true),
                Err(RecvTimeoutError::Timeout) if left > patience => {
                    if !lock(&queue).is_empty() {
                        reader = Some(self.start(self.replace(generation, deadline), &queue, &sender));
                    }
                    continue;
                }
                Err(_) => break,
            }
            if missing.is_empty() && is_done {
                break;
            }
        }
        lock(&queue).clear();
        let why = match reader {
            Some(Err(error)) => format!("cannot start a thread: {error}"),
            Some(Ok(_)) => "it was not done when the time of the scrape was over".to_owned(),
            None => "an earlier scrape was still running".to_owned(),
        };
        let late =
            missing.into_iter().map(|name| Reading { name, found: Err(why.clone()), took: start.elapsed() });
        outcome.readings.extend(late);
        outcome
    }

    fn names(&self, wanted: impl Fn(&str) -> bool) -> Vec<&'static str> {
        let state = self.lock();
        let host = state.collectors.iter().map(|(name, _)| *name);
        host.chain(state.probe_names.iter().copied()).filter(|name| wanted(name)).collect()
    }

    /// Waits for the host. One whose scrape is over and that did not come back is given up.
    fn take(&self, deadline: Instant) -> Option<(u64, Host)> {
        let mut state = self.lock();
        loop {
            if let Some(host) = state.host.take() {
                state.until = deadline;
                return Some((state.generation, host));
            }
            let now = Instant::now();
            let given_up = state.until + GRACE;
            if now >= given_up {
                return Some(self.renew(&mut state, deadline));
            }
            if now >= deadline {
                return None;
            }
            let wait = deadline.min(given_up) - now;
            state = self.free.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A new host for a scrape that goes on without the collector that holds the one of this generation.
    fn replace(&self, generation: u64, deadline: Instant) -> (u64, Host) {
        let mut state = self.lock();
        match state.host.take() {
            // It came back just now.
            Some(host) if state.generation == generation => (generation, host),
            _ => self.renew(&mut state, deadline),
        }
    }

    fn renew(&self, state: &mut State, deadline: Instant) -> (u64, Host) {
        state.generation += 1;
        state.until = deadline;
        state.before = state.before.plus(std::mem::take(&mut state.current));
        (state.generation, Host::new(&self.paths, self.container_max))
    }

    fn start(
        self: &Arc<Self>,
        (generation, host): (u64, Host),
        queue: &Queue,
        sender: &Sender<Message>,
    ) -> std::io::Result<u64> {
        let reader = Reader {
            turns: Arc::clone(self),
            generation,
            host: Some(host),
            probes: None,
            queue: Arc::clone(queue),
            sender: sender.clone(),
        };
        let idle = self.lock().idle.take();
        let reader = match idle {
            Some((_, idle)) => match idle.send(reader) {
                Ok(()) => return Ok(generation),
                // It has just gone.
                Err(SendError(reader)) => reader,
            },
            None => reader,
        };
        let thread = std::thread::Builder::new().name("scrape".to_owned());
        thread.spawn(move || read_in_turn(reader)).map(|_| generation)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind the locks is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Queue = Arc<Mutex<VecDeque<&'static str>>>;

enum Message {
    Reading(Reading),
    /// The queue is empty and the host is back.
    Done(Samples),
}

/// Reads, and waits for the next scrape; one thread does at a time.
fn read_in_turn(first: Reader) {
    // Who made it may have more, as the thread that loads the probes does; this one stays.
    if let Err(error) = privileges::keep_only(privileges::SCRAPE) {
        tracing::warn!(%error, "the capabilities that a scrape does not need are kept");
    }
    let (turns, own) = (Arc::downgrade(&first.turns), std::thread::current().id());
    let mut next = Some(first);
    while let Some(reader) = next {
        reader.run();
        let (sender, receiver) = channel();
        let Some(state) = Weak::upgrade(&turns) else { return };
        state.lock().idle = Some((own, sender));
        drop(state);
        next = receiver.recv_timeout(THREAD_KEEP_ALIVE).ok().or_else(|| {
            // A scrape that has taken the sender before this will use it.
            Weak::upgrade(&turns)?.lock().idle.take_if(|(idle, _)| *idle == own);
            receiver.recv().ok()
        });
    }
}

/// What one scrape reads, on a thread beside it. Dropping it gives back what it holds, whatever happened.
struct Reader {
    turns: Arc<Turns>,
    generation: u64,
    host: Option<Host>,
    probes: Option<ProbeSet>,
    queue: Queue,
    sender: Sender<Message>,
}

impl Reader {
    fn run(mut self) {
        loop {
            let Some(name) = lock(&self.queue).pop_front() else { break };
            let start = Instant::now();
            let found = self.read(name);
            // A scrape that is over listens no more.
            let _ = self.sender.send(Message::Reading(Reading { name, found, took: start.elapsed() }));
        }
        let mut about = Samples::default();
        if let Some(probes) = self.probes() {
            probes.self_metrics(&mut about);
        }
        self.give_back();
        let totals = self.turns.totals();
        crate::scrape::shared_metrics(totals, &mut about);
        let _ = self.sender.send(Message::Done(about));
    }

    fn read(&mut self, name: &'static str) -> Result<Samples, String> {
        const BUSY: &str = "it is still busy with an earlier scrape";
        let mut found = Samples::default();
        let taken = {
            let mut state = self.turns.lock();
            let entry = state.collectors.iter_mut().find(|(known, _)| *known == name);
            entry.map(|(_, collector)| collector.take())
        };
        match taken {
            Some(None) => return Err(BUSY.to_owned()),
            Some(Some(mut collector)) => {
                let host = self.host.as_mut().ok_or(BUSY)?;
                let outcome = collector.collect(host, &mut found);
                let mut state = self.turns.lock();
                if let Some((_, place)) = state.collectors.iter_mut().find(|(known, _)| *known == name) {
                    *place = Some(collector);
                }
                outcome.map_err(|error| format!("{error:#}"))?;
            }
            None => {
                self.probes().ok_or(BUSY)?;
                let (Some(probes), Some(host)) = (&mut self.probes, &mut self.host) else {
                    return Err(BUSY.to_owned());
                };
                probes.collect(name, &mut host.identities, &mut found).map_err(|error| error.to_string())?;
            }
        }
        Ok(found)
    }

    /// The probes, held from the first use to the end.
    fn probes(&mut self) -> Option<&mut ProbeSet> {
        if self.probes.is_none() {
            self.probes = self.turns.lock().probes.take();
        }
        self.probes.as_mut()
    }

    fn give_back(&mut self) {
        let mut state = self.turns.lock();
        if let Some(probes) = self.probes.take() {
            state.probes = Some(probes);
        }
        if let Some(host) = self.host.take().filter(|_| state.generation == self.generation) {
            state.current = HostTotals::of(&host);
            state.host = Some(host);
        }
        self.turns.free.notify_all();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests;
