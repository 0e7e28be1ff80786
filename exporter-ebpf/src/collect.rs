//! Collectors of the common shape: a histogram for each cgroup, reported by container.

use crate::abi::histogram;
use crate::error::ProbeError;
use crate::maps::Table;
use crate::probe::Collector;
use kpulse_common::container::{CgroupId, Hierarchy, Identities};
use kpulse_common::metric::{HISTOGRAM_SLOTS, Histogram, MetricDef, Samples, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

const _: () =
    assert!(crate::abi::HISTOGRAM_SLOTS as usize == HISTOGRAM_SLOTS, "C and Rust count in the same slots");

/// Scrapes in a row that find a cgroup nowhere before its series is closed.
const SCRAPES_UNTIL_GONE: u8 = 3;
/// `container` label of what belongs to containers that could not be told apart.
const OTHER: &str = "~other";

/// Adds up histograms by cgroup into series by container: the host's own cgroups are one series with empty labels.
///
/// Counters stay monotone while cgroups come and go. A container's series ends with the container. What the host's
/// own cgroups and unknown ones had counted is kept when they go, since their series lives on.
pub struct ByContainer {
    hierarchy: Hierarchy,
    missing: BTreeMap<u64, u8>,
    /// Counts of cgroups that are gone but whose series lives on.
    retired: BTreeMap<Vec<Arc<str>>, Histogram>,
    /// Labels last seen for a cgroup, to know where its counts go once it is gone.
    last_labels: BTreeMap<u64, [Arc<str>; 4]>,
}

/// One entry of a map: cgroup, labels that the probe adds behind the container's, and the histogram.
pub struct Entry {
    /// Cgroup id; 0 for what found no room in the map.
    pub cgroup_id: u64,
    /// The probe's own label values.
    pub labels: Vec<Arc<str>>,
    /// What was counted.
    pub histogram: Histogram,
}

impl ByContainer {
    /// For cgroups of this hierarchy.
    pub fn new(hierarchy: Hierarchy) -> Self {
        Self { hierarchy, missing: BTreeMap::new(), retired: BTreeMap::new(), last_labels: BTreeMap::new() }
    }

    /// Adds the series to `out`, and returns the cgroups that are gone, whose entries the caller removes.
    pub fn report(
        &mut self,
        def: &MetricDef,
        entries: Vec<Entry>,
        identities: &mut Identities,
        out: &mut Samples,
    ) -> Vec<u64> {
        let mut series: BTreeMap<Vec<Arc<str>>, Histogram> = BTreeMap::new();
        let mut gone = Vec::new();
        for entry in entries {
            let (labels, is_gone) = self.place(entry.cgroup_id, identities);
            let Some(container) = labels else { continue };
            let is_container = !container[3].is_empty();
            let key: Vec<Arc<str>> = container.iter().cloned().chain(entry.labels).collect();
            if is_gone {
                gone.push(entry.cgroup_id);
                if !is_container {
                    self.retired.entry(key).or_default().add(&entry.histogram);
                }
            } else {
                series.entry(key).or_default().add(&entry.histogram);
            }
        }
        for (key, histogram) in &self.retired {
            series.entry(key.clone()).or_default().add(histogram);
        }
        // Key 0 is there before anything is counted in it.
        series.retain(|_, histogram| histogram.count() > 0);
        for (labels, histogram) in series {
            out.push(def, labels, Value::Histogram(Box::new(histogram)));
        }
        gone.sort_unstable();
        gone.dedup();
        for id in &gone {
            self.missing.remove(id);
            self.last_labels.remove(id);
        }
        gone
    }

    /// Labels of a cgroup, `None` while it is not known yet; and whether it is gone for good.
    fn place(&mut self, id: u64, identities: &mut Identities) -> (Option<[Arc<str>; 4]>, bool) {
        if id == 0 {
            return (Some(other()), false);
        }
        let cgroup = CgroupId { hierarchy: self.hierarchy, id };
        if identities.path(cgroup).is_some() {
            self.missing.remove(&id);
            let labels = identities.labels(cgroup);
            self.last_labels.insert(id, labels.clone());
            return (Some(labels), false);
        }
        let misses = self.missing.entry(id).or_default();
        *misses = misses.saturating_add(1);
        let is_gone = *misses >= SCRAPES_UNTIL_GONE;
        let labels = self.last_labels.get(&id).cloned();
        (labels.or_else(|| is_gone.then(other)), is_gone)
    }
}

fn other() -> [Arc<str>; 4] {
    ["".into(), "".into(), OTHER.into(), "".into()]
}

/// The collector of a probe with one map from cgroup id to histogram.
pub struct HistogramByContainer {
    def: &'static MetricDef,
    table: Table<u64, histogram>,
    containers: ByContainer,
}

impl HistogramByContainer {
    /// Reports `table` as the family `def`. Key 0 is made here, for what finds no room later.
    pub fn new(
        def: &'static MetricDef,
        table: Table<u64, histogram>,
        hierarchy: Hierarchy,
    ) -> Result<Self, ProbeError> {
        table.set(&0, &histogram::default())?;
        Ok(Self { def, table, containers: ByContainer::new(hierarchy) })
    }
}

impl Collector for HistogramByContainer {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let entries = self.table.entries()?.into_iter().map(|(cgroup_id, histogram)| Entry {
            cgroup_id,
            labels: Vec::new(),
            histogram: histogram.into(),
        });
        let gone = self.containers.report(self.def, entries.collect(), identities, out);
        gone.iter().try_for_each(|id| self.table.remove(id))
    }
}

impl From<histogram> for Histogram {
    fn from(raw: histogram) -> Self {
        Self { slots: raw.slots, sum_ns: raw.sum_ns }
    }
}
