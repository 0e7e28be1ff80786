//! Writes every period into folded files: one for the host, and one for each container and process that ran most.
//!
//! The history is the queue, as it is for uploads: a directory that cannot be written to costs no memory, and windows that
//! left the history before they were written are counted. How far it got is kept with the history; a kill can have the
//! files of one period written twice, under the same names.

mod directory;
mod names;

use crate::aggregate::{Key, Losses, Selection};
use crate::config;
use crate::export::folded::Folded;
use crate::history::Closed;
use crate::pipeline::Shared;
use anyhow::{Context, Result};
use directory::{Directory, Known};
use kpulse_common::host;
use kpulse_common::paths::Paths;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

/// As the history knows this reader of its windows.
const READER: &str = "files";
/// How often it is looked whether a period is over, and longest wait after an error, up to which it doubles.
const BEAT: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Longest work at once when many periods wait, so that it can be told to stop; what is left then is for the next start.
const WORK_MAX: Duration = Duration::from_secs(5);
/// A lasting failure is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(600);
/// Longest file; all those of a period take half of the bound of bytes at most, so that the one before stays.
const FILE_BYTES: usize = 16 << 20;
/// What file systems give a file at once.
const BLOCK: usize = 4096;

/// What became of windows.
const WRITTEN: &str = "written";
const LOST: &str = "lost";
/// Why samples are in no file: too many names, or too many lines.
const NAMES_FULL: &str = "names_full";
const BYTES_FULL: &str = "bytes_full";
/// Why files went.
const AGE: &str = "age";
const BYTES: &str = "bytes";

/// Sums since the start. What is in a scope's files and what is left out is what its windows hold of that scope.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Windows by what became of them.
    pub windows: Losses,
    /// Files by scope.
    pub files: Losses,
    /// Samples in files, by scope, and in none, by scope and reason.
    pub samples: Losses,
    pub left_out: BTreeMap<(&'static str, &'static str), u64>,
    /// Lines without the middle of their stack.
    pub lines_cut: u64,
    /// Files that went, by reason.
    pub removed: Losses,
    /// Attempts that failed.
    pub errors: u64,
    /// Bytes on the disk.
    pub bytes: u64,
}

/// The thread that writes.
pub struct Files {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Files {
    /// Starts where a directory is set; refuses one that cannot be written to.
    pub fn start(config: &config::Files, paths: &Paths, shared: &Shared) -> Result<Option<Self>> {
        if config.directory.as_os_str().is_empty() {
            return Ok(None);
        }
        let mut writer = Writer::new(config, paths, shared)?;
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("kpulse-files".into())
            .spawn(move || writer.run(&stopped))
            .context("cannot start a thread")?;
        Ok(Some(Self { stop, thread }))
    }

    /// Writes what was closed, though its period is not over, and waits for it.
    pub fn finish(self) {
        drop(self.stop);
        // A thread that panicked has said so on stderr.
        let _ = self.thread.join();
    }
}

struct Writer {
    config: config::Files,
    directory: Directory,
    host: String,
    shared: Shared,
    /// The window that is written next.
    next: u64,
    /// When the directory was last gone through.
    looked: Instant,
}

impl Writer {
    fn new(config: &config::Files, paths: &Paths, shared: &Shared) -> Result<Self> {
        let path = config.directory.display();
        let directory = Directory::open(&config.directory).with_context(|| {
            format!("cannot write folded files to {path}; --files.directory names another directory")
        })?;
        let host = host::read(paths).name.unwrap_or_else(|| "all".into());
        let (config, shared) = (config.clone(), shared.clone());
        shared.lock().totals.files = Some(Counts::default());
        let mut writer =
            Self { config, directory, host: names::folder(&host), shared, next: 0, looked: Instant::now() };
        writer.next = writer.shared.place(READER, &writer.target()).unwrap_or_else(|error| {
            tracing::debug!(error = format!("{error:#}"), "the files have no history");
            writer.shared.lock().history.began()
        });
        Ok(writer)
    }

