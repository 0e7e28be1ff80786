//! Where did every event go?
//!
//! What a probe produced in the kernel = stored + waiting + each kind of loss. The kernel's own counts are totals
//! that the ring thread reads; the rest is counted here, where it happens.

use crate::enrich::ProcessCounts;
use crate::spool::losses;
use kpulse_common::metric::{FIRST_EXPONENT, HISTOGRAM_BOUNDS, Histogram};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The spool was full and the event was the oldest.
pub const QUEUE_FULL: &str = "queue_full";
/// The sink will never take it.
pub const SINK_REFUSED: &str = "sink_refused";
/// The sink did not take it before the process had to end.
pub const SHUTDOWN: &str = "shutdown";

/// Counts of one probe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeTally {
    /// Threshold crossings counted in the kernel; `None` until first read.
    pub produced: Option<u64>,
    /// Events the sink acknowledged.
    pub stored: u64,
    /// Losses before the record reached this process, by reason.
    pub lost_in_kernel: BTreeMap<&'static str, u64>,
    /// Losses in this process, by reason.
    pub lost_here: BTreeMap<&'static str, u64>,
}

/// A moment's view of all counts.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// By probe.
    pub probes: BTreeMap<&'static str, ProbeTally>,
    /// From the kernel's stamp to the sink's acknowledgement.
    pub delay: Histogram,
    /// Batches that the sink could not take and that were tried again.
    pub retries: u64,
    /// Events that retention removed from the store, by reason.
    pub expired: BTreeMap<&'static str, u64>,
    /// Bytes the sink holds, where it can tell.
    pub sink_bytes: Option<u64>,
    /// Why the sink does not take events at present.
    pub sink_error: Option<String>,
    /// Taken from the spool and not yet acknowledged.
    pub in_flight: u64,
    /// Waiting for the names of their user stacks.
    pub in_naming: u64,
    /// Frames of user stacks without a function's name, by reason.
    pub frames_unnamed: BTreeMap<&'static str, u64>,
    /// What became of the records of processes; `None` when there are none here.
    pub processes: Option<ProcessCounts>,
}

/// The counts, shared by the threads of the pipeline.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Counts>);

impl Tally {
    /// A copy of all counts.
    pub fn counts(&self) -> Counts {
        self.lock().clone()
    }

    /// Changes several counts at once.
    pub fn update<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        change(&mut self.lock())
    }

    /// Sets what the kernel counted.
    pub fn in_kernel(&self, produced: &[(&'static str, u64)], losses: &[kpulse_exporter_ebpf::Loss]) {
        self.update(|counts| {
            for &(probe, count) in produced {
                counts.probes.entry(probe).or_default().produced = Some(count);
            }
            for loss in losses {
                counts.probes.entry(loss.probe).or_default().lost_in_kernel.insert(loss.reason, loss.count);
            }
        });
    }

    /// Counts events lost in this process.
    pub fn lost<'a>(
        &self,
        reason: &'static str,
        documents: impl IntoIterator<Item = &'a crate::spool::Document>,
    ) {
        let mut lost = 0;
        self.update(|counts| {
            for document in documents {
                *counts.probes.entry(document.probe).or_default().lost_here.entry(reason).or_default() += 1;
                lost += 1;
            }
        });
        losses::note(reason, lost);
    }

    /// Each update leaves the counts usable, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one duration.
pub fn observe(histogram: &mut Histogram, duration_ns: u64) {
    // In units of the first bound, rounded up; what is too long for it is beyond the last one too.
    let units = duration_ns.saturating_mul(1 << -FIRST_EXPONENT).div_ceil(1_000_000_000);
    let slot = units.next_power_of_two().ilog2() as usize;
    histogram.slots[slot.min(HISTOGRAM_BOUNDS)] += 1;
    histogram.sum_ns = histogram.sum_ns.wrapping_add(duration_ns);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_slot_that_holds_it() {
        let mut histogram = Histogram::default();
        let second = 1_000_000_000;
        for duration in [0, second, second + 1, 40 * second] {
            observe(&mut histogram, duration);
        }
        let filled: Vec<_> = (0..histogram.slots.len()).filter(|&slot| histogram.slots[slot] > 0).collect();
        assert_eq!(filled, [0, 20, 21, HISTOGRAM_BOUNDS]);
        assert_eq!(histogram.sum_ns, 42 * second + 1);
    }
}
