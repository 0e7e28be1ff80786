//! From the kernel's rings to the spool: one thread that drains, enriches, and counts.

use crate::enrich::Enrich;
use crate::naming::Naming;
use crate::tally::Tally;
use crate::watch::Queue;
use kpulse_exporter_ebpf::{EventStream, Fact, Loss};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for a record; also how soon a stop is noticed.
pub const WAIT: Duration = Duration::from_millis(100);
/// How often the kernel's own counts are read.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time for what is left in the rings at the end.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// The rings of all probes, as the ring thread sees them.
pub trait Ring: Send {
    /// Waits for a record; whether there is one.
    fn wait(&self, timeout: Duration) -> io::Result<bool>;
    /// Hands over a bounded number of decoded records.
    fn drain(&mut self, each: &mut dyn FnMut(Fact));
    /// Losses between the kernel and here, totals since the start.
    fn losses(&mut self) -> Vec<Loss>;
    /// Threshold crossings that the kernel counted, totals since the start.
    fn produced(&mut self) -> Vec<(&'static str, u64)>;
}

impl Ring for EventStream {
    fn wait(&self, timeout: Duration) -> io::Result<bool> {
        EventStream::wait(self, timeout)
    }

    fn drain(&mut self, each: &mut dyn FnMut(Fact)) {
        EventStream::drain(self, each);
    }

    fn losses(&mut self) -> Vec<Loss> {
        EventStream::losses(self)
    }

    fn produced(&mut self) -> Vec<(&'static str, u64)> {
        EventStream::produced(self)
    }
}

/// The rings of BPF, where there are any, and what the watches found.
pub struct Rings {
    bpf: Option<Box<dyn Ring>>,
    watched: Queue,
}

impl Rings {
    /// Both as one.
    pub fn new(bpf: Option<Box<dyn Ring>>, watched: Queue) -> Self {
        Self { bpf, watched }
    }
}

impl Ring for Rings {
    /// What a watch found waits for a record or the timeout, which is short.
    fn wait(&self, timeout: Duration) -> io::Result<bool> {
        self.bpf.as_ref().map_or_else(|| self.watched.wait(timeout), |bpf| bpf.wait(timeout))
    }

    fn drain(&mut self, each: &mut dyn FnMut(Fact)) {
        if let Some(bpf) = &mut self.bpf {
            bpf.drain(each);
        }
        self.watched.drain(each);
    }

    fn losses(&mut self) -> Vec<Loss> {
        let mut losses = self.bpf.as_mut().map_or_else(Vec::new, |bpf| bpf.losses());
        losses.extend(self.watched.losses());
        losses
    }

    fn produced(&mut self) -> Vec<(&'static str, u64)> {
        let mut produced = self.bpf.as_mut().map_or_else(Vec::new, |bpf| bpf.produced());
        produced.extend(self.watched.produced());
        produced
    }
}

/// Drains until `stop` is set, then until the rings are empty.
pub fn read(ring: &mut dyn Ring, enrich: &mut Enrich, naming: &Naming, tally: &Tally, stop: &AtomicBool) {
    let mut counted_at: Option<Instant> = None;
    while !stop.load(Ordering::Acquire) {
        if let Err(error) = ring.wait(WAIT) {
            tracing::error!(%error, "cannot wait for the rings; they are polled instead");
            std::thread::sleep(WAIT);
        }
        drain(ring, enrich, naming);
        naming.hurry();
        enrich.catch_up();
        if counted_at.is_none_or(|at| at.elapsed() >= COUNT_INTERVAL) {
            counted_at = Some(Instant::now());
            count(ring, enrich, tally);
        }
    }
    let deadline = Instant::now() + DRAIN_MAX;
    while drain(ring, enrich, naming) > 0 && Instant::now() < deadline {}
    count(ring, enrich, tally);
}

fn count(ring: &mut dyn Ring, enrich: &Enrich, tally: &Tally) {
    tally.in_kernel(&ring.produced(), &ring.losses());
    tally.update(|counts| counts.processes = enrich.process_counts());
}

/// One bounded round over all rings; how many records there were.
fn drain(ring: &mut dyn Ring, enrich: &mut Enrich, naming: &Naming) -> usize {
    let mut drained = 0;
    ring.drain(&mut |fact| {
        drained += 1;
        naming.push(enrich.draft(fact));
    });
    drained
}
