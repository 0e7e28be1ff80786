//! Where the kernel's file systems are mounted, since a container sees the host's elsewhere.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Mount points, set by `--path.*`; the `path:` block of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// The host's `/proc`.
    pub procfs: PathBuf,
    /// The host's `/sys`.
    pub sysfs: PathBuf,
    /// The host's cgroup tree.
    pub cgroupfs: PathBuf,
    /// The host's root directory.
    pub rootfs: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            procfs: "/proc".into(),
            sysfs: "/sys".into(),
            cgroupfs: "/sys/fs/cgroup".into(),
            rootfs: "/".into(),
        }
    }
}
