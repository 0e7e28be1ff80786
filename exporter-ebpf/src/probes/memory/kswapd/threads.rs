//! The CPU time of the kernel threads kswapd0, kswapd1, …, as the scheduler counts it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// One kswapd for each node with memory.
pub struct Threads {
    procfs: PathBuf,
    /// Process folder by node. Bound: the nodes of the machine.
    folders: BTreeMap<u32, PathBuf>,
}

impl Threads {
    /// Looks for the threads in this `/proc`.
    pub fn find(procfs: &Path) -> Self {
        let mut threads = Self { procfs: procfs.to_owned(), folders: BTreeMap::new() };
        threads.search();
        threads
    }

    fn search(&mut self) {
        let entries = fs::read_dir(&self.procfs).into_iter().flatten().filter_map(Result::ok);
        let found = entries.filter_map(|entry| Some((node_of(&entry.path())?, entry.path())));
        self.folders = found.collect();
    }

    /// Nanoseconds on a CPU by node; a node is missing where the kernel does not count.
    pub fn cpu_ns(&mut self) -> BTreeMap<u32, u64> {
        // A node's thread is another one after its memory was taken out and put back.
        if self.folders.iter().any(|(node, folder)| node_of(folder) != Some(*node)) {
            self.search();
        }
        let read = |(&node, folder): (&u32, &PathBuf)| Some((node, cpu_ns(folder)?));
        self.folders.iter().filter_map(read).collect()
    }
}

/// The node whose kswapd this process is. User space can take the name but not the parent, kthreadd.
fn node_of(folder: &Path) -> Option<u32> {
    let pid: u32 = folder.file_name()?.to_str()?.parse().ok()?;
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let (comm, rest) = stat.strip_prefix(&format!("{pid} ("))?.split_once(") ")?;
    let parent = rest.split(' ').nth(1)?;
    if parent == "2" { comm.strip_prefix("kswapd")?.parse().ok() } else { None }
}

fn cpu_ns(folder: &Path) -> Option<u64> {
    let text = fs::read_to_string(folder.join("schedstat")).ok()?;
    // A kernel that keeps no account says 0; a thread that exists has run.
    text.split(' ').next()?.parse().ok().filter(|&ns| ns > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(procfs: &Path, pid: u32, comm: &str, parent: u32, schedstat: &str) {
        let folder = procfs.join(pid.to_string());
        fs::create_dir_all(&folder).expect("a temporary folder");
        fs::write(folder.join("stat"), format!("{pid} ({comm}) S {parent} 0 0")).expect("a file");
        fs::write(folder.join("schedstat"), schedstat).expect("a file");
    }

    #[test]
    fn only_kernel_threads_count_and_only_where_time_is_kept() {
        let procfs = std::env::temp_dir().join(format!("kpulse-kswapd-{}", std::process::id()));
        process(&procfs, 90, "kswapd0", 2, "1234 5 6\n");
        process(&procfs, 91, "kswapd1", 2, "0 0 0\n");
        process(&procfs, 1000, "kswapd2", 1, "99 0 1\n");
        process(&procfs, 1001, "kswapd) S 2", 1, "99 0 1\n");
        let mut threads = Threads::find(&procfs);
        assert_eq!(threads.cpu_ns(), [(0, 1234)].into());

        fs::remove_dir_all(procfs.join("90")).expect("the folder is ours");
        process(&procfs, 95, "kswapd0", 2, "7 5 6\n");
        assert_eq!(threads.cpu_ns(), [(0, 7)].into());
        let _ = fs::remove_dir_all(&procfs);
    }
}
