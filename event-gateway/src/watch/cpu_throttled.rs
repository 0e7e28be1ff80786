//! Which containers does their CPU quota stop most of the time? `cpu.stat` of each container with a quota.
//!
//! Whoever is stopped runs again with the next period: latency that no profile shows, on a machine with idle CPUs.

use super::{Finding, Watch, Watcher};
use crate::policies::Rules;
use crate::schema::Kind;
use anyhow::{Context, Result};
use kpulse_common::container::{ContainerCgroup, Hierarchy, Identities};
use kpulse_common::event::schema_of;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// A container that ran in fewer periods than make up this share of the window is left alone: one stop in one period is
/// all of them.
const BUSY_SHARE: u32 = 10;

pub const WATCH: Watch = Watch {
    kind: Kind {
        name: "cpu_throttled",
        help: "A container's CPU quota stopped it in many of the periods in which it ran.",
        body: schema_of::<Body>,
    },
    hook: "cpu.stat",
    hook_kind: "file",
    make: |config, _| Ok(Box::new(CpuThrottled::new(Identities::new(&config.path))?)),
};

/// Fields of the event beyond the common ones.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct Body {
    /// CPU time that the quota allows in each period; absent when it was lifted meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    quota_ns: Option<u64>,
    /// Length of a period; absent when the container is gone meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    period_ns: Option<u64>,
    /// Over how long the rest was counted.
    window_ns: u64,
    /// Periods in which the container ran.
    periods: u64,
    /// Periods of them in which the quota stopped it.
    throttled_periods: u64,
    /// How long it was stopped, added up over CPUs.
    throttled_ns: u64,
}

struct CpuThrottled {
    identities: Identities,
    hierarchy: Hierarchy,
    /// By cgroup, of containers that are alive.
    known: HashMap<u64, Known>,
    next: Instant,
}

/// When a container was read, and what was counted by then.
struct Known {
    at: Instant,
    stat: Stat,
}

impl CpuThrottled {
    fn new(identities: Identities) -> Result<Self> {
        let hierarchy = identities.hierarchies().of("cpu");
        identities
            .hierarchies()
            .mount(hierarchy)
            .context("no cgroup hierarchy with CPU quotas is mounted")?;
        Ok(Self { identities, hierarchy, known: HashMap::new(), next: Instant::now() })
    }

    fn container(
        &mut self,
        folder: &Path,
        container: &ContainerCgroup,
        rules: &Rules,
        now: Instant,
    ) -> Result<Option<Finding>> {
        let thresholds = rules.of_container(container);
        let (threshold, id) = (&thresholds.cpu_throttled, container.cgroup.id);
        // Looks come a little early or late.
        let known = self.known.get(&id);
        if known.is_some_and(|known| {
            now.duration_since(known.at) + tolerance(threshold.window) < threshold.window
        }) {
            return Ok(None);
        }
        // A container that ended meanwhile is as one without a quota, and so is one on a kernel without quotas.
        let Some(stat) = Stat::read(folder) else {
            self.known.remove(&id);
            return Ok(None);
        };
        let Some(before) = self.known.insert(id, Known { at: now, stat }) else { return Ok(None) };
        let (window, counted) = (now.duration_since(before.at), stat.since(&before.stat));
        if !counted.is_beyond(threshold.min_share) {
            return Ok(None);
        }
        let (quota_ns, period_ns) = quota(folder);
        let window_ns = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        let Stat { periods, throttled_periods, throttled_ns } = counted;
        if periods.saturating_mul(period_ns.unwrap_or(u64::MAX)) < window_ns / u64::from(BUSY_SHARE) {
            return Ok(None);
        }
        let body = Body { quota_ns, period_ns, window_ns, periods, throttled_periods, throttled_ns };
        let finding = Finding::new(&thresholds.rate_limit, &body)?;
        Ok(Some(Finding { cgroup: Some(container.cgroup), ..finding }))
    }
}

fn tolerance(window: Duration) -> Duration {
    window / 10
}

impl Watcher for CpuThrottled {
    fn next(&self) -> Instant {
        self.next
    }

    fn look(&mut self, rules: &Rules, now: Instant, tell: &mut dyn FnMut(Finding)) -> Result<()> {
        let shortest = rules.all().map(|thresholds| thresholds.cpu_throttled.window).min();
        self.next = now + shortest.unwrap_or_default();
        let containers = self.identities.alive(self.hierarchy);
        self.known.retain(|id, _| containers.iter().any(|container| container.cgroup.id == *id));
        let mount = self.identities.hierarchies().mount(self.hierarchy).map(Path::to_owned);
        let mount = mount.context("the cgroup hierarchy with CPU quotas is no longer mounted")?;
        for container in containers.iter() {
            let folder = mount.join(container.path.trim_start_matches('/'));
            self.container(&folder, container, rules, now)?.into_iter().for_each(&mut *tell);
        }
        Ok(())
    }
}

/// What the kernel has counted of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    periods: u64,
    throttled_periods: u64,
    throttled_ns: u64,
}

impl Stat {
    fn read(folder: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(folder.join("cpu.stat")).ok()?)
    }

    /// `None` where no quota was ever set: v2 has the lines only where the controller is on.
    fn parse(text: &str) -> Option<Self> {
        let number = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            line?.trim_ascii().parse::<u64>().ok()
        };
        Some(Self {
            periods: number("nr_periods")?,
            throttled_periods: number("nr_throttled")?,
            // v2 counts in microseconds, v1 in nanoseconds.
            throttled_ns: number("throttled_usec")
                .map(|us| us.saturating_mul(1_000))
                .or_else(|| number("throttled_time"))?,
        })
    }

    /// What came since; a counter that went back has begun anew.
    fn since(&self, before: &Self) -> Self {
        let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            periods: since(self.periods, before.periods),
            throttled_periods: since(self.throttled_periods, before.throttled_periods),
            throttled_ns: since(self.throttled_ns, before.throttled_ns),
        }
    }

    fn is_beyond(&self, min_share: f64) -> bool {
        self.periods > 0 && self.throttled_periods as f64 >= min_share * self.periods as f64
    }
}

/// Quota and period in nanoseconds: of `cpu.max`, or of two files in v1.
fn quota(folder: &Path) -> (Option<u64>, Option<u64>) {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let words = read("cpu.max").unwrap_or_else(|| {
        let [quota, period] =
            ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map(|name| read(name).unwrap_or_default());
        format!("{} {}", quota.trim_ascii(), period.trim_ascii())
    });
    // "max" and -1 are no quota.
    let mut numbers = words.split(' ').map(|word| word.trim_ascii().parse::<u64>().ok()?.checked_mul(1_000));
    (numbers.next().flatten(), numbers.next().flatten())
}

#[cfg(test)]
#[path = "cpu_throttled_tests.rs"]
mod tests;
