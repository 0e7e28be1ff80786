//! Which program did a process run that is gone? What began and ended in the last minutes, bounded.

use kpulse_exporter_ebpf::life::ProcessId;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Most programs remembered. With [`BYTES_MAX`] the bound of this cache; when it is reached, those that ended first
/// give way, then those that began first.
pub(super) const ENTRIES_MAX: usize = 16_384;
/// Most bytes of them, texts and bookkeeping.
const BYTES_MAX: usize = 8 << 20;
/// What one entry takes beside its texts, in the map and in the two queues.
const ENTRY_BYTES: usize = 256;
/// Programs of one process that are told apart by time: what runs, and what ran before exec.
const PROGRAMS_MAX: usize = 2;
/// How long a process is remembered after its end: its last events come late.
const KEEP_NS: u64 = 300_000_000_000;
/// After its end a task still leaves the kernel. Much later its pid is somebody else, of whom no record came.
const LATE_NS: u64 = 10_000_000_000;
/// A clock tick of `/proc/PID/stat`: USER_HZ is 100 on every architecture we run on.
pub(super) const TICK_NS: u64 = 10_000_000;

/// A program that a process ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Program {
    pub executable: Option<String>,
    pub command_line: Option<String>,
}

/// One program in the life of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Start of the process. What `/proc` told is rounded down to a tick.
    pub start_ns: u64,
    /// Since when it ran this program.
    pub since_ns: u64,
    pub name: Option<String>,
    pub program: Arc<Program>,
    pub cgroup_id: Option<u64>,
    /// When the process ended.
    pub end_ns: Option<u64>,
}

/// How full the cache is, and what it let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Programs.
    pub entries: usize,
    /// Their size.
    pub bytes: usize,
    /// Programs that gave way before their time, since the start.
    pub displaced: u64,
}

/// The cache.
#[derive(Debug, Default)]
pub(super) struct Past {
    by_pid: HashMap<u32, Vec<Entry>>,
    /// Ends in the order of time.
    ended: VecDeque<(u64, ProcessId)>,
    /// Pid and beginning of each entry, in the order they came; some are gone. Bound: twice [`ENTRIES_MAX`].
    begun: VecDeque<(u32, u64)>,
    depth: Depth,
}

/// Whether two starts of one pid are one process.
pub(super) fn same_start(one_ns: u64, other_ns: u64) -> bool {
    one_ns / TICK_NS == other_ns / TICK_NS
}

fn bytes(entry: &Entry) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let program = &entry.program;
    // A program that forks share is counted for each: the bound is kept the sooner.
    ENTRY_BYTES + text(&entry.name) + text(&program.executable) + text(&program.command_line)
}

impl Past {
    pub fn depth(&self) -> Depth {
        self.depth
    }

    /// The program that this pid ran at a time.
    pub fn at(&self, pid: u32, boot_ns: u64) -> Option<&Entry> {
        let entries = self.by_pid.get(&pid)?;
        let entry = entries.iter().rfind(|entry| entry.since_ns <= boot_ns)?;
        entry.end_ns.is_none_or(|end_ns| boot_ns <= end_ns.saturating_add(LATE_NS)).then_some(entry)
    }

    /// The last that is known of a process.
    pub fn last(&self, process: ProcessId) -> Option<&Entry> {
        self.by_pid.get(&process.pid)?.iter().rfind(|entry| same_start(entry.start_ns, process.start_ns))
    }

