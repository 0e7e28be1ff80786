//! Do the probes cost more than they may? The costliest of those that matter least go first, until the rest fits, and
//! come back after a while. Who could stay beside the rest stays: what is gained by a cheap one is little, and what it
//! tells is missing all the same.
//!
//! A probe is detached rather than sampled: a counter of which parts of the time are missing tells nothing, while a
//! series that is absent says so itself.

use crate::loader::{ProbeState, ProbeStatus};
use crate::probe::Priority;
use kpulse_common::governor::Governor as Bounds;
use kpulse_common::metric::{MetricDef, Samples};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Windows in a row over the budget before anything is done: one may have met a burst.
const WINDOWS: u32 = 2;
/// Part of the budget that what stays may take: a load that is held up less does more.
const AIM: f64 = 0.8;
/// A probe that has to go again soon after it is back stays away for twice as long, up to so many times the first pause.
/// After as long without another one it begins anew.
const PAUSES_MAX: u32 = 12;

const BUDGET: MetricDef = MetricDef::gauge(
    "kpulse_governor_budget_ratio",
    "Part of the machine's CPU time that the probes' programs may take together.",
    &[],
);
const USED: MetricDef = MetricDef::gauge(
    "kpulse_governor_used_ratio",
    "Part of the machine's CPU time that the probes' programs took in the last second that was counted.",
    &[],
);

/// The families of this module.
pub(crate) const METRICS: [MetricDef; 2] = [BUDGET, USED];

/// What a probe took in a window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) probe: &'static str,
    pub(crate) priority: Priority,
    /// Part of the machine's CPU time.
    pub(crate) part: f64,
}

/// Decides; who asks it detaches and attaches.
pub(crate) struct Governor {
    bounds: Bounds,
    /// Windows in a row over the budget.
    over: u32,
    used: Option<f64>,
    paused: BTreeMap<&'static str, Pause>,
    /// Since when those that were paused once are back, and how long they had to wait.
    back: BTreeMap<&'static str, Pause>,
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    since: Instant,
    length: Duration,
}

impl Governor {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        Self { bounds: bounds.clone(), over: 0, used: None, paused: BTreeMap::new(), back: BTreeMap::new() }
    }

    /// Whether the last window was over the budget, so that the next one should not wait.
    pub(crate) fn is_pressed(&self) -> bool {
        self.over > 0
    }

    /// Takes in what a window has found, and gives back the probes that are to be detached, with the reason.
    pub(crate) fn judge(&mut self, mut costs: Vec<Cost>, now: Instant) -> Vec<(&'static str, Excess)> {
        let used = costs.iter().map(|cost| cost.part).sum();
        self.used = Some(used);
        let budget = self.bounds.budget;
        if budget <= 0.0 || used <= budget {
            self.over = 0;
            return Vec::new();
        }
        self.over += 1;
        if self.over < WINDOWS {
            return Vec::new();
        }
        self.over = 0;
        costs.retain(|cost| cost.priority != Priority::Essential && cost.part > 0.0);
        costs.sort_by(|one, other| one.priority.cmp(&other.priority).then(other.part.total_cmp(&one.part)));
        let (mut left, aim): (f64, f64) = (used, budget * AIM);
        let enough = costs.iter().position(|cost| {
            left -= cost.part;
            left <= aim
        });
        costs.truncate(enough.map_or(costs.len(), |last| last + 1));
        // A dear one that had to go at last may leave room for those before it.
        let mut paused: Vec<Cost> = Vec::new();
        for cost in costs.into_iter().rev() {
            if left + cost.part <= aim {
                left += cost.part;
            } else {
                paused.push(cost);
            }
        }
        paused.iter().map(|cost| (cost.probe, self.pause(*cost, used, now))).collect()
    }

    fn pause(&mut self, cost: Cost, used: f64, now: Instant) -> Excess {
        let longest = self.bounds.pause * PAUSES_MAX;
        let before = self.back.remove(cost.probe).filter(|back| now.duration_since(back.since) < longest);
        let length = before.map_or(self.bounds.pause, |before| (before.length * 2).min(longest));
        self.paused.insert(cost.probe, Pause { since: now, length });
        Excess { used, own: cost.part, budget: self.bounds.budget, pause: length }
    }

    /// The probes whose pause is over.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<&'static str> {
        let is_over = |pause: &Pause| now.duration_since(pause.since) >= pause.length;
        let due: Vec<_> = self.paused.iter().filter(|(_, it)| is_over(it)).map(|(probe, _)| *probe).collect();
        for probe in &due {
            if let Some(pause) = self.paused.remove(probe) {
                self.back.insert(probe, Pause { since: now, ..pause });
            }
        }
        due
    }

    /// How long until the next pause is over.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Duration> {
        let left = |pause: &Pause| pause.length.saturating_sub(now.duration_since(pause.since));
        self.paused.values().map(left).min()
    }

    /// A probe that could not be attached again waits once more.
    pub(crate) fn put_off(&mut self, probe: &'static str, now: Instant) {
        let length = self.back.remove(probe).map_or(self.bounds.pause, |pause| pause.length);
        self.paused.insert(probe, Pause { since: now, length });
    }

    /// The budget, and what was used of it as soon as that is known.
    pub(crate) fn tell(&self, out: &mut Samples) {
        out.number(&BUDGET, &[], self.bounds.budget);
        if let Some(used) = self.used {
            out.number(&USED, &[], used);
        }
    }
}

/// Why a probe is detached: parts of the machine's CPU time.
#[derive(Debug, Clone, PartialEq)]
pub struct Excess {
    /// What all probes took.
    pub used: f64,
    /// What this one took of it.
    pub own: f64,
    /// What all may take.
    pub budget: f64,
    /// For how long the probe stays away.
    pub pause: Duration,
}

impl Excess {
    /// What it is called in metrics and events.
    pub const REASON: &str = "over_budget";
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { used, own, budget, pause } = self;
        let [used, own, budget] = [used, own, budget].map(|part| part * 100.0);
        write!(
            f,
            "detached for {pause:?}: the probes took {used:.2} % of the machine, of which this one {own:.2} %, and may \
             take {budget:.2} % (governor.budget)"
        )
    }
}

/// Which probes are detached at the moment, and why.
#[derive(Debug, Clone, Default)]
pub struct Pauses(Arc<Mutex<BTreeMap<&'static str, Excess>>>);

impl Pauses {
    /// Those of this moment.
    pub fn now(&self) -> BTreeMap<&'static str, Excess> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Excess>> {
        // One insertion or removal each: whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self, probe: &'static str, why: Excess) {
        self.lock().insert(probe, why);
    }

    pub(crate) fn end(&self, probe: &str) {
        self.lock().remove(probe);
    }

    pub(crate) fn has(&self, probe: &str) -> bool {
        self.lock().contains_key(probe)
    }

    /// What is told of probes that were active when they were loaded.
    pub fn apply(&self, status: &mut [ProbeStatus]) {
        let pauses = self.lock();
        for probe in status {
            if let Some(why) = pauses.get(probe.name) {
                probe.state = ProbeState::Paused { why: why.to_string() };
                probe.hooks.clear();
            }
        }
    }
}

#[cfg(test)]
#[path = "governor_tests.rs"]
mod tests;
