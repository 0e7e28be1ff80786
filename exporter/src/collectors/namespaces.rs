//! What is read in each network namespace of a container, through one process that lives in it.
//!
//! Such a reading takes the kernel from 40 µs to milliseconds, so containers take turns, and tell what was read last.

use super::Host;
use super::host::Containers;
use super::pace::Pace;
use super::roster::Place;
use kpulse_common::container::{ContainerCgroup, Hierarchies, Hierarchy};
use kpulse_common::metric::MetricKind;
use kpulse_common::netns::first_process;
use kpulse_common::paths::Paths;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A container that has no namespace of its own, or shares one that is read already, is not looked at again so soon.
const SHARED_FOR: Duration = Duration::from_secs(60);

/// A network namespace, by a process that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// `/proc/PID/net` of the process.
    pub folder: PathBuf,
    /// What tells namespaces apart: each has its own files, so their inodes differ. `/proc/PID/ns/net` would ask for
    /// the right to trace the process.
    pub inode: u64,
}

impl Namespace {
    /// That of a `net` folder; `None` when its process is gone.
    pub fn of_folder(folder: PathBuf) -> Option<Self> {
        let inode = fs::metadata(folder.join("dev")).ok()?.ino();
        Some(Self { folder, inode })
    }

    /// That of a cgroup's processes; `None` when it has none.
    pub fn of_cgroup(cgroup: &Path, procfs: &Path) -> Option<Self> {
        Self::of_folder(procfs.join(first_process(cgroup)?).join("net"))
    }
}

/// Values of the containers that have a namespace of their own; of several in one, the first that was found has it.
pub struct ByNamespace<T> {
    /// That every runtime puts its containers in.
    hierarchy: Hierarchy,
    /// A gauge ends with the last process; a counter stands where it stood.
    kind: MetricKind,
    containers: Containers,
    /// By cgroup. Bound: the containers that have series of their own.
    known: HashMap<u64, Known<T>>,
    /// Whose turn is next.
    next: usize,
}

enum Known<T> {
    Own(Namespace, T),
    /// Found out at this time.
    Shared(Instant),
}

/// What a container's turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It has no namespace of its own, or no process.
    Passed,
    /// Its namespace was read.
    Read,
}

impl<T> ByNamespace<T> {
    /// For values of a kind.
    pub fn new(paths: &Paths, kind: MetricKind) -> Self {
        let hierarchy = Hierarchies::detect(paths).of("cpu");
        Self { hierarchy, kind, containers: Containers::default(), known: HashMap::new(), next: 0 }
    }

    /// Begins a scrape: containers that are gone are forgotten. Gives how many may have a turn.
    pub fn begin(&mut self, host: &mut Host) -> usize {
        let containers = host.containers(self.hierarchy);
        if !Arc::ptr_eq(&containers, &self.containers) {
            let mut before = std::mem::take(&mut self.known);
            let known = |(container, _): &(ContainerCgroup, Place)| before.remove_entry(&container.cgroup.id);
            self.known = containers.iter().filter_map(known).collect();
            self.containers = containers;
        }
        self.containers.len()
    }

    /// The next container's turn. `read` gives nothing where it cannot.
    pub fn turn(&mut self, host: &Host, pace: &mut Pace, read: impl FnOnce(&Namespace) -> Option<T>) -> Turn {
        let containers = Arc::clone(&self.containers);
        let Some((container, place)) = containers.get(self.next % containers.len().max(1)) else {
            return Turn::Passed;
        };
        self.next = (self.next + 1) % containers.len();
        let is_shared = match self.known.get(&container.cgroup.id) {
            Some(Known::Shared(since)) => since.elapsed() < SHARED_FOR,
            Some(Known::Own(..)) | None => false,
        };
        match place {
            Place::Own if is_shared => Turn::Passed,
            Place::Own => pace.spend(|| self.look(container, host, read)),
            Place::Other | Place::Nowhere => Turn::Passed,
        }
    }

    fn look(
        &mut self,
        container: &ContainerCgroup,
        host: &Host,
        read: impl FnOnce(&Namespace) -> Option<T>,
    ) -> Turn {
        let id = container.cgroup.id;
        let Some(mount) = host.identities.hierarchies().mount(self.hierarchy) else { return Turn::Passed };
        // A pid may be another process' by now: it counts while it is in the namespace that it was found in.
        let known = self.known.get(&id).and_then(Known::namespace);
        let still = known
            .filter(|known| Namespace::of_folder(known.folder.clone()).as_ref() == Some(*known))
            .cloned();
        let cgroup = mount.join(container.path.trim_start_matches('/'));
        let Some(found) = still.or_else(|| Namespace::of_cgroup(&cgroup, &host.paths.procfs)) else {
            if self.kind == MetricKind::Gauge {
                self.known.remove(&id);
            }
            return Turn::Passed;
        };
        let of_host = Namespace::of_folder(host.net_folder());
        let is_found = |known: &Known<T>| known.namespace().is_some_and(|it| it.inode == found.inode);
        let is_taken = self.known.iter().any(|(other, known)| *other != id && is_found(known));
        if is_taken || of_host.is_some_and(|host| host.inode == found.inode) {
            self.known.insert(id, Known::Shared(Instant::now()));
            return Turn::Passed;
        }
        // A process that ended meanwhile leaves what was read last.
        if let Some(value) = read(&found) {
            self.known.insert(id, Known::Own(found, value));
        }
        Turn::Read
    }

    /// The values, in the order of the containers.
    pub fn values(&self) -> impl Iterator<Item = (&ContainerCgroup, &T)> {
        self.containers.iter().filter_map(|(container, _)| match self.known.get(&container.cgroup.id)? {
            Known::Own(_, value) => Some((container, value)),
            Known::Shared(_) => None,
        })
    }
}

impl<T> Known<T> {
    fn namespace(&self) -> Option<&Namespace> {
        match self {
            Self::Own(namespace, _) => Some(namespace),
            Self::Shared(_) => None,
        }
    }
}
