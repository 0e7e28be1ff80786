//! The network namespaces of this machine that a process lives in: our own, and those of containers.

use crate::netlink::checked;
use kpulse_common::container::{ContainerCgroup, Hierarchy, Identities};
use kpulse_common::netns::first_process;
use kpulse_common::paths::Paths;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

/// Finds them.
pub struct Namespaces {
    procfs: PathBuf,
    identities: Identities,
    hierarchy: Hierarchy,
}

/// A network namespace, by a process in it.
pub struct Namespace {
    /// The folder of that process.
    pub process: PathBuf,
    /// What the kernel calls it by.
    pub inode: u64,
    /// Whose it is; `None` for our own.
    pub container: Option<ContainerCgroup>,
}

impl Namespaces {
    /// With the containers that have a cgroup of the CPU controller, which is all of them.
    pub fn new(paths: &Paths) -> Self {
        let identities = Identities::new(paths);
        let hierarchy = identities.hierarchies().of("cpu");
        Self { procfs: paths.procfs.clone(), identities, hierarchy }
    }

    /// Our own.
    pub fn own(&self) -> io::Result<Namespace> {
        Namespace::of(self.procfs.join("self"), None)
    }

    /// Those of containers, each once. One that shares ours is not among them.
    pub fn of_containers(&mut self) -> Vec<Namespace> {
        let containers = self.identities.alive(self.hierarchy);
        let Some(mount) = self.identities.hierarchies().mount(self.hierarchy) else { return Vec::new() };
        let mut seen: HashSet<u64> = self.own().iter().map(|own| own.inode).collect();
        let mut found = Vec::new();
        for container in containers.iter() {
            let cgroup = mount.join(container.path.trim_start_matches('/'));
            let process = first_process(&cgroup).map(|pid| self.procfs.join(pid));
            let namespace = process.and_then(|process| Namespace::of(process, Some(container.clone())).ok());
            found.extend(namespace.filter(|namespace| seen.insert(namespace.inode)));
        }
        found
    }
}

impl Namespace {
    fn of(process: PathBuf, container: Option<ContainerCgroup>) -> io::Result<Self> {
        let inode = fs::metadata(process.join("ns/net"))?.ino();
        Ok(Self { process, inode, container })
    }

    /// Asks the kernel from within.
    pub fn enter<T: Send>(&self, ask: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        if self.container.is_none() { ask() } else { enter(&self.process.join("ns/net"), ask) }
    }
}

/// On a thread of its own, whose namespace ends with it.
fn enter<T: Send>(namespace: &Path, ask: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let ask_there = || {
        let file = File::open(namespace)?;
        // SAFETY: the descriptor is open, and no memory is involved.
        checked(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) })?;
        ask()
    };
    thread::scope(|scope| {
        let asking = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, ask_there)?;
        asking.join().unwrap_or_else(|_| Err(io::Error::other("the thread that asked panicked")))
    })
}
