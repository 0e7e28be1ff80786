//! Which hierarchy holds a controller on this host, and where is it mounted?

use super::Hierarchy;
use crate::mount;
use crate::paths::Paths;
use std::path::{Path, PathBuf};

/// The cgroup hierarchies of this host.
///
/// A kernel program must take a task's cgroup id from the hierarchy that holds the controller it is about: on a v1
/// or hybrid host the unified hierarchy often knows only the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hierarchies {
    /// Controllers bound to a v1 hierarchy, whether or not its mount is visible from here.
    v1_controllers: Vec<String>,
    mounts: Vec<Mount>,
}

/// A visible mount of a hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// Controllers of a v1 mount; `None` is the unified hierarchy.
    controllers: Option<Vec<String>>,
    /// Directory of the hierarchy that is mounted here; `/` shows all of it.
    root: String,
}

impl Hierarchies {
    /// Reads `self/cgroup` and `self/mountinfo`. What cannot be read counts as absent: then all is unified.
    pub fn detect(paths: &Paths) -> Self {
        let read =
            |name: &str| std::fs::read_to_string(paths.procfs.join("self").join(name)).unwrap_or_default();
        Self::parse(&read("cgroup"), &read("mountinfo"), &paths.cgroupfs)
    }

    fn parse(cgroup: &str, mountinfo: &str, cgroupfs: &Path) -> Self {
        let mut mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        // The operator's --path.cgroupfs first, then mounts that show the whole hierarchy.
        mounts.sort_by_key(|mount| (!mount.point.starts_with(cgroupfs), mount.root != "/"));
        let mut v1_controllers = v1_controllers(cgroup);
        for mount in &mounts {
            for controller in mount.controllers.iter().flatten() {
                if !v1_controllers.contains(controller) {
                    v1_controllers.push(controller.clone());
                }
            }
        }
        Self { v1_controllers, mounts }
    }

    /// The hierarchy that holds `controller`: its v1 hierarchy where it has one, else the unified one.
    pub fn of(&self, controller: &'static str) -> Hierarchy {
        if self.v1_controllers.iter().any(|name| name == controller) {
            Hierarchy::V1(controller)
        } else {
            Hierarchy::Unified
        }
    }

    /// Where a hierarchy is mounted; `None` when it is not visible from here.
    pub fn mount(&self, hierarchy: Hierarchy) -> Option<&Path> {
        let found = self.mounts.iter().find(|mount| match (hierarchy, &mount.controllers) {
            (Hierarchy::Unified, None) => true,
            (Hierarchy::V1(controller), Some(names)) => names.iter().any(|name| name == controller),
            _ => false,
        });
        found.map(|mount| mount.point.as_path())
    }
}

/// Controllers that lines like `4:cpu,cpuacct:/path` of `/proc/self/cgroup` bind to a v1 hierarchy.
fn v1_controllers(cgroup: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        if let (Some(_), Some(controllers)) = (fields.next(), fields.next()) {
            found.extend(controllers.split(',').filter(|name| is_controller(name)).map(str::to_owned));
        }
    }
    found
}

/// `name=systemd` is a hierarchy without a controller, and the unified line has an empty list.
fn is_controller(name: &str) -> bool {
    !name.is_empty() && !name.contains('=')
}

impl Mount {
    /// One line of `mountinfo`; `None` where no hierarchy is mounted.
    fn parse(line: &str) -> Option<Self> {
        let mount = mount::Mount::parse(line)?;
        let controllers = match mount.kind {
            "cgroup2" => None,
            "cgroup" => {
                let options = mount.super_options.split(',');
                Some(options.filter(|name| is_v1_option(name)).map(str::to_owned).collect())
            }
            _ => return None,
        };
        Some(Self { point: PathBuf::from(mount.point()), controllers, root: mount.root() })
    }
}

