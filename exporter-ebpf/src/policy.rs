//! From which values and how often events are told: for the machine, and for cgroups that have rules of their own.
//! Changing them touches maps only, so that what is attached goes on.

use crate::abi::{self, event_policy};
use crate::attached;
use crate::error::ProbeError;
use crate::loader::{Loaded, ProbeSet};
use crate::maps::{Maps, Table};
use crate::probe::{Probe, Rule};
use kpulse_common::container::Hierarchy;
use kpulse_common::thresholds::Thresholds;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

/// Cgroups that can have rules of their own, in each hierarchy.
pub const CGROUPS_MAX: usize = abi::POLICY_CGROUPS as usize;
/// A threshold that no value reaches.
const NEVER: u64 = u64::MAX;

/// The rules of all active probes that have events. It keeps its own descriptors.
pub struct Policies {
    probes: Vec<ProbePolicy>,
}

struct ProbePolicy {
    probe: &'static Probe,
    hierarchy: Hierarchy,
    machine: Table<u32, event_policy>,
    cgroups: Table<u64, event_policy>,
    rule: Option<Rule>,
    /// Cgroups whose rule is in the map.
    own: BTreeSet<u64>,
}

impl ProbeSet {
    /// Where the rules of the active probes can be changed.
    pub fn policies(&self) -> Result<Policies, ProbeError> {
        let told = self.loaded.iter().filter(|loaded| !loaded.probe.events.is_empty());
        let probes: Result<Vec<_>, _> = told.filter_map(ProbePolicy::of).collect();
        Ok(Policies { probes: probes? })
    }
}

impl Policies {
    /// The hierarchies whose cgroups the probes can tell apart.
    pub fn hierarchies(&self) -> HashSet<Hierarchy> {
        self.probes.iter().map(|probe| probe.hierarchy).collect()
    }

    /// Puts the machine's rules and those of cgroups in force, and takes back those of cgroups that are not named.
    pub fn apply(
        &mut self,
        machine: &Thresholds,
        own: &HashMap<Hierarchy, BTreeMap<u64, Thresholds>>,
    ) -> Result<(), ProbeError> {
        let nobody = BTreeMap::new();
        self.probes
            .iter_mut()
            .try_for_each(|probe| probe.apply(machine, own.get(&probe.hierarchy).unwrap_or(&nobody)))
    }
}

impl ProbePolicy {
    fn of(loaded: &Loaded) -> Option<Result<Self, ProbeError>> {
        let attached = attached::lock(loaded.attached.as_ref()?);
        let maps = Maps(&attached.ebpf);
        let open = || {
            Ok(Self {
                probe: loaded.probe,
                hierarchy: loaded.hierarchy,
                machine: maps.table("policy")?,
                cgroups: maps.table("cgroup_policy")?,
                rule: loaded.probe.rule.map(|make| make(&maps)).transpose()?,
                own: BTreeSet::new(),
            })
        };
        Some(open())
    }

    fn apply(&mut self, machine: &Thresholds, own: &BTreeMap<u64, Thresholds>) -> Result<(), ProbeError> {
        if let Some(put) = &mut self.rule {
            put(machine)?;
        }
        let own: BTreeMap<u64, event_policy> =
            own.iter().map(|(id, thresholds)| (*id, rule(self.probe, thresholds))).collect();
        for gone in self.own.iter().filter(|id| !own.contains_key(id)) {
            self.cgroups.remove(gone)?;
        }
        self.own.retain(|id| own.contains_key(id));
        let machine = rule(self.probe, machine);
        let least = own.values().fold(machine, |least, rule| lower(&least, rule));
        // The least first where it falls, so that no hook misses a value that a rule already wants.
        let before = self.machine.get(&abi::POLICY_LEAST)?.unwrap_or(least);
        self.machine.set(&abi::POLICY_LEAST, &lower(&before, &least))?;
        self.machine.set(&abi::POLICY_MACHINE, &machine)?;
        for (id, rule) in &own {
            self.cgroups.set(id, rule)?;
            self.own.insert(*id);
        }
        self.machine.set(&abi::POLICY_LEAST, &least)
    }
}

/// Sets the machine's rules of an object that is not attached yet.
pub(crate) fn prepare(probe: &Probe, maps: &Maps, thresholds: &Thresholds) -> Result<(), ProbeError> {
    if let Some(make) = probe.rule {
        make(maps)?(thresholds)?;
    }
    let table: Table<u32, event_policy> = maps.table("policy")?;
    let rule = rule(probe, thresholds);
    [abi::POLICY_MACHINE, abi::POLICY_LEAST].iter().try_for_each(|entry| table.set(entry, &rule))
}

fn rule(probe: &Probe, thresholds: &Thresholds) -> event_policy {
    let limit = &thresholds.rate_limit;
    let interval_ns = 1_000_000_000 / u64::from(limit.events_per_second.max(1));
    let mut rule = event_policy {
        threshold_ns: [NEVER; abi::POLICY_THRESHOLDS as usize],
        rate_interval_ns: interval_ns,
        rate_burst_ns: interval_ns * u64::from(limit.burst.max(1)),
    };
    for (place, value) in rule.threshold_ns.iter_mut().zip((probe.thresholds)(thresholds)) {
        *place = nanoseconds(value);
    }
    rule
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(NEVER)
}

fn lower(one: &event_policy, other: &event_policy) -> event_policy {
    let mut least = *one;
    for (least, other) in least.threshold_ns.iter_mut().zip(other.threshold_ns) {
        *least = other.min(*least);
    }
    least
}
