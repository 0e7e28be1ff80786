//! From the thread of the watches to the thread of the rings: bounded, and every finding is counted.

use super::limit::Limit;
use super::{Finding, Watch};
use crate::ring::Ring;
use kpulse_common::clock::boot_ns;
use kpulse_exporter_ebpf::{Fact, Loss};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most findings that wait.
const WAITING_MAX: usize = 1_024;
/// Most of them that are handed over at once.
const DRAIN_MAX: usize = 256;

/// Both ends share it.
#[derive(Clone, Default)]
pub struct Queue(Arc<(Mutex<Inner>, Condvar)>);

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Fact>,
    counts: BTreeMap<&'static str, Counts>,
}

#[derive(Default)]
struct Counts {
    limit: Limit,
    produced: u64,
    suppressed: u64,
    ring_full: u64,
}

impl Queue {
    /// From now on this watch has counts, which begin at zero.
    pub fn open(&self, watch: &Watch) {
        self.lock().counts.entry(watch.kind.name).or_default();
    }

    /// Counts a finding, and keeps it if the rate limit lets it.
    pub fn push(&self, watch: &Watch, finding: Finding) {
        let name = watch.kind.name;
        let mut inner = self.lock();
        let is_full = inner.waiting.len() >= WAITING_MAX;
        let counts = inner.counts.entry(name).or_default();
        counts.produced += 1;
        let Some(suppressed) = counts.limit.pass(finding.cgroup, &finding.limit, boot_ns()) else {
            counts.suppressed += 1;
            return;
        };
        if is_full {
            counts.ring_full += 1;
            return;
        }
        inner.waiting.push_back(fact(name, finding, suppressed));
        self.0.1.notify_one();
    }

    /// What holds is whole after each change, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fact(name: &'static str, finding: Finding, suppressed: u64) -> Fact {
    Fact {
        probe: name,
        kind: name,
        boot_ns: finding.boot_ns,
        value_ns: None,
        threshold_ns: None,
        cpu: None,
        pid: 0,
        tid: 0,
        comm: String::new(),
        cgroup: finding.cgroup,
        suppressed,
        kernel_stack: Vec::new(),
        user_stack: None,
        body: finding.body,
    }
}

impl Ring for Queue {
    fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let inner = self.lock();
        let waited = self.0.1.wait_timeout_while(inner, timeout, |inner| inner.waiting.is_empty());
        Ok(!waited.unwrap_or_else(PoisonError::into_inner).0.waiting.is_empty())
    }

    fn drain(&mut self, each: &mut dyn FnMut(Fact)) {
        // The lock is not held while a finding gets its names.
        let taken: Vec<Fact> = {
            let mut inner = self.lock();
            let count = inner.waiting.len().min(DRAIN_MAX);
            inner.waiting.drain(..count).collect()
        };
        taken.into_iter().for_each(each);
    }

    fn losses(&mut self) -> Vec<Loss> {
        let losses =
            |(&probe, counts): (&&'static str, &Counts)| {
                [("suppressed", counts.suppressed), ("ring_full", counts.ring_full)]
                    .map(|(reason, count)| Loss { probe, reason, count })
            };
        self.lock().counts.iter().flat_map(losses).collect()
    }

    fn produced(&mut self) -> Vec<(&'static str, u64)> {
        self.lock().counts.iter().map(|(&probe, counts)| (probe, counts.produced)).collect()
    }
}
