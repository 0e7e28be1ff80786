//! Is this still the process, and the program, whose addresses were named? Its identity by `/proc/PID`.

use crate::object;
use crate::unnamed::Part;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Parts of files without names that are kept of one process.
pub const MAX_PARTS: usize = 64;

/// What changes when a pid is used again or a process starts another program: start time, and where the kernel
/// put the code and the stack, which exec chooses anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// When it began.
    pub start_ticks: u64,
    /// Where its code begins.
    pub code: u64,
    /// Where its stack began.
    pub stack: u64,
}

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Which process and program it is.
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
        parse(&fs::read(self.folder(pid).join("stat")).ok()?)
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

    /// The folder of a process.
    pub fn folder(&self, pid: u32) -> PathBuf {
        self.procfs.join(pid.to_string())
    }

    /// Where the process has code; nowhere when it is gone.
    pub fn code(&self, pid: u32) -> Code {
        let maps = fs::read(self.folder(pid).join("maps")).unwrap_or_default();
        Code(maps.split(|byte| *byte == b'\n').filter_map(mapping).collect())
    }

    /// The program that a process runs; `None` for a kernel thread and for a process that is gone.
    pub fn executable(&self, pid: u32) -> Option<Executable> {
        let link = self.folder(pid).join("exe");
        let path = fs::read_link(&link).ok()?.to_string_lossy().into_owned();
        let build_id = File::open(&link).ok().and_then(|file| object::build_id(&file));
        let path = path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned();
        Some(Executable { path, build_id, unnamed: Vec::new() })
    }

    /// Opens a file that the process maps; an error also for what is no plain file, since opening a device does things.
    pub fn open(&self, pid: u32, mapping: &Mapping, files: Files) -> io::Result<File> {
        self.metadata(pid, mapping, files)?;
        File::open(self.path(pid, mapping, files))
    }

    /// What is known of a plain file that the process maps.
    pub fn metadata(&self, pid: u32, mapping: &Mapping, files: Files) -> io::Result<fs::Metadata> {
        let about = fs::metadata(self.path(pid, mapping, files))?;
        if about.is_file() { Ok(about) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn path(&self, pid: u32, mapping: &Mapping, files: Files) -> PathBuf {
        let Range { start, end } = mapping.range;
        match files {
            Files::ByPath => PathBuf::from(mapping.path.as_deref().unwrap_or_default()),
            _ => self.procfs.join(format!("{pid}/map_files/{start:x}-{end:x}")),
        }
    }

    /// What tells the mount namespace of a process from others; `None` for the host's, and where the process is gone.
    pub fn own_mounts(&self, pid: u32) -> Option<(u64, u64)> {
        self.mounts(&pid.to_string()).filter(|own| Some(*own) != self.host_mounts)
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

/// The program that a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    /// Where it was when it was started, as the process sees it.
    pub path: String,
    /// What tells it from another build.
    pub build_id: Option<String>,
    /// The parts of its files whose functions have no names, as far as they were met.
    pub unnamed: Vec<Arc<Part>>,
}

impl Executable {
    /// The function without a name that a frame stands for; `None` where that is not sure.
    pub fn unnamed_function(&self, frame: &str) -> Option<(&Part, u64)> {
        let mut found = self.unnamed.iter().filter_map(|part| Some((&**part, part.address(frame)?)));
        found.next().filter(|_| found.next().is_none())
    }
}

/// Notes parts of a program's files once each, as many as are kept.
pub fn note(program: &mut Arc<Executable>, parts: &[Arc<Part>]) {
    let room = MAX_PARTS.saturating_sub(program.unnamed.len());
    let is_new = |part: &&Arc<Part>| !program.unnamed.contains(part);
    let new: Vec<_> = parts.iter().filter(is_new).take(room).cloned().collect();
    if !new.is_empty() {
        Arc::make_mut(program).unnamed.extend(new);
    }
}

/// Mappings with code, in order of address.
#[derive(Debug, Default)]
pub struct Code(Vec<Mapping>);

/// One of them.
#[derive(Debug)]
pub struct Mapping {
    /// Where the process has it.
    pub range: Range<u64>,
    offset: u64,
    path: Option<String>,
}

impl Code {
    /// The code at an address.
    pub fn at(&self, address: u64) -> Option<&Mapping> {
        let after = self.0.partition_point(|mapping| mapping.range.start <= address);
        self.0.get(after.checked_sub(1)?).filter(|mapping| mapping.range.contains(&address))
    }

    /// Whether there is none, so no process.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Mapping {
    /// Its file as the process sees it; `None` for code that a program made.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// The name of its file without the folder; `None` for code that a program made.
    pub fn file_name(&self) -> Option<&str> {
        self.path.as_deref()?.rsplit('/').next()
    }

    /// Where in the file an address is that lies in the range.
    pub fn offset_of(&self, address: u64) -> u64 {
        (address - self.range.start).saturating_add(self.offset)
    }
}

/// Reads a line of `maps`: `start-end perms offset device inode path`, where the path may have blanks.
fn mapping(line: &[u8]) -> Option<Mapping> {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    let is_code = fields.next()?.contains('x');
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let path = fields.nth(2).unwrap_or_default().trim_start();
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    is_code.then(|| Mapping { range, offset, path: path.starts_with('/').then(|| path.to_owned()) })
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
        let code = Code(maps.into_iter().filter_map(mapping).collect());
        let names: Vec<_> = [0x1fff, 0x2000, 0x2fff, 0x3800, 0x4800]
            .map(|address| code.at(address).and_then(Mapping::file_name))
            .into();
        assert_eq!(names, [None, Some("my lib.so"), Some("my lib.so"), Some("memfd:jit"), None]);
        assert!(code.at(0x1fff).is_none() && code.at(0x4800).is_some(), "only what can run is code");
        assert_eq!(code.at(0x2010).unwrap().offset_of(0x2010), 0x1010);
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