/// Super options of a v1 mount that are not controllers.
fn is_v1_option(option: &str) -> bool {
    let flags =
        ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods", "none", "all"];
    is_controller(option) && !flags.contains(&option)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2_CGROUP: &str = "0::/user.slice/user-1000.slice/session-3.scope\n";
    const V2_MOUNTS: &str = "\
        23 28 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw\n\
        34 25 0:29 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
    const V1_CGROUP: &str = "12:pids:/a\n4:cpu,cpuacct:/a\n3:memory:/a\n2:blkio:/\n1:name=systemd:/a\n";
    const V1_MOUNTS: &str = "\
        30 29 0:26 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd\n\
        33 29 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct\n\
        35 29 0:31 / /sys/fs/cgroup/memory rw shared:17 - cgroup cgroup rw,memory\n\
        36 29 0:32 / /sys/fs/cgroup/blkio rw shared:17 - cgroup cgroup rw,blkio\n";
    const HYBRID_MOUNTS: &str = "\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";

    fn parse(cgroup: &str, mounts: &str) -> Hierarchies {
        Hierarchies::parse(cgroup, mounts, Path::new("/sys/fs/cgroup"))
    }

    #[test]
    fn v2_only_holds_every_controller() {
        let found = parse(V2_CGROUP, V2_MOUNTS);
        assert_eq!(found.of("cpu"), Hierarchy::Unified);
        assert_eq!(found.mount(found.of("memory")), Some(Path::new("/sys/fs/cgroup")));
        assert_eq!(found.mount(Hierarchy::V1("cpu")), None);
    }

    #[test]
    fn v1_only_names_each_controllers_mount() {
        let found = parse(V1_CGROUP, V1_MOUNTS);
        assert_eq!(found.of("cpu"), Hierarchy::V1("cpu"));
        assert_eq!(found.mount(found.of("cpu")), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.mount(found.of("cpuacct")), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.mount(found.of("blkio")), Some(Path::new("/sys/fs/cgroup/blkio")));
        assert_eq!(found.mount(Hierarchy::Unified), None);
    }

    #[test]
    fn hybrid_decides_by_controller() {
        let found = parse("1:cpu:/\n0::/\n", HYBRID_MOUNTS);
        assert_eq!(found.of("cpu"), Hierarchy::V1("cpu"));
        assert_eq!(found.of("memory"), Hierarchy::Unified);
        assert_eq!(found.mount(Hierarchy::Unified), Some(Path::new("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn a_v1_controller_stays_v1_when_its_mount_is_hidden() {
        let found = parse("4:memory:/a\n0::/\n", V2_MOUNTS);
        assert_eq!(found.of("memory"), Hierarchy::V1("memory"));
        assert_eq!(found.mount(found.of("memory")), None);
    }

    #[test]
    fn a_mount_decides_when_the_cgroup_file_is_unreadable() {
        assert_eq!(parse("", V1_MOUNTS).of("memory"), Hierarchy::V1("memory"));
        assert_eq!(parse("", "").of("memory"), Hierarchy::Unified);
    }

    #[test]
    fn the_hosts_tree_is_preferred_to_the_containers_own() {
        let mounts = "\
            40 30 0:29 /docker/a /sys/fs/cgroup ro - cgroup2 cgroup rw\n\
            90 30 0:29 / /host/sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let found = Hierarchies::parse(V2_CGROUP, mounts, Path::new("/host/sys/fs/cgroup"));
        assert_eq!(found.mount(Hierarchy::Unified), Some(Path::new("/host/sys/fs/cgroup")));
    }

    #[test]
    fn broken_lines_and_escapes_are_survived() {
        let mounts = "x\n - \n1 2 3 - cgroup2\n41 31 0:38 / /a\\040b\\9 rw - cgroup2 cgroup2 rw\n";
        let found = parse("nonsense\n:\n::\n", mounts);
        assert_eq!(found.mount(Hierarchy::Unified), Some(Path::new("/a b\\9")));
        assert_eq!(found.of("cpu"), Hierarchy::Unified);
    }

    #[test]
    fn the_running_machine_has_a_hierarchy_for_cpu() {
        let found = Hierarchies::detect(&Paths::default());
        let Some(mount) = found.mount(found.of("cpu")) else {
            println!("SKIP: no cgroup hierarchy with the cpu controller is mounted");
            return;
        };
        assert!(mount.join("cgroup.procs").exists(), "{} is no cgroup directory", mount.display());
    }
}
