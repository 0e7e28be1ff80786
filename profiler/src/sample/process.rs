//! Is this still the process, and the program, whose addresses were named? Its identity by `/proc/PID`.

use std::fs;
use std::ops::Range;
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

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub identity: Identity,
    /// Name of the main thread.
    pub name: String,
}

/// Reads about processes under one `/proc`.
#[derive(Debug, Clone)]
pub struct Processes {
    procfs: PathBuf,
    host_mounts: Option<(u64, u64)>,
    shares_host_mounts: bool,
    follows_map_files: bool,
}

/// How the files that a process runs can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Through `map_files`: the very file that is mapped, deleted or in another mount namespace.
    Mapped {
        /// It lies in the host's file system, and so does what it refers to.
        is_host: bool,
    },
    /// By its path: right while the file is there.
    ByPath,
    /// A path here would be another file.
    Unreachable,
}

impl Processes {
    /// Processes as `procfs` shows them.
    pub fn new(procfs: &Path) -> Self {
        let procfs = procfs.to_path_buf();
        let mut processes = Self {
            procfs,
            host_mounts: None,
            shares_host_mounts: false,
            follows_map_files: follows_map_files(),
        };
        let own = processes.mounts("self");
        // Where even root may not look at the first process, ours is the best guess.
        processes.host_mounts = processes.mounts("1").or(own);
        processes.shares_host_mounts = own == processes.host_mounts;
        processes
    }

    /// A running process; `None` when it is gone.
    pub fn process(&self, pid: u32) -> Option<Process> {
        parse(&fs::read(self.procfs.join(pid.to_string()).join("stat")).ok()?)
    }

    /// How the files that a process runs can be opened.
    pub fn files(&self, pid: u32) -> Files {
        let is_host = self.host_mounts.is_some() && self.mounts(&pid.to_string()) == self.host_mounts;
        match (self.follows_map_files, is_host) {
            (true, _) => Files::Mapped { is_host },
            (false, true) if self.shares_host_mounts => Files::ByPath,
            (false, _) => Files::Unreachable,
        }
    }

    /// The files whose code the process runs, by address; empty when it is gone.
    pub fn code_files(&self, pid: u32) -> CodeFiles {
        let maps = fs::read(self.procfs.join(pid.to_string()).join("maps")).unwrap_or_default();
        CodeFiles(maps.split(|byte| *byte == b'\n').filter_map(code_file).collect())
    }

    fn mounts(&self, process: &str) -> Option<(u64, u64)> {
        let namespace = fs::metadata(self.procfs.join(process).join("ns/mnt")).ok()?;
        Some((namespace.dev(), namespace.ino()))
    }
}

/// Whether the kernel lets us open what is mapped: CAP_CHECKPOINT_RESTORE since 5.9, CAP_SYS_ADMIN before.
fn follows_map_files() -> bool {
    let first = fs::read_dir("/proc/self/map_files").ok().and_then(|mut entries| entries.next()?.ok());
    first.is_some_and(|entry| fs::metadata(entry.path()).is_ok())
}

/// Mappings with code, in order of address.
#[derive(Debug, Default)]
pub struct CodeFiles(Vec<(Range<u64>, String)>);

impl CodeFiles {
    /// The name of the file at an address, without its folder.
    pub fn name(&self, address: u64) -> Option<&str> {
        let after = self.0.partition_point(|(range, _)| range.start <= address);
        let (range, name) = self.0.get(after.checked_sub(1)?)?;
        range.contains(&address).then_some(name)
    }
}

/// Reads a line of `maps`: `start-end perms offset device inode path`, where the path may have blanks.
fn code_file(line: &[u8]) -> Option<(Range<u64>, String)> {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    let is_code = fields.next()?.contains('x');
    let path = fields.nth(3)?.trim_start();
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let name = path.starts_with('/').then(|| path.rsplit('/').next())??;
    is_code.then(|| (range, name.to_owned()))
}

/// Reads `stat`; the name in its second field can hold anything, so the fields are counted from the last `)`.
fn parse(stat: &[u8]) -> Option<Process> {
    let name_start = stat.iter().position(|byte| *byte == b'(')? + 1;
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let name = String::from_utf8_lossy(stat.get(name_start..name_end)?).into_owned();
    let fields: Vec<&str> =
        std::str::from_utf8(stat.get(name_end + 1..)?).ok()?.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse().ok();
    let identity = Identity { start_ticks: field(22)?, code: field(26)?, stack: field(28)? };
    Some(Process { identity, name })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn a_name_that_looks_like_fields_changes_nothing() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21 22 444 24 555 26 27";
        for name in ["x", "a) S 1 2 (\n"] {
            let identity = Identity { start_ticks: 777, code: 444, stack: 555 };
            let expected = Process { identity, name: name.into() };
            assert_eq!(parse(format!("9 ({name}) {tail}").as_bytes()), Some(expected));
        }
        assert_eq!(parse(b"9 (cut"), None);
        assert_eq!(parse(b"9 (cut) S 1"), None);
        assert_eq!(parse(b"9 )cut( S 1"), None);
    }

    #[test]
    fn an_address_is_named_by_the_file_whose_code_is_there() {
        let maps: [&[u8]; 5] = [
            b"1000-2000 r--p 00000000 fe:01 7    /usr/lib/my lib.so",
            b"2000-3000 r-xp 00001000 fe:01 7    /usr/lib/my lib.so",
            b"3000-4000 r-xp 00000000 00:01 9    /memfd:jit (deleted)",
            b"4000-5000 r-xp 00000000 00:00 0    [vdso]",
            b"not a mapping",
        ];
        let files = CodeFiles(maps.into_iter().filter_map(code_file).collect());
        let names: Vec<_> =
            [0x1fff, 0x2000, 0x2fff, 0x3800, 0x4800].map(|address| files.name(address)).into();
        assert_eq!(names, [None, Some("my lib.so"), Some("my lib.so"), Some("memfd:jit"), None]);
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
        let before = processes.process(child.id()).unwrap();
        drop(child.stdin.take());
        while !is_running("sleep") && !is_running("coreutils") && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let after = processes.process(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        let after = after.unwrap();
        assert!(after.identity != before.identity && after.name == "sleep", "{before:?} {after:?}");
        assert_eq!(processes.process(child.id()), None);
    }
}
