//! Which process is this pid, and was it that process already when the event happened?
//!
//! `/proc` knows those that live. Those that are gone are known by the records that their beginning and end left
//! behind; these are read before each question, so that nothing older than the event is missing.

use super::past::{Depth, ENTRIES_MAX, Entry, Past, Program, TICK_NS, same_start};
use kpulse_common::clock::boot_ns;
use kpulse_common::container::{CgroupId, Hierarchy};
use kpulse_exporter_ebpf::life::{Change, Life, LifeStream, ProcessId};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most processes whose reading is remembered; together with the bounds below at most some 20 MiB, in practice 1.
const PROCESSES_MAX: usize = 4_096;
/// How long a reading holds without a record of the process.
const FRESH_FOR: Duration = Duration::from_secs(10);
/// Longest command line that is kept.
const COMMAND_LINE_MAX: u64 = 4_096;
/// Longest file name that is kept.
const EXECUTABLE_MAX: usize = 4_096;
/// Most cgroup paths that records told; about 1 MiB. The oldest gives way.
const CGROUPS_MAX: usize = 4_096;

/// Records of processes that began and ended.
pub trait Lives: Send {
    /// Hands over a bounded number of records, without waiting.
    fn drain(&mut self, each: &mut dyn FnMut(Life));
    /// The hierarchy that ids of cgroups in a record belong to.
    fn hierarchy(&self) -> Hierarchy;
    /// Records lost since the start, by reason.
    fn losses(&self) -> Vec<(&'static str, u64)>;
}

impl Lives for LifeStream {
    fn drain(&mut self, each: &mut dyn FnMut(Life)) {
        LifeStream::drain(self, each);
    }

    fn hierarchy(&self) -> Hierarchy {
        LifeStream::hierarchy(self)
    }

    fn losses(&self) -> Vec<(&'static str, u64)> {
        LifeStream::losses(self).to_vec()
    }
}

/// What became of the records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that were read.
    pub records: u64,
    /// Records that were lost, by reason.
    pub losses: Vec<(&'static str, u64)>,
    /// What is remembered.
    pub depth: Depth,
}

/// What is known of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub name: Option<String>,
    pub executable: Option<String>,
    pub command_line: Option<String>,
    /// Its cgroup, where a record told it.
    pub cgroup: Option<CgroupId>,
    /// Start by the boot clock; what `/proc` told is rounded down to a tick.
    started_ns: u64,
}

/// Reads processes, and remembers them for a short time.
pub(super) struct Processes {
    procfs: PathBuf,
    readings: HashMap<u32, (Instant, Option<Known>)>,
    lives: Option<Box<dyn Lives>>,
    past: Past,
    paths: CgroupPaths,
    records: u64,
}

/// Paths of cgroups that records told.
#[derive(Debug, Default)]
struct CgroupPaths {
    by_id: HashMap<CgroupId, (Arc<str>, bool)>,
    order: VecDeque<CgroupId>,
}

impl CgroupPaths {
    fn learn(&mut self, cgroup: CgroupId, path: &str, is_whole: bool) {
        if self.by_id.insert(cgroup, (path.into(), is_whole)).is_some() {
            return;
        }
        self.order.push_back(cgroup);
        if self.order.len() > CGROUPS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }
}

impl Processes {
    pub fn new(procfs: &Path) -> Self {
        Self {
            procfs: procfs.to_owned(),
            readings: HashMap::new(),
            lives: None,
            past: Past::default(),
            paths: CgroupPaths::default(),
            records: 0,
        }
    }

    /// From now on it also knows those that are gone; those that run are read once.
    pub fn follow(&mut self, lives: Box<dyn Lives>) {
        self.lives = Some(lives);
        let Ok(directories) = std::fs::read_dir(&self.procfs) else { return };
        let pids = directories.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        for pid in pids.take(ENTRIES_MAX / 2).collect::<Vec<u32>>() {
            self.remember_running(pid);
        }
    }

