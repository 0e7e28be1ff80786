//! Is this still the process, and the program, whose addresses were named? Its identity by `/proc/PID`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What changes when a pid is used again or a process starts another program: start time, and where the kernel
/// put the code and the stack, which exec chooses anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    start_ticks: u64,
    code: u64,
    stack: u64,
}

/// Reads about processes under one `/proc`.
#[derive(Debug, Clone)]
pub struct Processes {
    procfs: PathBuf,
    host_mounts: Option<(u64, u64)>,
}

impl Processes {
    /// Processes as `procfs` shows them.
    pub fn new(procfs: &Path) -> Self {
        let mut processes = Self { procfs: procfs.to_path_buf(), host_mounts: None };
        processes.host_mounts = processes.mounts(1);
        processes
    }

    /// The identity of a running process; `None` when it is gone.
    pub fn identity(&self, pid: u32) -> Option<Identity> {
        parse(&fs::read(self.procfs.join(pid.to_string()).join("stat")).ok()?)
    }

    /// Whether the process sees the host's own file system and not a container's.
    pub fn is_in_host_mounts(&self, pid: u32) -> bool {
        self.host_mounts.is_some() && self.mounts(pid) == self.host_mounts
    }

    fn mounts(&self, pid: u32) -> Option<(u64, u64)> {
        let namespace = fs::metadata(self.procfs.join(pid.to_string()).join("ns/mnt")).ok()?;
        Some((namespace.dev(), namespace.ino()))
    }
}

/// Reads `stat`; the name in its second field can hold anything, so the fields are counted from the last `)`.
fn parse(stat: &[u8]) -> Option<Identity> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields: Vec<&str> =
        std::str::from_utf8(stat.get(name_end + 1..)?).ok()?.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse().ok();
    Some(Identity { start_ticks: field(22)?, code: field(26)?, stack: field(28)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn a_name_that_looks_like_fields_changes_nothing() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21 22 444 24 555 26 27";
        let expected = Some(Identity { start_ticks: 777, code: 444, stack: 555 });
        assert_eq!(parse(format!("9 (x) {tail}").as_bytes()), expected);
        assert_eq!(parse(format!("9 (a) S 1 2 (\n) {tail}").as_bytes()), expected);
        assert_eq!(parse(b"9 (cut"), None);
        assert_eq!(parse(b"9 (cut) S 1"), None);
    }

    #[test]
    fn exec_makes_another_identity() {
        let processes = Processes::new(Path::new("/proc"));
        let mut child = Command::new("sh")
            .args(["-c", "read line; exec sleep 60"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let exe = PathBuf::from(format!("/proc/{}/exe", child.id()));
        let is_running =
            |name: &str| fs::read_link(&exe).is_ok_and(|path| path.to_string_lossy().contains(name));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_running("sh") && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let before = processes.identity(child.id()).unwrap();
        drop(child.stdin.take());
        while !is_running("sleep") && !is_running("coreutils") && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let after = processes.identity(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(after.is_some_and(|after| after != before), "{before:?} {after:?}");
        assert_eq!(processes.identity(child.id()), None);
    }
}
