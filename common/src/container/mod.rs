//! Which container a cgroup belongs to.

use crate::paths::Paths;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A cgroup hierarchy: the unified one, or the v1 hierarchy of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Hierarchy {
    /// cgroup v2.
    Unified,
    /// cgroup v1, named by its controller: `cpu`, `memory`, `blkio`.
    V1(&'static str),
}

/// A cgroup: inode of its directory, unique within one hierarchy only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct CgroupId {
    /// The hierarchy that the id belongs to.
    pub hierarchy: Hierarchy,
    /// The inode.
    pub id: u64,
}