    fn target(&self) -> String {
        self.config.directory.display().to_string()
    }

    fn run(&mut self, stopped: &Receiver<()>) {
        let (mut pause, mut said): (Duration, Option<Instant>) = (BEAT, None);
        let mut is_last = false;
        // What an earlier process left counts from the start on.
        let mut worked = self.room(None).map(drop);
        loop {
            match worked {
                Ok(()) => pause = BEAT,
                Err(error) => {
                    self.count(|counts| counts.errors += 1);
                    pause = (pause * 2).min(PAUSE_MAX);
                    if said.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                        said = Some(Instant::now());
                        let error = format!("{error:#}");
                        tracing::error!(error, "folded files wait in the history until they can be written");
                    }
                }
            }
            if is_last {
                return;
            }
            is_last = !matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout));
            worked = self.write_all(is_last);
        }
    }

    /// Writes the periods that are over.
    fn write_all(&mut self, is_last: bool) -> Result<()> {
        let begun = Instant::now();
        while let Some(closed) = self.shared.closed_period(self.next, self.config.period, is_last)? {
            let lost = closed.first - self.next;
            self.next = closed.first;
            self.count(|counts| add(&mut counts.windows, LOST, lost));
            self.write(&closed)?;
            self.next = closed.next;
            let lost = closed.next - closed.first - closed.windows;
            self.count(|counts| {
                add(&mut counts.windows, LOST, lost);
                add(&mut counts.windows, WRITTEN, closed.windows);
            });
            if let Err(error) = self.shared.set_place(READER, &self.target(), self.next) {
                tracing::debug!(error = format!("{error:#}"), "the place in the history is not noted");
            }
            if begun.elapsed() >= WORK_MAX {
                break;
            }
        }
        // Files grow old without new ones too.
        if self.looked.elapsed() >= self.config.period { self.room(None).map(drop) } else { Ok(()) }
    }

    fn write(&mut self, Closed { selection, .. }: &Closed) -> Result<()> {
        let file = names::file(selection.from);
        let mut room = self.room(names::begin(&file))?;
        let mut budget = usize::try_from(self.config.max_bytes / 2).unwrap_or(usize::MAX);
        let mut counts = Counts::default();
        // What an answer would leave out too; the losses of the windows themselves are counted as they happen.
        for reason in crate::history::LEFT_OUT {
            counts.leave_out("host", reason, selection.lost.get(reason).copied().unwrap_or(0));
        }
        let mut groups = vec![("host", self.host.clone(), selection.entries.iter().collect())];
        for (scope, name) in [("container", container as Name), ("process", process)] {
            let (most, left_out) = grouped(selection, name, self.config.max_names);
            counts.leave_out(scope, NAMES_FULL, left_out);
            groups.extend(most.into_iter().map(|(name, entries)| (scope, name, entries)));
        }
        for (scope, name, entries) in groups {
            let entries = entries.into_iter().map(|(key, count): (&Key, &u64)| (key, *count));
            // The next file has room too.
            let bytes_max = budget / 2 / BLOCK * BLOCK;
            let (folded, left_out) = Folded::within(entries, bytes_max.min(FILE_BYTES));
            counts.leave_out(scope, BYTES_FULL, left_out);
            if folded.samples() == 0 {
                continue;
            }
            let bytes = folded.bytes().next_multiple_of(BLOCK);
            budget -= bytes;
            room.make(bytes as u64, &self.directory)?;
            room.used += self.directory.write(scope, &name, &file, &folded)?;
            add(&mut counts.files, scope, 1);
            add(&mut counts.samples, scope, folded.samples());
            counts.lines_cut += folded.truncated();
        }
        // Files take whole blocks.
        room.make(0, &self.directory)?;
        self.count(|sums| sums.add(counts));
        Ok(())
    }

    /// What the directory holds beside the files of this period; what is too old or too much has gone.
    fn room(&mut self, period: Option<SystemTime>) -> Result<Room> {
        self.looked = Instant::now();
        self.directory
            .follow()
            .and_then(|()| self.room_there(period))
            .with_context(|| format!("cannot work in the directory {}", self.config.directory.display()))
    }

    fn room_there(&self, period: Option<SystemTime>) -> Result<Room> {
        let oldest = SystemTime::now().checked_sub(self.config.max_age).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut room =
            Room { files: VecDeque::new(), used: 0, shared: self.shared.clone(), max: self.config.max_bytes };
        for file in self.directory.files()? {
            if file.begin < oldest {
                self.directory.remove(&file)?;
                self.count(|counts| add(&mut counts.removed, AGE, 1));
            } else {
                room.used += file.bytes;
                // Those that an earlier attempt wrote are about to be replaced.
                if Some(file.begin) != period {
                    room.files.push_back(file);
                }
            }
        }
        room.make(0, &self.directory)?;
        Ok(room)
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(self.shared.lock().totals.files.get_or_insert_default());
    }
}

