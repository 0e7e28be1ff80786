//! Collectors of the common shape: a histogram or a count for each cgroup, reported by container.

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

/// What is counted for each cgroup and can be added up.
pub trait Total: Default {
    /// Adds another count to this one.
    fn add(&mut self, other: &Self);
    /// Whether nothing was counted.
    fn is_zero(&self) -> bool;
    /// As the value of a series.
    fn into_value(self) -> Value;
}

impl Total for Histogram {
    fn add(&mut self, other: &Self) {
        Histogram::add(self, other);
    }

    fn is_zero(&self) -> bool {
        self.count() == 0
    }

    fn into_value(self) -> Value {
        Value::Histogram(Box::new(self))
    }
}

impl Total for u64 {
    fn add(&mut self, other: &Self) {
        *self = self.wrapping_add(*other);
    }

    fn is_zero(&self) -> bool {
        *self == 0
    }

    fn into_value(self) -> Value {
        Value::Count(self)
    }
}

/// Adds up counts by cgroup into series by container: the host's own cgroups are one series with empty labels.
///
/// Counters stay monotone while cgroups come and go. A container's series ends with the container. What the host's
/// own cgroups and unknown ones had counted is kept when they go, since their series lives on.
pub struct ByContainer<T> {
    hierarchy: Hierarchy,
    /// Scrapes in a row that did not find a cgroup. Bound: the capacity of the map, as for the next two.
    missing: BTreeMap<u64, u8>,
    /// Counts of cgroups that are gone but whose series lives on.
    retired: BTreeMap<Vec<Arc<str>>, T>,
    /// Labels last seen for a cgroup, to know where its counts go once it is gone.
    last_labels: BTreeMap<u64, [Arc<str>; 4]>,
}

/// One entry of a map.
pub struct Entry<T> {
    /// Cgroup id; 0 for what found no room in the map.
    pub cgroup_id: u64,
    /// The probe's own label values, behind the container's.
    pub labels: Vec<Arc<str>>,
    /// What was counted.
    pub total: T,
}

/// Where the counts of a cgroup belong.
enum Place {
    /// In the series of these labels.
    Series([Arc<str>; 4]),
    /// The cgroup is gone, and was of these labels.
    Gone([Arc<str>; 4]),
    /// Not known yet: left out of this scrape.
    Unknown,
}

impl<T: Total> ByContainer<T> {
    /// For cgroups of this hierarchy.
    pub fn new(hierarchy: Hierarchy) -> Self {
        Self { hierarchy, missing: BTreeMap::new(), retired: BTreeMap::new(), last_labels: BTreeMap::new() }
    }

    /// Adds the series to `out`, and returns the cgroups that are gone, whose entries the caller removes.
    pub fn report(
        &mut self,
        def: &MetricDef,
        entries: Vec<Entry<T>>,
        identities: &mut Identities,
        out: &mut Samples,
    ) -> Vec<u64> {
        let mut places: BTreeMap<u64, Place> = BTreeMap::new();
        let mut series: BTreeMap<Vec<Arc<str>>, T> = BTreeMap::new();
        for entry in entries {
            let id = entry.cgroup_id;
            let place = places.entry(id).or_insert_with(|| self.place(id, identities));
            let (container, is_gone) = match place {
                Place::Series(labels) => (labels, false),
                Place::Gone(labels) => (labels, true),
                Place::Unknown => continue,
            };
            let is_container = !container[3].is_empty();
            let key = container.iter().cloned().chain(entry.labels).collect();
            if !is_gone {
                series.entry(key).or_default().add(&entry.total);
            } else if !is_container {
                self.retired.entry(key).or_default().add(&entry.total);
            }
        }
        for (key, total) in &self.retired {
            series.entry(key.clone()).or_default().add(total);
        }
        for (labels, total) in series {
            // Entries that hold what finds no room are there before anything is counted in them.
            if !total.is_zero() {
                out.push(def, labels, total.into_value());
            }
        }
        let gone = places.into_iter().filter(|(_, place)| matches!(place, Place::Gone(_))).map(|(id, _)| id);
        gone.inspect(|id| self.forget(*id)).collect()
    }

    fn place(&mut self, id: u64, identities: &mut Identities) -> Place {
        if id == 0 {
            return Place::Series(other());
        }
        let cgroup = CgroupId { hierarchy: self.hierarchy, id };
        if identities.path(cgroup).is_some() {
            self.missing.remove(&id);
            let labels = identities.labels(cgroup);
            self.last_labels.insert(id, labels.clone());
            return Place::Series(labels);
        }
        let misses = self.missing.entry(id).or_default();
        *misses = misses.saturating_add(1);
        let is_gone = *misses >= SCRAPES_UNTIL_GONE;
        match (self.last_labels.get(&id).cloned(), is_gone) {
            (labels, true) => Place::Gone(labels.unwrap_or_else(other)),
            (Some(labels), false) => Place::Series(labels),
            (None, false) => Place::Unknown,
        }
    }

    fn forget(&mut self, id: u64) {
        self.missing.remove(&id);
        self.last_labels.remove(&id);
    }
}

/// Labels of what belongs to containers that could not be told apart.
pub(crate) fn other() -> [Arc<str>; 4] {
    ["".into(), "".into(), OTHER.into(), "".into()]
}

/// The collector of a probe with one map from cgroup id to histogram.
pub struct HistogramByContainer {
    def: &'static MetricDef,
    table: Table<u64, histogram>,
    containers: ByContainer<Histogram>,
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
            total: histogram.into(),
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
