//! What a network namespace tells through the files of a process that lives in it.

use std::fs;
use std::path::Path;

/// Most folders below a container's cgroup that are searched for a process.
const FOLDERS_MAX: usize = 8;

/// The pid of a process in the cgroup or below it; inner cgroups hold them on v2 where there are any.
pub fn first_process(cgroup: &Path) -> Option<String> {
    let mut folders = vec![cgroup.to_owned()];
    for _ in 0..FOLDERS_MAX {
        let folder = folders.pop()?;
        // One that is gone meanwhile, or that holds threads only, does not tell.
        let Ok(text) = fs::read_to_string(folder.join("cgroup.procs")) else { continue };
        // 0 is a process that our own pid namespace does not show.
        if let Some(pid) = text.lines().find(|pid| *pid != "0") {
            return Some(pid.to_owned());
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok);
        folders.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|it| it.path()),
        );
    }
    None
}

/// Counters of TCP out of `/proc/PID/net/netstat`, which has a line of names and a line of values.
pub fn tcp_counters<const N: usize>(netstat: &str, wanted: [&str; N]) -> [Option<u64>; N] {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return [None; N] };
    wanted.map(|wanted| {
        let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
        pairs.find(|(name, _)| *name == wanted)?.1.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_in_the_cgroup_or_below_it() {
        let cgroup = tempfile::tempdir().unwrap();
        let write = |folder: &str, pids: &str| {
            let folder = cgroup.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cgroup.procs"), pids).unwrap();
        };
        assert_eq!(first_process(cgroup.path()), None, "it is gone");
        write("", "0\n");
        assert_eq!(first_process(cgroup.path()), None, "one that is hidden");
        write("inner", "");
        ["a", "b", "z"].iter().for_each(|gone| fs::create_dir(cgroup.path().join(gone)).unwrap());
        write("inner/most", "0\n12\n13\n");
        assert_eq!(first_process(cgroup.path()).as_deref(), Some("12"));
        write("", "7\n");
        assert_eq!(first_process(cgroup.path()).as_deref(), Some("7"));
    }

    #[test]
    fn the_search_for_a_process_ends() {
        let cgroup = tempfile::tempdir().unwrap();
        let mut folder = cgroup.path().to_owned();
        for depth in 0..=FOLDERS_MAX {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cgroup.procs"), if depth == FOLDERS_MAX { "12\n" } else { "" }).unwrap();
            folder.push("inner");
        }
        assert_eq!(first_process(cgroup.path()), None);
        assert_eq!(first_process(&cgroup.path().join("inner")).as_deref(), Some("12"));
    }

    #[test]
    fn counters_are_found_by_name_and_absent_without_it() {
        let text = "TcpExt: A Late Early\nTcpExt: 1 2 3\nIpExt: Early\nIpExt: 9\n";
        assert_eq!(tcp_counters(text, ["Early", "Late"]), [Some(3), Some(2)]);
        assert_eq!(tcp_counters("TcpExt: Early Late\nTcpExt: 7\n", ["Early", "Late"]), [Some(7), None]);
        assert_eq!(tcp_counters("TcpExt: Early\n", ["Early"]), [None]);
        assert_eq!(tcp_counters("", ["Early"]), [None]);
    }
}
