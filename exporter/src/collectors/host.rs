//! What the collectors of one scrape share: paths, the containers that are alive, one buffer.

use super::roster::{Place, Roster};
use super::text::Text;
use kpulse_common::container::{ContainerCgroup, Hierarchy, Identities};
use kpulse_common::metric::MetricDef;
use kpulse_common::paths::Paths;
use std::path::PathBuf;
use std::sync::Arc;

pub const OVERFLOW: MetricDef = MetricDef::counter(
    "kpulse_series_overflow_total",
    "Containers that found no room for series of their own and share the one of container=\"~other\".",
    &[],
);

/// The families of this module.
pub const METRICS: &[MetricDef] = &[OVERFLOW];

/// The containers that are alive in a hierarchy, each with where its values go.
pub type Containers = Arc<[(ContainerCgroup, Place)]>;

/// Shared by the collectors, which take turns.
pub struct Host {
    /// Where the kernel's file systems are mounted.
    pub paths: Paths,
    /// Which container a cgroup belongs to.
    pub identities: Identities,
    /// The buffer for files.
    pub text: Text,
    roster: Roster,
    /// For each hierarchy what was alive when it was placed. Bound: the hierarchies that collectors ask for.
    placed: Vec<(Hierarchy, Arc<[ContainerCgroup]>, Containers)>,
}

impl Host {
    /// For at most `container_max` containers with series of their own.
    pub fn new(paths: &Paths, container_max: u32) -> Self {
        Self {
            paths: paths.clone(),
            identities: Identities::new(paths),
            text: Text::default(),
            roster: Roster::new(container_max),
            placed: Vec::new(),
        }
    }

    /// The containers that are alive in a hierarchy, each with where its values go: one list until they change.
    pub fn containers(&mut self, hierarchy: Hierarchy) -> Containers {
        let alive = self.identities.alive(hierarchy);
        let placed = self.placed.iter().position(|(of, _, _)| *of == hierarchy);
        if let Some((_, before, containers)) = placed.map(|index| &self.placed[index])
            && Arc::ptr_eq(before, &alive)
        {
            return Arc::clone(containers);
        }
        let containers: Containers = self.roster.place(hierarchy, alive.to_vec()).into();
        let entry = (hierarchy, alive, Arc::clone(&containers));
        match placed {
            Some(index) => self.placed[index] = entry,
            None => self.placed.push(entry),
        }
        containers
    }

    /// `/proc/1/net`, of the host's network namespace. Where process 1 is hidden, it is our own namespace.
    pub fn net_folder(&self) -> PathBuf {
        let of_init = self.paths.procfs.join("1/net");
        if of_init.join("dev").exists() { of_init } else { self.paths.procfs.join("net") }
    }

    /// A file of the host's network namespace.
    pub fn net_file(&self, name: &str) -> PathBuf {
        self.net_folder().join(name)
    }

    /// Containers that found no room, since this was made.
    pub fn overflow(&self) -> u64 {
        self.roster.overflow()
    }
}
