//! The collector of one family whose map has a cgroup in its key, and labels of its own beside it.

use crate::collect::{ByContainer, Entry, Sum, Total};
use crate::error::ProbeError;
use crate::maps::Table;
use crate::probe::{Collector, Kernel};
use aya::Pod;
use kpulse_common::container::{Hierarchy, Identities};
use kpulse_common::metric::{MetricDef, Samples, Value};
use std::sync::Arc;

/// Cgroup and labels of a key.
type Describe<K> = Box<dyn FnMut(&K) -> (u64, Vec<Arc<str>>) + Send>;

/// Reports a map from `K` to `V` as one family by container; `T` is what a series of it holds.
pub struct KeyedByContainer<K, V, T> {
    def: &'static MetricDef,
    table: Table<K, V>,
    describe: Describe<K>,
    containers: ByContainer<T>,
}

impl<K: Pod, V: Pod + Default, T: Total + From<V>> KeyedByContainer<K, V, T> {
    /// `rest` are the keys of cgroup 0, made here, for what finds no room later.
    pub fn new(
        def: &'static MetricDef,
        table: Table<K, V>,
        hierarchy: Hierarchy,
        rest: &[K],
        describe: impl FnMut(&K) -> (u64, Vec<Arc<str>>) + Send + 'static,
    ) -> Result<Self, ProbeError> {
        rest.iter().try_for_each(|key| table.set(key, &V::default()))?;
        Ok(Self { def, table, describe: Box::new(describe), containers: ByContainer::new(hierarchy) })
    }
}

impl KeyedByContainer<u64, u64, u64> {
    /// Reports a map from cgroup id to count.
    pub fn counts(
        def: &'static MetricDef,
        table: Table<u64, u64>,
        kernel: &Kernel<'_>,
    ) -> Result<Box<dyn Collector>, ProbeError> {
        Ok(Box::new(Self::new(def, table, kernel.hierarchy, &[0], |id| (*id, Vec::new()))?))
    }
}

impl<K: Pod, V: Pod + Default, T: Total + From<V> + Send> Collector for KeyedByContainer<K, V, T> {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let mut entries = Vec::new();
        let mut keys = Vec::new();
        for (key, value) in self.table.entries()? {
            let (cgroup_id, labels) = (self.describe)(&key);
            entries.push(Entry { cgroup_id, labels, total: T::from(value) });
            keys.push((cgroup_id, key));
        }
        let gone = self.containers.report(self.def, entries, identities, out);
        let of_gone = keys.iter().filter(|(cgroup_id, _)| gone.binary_search(cgroup_id).is_ok());
        of_gone.map(|(_, key)| key).try_for_each(|key| self.table.remove(key))
    }
}

/// A time that is counted, not sorted into slots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nanoseconds(pub u64);

impl From<u64> for Nanoseconds {
    fn from(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }
}

impl Sum for Nanoseconds {
    fn add(&mut self, other: &Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl Total for Nanoseconds {
    fn into_value(self) -> Value {
        Value::Number(self.0 as f64 / 1e9)
    }
}