    /// Adds what a process runs from now on.
    pub fn begin(&mut self, pid: u32, entry: Entry) {
        let entries = self.by_pid.entry(pid).or_default();
        let is_its = |other: &Entry| same_start(other.start_ns, entry.start_ns);
        if entries.iter().filter(|other| is_its(other)).count() >= PROGRAMS_MAX
            && let Some(oldest) = entries.iter().position(is_its)
        {
            let old = entries.remove(oldest);
            self.depth.entries -= 1;
            self.depth.bytes -= bytes(&old);
        }
        self.depth.entries += 1;
        self.depth.bytes += bytes(&entry);
        self.begun.push_back((pid, entry.since_ns));
        if let Some(end_ns) = entry.end_ns {
            self.ended.push_back((end_ns, ProcessId { pid, start_ns: entry.start_ns }));
        }
        let place = entries.partition_point(|other| other.since_ns <= entry.since_ns);
        entries.insert(place, entry);
        self.make_room();
    }

    /// A process ended, with this name; whether it was known. `program` is what it ran where more is known of that.
    pub fn end(
        &mut self,
        process: ProcessId,
        name: Option<String>,
        program: Option<Arc<Program>>,
        end_ns: u64,
    ) -> bool {
        let entries = self.by_pid.get_mut(&process.pid);
        let its = entries.and_then(|entries| {
            entries.iter_mut().rfind(|entry| same_start(entry.start_ns, process.start_ns))
        });
        let Some(entry) = its else { return false };
        self.depth.bytes -= bytes(entry);
        entry.name = name;
        if let Some(program) = program {
            entry.program = program;
        }
        self.depth.bytes += bytes(entry);
        if entry.end_ns.replace(end_ns).is_none() {
            self.ended.push_back((end_ns, process));
        }
        self.make_room();
        true
    }

    /// Forgets those that ended long ago.
    pub fn expire(&mut self, now_ns: u64) {
        while let Some(&(end_ns, process)) = self.ended.front() {
            if now_ns.saturating_sub(end_ns) < KEEP_NS {
                break;
            }
            self.ended.pop_front();
            self.forget(process.pid, |entry| same_start(entry.start_ns, process.start_ns));
        }
    }

    fn make_room(&mut self) {
        while self.depth.entries > ENTRIES_MAX || self.depth.bytes > BYTES_MAX {
            let gone = if let Some((_, process)) = self.ended.pop_front() {
                self.forget(process.pid, |entry| same_start(entry.start_ns, process.start_ns))
            } else if let Some((pid, since_ns)) = self.begun.pop_front() {
                self.forget(pid, |entry| entry.since_ns == since_ns)
            } else {
                break;
            };
            self.depth.displaced += gone;
        }
        if self.begun.len() > 2 * ENTRIES_MAX {
            let by_pid = &self.by_pid;
            let is_there = |&(pid, since_ns): &(u32, u64)| {
                by_pid.get(&pid).is_some_and(|entries| entries.iter().any(|entry| entry.since_ns == since_ns))
            };
            self.begun.retain(is_there);
        }
    }