    /// Takes in the records that have come.
    pub fn catch_up(&mut self) {
        let Some(mut lives) = self.lives.take() else { return };
        let hierarchy = lives.hierarchy();
        lives.drain(&mut |life| {
            self.records += 1;
            self.take_in(life, hierarchy);
        });
        self.past.expire(boot_ns());
        self.lives = Some(lives);
    }

    /// What became of the records; `None` when nothing tells of processes here.
    pub fn counts(&self) -> Option<Counts> {
        let lives = self.lives.as_ref()?;
        Some(Counts { records: self.records, losses: lives.losses(), depth: self.past.depth() })
    }

    /// The path of a cgroup that a record told, or the end of it, and whether it is whole.
    pub fn cgroup_path(&self, cgroup: CgroupId) -> Option<(Arc<str>, bool)> {
        self.paths.by_id.get(&cgroup).cloned()
    }

    fn take_in(&mut self, life: Life, hierarchy: Hierarchy) {
        let Life { process, boot_ns, name, cgroup_id, change } = life;
        let mut entry = Entry {
            start_ns: process.start_ns,
            since_ns: boot_ns,
            name: Some(name).filter(|name| !name.is_empty()),
            program: Arc::default(),
            cgroup_id,
            end_ns: None,
        };
        match change {
            Change::Cgroup { path, is_whole } => {
                if let Some(id) = cgroup_id {
                    self.paths.learn(CgroupId { hierarchy, id }, &path, is_whole);
                }
            }
            Change::Exec { executable, command_line } => {
                self.readings.remove(&process.pid);
                let executable = executable.filter(|path| is_path(path));
                entry.program = Arc::new(Program { executable, command_line });
                self.past.begin(process.pid, entry);
            }
            Change::Exit { forked_from } => {
                let reading = self.readings.remove(&process.pid).and_then(|(_, known)| known);
                let reading = reading.filter(|known| same_start(known.started_ns, process.start_ns));
                let program = reading.map(|known| {
                    Arc::new(Program { executable: known.executable, command_line: known.command_line })
                });
                if self.past.end(process, entry.name.clone(), program.clone(), boot_ns) {
                    return;
                }
                let of_parent = || forked_from.and_then(|parent| self.program_at(parent, process.start_ns));
                entry.program = program.or_else(of_parent).unwrap_or_default();
                (entry.since_ns, entry.end_ns) = (process.start_ns, Some(boot_ns));
                self.past.begin(process.pid, entry);
            }
        }
    }

    /// What a process ran when it forked, and still runs if it runs at all.
    fn program_at(&mut self, process: ProcessId, boot_ns: u64) -> Option<Arc<Program>> {
        let is_known = |past: &Past| {
            let entry = past.at(process.pid, boot_ns)?;
            same_start(entry.start_ns, process.start_ns).then(|| Arc::clone(&entry.program))
        };
        is_known(&self.past).or_else(|| {
            self.remember_running(process.pid);
            is_known(&self.past)
        })
    }

    fn remember_running(&mut self, pid: u32) {
        // A kernel thread has no program.
        let Some(known) = self.read(pid).filter(|known| known.command_line.is_some()) else { return };
        let Known { name, executable, command_line, started_ns, .. } = known;
        let program = Arc::new(Program { executable, command_line });
        let (start_ns, since_ns) = (started_ns, started_ns);
        self.past.begin(pid, Entry { start_ns, since_ns, name, program, cgroup_id: None, end_ns: None });
    }

    /// The process that had this pid at `boot_ns`; `None` when nothing is known of it.
    pub fn find(&mut self, pid: u32, boot_ns: u64) -> Option<Known> {
        self.catch_up();
        // What started after the event is another process, to which the pid went.
        if let Some(known) = self.reading(pid).filter(|known| known.started_ns <= boot_ns) {
            let process = ProcessId { pid, start_ns: known.started_ns };
            let Some(last) = self.past.last(process) else { return Some(known) };
            if last.since_ns <= boot_ns {
                let cgroup = self.cgroup(last.cgroup_id);
                return Some(Known { cgroup, ..known });
            }
            // The program that runs was begun after the event.
            return self.gone(pid, boot_ns).filter(|gone| same_start(gone.started_ns, known.started_ns));
        }
        // It may have ended between the two.
        self.catch_up();
        self.gone(pid, boot_ns)
    }

