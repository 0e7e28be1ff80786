//! Collectors of the common shape: a histogram or a count for each cgroup, reported by container.

use crate::abi::histogram;
use crate::error::ProbeError;
use crate::maps::Table;
use crate::probe::Collector;
use kpulse_common::container::{CgroupId, Hierarchy, Identities, Life};
use kpulse_common::metric::{HISTOGRAM_SLOTS, Histogram, MetricDef, Samples, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const _: () =
    assert!(crate::abi::HISTOGRAM_SLOTS as usize == HISTOGRAM_SLOTS, "C and Rust count in the same slots");

/// Scrapes in a row that find a cgroup nowhere before it counts as gone.
const SCRAPES_UNTIL_GONE: u8 = 3;
/// Series of living containers that hold what cgroups of theirs had counted that are gone. Over it, such a cgroup keeps
/// its place in the map.
const RETIRED_MAX: usize = 1024;
/// Containers remembered as ended.
const ENDED_MAX: usize = 4096;
/// `container` label of what belongs to containers that could not be told apart.
const OTHER: &str = "~other";

/// What is counted for each cgroup and can be added up.
pub trait Sum: Default {
    /// Adds another count to this one.
    fn add(&mut self, other: &Self);
    /// Whether nothing was counted.
    fn is_zero(&self) -> bool;
}

/// What is counted for one family.
pub trait Total: Sum {
    /// As the value of a series.
    fn into_value(self) -> Value;
}

impl Sum for Histogram {
    fn add(&mut self, other: &Self) {
        Histogram::add(self, other);
    }

    fn is_zero(&self) -> bool {
        self.count() == 0
    }
}

impl Total for Histogram {
    fn into_value(self) -> Value {
        Value::Histogram(Box::new(self))
    }
}

impl Sum for u64 {
    fn add(&mut self, other: &Self) {
        *self = self.wrapping_add(*other);
    }

    fn is_zero(&self) -> bool {
        *self == 0
    }
}

impl Total for u64 {
    fn into_value(self) -> Value {
        Value::Count(self)
    }
}

/// Who knows which cgroups are alive, and whose they are.
pub trait Lives {
    /// The cgroup's labels, and whether it is alive; `None` when it is not known.
    fn life(&mut self, cgroup: CgroupId) -> Option<Life>;
    /// Ids of the containers that are alive.
    fn containers(&mut self, hierarchy: Hierarchy) -> BTreeSet<Arc<str>>;
}

impl Lives for Identities {
    fn life(&mut self, cgroup: CgroupId) -> Option<Life> {
        Identities::life(self, cgroup)
    }

    fn containers(&mut self, hierarchy: Hierarchy) -> BTreeSet<Arc<str>> {
        Identities::containers(self, hierarchy).map(|it| Arc::clone(&it.labels[3])).collect()
    }
}

/// Adds up counts by cgroup into series by container: the host's own cgroups are one series with empty labels.
///
/// Counters stay monotone while cgroups come and go. What a cgroup had counted is kept when it goes, for as long as
/// its series lives: that of the host and that of unknown ones for ever, that of a container as long as any cgroup of
/// it. The scrape that finds a container gone tells its series for the last time. What its tasks count while they end,
/// after that, is told with that of unknown ones.
pub struct ByContainer<T> {
    hierarchy: Hierarchy,
    /// Cgroups of the map. Bound: its capacity.
    seen: BTreeMap<u64, Seen>,
    /// Counts of cgroups that are gone but whose series lives on. Bound: [`RETIRED_MAX`] and what a map held at once.
    retired: BTreeMap<Vec<Arc<str>>, T>,
    /// Containers whose series were told for the last time, each with the number of that scrape. Bound: [`ENDED_MAX`].
    ended: BTreeMap<Arc<str>, u64>,
    scrapes: u64,
}

/// What is remembered of a cgroup.
#[derive(Default)]
struct Seen {
    /// To know where its counts go once it is gone. `None` until it was found once.
    labels: Option<[Arc<str>; 4]>,
    /// Scrapes in a row that did not find it.
    missing: u8,
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
    /// The cgroup is gone, and its series lives on.
    Retired([Arc<str>; 4]),
    /// The cgroup is gone with its container: told now, and never again.
    Last([Arc<str>; 4]),
    /// Not known yet: left out of this scrape, and never told before.
    Unknown,
}

impl<T: Total> ByContainer<T> {
    /// Adds the series to `out`, and returns the cgroups that are gone, in order, whose entries the caller removes.
    pub fn report(
        &mut self,
        def: &MetricDef,
        entries: Vec<Entry<T>>,
        lives: &mut impl Lives,
        out: &mut Samples,
    ) -> Vec<u64> {
        self.report_each(entries, lives, |labels, total| out.push(def, labels, total.into_value()))
    }
}

impl<T: Sum> ByContainer<T> {
    /// For cgroups of this hierarchy.
    pub fn new(hierarchy: Hierarchy) -> Self {
        Self {
            hierarchy,
            seen: BTreeMap::new(),
            retired: BTreeMap::new(),
            ended: BTreeMap::new(),
            scrapes: 0,
        }
    }

    /// As [`Self::report`], where one map holds several families.
    pub fn report_each(
        &mut self,
        entries: Vec<Entry<T>>,
        lives: &mut impl Lives,
        mut tell: impl FnMut(Vec<Arc<str>>, T),
    ) -> Vec<u64> {
        self.scrapes += 1;
        let (places, ending) = self.places(&entries, lives);
        let mut series: BTreeMap<Vec<Arc<str>>, T> = BTreeMap::new();
        for entry in entries {
            let (container, sums) = match &places[&entry.cgroup_id] {
                Place::Series(labels) | Place::Last(labels) => (labels, &mut series),
                Place::Retired(labels) => (labels, &mut self.retired),
                Place::Unknown => continue,
            };
            let key = container.iter().cloned().chain(entry.labels).collect();
            sums.entry(key).or_default().add(&entry.total);
        }
        for (key, total) in &self.retired {
            series.entry(key.clone()).or_default().add(total);
        }
        for (labels, total) in series {
            // Entries that hold what finds no room are there before anything is counted in them.
            if !total.is_zero() {
                tell(labels, total);
            }
        }
        self.end_series(&places, ending);
        let gone = places.into_iter().filter(|(_, it)| matches!(it, Place::Retired(_) | Place::Last(_)));
        gone.map(|(id, _)| id).inspect(|id| drop(self.seen.remove(id))).collect()
    }

    /// The place of every cgroup that has an entry, and the containers whose series are told for the last time.
    fn places(
        &mut self,
        entries: &[Entry<T>],
        lives: &mut impl Lives,
    ) -> (BTreeMap<u64, Place>, BTreeSet<Arc<str>>) {
        let mut places = BTreeMap::new();
        for entry in entries {
            places.entry(entry.cgroup_id).or_insert_with(|| self.place(entry.cgroup_id, lives));
        }
        let retired: Vec<_> = self.retired.keys().filter_map(|key| container_of(key)).collect();
        let has_room = retired.len() < RETIRED_MAX;
        let mut ending: BTreeSet<_> = retired.into_iter().cloned().collect();
        let gone = places.values().filter(|place| matches!(place, Place::Retired(_)));
        ending.extend(gone.filter_map(|place| container_of(place.labels()?).cloned()));
        if ending.is_empty() {
            return (places, ending);
        }
        let mut alive = lives.containers(self.hierarchy);
        let found = places.values().filter(|place| matches!(place, Place::Series(_)));
        alive.extend(found.filter_map(|place| container_of(place.labels()?).cloned()));
        // A container that is started again has the id that it had.
        self.ended.retain(|id, _| !alive.contains(id));
        ending.retain(|id| !alive.contains(id) && !self.ended.contains_key(id));
        for place in places.values_mut() {
            let Place::Retired(labels) = place else { continue };
            let Some(id) = container_of(labels) else { continue };
            if ending.contains(id) {
                *place = Place::Last(labels.clone());
            } else if !alive.contains(id) {
                *labels = other();
            } else if !has_room {
                *place = Place::Series(labels.clone());
            }
        }
        (places, ending)
    }

    fn place(&mut self, id: u64, lives: &mut impl Lives) -> Place {
        if id == 0 {
            return Place::Series(other());
        }
        let life = lives.life(CgroupId { hierarchy: self.hierarchy, id });
        let seen = self.seen.entry(id).or_default();
        match life {
            Some(Life::Alive(labels)) => {
                *seen = Seen { labels: Some(labels.clone()), missing: 0 };
                Place::Series(labels)
            }
            Some(Life::Gone(labels)) => Place::Retired(labels),
            None => {
                seen.missing = seen.missing.saturating_add(1);
                match (seen.labels.clone(), seen.missing >= SCRAPES_UNTIL_GONE) {
                    (labels, true) => Place::Retired(labels.unwrap_or_else(other)),
                    (Some(labels), false) => Place::Series(labels),
                    (None, false) => Place::Unknown,
                }
            }
        }
    }

    fn end_series(&mut self, places: &BTreeMap<u64, Place>, ending: BTreeSet<Arc<str>>) {
        if !self.ended.is_empty() {
            let alive = places.values().filter(|place| matches!(place, Place::Series(_)));
            for id in alive.filter_map(|place| container_of(place.labels()?)) {
                self.ended.remove(id);
            }
        }
        self.retired.retain(|key, _| container_of(key).is_none_or(|id| !ending.contains(id)));
        self.ended.extend(ending.into_iter().map(|id| (id, self.scrapes)));
        while self.ended.len() > ENDED_MAX {
            let oldest = self.ended.values().copied().min();
            self.ended.retain(|_, scrape| Some(*scrape) != oldest);
        }
    }
}

impl Place {
    fn labels(&self) -> Option<&[Arc<str>; 4]> {
        match self {
            Self::Series(labels) | Self::Retired(labels) | Self::Last(labels) => Some(labels),
            Self::Unknown => None,
        }
    }
}

/// The container's id, behind three more of its labels; `None` for the host and for what could not be told apart.
fn container_of(labels: &[Arc<str>]) -> Option<&Arc<str>> {
    labels.get(3).filter(|id| !id.is_empty())
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

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
