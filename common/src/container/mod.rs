//! Which container a cgroup belongs to, and where its cgroup lives.
//!
//! A kernel program knows a task's cgroup only by the inode of its directory. [`Hierarchies`] says which hierarchy
//! that inode belongs to, [`Identities`] finds the directory, and [`parse_container`] reads the container out of
//! its path. None of it needs a container runtime's API.

mod handle;
mod hierarchy;
mod identities;
mod path;

pub use hierarchy::Hierarchies;
pub use identities::{ContainerCgroup, Identities, Life};
pub use path::parse_container;

use serde::Serialize;

/// A cgroup hierarchy: the unified one, or the v1 hierarchy of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Hierarchy {
    /// cgroup v2.
    Unified,
    /// cgroup v1, named by its controller: `cpu`, `memory`, `blkio`.
    V1(&'static str),
}

impl Hierarchy {
    /// `unified`, or the name of the v1 controller.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unified => "unified",
            Self::V1(controller) => controller,
        }
    }
}

/// A cgroup: inode of its directory, unique within one hierarchy only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CgroupId {
    /// The hierarchy that the id belongs to.
    pub hierarchy: Hierarchy,
    /// The inode.
    pub id: u64,
}

/// By the inode alone: few ids are of two hierarchies, and names of hierarchies take longer to hash.
impl std::hash::Hash for CgroupId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

/// What is known of a container. A cgroup path gives the id, the runtime and the pod's uid; the names come from a
/// runtime's API where one answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerIdentity {
    /// Lower-case hexadecimal, 64 digits (32 for a few runtimes), as the runtime itself prints it.
    pub id: String,
    /// `docker`, `containerd`, `cri-o`, `podman`; `None` when the path form does not tell.
    pub runtime: Option<&'static str>,
    /// Uid of the Kubernetes pod, with dashes.
    pub pod_uid: Option<String>,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Name of the pod.
    pub pod: Option<String>,
    /// Name of the container within its pod, or its own name where there is no pod.
    pub container: Option<String>,
}
