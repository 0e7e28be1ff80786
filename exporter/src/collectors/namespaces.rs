//! The network namespaces of containers, each through one process that lives in it.

use super::Host;
use super::roster::Place;
use kpulse_common::container::{Hierarchies, Hierarchy};
use kpulse_common::paths::Paths;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most namespaces that are read in a scrape; each costs a few system calls.
const NAMESPACES_MAX: usize = 128;
/// Most folders below a container's cgroup that are searched for a process.
const FOLDERS_MAX: usize = 8;

/// A network namespace that is not the host's.
pub struct Namespace {
    /// Of the container that stands for it.
    pub labels: [Arc<str>; 4],
    /// `/proc/PID/net` of one of its processes.
    pub folder: PathBuf,
}

/// Finds them.
pub struct Namespaces {
    hierarchy: Hierarchy,
}

impl Namespaces {
    /// Through the hierarchy that every runtime puts its containers in.
    pub fn new(paths: &Paths) -> Self {
        Self { hierarchy: Hierarchies::detect(paths).of("cpu") }
    }

    /// Each once. Containers without series of their own are left out.
    pub fn of_containers(&self, host: &mut Host) -> Vec<Namespace> {
        let Some(mount) = host.identities.hierarchies().mount(self.hierarchy).map(Path::to_owned) else {
            return Vec::new();
        };
        let mut seen = BTreeSet::new();
        seen.extend(identity(&host.net_file("dev")));
        let mut found = Vec::new();
        for (container, place) in host.containers(self.hierarchy) {
            if place != Place::Own || found.len() >= NAMESPACES_MAX {
                continue;
            }
            let cgroup = mount.join(container.path.trim_start_matches('/'));
            let Some(pid) = first_process(&cgroup) else { continue };
            let folder = host.paths.procfs.join(pid).join("net");
            if identity(&folder.join("dev")).is_some_and(|namespace| seen.insert(namespace)) {
                found.push(Namespace { labels: container.labels, folder });
            }
        }
        found
    }
}

/// What tells namespaces apart: each has its own files, so their inodes differ. `/proc/PID/ns/net` would ask for the
/// right to trace the process.
fn identity(file: &Path) -> Option<u64> {
    fs::metadata(file).ok().map(|metadata| metadata.ino())
}

/// The pid of a process in the cgroup or below it; inner cgroups hold them on v2 where there are any.
fn first_process(cgroup: &Path) -> Option<String> {
    let mut folders = vec![cgroup.to_owned()];
    for _ in 0..FOLDERS_MAX {
        let folder = folders.pop()?;
        let text = fs::read_to_string(folder.join("cgroup.procs")).ok()?;
        // 0 is a process that our own pid namespace does not show.
        if let Some(pid) = text.lines().find(|pid| *pid != "0") {
            return Some(pid.to_owned());
        }
        let entries = fs::read_dir(&folder).ok()?.filter_map(Result::ok);
        folders.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|it| it.path()),
        );
    }
    None
}
