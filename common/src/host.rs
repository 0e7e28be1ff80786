//! Which host is this?

use crate::event::{Host, Os};
use crate::paths::Paths;
use std::path::Path;

/// What its files tell; what cannot be read is absent.
pub fn read(paths: &Paths) -> Host {
    let in_root = |name: &str| first_word(&paths.rootfs.join(name));
    let in_proc = |name: &str| first_word(&paths.procfs.join("sys/kernel").join(name));
    // The kernel answers with the name of the reader's own UTS namespace; a mounted root means that is not the host's.
    let is_container = paths.rootfs != Path::new("/");
    let name = if is_container {
        in_root("etc/hostname").or_else(|| in_proc("hostname"))
    } else {
        in_proc("hostname")
    };
    Host {
        name,
        id: in_root("etc/machine-id").or_else(|| in_root("var/lib/dbus/machine-id")),
        os: in_proc("osrelease").map(|kernel| Os { kernel }),
    }
}

fn first_word(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_host_by_its_own_files_when_run_in_a_container() {
        let root = tempfile::tempdir().unwrap();
        for directory in ["etc", "sys/kernel"] {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let write = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
        write("etc/hostname", "node-1\n");
        write("etc/machine-id", "3d1219c7c4c5404aaa1f6d2a48adfda4\n");
        write("sys/kernel/hostname", "pod-7\n");
        write("sys/kernel/osrelease", "6.18.44\n");
        let paths = Paths { rootfs: root.path().into(), procfs: root.path().into(), ..Paths::default() };
        let host = read(&paths);
        assert_eq!(host.name.as_deref(), Some("node-1"));
        assert_eq!(host.id.as_deref(), Some("3d1219c7c4c5404aaa1f6d2a48adfda4"));
        assert_eq!(host.os, Some(Os { kernel: "6.18.44".to_owned() }));
    }

    #[test]
    fn what_cannot_be_read_is_absent() {
        let paths =
            Paths { rootfs: "/nonexistent".into(), procfs: "/nonexistent".into(), ..Paths::default() };
        assert_eq!(read(&paths), Host::default());
    }
}