/// The files that may have to give way, and what all take.
struct Room {
    files: VecDeque<Known>,
    used: u64,
    shared: Shared,
    max: u64,
}

impl Room {
    /// Has the oldest files go until so many bytes more are within the bound.
    fn make(&mut self, bytes: u64, directory: &Directory) -> Result<()> {
        while self.used + bytes > self.max {
            let Some(oldest) = self.files.pop_front() else { break };
            directory.remove(&oldest)?;
            self.used -= oldest.bytes;
            add(&mut self.shared.lock().totals.files.get_or_insert_default().removed, BYTES, 1);
        }
        self.shared.lock().totals.files.get_or_insert_default().bytes = self.used;
        Ok(())
    }
}

impl Counts {
    fn leave_out(&mut self, scope: &'static str, reason: &'static str, samples: u64) {
        if samples > 0 {
            *self.left_out.entry((scope, reason)).or_default() += samples;
        }
    }

    /// Adds what one period counts.
    fn add(&mut self, more: Self) {
        let Self { files, samples, left_out, lines_cut, .. } = more;
        for (sums, more) in [(&mut self.files, files), (&mut self.samples, samples)] {
            more.into_iter().for_each(|(name, count)| add(sums, name, count));
        }
        for ((scope, reason), samples) in left_out {
            self.leave_out(scope, reason, samples);
        }
        self.lines_cut += lines_cut;
    }
}

fn add(sums: &mut Losses, name: &'static str, count: u64) {
    if count > 0 {
        *sums.entry(name).or_default() += count;
    }
}

/// Which folder an entry belongs to, if any.
type Name = fn(&Key) -> Option<String>;

fn container(key: &Key) -> Option<String> {
    key.container.as_ref().map(|id| names::folder(id))
}

fn process(key: &Key) -> Option<String> {
    Some(names::process(&key.process, key.pid))
}

type Group<'a> = (String, Vec<(&'a Key, &'a u64)>);

/// Entries by folder, those with most samples first, and the samples of the others.
fn grouped(selection: &Selection, name: Name, max_names: usize) -> (Vec<Group<'_>>, u64) {
    let mut groups: HashMap<String, Vec<(&Key, &u64)>> = HashMap::new();
    for entry in &selection.entries {
        if let Some(name) = name(entry.0) {
            groups.entry(name).or_default().push(entry);
        }
    }
    let samples = |(_, entries): &Group<'_>| entries.iter().map(|(_, count)| **count).sum::<u64>();
    let mut groups: Vec<Group<'_>> = groups.into_iter().collect();
    groups.sort_by_cached_key(|group| (Reverse(samples(group)), group.0.clone()));
    let rest = groups.split_off(groups.len().min(max_names));
    let left_out = rest.iter().map(samples).sum();
    (groups, left_out)
}

#[cfg(test)]
mod tests;
