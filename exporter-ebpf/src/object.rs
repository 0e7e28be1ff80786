//! Loads compiled objects into the kernel, fitted to its types and to what a process wants of them.

use crate::error::{ProbeError, load_error};
use crate::features::page_bytes;
use crate::loader::LoadOptions;
use crate::probe::{Probe, Want};
use aya::{Btf, Ebpf, EbpfLoader};
use kpulse_common::container::Hierarchy;
use std::collections::BTreeMap;

/// As long as the loader that it is told to.
static FLAGS: [u8; 2] = [0, 1];

/// Loads objects one after the other.
///
/// Making a loader of aya's parses the kernel's types anew, which takes longer than loading most objects, so that one
/// serves as many as it can. It applies to every later object what it was told of a map's size.
pub(crate) struct ObjectLoader<'a> {
    btf: &'a Btf,
    shared: EbpfLoader<'a>,
    /// Maps whose size the shared loader was told.
    told: BTreeMap<&'static str, u32>,
}

impl<'a> ObjectLoader<'a> {
    pub(crate) fn new(btf: &'a Btf) -> Self {
        let mut shared = EbpfLoader::new();
        shared.btf(Some(btf));
        Self { btf, shared, told: BTreeMap::new() }
    }

    /// Loads a probe's object; its programs are not attached yet.
    pub(crate) fn load(
        &mut self,
        probe: &Probe,
        options: &LoadOptions,
        hierarchy: Hierarchy,
    ) -> Result<Ebpf, ProbeError> {
        let (globals, sizes) = ((probe.globals)(), sizes(probe, options));
        let stale = self.told.keys().filter(|name| !sizes.contains_key(*name));
        if globals.is_empty()
            && !has_any(probe.object, &stale.map(|name| name.as_bytes()).collect::<Vec<_>>())
        {
            self.told.extend(&sizes);
            prepare(&mut self.shared, options.want, hierarchy, &sizes);
            return self.shared.load(probe.object).map_err(|error| load_error(&error));
        }
        let mut own = EbpfLoader::new();
        own.btf(Some(self.btf));
        prepare(&mut own, options.want, hierarchy, &sizes);
        for (name, value) in &globals {
            own.override_global(name, value, false);
        }
        own.load(probe.object).map_err(|error| load_error(&error))
    }
}

fn prepare(
    loader: &mut EbpfLoader<'_>,
    want: Want,
    hierarchy: Hierarchy,
    sizes: &BTreeMap<&'static str, u32>,
) {
    for (name, is_set) in [
        ("want_metrics", want == Want::Metrics),
        ("want_events", want == Want::Events),
        ("cgroup_v1", hierarchy != Hierarchy::Unified),
    ] {
        loader.override_global(name, &FLAGS[usize::from(is_set)], false);
    }
    for (map, entries) in sizes {
        loader.map_max_entries(map, *entries);
    }
}

/// Maps that have another size than the object says.
fn sizes(probe: &Probe, options: &LoadOptions) -> BTreeMap<&'static str, u32> {
    // One more for key 0, which holds what finds no room.
    let entries = |factor| options.container_max.saturating_add(1).saturating_mul(factor);
    let mut sizes: BTreeMap<_, _> =
        probe.sized_by_containers.iter().map(|&(map, factor)| (map, entries(factor))).collect();
    if options.want != Want::Events && !probe.events.is_empty() {
        // The smallest that the kernel makes: nothing will be in them.
        sizes.extend([("events", page_bytes()), ("cgroup_policy", 1)]);
        sizes.extend(probe.of_events.iter().map(|&map| (map, 1)));
    }
    sizes
}

/// Whether one of these names is among those in the object, where each ends with a zero: a map has it, or a field.
fn has_any(object: &[u8], names: &[&[u8]]) -> bool {
    !names.is_empty() && object.split(|&byte| byte == 0).any(|part| names.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes;

    #[test]
    fn finds_the_maps_of_an_object_by_name() {
        let object = |name: &str| probes::ALL.iter().find(|probe| probe.name == name).unwrap().object;
        assert!(has_any(object("runqueue_latency"), &[b"no_such_map", b"accounts"]));
        assert!(has_any(object("qdisc"), &[b"latency"]));
        assert!(!has_any(object("softirq"), &[b"owners"]) && !has_any(object("qdisc"), &[]));
    }
}
