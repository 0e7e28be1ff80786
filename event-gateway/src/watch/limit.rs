//! Which findings are told when there are too many? The token bucket that the kernel's programs have, for watches.

use kpulse_common::container::CgroupId;
use kpulse_common::thresholds::RateLimit;
use std::collections::HashMap;

/// Most cgroups with a bucket; beyond it all begin anew.
const CGROUPS_MAX: usize = 4_096;

/// A bucket for each cgroup.
#[derive(Debug, Default)]
pub struct Limit(HashMap<Option<CgroupId>, Bucket>);

#[derive(Debug, Default)]
struct Bucket {
    /// When it is full again, CLOCK_BOOTTIME.
    full_ns: u64,
    suppressed: u64,
}

impl Limit {
    /// How many were kept back since the last that was told; `None` when this one is kept back too.
    pub fn pass(&mut self, cgroup: Option<CgroupId>, limit: &RateLimit, now_ns: u64) -> Option<u64> {
        if self.0.len() >= CGROUPS_MAX && !self.0.contains_key(&cgroup) {
            self.0.clear();
        }
        let bucket = self.0.entry(cgroup).or_default();
        let interval_ns = 1_000_000_000 / u64::from(limit.events_per_second.max(1));
        let full_ns = bucket.full_ns.max(now_ns) + interval_ns;
        if full_ns - now_ns > interval_ns * u64::from(limit.burst.max(1)) {
            bucket.suppressed += 1;
            return None;
        }
        bucket.full_ns = full_ns;
        Some(std::mem::take(&mut bucket.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpulse_common::container::Hierarchy;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_flood_passes_at_its_rate_and_the_rest_is_counted() {
        let rate = RateLimit { events_per_second: 10, burst: 3 };
        let mut limit = Limit::default();
        let told = |limit: &mut Limit, now| (0..50).filter_map(|_| limit.pass(None, &rate, now)).count();
        assert_eq!(told(&mut limit, SECOND), 3, "the burst");
        assert_eq!(limit.pass(None, &rate, SECOND + SECOND / 10), Some(47));
        assert_eq!(limit.pass(None, &rate, SECOND + SECOND / 10), None);
        assert_eq!(told(&mut limit, 100 * SECOND), 3, "a quiet time fills the bucket and no more");
    }

    #[test]
    fn one_cgroup_does_not_silence_another() {
        let rate = RateLimit { events_per_second: 1, burst: 1 };
        let mut limit = Limit::default();
        for id in 0..2 * CGROUPS_MAX as u64 {
            let cgroup = Some(CgroupId { hierarchy: Hierarchy::Unified, id });
            assert_eq!(limit.pass(cgroup, &rate, SECOND), Some(0));
            assert_eq!(limit.pass(cgroup, &rate, SECOND), None);
            assert!(limit.0.len() <= CGROUPS_MAX);
        }
    }
}
