//! Cgroups that look like containers, made for a test and removed after it.

use kpulse_common::container::{CgroupId, Hierarchies, Hierarchy};
use kpulse_common::paths::Paths;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A cgroup of one controller's hierarchy.
pub struct Cgroup {
    path: PathBuf,
    hierarchy: Hierarchy,
}

impl Cgroup {
    /// A container's cgroup as docker names it; `number` makes the container id.
    pub fn container(controller: &'static str, number: u32) -> io::Result<Self> {
        Self::named(controller, &Self::id(number))
    }

    /// The same for a container id, of 64 hexadecimal digits.
    pub fn named(controller: &'static str, id: &str) -> io::Result<Self> {
        let hierarchies = Hierarchies::detect(&Paths::default());
        let hierarchy = hierarchies.of(controller);
        let mount =
            hierarchies.mount(hierarchy).ok_or_else(|| io::Error::other("no cgroup hierarchy is mounted"))?;
        let path = mount.join("docker").join(id);
        if hierarchy == Hierarchy::Unified {
            for parent in [mount.to_owned(), mount.join("docker")] {
                fs::create_dir_all(&parent)?;
                // Without the controller there is no limit to set; a test that needs one fails where it sets it.
                let _ = fs::write(parent.join("cgroup.subtree_control"), "+cpu +memory +io");
            }
        }
        fs::create_dir_all(&path)?;
        Ok(Self { path, hierarchy })
    }

    /// The container id that `number` stands for.
    pub fn id(number: u32) -> String {
        format!("{number:064x}")
    }

    /// The cgroup's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is of cgroup v1.
    pub fn is_v1(&self) -> bool {
        self.hierarchy != Hierarchy::Unified
    }

    /// As the kernel knows it.
    pub fn cgroup_id(&self) -> CgroupId {
        CgroupId {
            hierarchy: self.hierarchy,
            id: fs::metadata(&self.path).expect("the cgroup is there").ino(),
        }
    }

    /// Moves the calling thread into it (v1), or the whole process (v2, which knows no single threads).
    pub fn enter(&self) -> io::Result<()> {
        fs::write(self.path.join(if self.is_v1() { "tasks" } else { "cgroup.procs" }), "0")
    }

    /// Removes it; an error while it has processes or cgroups below it.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_dir(&self.path)
    }

    /// Writes one of its files.
    pub fn set(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(file), value)
    }

    /// Lets its tasks have so much CPU time in each period.
    pub fn set_cpu_quota(&self, quota: Duration, period: Duration) -> io::Result<()> {
        let [quota, period] = [quota, period].map(|time| time.as_micros());
        if self.is_v1() {
            self.set("cpu.cfs_period_us", &period.to_string())?;
            return self.set("cpu.cfs_quota_us", &quota.to_string());
        }
        self.set("cpu.max", &format!("{quota} {period}"))
    }

    /// A number from one of its files, or from a line `key value` of it.
    pub fn number(&self, file: &str, key: Option<&str>) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(file)).ok()?;
        match key {
            None => text.trim().parse().ok(),
            Some(key) => text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
