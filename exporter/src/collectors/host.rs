//! What the collectors of one scrape share: paths, the containers that are alive, one buffer.

use super::roster::{Place, Roster};
use super::text::Text;
use kpulse_common::container::{ContainerCgroup, Hierarchy, Identities};
use kpulse_common::metric::MetricDef;
use kpulse_common::paths::Paths;
use std::path::PathBuf;

pub const OVERFLOW: MetricDef = MetricDef::counter(
    "kpulse_series_overflow_total",
    "Containers that found no room for series of their own and share the one of container=\"~other\".",
    &[],
);

/// The families of this module.
pub const METRICS: &[MetricDef] = &[OVERFLOW];

/// Shared by the collectors, which take turns.
pub struct Host {
    /// Where the kernel's file systems are mounted.
    pub paths: Paths,
    /// Which container a cgroup belongs to.
    pub identities: Identities,
    /// The buffer for files.
    pub text: Text,
    roster: Roster,
}

impl Host {
    /// For at most `container_max` containers with series of their own.
    pub fn new(paths: &Paths, container_max: u32) -> Self {
        Self {
            paths: paths.clone(),
            identities: Identities::new(paths),
            text: Text::default(),
            roster: Roster::new(container_max),
        }
    }

    /// The containers that are alive in a hierarchy, each with where its values go.
    pub fn containers(&mut self, hierarchy: Hierarchy) -> Vec<(ContainerCgroup, Place)> {
        let alive = self.identities.containers(hierarchy).collect();
        self.roster.place(hierarchy, alive)
    }

    /// A file of the host's network namespace, `/proc/1/net/NAME`. Where process 1 is hidden, it is our own namespace.
    pub fn net_file(&self, name: &str) -> PathBuf {
        let of_init = self.paths.procfs.join("1/net").join(name);
        if of_init.exists() { of_init } else { self.paths.procfs.join("net").join(name) }
    }

    /// Containers that found no room, since this was made.
    pub fn overflow(&self) -> u64 {
        self.roster.overflow()
    }
}
