//! The collector of one family by network device.

use crate::collect::Total;
use crate::error::ProbeError;
use crate::maps::Table;
use aya::Pod;
use kpulse_common::metric::{MetricDef, Samples};
use kpulse_common::paths::Paths;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Scrapes in a row in which a device that is gone counted nothing before its series ends.
const SCRAPES_UNTIL_GONE: u8 = 3;
/// `device` label of what found no room in the map.
const OTHER: &str = "~other";

/// Label values of a key: the device's name first, as the kernel keeps it.
type Describe<K> = fn(&K) -> Vec<Arc<str>>;

/// Reports a map from `K` to `V` as one family whose first label is `device`.
///
/// Devices of all network namespaces count under their names, since a host sees a container's `eth0` as little as its
/// own `eth0` is seen in there.
pub struct ByNetDevice<K, V, T> {
    def: &'static MetricDef,
    table: Table<K, V>,
    describe: Describe<K>,
    folder: PathBuf,
    /// What was counted last, and scrapes in a row without more. Bound: the capacity of the map.
    idle: BTreeMap<Vec<Arc<str>>, (T, u8)>,
}

impl<K: Pod + Default, V: Pod + Default, T: Total + From<V> + Clone + PartialEq> ByNetDevice<K, V, T> {
    /// The key of zeros is made here, for what finds no room later.
    pub fn new(
        def: &'static MetricDef,
        table: Table<K, V>,
        paths: &Paths,
        describe: Describe<K>,
    ) -> Result<Self, ProbeError> {
        table.set(&K::default(), &V::default())?;
        Ok(Self { def, table, describe, folder: paths.sysfs.join("class/net"), idle: BTreeMap::new() })
    }

    /// Adds the family to `out`, and removes the devices that are gone.
    pub fn collect(&mut self, out: &mut Samples) -> Result<(), ProbeError> {
        let mut seen: BTreeMap<Vec<Arc<str>>, T> = BTreeMap::new();
        for (key, value) in self.table.entries()? {
            let mut labels = (self.describe)(&key);
            let total = T::from(value);
            if labels[0].is_empty() {
                labels[0] = OTHER.into();
            } else if self.is_gone(&labels, &total) {
                self.table.remove(&key)?;
                continue;
            }
            seen.entry(labels).or_default().add(&total);
        }
        self.idle.retain(|labels, _| seen.contains_key(labels));
        for (labels, total) in seen {
            if !total.is_zero() {
                out.push(self.def, labels, total.into_value());
            }
        }
        Ok(())
    }

    fn is_gone(&mut self, labels: &[Arc<str>], total: &T) -> bool {
        let known = self.idle.entry(labels.to_vec()).or_insert_with(|| (total.clone(), 0));
        if known.0 != *total || self.folder.join(&*labels[0]).exists() {
            *known = (total.clone(), 0);
        } else {
            known.1 = known.1.saturating_add(1);
        }
        known.1 >= SCRAPES_UNTIL_GONE
    }
}
