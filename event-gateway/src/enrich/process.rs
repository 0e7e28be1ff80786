//! Which process is this pid, and was it that process already when the event happened?

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Most processes remembered; together with the bounds below at most some 20 MiB, in practice 1.
const PROCESSES_MAX: usize = 4_096;
/// How long a reading holds: a process may exec meanwhile.
const FRESH_FOR: Duration = Duration::from_secs(10);
/// Longest command line that is kept.
const COMMAND_LINE_MAX: u64 = 4_096;
/// Longest file name that is kept.
const EXECUTABLE_MAX: usize = 4_096;
/// A clock tick of `/proc/PID/stat`: USER_HZ is 100 on every architecture we run on.
const TICK_NS: u64 = 10_000_000;

/// What `/proc` says about a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub name: Option<String>,
    pub executable: Option<String>,
    pub command_line: Option<String>,
    /// Start by the boot clock, rounded down to a tick.
    started_ns: u64,
}

/// Reads processes, and remembers them for a short time.
pub(super) struct Processes {
    procfs: PathBuf,
    cache: HashMap<u32, (Instant, Option<Known>)>,
}

impl Processes {
    pub fn new(procfs: &Path) -> Self {
        Self { procfs: procfs.to_owned(), cache: HashMap::new() }
    }

    /// The process that had this pid at `boot_ns`; `None` when it is gone.
    pub fn find(&mut self, pid: u32, boot_ns: u64) -> Option<Known> {
        let now = Instant::now();
        let cached = self.cache.get(&pid).filter(|(read_at, _)| now.duration_since(*read_at) < FRESH_FOR);
        let known = match cached {
            Some((_, Some(known))) => Some(known.clone()),
            _ => {
                let known = self.read(pid);
                self.remember(pid, now, known.clone());
                known
            }
        };
        // A pid is reused: what started after the event is another process.
        known.filter(|known| known.started_ns <= boot_ns)
    }

    fn remember(&mut self, pid: u32, now: Instant, known: Option<Known>) {
        // A gone process keeps what was read while it lived.
        if known.is_none() && self.cache.contains_key(&pid) {
            return;
        }
        if self.cache.len() >= PROCESSES_MAX {
            self.cache.retain(|_, (read_at, _)| now.duration_since(*read_at) < FRESH_FOR);
        }
        if self.cache.len() >= PROCESSES_MAX {
            self.cache.clear();
        }
        self.cache.insert(pid, (now, known));
    }

    fn read(&self, pid: u32) -> Option<Known> {
        let directory = self.procfs.join(pid.to_string());
        let started_ns = started_ns(&std::fs::read(directory.join("stat")).ok()?)?;
        let name = std::fs::read(directory.join("comm")).ok().map(|name| text(&name));
        // A kernel thread has neither an executable nor a command line.
        let executable = std::fs::read_link(directory.join("exe")).ok();
        let executable = executable.map(|path| path.to_string_lossy().chars().take(EXECUTABLE_MAX).collect());
        let mut arguments = Vec::new();
        let read = File::open(directory.join("cmdline"))
            .and_then(|file| file.take(COMMAND_LINE_MAX).read_to_end(&mut arguments));
        while arguments.last() == Some(&0) {
            arguments.pop();
        }
        arguments.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        let command_line = read.ok().map(|_| text(&arguments));
        let present = |text: Option<String>| text.filter(|text| !text.is_empty());
        Some(Known { name: present(name), executable, command_line: present(command_line), started_ns })
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned()
}

/// Field 22 of `/proc/PID/stat`. The name, field 2, may hold blanks and parentheses.
fn started_ns(stat: &[u8]) -> Option<u64> {
    let end_of_name = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end_of_name + 1..)?).ok()?;
    let ticks: u64 = rest.split_ascii_whitespace().nth(19)?.parse().ok()?;
    ticks.checked_mul(TICK_NS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpulse_common::clock::boot_ns;

    #[test]
    fn finds_itself_and_not_before_its_start() {
        let mut processes = Processes::new(Path::new("/proc"));
        let pid = std::process::id();
        let known = processes.find(pid, boot_ns()).unwrap();
        assert_eq!(known.executable, Some(std::env::current_exe().unwrap().to_string_lossy().into_owned()));
        let arguments: Vec<_> = std::env::args().collect();
        assert_eq!(known.command_line, Some(arguments.join(" ")));
        assert_eq!(processes.find(pid, known.started_ns - 1), None);
    }

    #[test]
    fn a_gone_process_is_still_known_for_its_last_events() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut processes = Processes::new(Path::new("/proc"));
        let first = processes.find(child.id(), boot_ns());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(first.is_some());
        assert_eq!(processes.find(child.id(), boot_ns()), first);
        assert_eq!(Processes::new(Path::new("/proc")).find(child.id(), boot_ns()), None);
    }

    #[test]
    fn reads_the_start_behind_any_name() {
        let stat = b"7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1";
        assert_eq!(started_ns(stat), Some(123_450_000_000));
        for broken in [&b""[..], b")", b"7 (x", b"7 (x) S 1 2", b"7 (x) \xff\xff"] {
            assert_eq!(started_ns(broken), None);
        }
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut processes = Processes::new(Path::new("/nonexistent"));
        for pid in 0..3 * PROCESSES_MAX as u32 {
            assert_eq!(processes.find(pid, 0), None);
        }
        assert!(processes.cache.len() <= PROCESSES_MAX);
    }
}