    fn gone(&self, pid: u32, boot_ns: u64) -> Option<Known> {
        let entry = self.past.at(pid, boot_ns)?;
        Some(Known {
            name: entry.name.clone(),
            executable: entry.program.executable.clone(),
            command_line: entry.program.command_line.clone(),
            cgroup: self.cgroup(entry.cgroup_id),
            started_ns: entry.start_ns,
        })
    }

    fn cgroup(&self, id: Option<u64>) -> Option<CgroupId> {
        Some(CgroupId { hierarchy: self.lives.as_ref()?.hierarchy(), id: id? })
    }

    /// What `/proc` says, as of a short time ago.
    fn reading(&mut self, pid: u32) -> Option<Known> {
        let now = Instant::now();
        let fresh = self.readings.get(&pid).filter(|(read_at, _)| now.duration_since(*read_at) < FRESH_FOR);
        if let Some((_, Some(known))) = fresh {
            return Some(known.clone());
        }
        let known = self.read(pid);
        self.remember(pid, now, known.clone());
        known
    }

    fn remember(&mut self, pid: u32, now: Instant, known: Option<Known>) {
        // A gone process keeps what was read while it lived.
        if known.is_none() && self.readings.contains_key(&pid) {
            return;
        }
        if self.readings.len() >= PROCESSES_MAX {
            self.readings.retain(|_, (read_at, _)| now.duration_since(*read_at) < FRESH_FOR);
        }
        if self.readings.len() >= PROCESSES_MAX {
            self.readings.clear();
        }
        self.readings.insert(pid, (now, known));
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
        Some(Known {
            name: present(name),
            executable,
            command_line: present(command_line),
            cgroup: None,
            started_ns,
        })
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned()
}

/// Whether it names the file for whoever reads it later: a relative name needs the directory, a descriptor the process.
fn is_path(executable: &str) -> bool {
    executable.starts_with('/') && !["/dev/fd/", "/proc/"].iter().any(|folder| executable.starts_with(folder))
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
    use std::sync::{LazyLock, Mutex};

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

    /// Records that a test wrote.
    struct Written(Arc<Mutex<Vec<Life>>>);

    impl Lives for Written {
        fn drain(&mut self, each: &mut dyn FnMut(Life)) {
            self.0.lock().unwrap().drain(..).for_each(each);
        }

        fn hierarchy(&self) -> Hierarchy {
            Hierarchy::Unified
        }

        fn losses(&self) -> Vec<(&'static str, u64)> {
            Vec::new()
        }
    }

    fn following(procfs: &str) -> (Processes, Arc<Mutex<Vec<Life>>>) {
        let written = Arc::default();
        let mut processes = Processes::new(Path::new(procfs));
        processes.follow(Box::new(Written(Arc::clone(&written))));
        (processes, written)
    }

    fn life(pid: u32, start_ns: u64, boot_ns: u64, change: Change) -> Life {
        let process = ProcessId { pid, start_ns };
        Life { process, boot_ns, name: "sh".to_owned(), cgroup_id: Some(9), change }
    }

    fn exec(executable: &str, command_line: &str) -> Change {
        Change::Exec { executable: Some(executable.to_owned()), command_line: Some(command_line.to_owned()) }
    }

    /// A point in time, seconds after one that is a minute ago.
    fn at(seconds: u64) -> u64 {
        static BEGIN: LazyLock<u64> = LazyLock::new(|| boot_ns() - 60_000_000_000);
        *BEGIN + seconds * 1_000_000_000
    }

    #[test]
    fn a_process_that_was_gone_before_the_first_question_is_known_by_its_records() {
        let (mut processes, written) = following("/nonexistent");
        let gone = Change::Exit { forked_from: None };
        written
            .lock()
            .unwrap()
            .extend([life(7, at(1), at(2), exec("/bin/sh", "sh -c true")), life(7, at(1), at(3), gone)]);
        let known = processes.find(7, at(2) + 5).unwrap();
        assert_eq!(known.name.as_deref(), Some("sh"));
        assert_eq!(known.executable.as_deref(), Some("/bin/sh"));
        assert_eq!(known.command_line.as_deref(), Some("sh -c true"));
        assert_eq!(known.cgroup, Some(CgroupId { hierarchy: Hierarchy::Unified, id: 9 }));
        assert_eq!(processes.find(7, at(1) + 5), None, "what ran before exec was never told");
        assert_eq!(processes.counts().unwrap().records, 2);
    }

    #[test]
    fn a_fork_that_never_called_exec_ran_its_parents_program() {
        let (mut processes, written) = following("/nonexistent");
        let parent = ProcessId { pid: 7, start_ns: at(1) };
        written.lock().unwrap().extend([
            life(7, at(1), at(2), exec("/bin/sh", "sh -c true")),
            life(8, at(3), at(4), Change::Exit { forked_from: Some(parent) }),
            // The pid of the parent is somebody else's by then.
            life(7, at(5), at(5), exec("/bin/ls", "ls")),
            life(9, at(6), at(7), Change::Exit { forked_from: Some(parent) }),
            life(10, at(6), at(7), Change::Exit { forked_from: None }),
        ]);
        assert_eq!(processes.find(8, at(3)).unwrap().command_line.as_deref(), Some("sh -c true"));
        for orphan in [9, 10] {
            let known = processes.find(orphan, at(6)).unwrap();
            assert_eq!((known.name.as_deref(), known.command_line), (Some("sh"), None));
        }
    }

    #[test]
    fn a_fork_of_what_ran_before_us_ran_its_program() {
        let (mut processes, written) = following("/proc");
        let me = std::process::id();
        let started_ns = processes.read(me).unwrap().started_ns;
        let parent = ProcessId { pid: me, start_ns: started_ns + 1 };
        // No process has this pid.
        let child = life(u32::MAX, started_ns + 2, boot_ns(), Change::Exit { forked_from: Some(parent) });
        written.lock().unwrap().push(child);
        let known = processes.find(u32::MAX, boot_ns()).unwrap();
        let arguments: Vec<_> = std::env::args().collect();
        assert_eq!(known.command_line, Some(arguments.join(" ")));
    }

    #[test]
    fn an_event_from_before_exec_is_not_of_the_program_that_runs() {
        let (mut processes, written) = following("/proc");
        let me = std::process::id();
        let started_ns = processes.read(me).unwrap().started_ns;
        let (before, after) = (boot_ns(), boot_ns() + 1);
        assert!(processes.find(me, before).unwrap().command_line.is_some());
        written.lock().unwrap().push(life(me, started_ns + 1, after, exec("/bin/new", "new")));
        let known = processes.find(me, before).unwrap();
        assert!(
            known.command_line.is_some_and(|line| line != "new"),
            "the program that ran when we began to look"
        );
        assert!(processes.find(me, after).is_some());
    }

    #[test]
    fn a_name_that_means_nothing_to_others_is_no_executable() {
        for (name, is) in
            [("/bin/sh", true), ("./a", false), ("a", false), ("/dev/fd/3", false), ("/proc/self/exe", false)]
        {
            assert_eq!(is_path(name), is, "{name}");
        }
    }

    #[test]
    fn the_cgroups_that_were_told_are_bounded() {
        let (mut processes, written) = following("/nonexistent");
        for id in 0..2 * CGROUPS_MAX as u64 {
            let change = Change::Cgroup { path: format!("/{id}"), is_whole: true };
            written.lock().unwrap().push(Life { cgroup_id: Some(id), ..life(1, 1, 1, change) });
        }
        processes.catch_up();
        assert_eq!(processes.paths.by_id.len(), CGROUPS_MAX);
        let last = CgroupId { hierarchy: Hierarchy::Unified, id: 2 * CGROUPS_MAX as u64 - 1 };
        assert_eq!(processes.cgroup_path(last).map(|(path, _)| path.len()), Some(5));
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut processes = Processes::new(Path::new("/nonexistent"));
        for pid in 0..3 * PROCESSES_MAX as u32 {
            assert_eq!(processes.find(pid, 0), None);
        }
        assert!(processes.readings.len() <= PROCESSES_MAX);
    }
}
