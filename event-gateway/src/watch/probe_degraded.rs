//! Which probes of this process are detached since they cost more than they may? Whoever reads events and no metrics sees
//! between which moments a kind could not be told.

use super::{Finding, Watch, Watcher};
use crate::policies::Rules;
use crate::schema::Kind;
use anyhow::Result;
use kpulse_common::event::schema_of;
use kpulse_exporter_ebpf::{Excess, Pauses};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time between two looks; no pause is shorter.
const INTERVAL: Duration = Duration::from_secs(1);

pub const WATCH: Watch = Watch {
    kind: Kind {
        name: "probe_degraded",
        help: "A probe was detached for a while, since all together cost more than they may, or is back.",
        body: schema_of::<Body>,
    },
    hook: "governor",
    hook_kind: "gateway",
    make: |_, pauses| {
        Ok(Box::new(ProbeDegraded { pauses: pauses.clone(), told: BTreeMap::new(), next: Instant::now() }))
    },
};

/// Fields of the event beyond the common ones.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct Body {
    /// Name of the probe.
    probe: &'static str,
    /// `detached`: it tells nothing; `active`: it tells again.
    state: &'static str,
    /// Why, as `kpulse_probe_degraded` has it: `over_budget`.
    reason: &'static str,
    /// Part of the machine's CPU time that all probes took before it was detached.
    used_ratio: f64,
    /// Part of the machine's CPU time that this probe took then.
    own_ratio: f64,
    /// Part of the machine's CPU time that all probes may take, `governor.budget`.
    budget_ratio: f64,
    /// For how long it is away, or was.
    pause_ns: u64,
}

impl Body {
    fn new(probe: &'static str, state: &'static str, why: &Excess) -> Self {
        Self {
            probe,
            state,
            reason: Excess::REASON,
            used_ratio: why.used,
            own_ratio: why.own,
            budget_ratio: why.budget,
            pause_ns: u64::try_from(why.pause.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

struct ProbeDegraded {
    pauses: Pauses,
    /// Those that are known to be away. Bound: the probes.
    told: BTreeMap<&'static str, Excess>,
    next: Instant,
}

impl ProbeDegraded {
    /// What changed since it was told last.
    fn untold(&mut self, now: BTreeMap<&'static str, Excess>) -> Vec<Body> {
        let is_back = |probe: &&'static str| !now.contains_key(probe);
        let back = self.told.iter().filter(|(probe, _)| is_back(probe));
        let mut bodies: Vec<Body> = back.map(|(probe, why)| Body::new(probe, "active", why)).collect();
        let gone = now.iter().filter(|(probe, why)| self.told.get(*probe) != Some(*why));
        bodies.extend(gone.map(|(probe, why)| Body::new(probe, "detached", why)));
        self.told = now;
        bodies
    }
}

impl Watcher for ProbeDegraded {
    fn next(&self) -> Instant {
        self.next
    }

    fn look(&mut self, rules: &Rules, now: Instant, tell: &mut dyn FnMut(Finding)) -> Result<()> {
        self.next = now + INTERVAL;
        for body in self.untold(self.pauses.now()) {
            tell(Finding::new(&rules.machine.rate_limit, &body)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_and_what_comes_back_is_told_once_each() {
        let why = |own| Excess { used: 0.025, own, budget: 0.01, pause: Duration::from_secs(300) };
        let pauses = Pauses::default();
        let mut watch = ProbeDegraded { pauses, told: BTreeMap::new(), next: Instant::now() };
        assert_eq!(watch.untold(BTreeMap::new()), []);
        let told = watch.untold([("block_io", why(0.0125))].into());
        let expected: serde_json::Value =
            serde_json::from_str(include_str!("fixtures/probe_degraded.json")).unwrap();
        assert_eq!(serde_json::to_value(&told).unwrap(), serde_json::json!([expected]));
        assert_eq!(watch.untold([("block_io", why(0.0125))].into()), []);
        let told = watch.untold([("softirq", why(0.003))].into());
        let of = |probe, state, own| Body::new(probe, state, &why(own));
        assert_eq!(told, [of("block_io", "active", 0.0125), of("softirq", "detached", 0.003)]);
        // Away again before anyone looked.
        assert_eq!(watch.untold([("softirq", why(0.004))].into()), [of("softirq", "detached", 0.004)]);
    }
}