    fn forget(&mut self, pid: u32, is_meant: impl Fn(&Entry) -> bool) -> u64 {
        let Some(entries) = self.by_pid.get_mut(&pid) else { return 0 };
        let mut gone = 0;
        entries.retain(|entry| {
            let stays = !is_meant(entry);
            if !stays {
                gone += 1;
                self.depth.entries -= 1;
                self.depth.bytes -= bytes(entry);
            }
            stays
        });
        if entries.is_empty() {
            self.by_pid.remove(&pid);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn entry(start_ns: u64, since_ns: u64, command: &str) -> Entry {
        let program = Program { executable: None, command_line: Some(command.to_owned()) };
        Entry { start_ns, since_ns, name: None, program: Arc::new(program), cgroup_id: None, end_ns: None }
    }

    fn name(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    fn command(past: &Past, pid: u32, at_ns: u64) -> Option<&str> {
        past.at(pid, at_ns)?.program.command_line.as_deref()
    }

    #[test]
    fn a_pid_that_is_used_again_and_a_program_before_exec_are_told_apart_by_time() {
        let mut past = Past::default();
        past.begin(7, entry(SECOND, SECOND, "shell"));
        past.begin(7, entry(SECOND, 2 * SECOND, "ls"));
        assert!(past.end(ProcessId { pid: 7, start_ns: SECOND + 5 }, name("ls"), None, 3 * SECOND));
        past.begin(7, entry(4 * SECOND, 4 * SECOND, "cat"));
        let found = [0, 1, 2, 3, 4, 5].map(|second| command(&past, 7, second * SECOND));
        assert_eq!(found, [None, Some("shell"), Some("ls"), Some("ls"), Some("cat"), Some("cat")]);
        assert_eq!(past.at(7, 2 * SECOND).unwrap().name.as_deref(), Some("ls"));
        assert_eq!(command(&past, 8, 2 * SECOND), None);
    }

    #[test]
    fn long_after_its_end_a_pid_is_somebody_else() {
        let mut past = Past::default();
        past.begin(7, entry(SECOND, SECOND, "ls"));
        past.end(ProcessId { pid: 7, start_ns: SECOND }, name("ls"), None, 2 * SECOND);
        assert_eq!(command(&past, 7, 3 * SECOND), Some("ls"));
        assert_eq!(command(&past, 7, 2 * SECOND + LATE_NS + 1), None);
    }

    #[test]
    fn what_ended_is_kept_for_five_minutes() {
        let mut past = Past::default();
        past.begin(7, entry(SECOND, SECOND, "ls"));
        past.begin(8, entry(SECOND, SECOND, "server"));
        past.end(ProcessId { pid: 7, start_ns: SECOND }, name("ls"), None, 2 * SECOND);
        past.expire(2 * SECOND + KEEP_NS - 1);
        assert_eq!(command(&past, 7, 2 * SECOND), Some("ls"));
        past.expire(2 * SECOND + KEEP_NS);
        assert_eq!(command(&past, 7, 2 * SECOND), None);
        assert_eq!(command(&past, 8, 1000 * SECOND), Some("server"), "what runs is kept");
    }

    #[test]
    fn what_ended_gives_way_before_what_runs() {
        let mut past = Past::default();
        past.begin(1, entry(1, 1, "server"));
        for pid in 2..3 * ENTRIES_MAX as u32 {
            let start_ns = u64::from(pid) * SECOND;
            past.begin(pid, entry(start_ns, start_ns, "short"));
            past.end(ProcessId { pid, start_ns }, name("short"), None, start_ns + 1);
        }
        assert_eq!(command(&past, 1, SECOND), Some("server"));
        assert_eq!(past.depth().entries, ENTRIES_MAX);
        assert_eq!(past.depth().displaced, 2 * ENTRIES_MAX as u64 - 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn the_bounds_hold_and_the_sums_are_right(
            steps in prop::collection::vec((1u32..9, 0u8..4, 0usize..2_000_000), 1..200),
        ) {
            let mut past = Past::default();
            for (time, (pid, what, size)) in (1u64..).zip(steps) {
                let now_ns = time * SECOND;
                match what {
                    0 => past.begin(pid, entry(now_ns, now_ns, &"x".repeat(size))),
                    1 => {
                        let start_ns = past.at(pid, now_ns).map_or(now_ns, |entry| entry.start_ns);
                        past.begin(pid, entry(start_ns, now_ns, &"x".repeat(size)));
                    }
                    2 => {
                        let start_ns = past.at(pid, now_ns).map_or(now_ns, |entry| entry.start_ns);
                        past.end(ProcessId { pid, start_ns }, name("y"), None, now_ns);
                    }
                    _ => past.expire(now_ns + size as u64 * SECOND / 4000),
                }
                let entries = past.by_pid.values().flatten();
                prop_assert_eq!(past.depth.entries, entries.clone().count());
                prop_assert_eq!(past.depth.bytes, entries.map(bytes).sum::<usize>());
                prop_assert!(past.depth.bytes <= BYTES_MAX);
                prop_assert!(past.by_pid.values().all(|entries| !entries.is_empty()));
            }
        }
    }
}
