//! How often was each stack seen, and in which process and container?
//!
//! A [`Window`] counts one stretch of time. Host, container and process profiles are views of the same
//! entries, so a scope costs nothing until it is asked for.

mod gathering;
mod selection;
mod sum;

pub use gathering::{Detail, Gathering, Wanted};
pub use selection::Selection;
pub use sum::{ANSWER_FULL, Entry, Frame, Process, Sum};

use crate::names::Stack;
use kpulse_common::container::ContainerIdentity;
use kpulse_symbolize::process::Executable;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

/// What a profile is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything that ran.
    Host,
    /// One container, by its id or the id's first twelve characters or more.
    Container(String),
    /// One process.
    Process(u32),
}

impl Scope {
    /// Whether a sample of this process and container belongs to the profile.
    pub fn matches(&self, pid: u32, container: Option<&str>) -> bool {
        match self {
            Self::Host => true,
            Self::Process(wanted) => pid == *wanted,
            Self::Container(wanted) => container.is_some_and(|id| {
                id == wanted || (wanted.len() >= SHORT_ID && id.starts_with(wanted.as_str()))
            }),
        }
    }

    /// The scope in words, for titles.
    pub fn title(&self) -> String {
        match self {
            Self::Host => "host".into(),
            Self::Container(id) => format!("container {id}"),
            Self::Process(pid) => format!("process {pid}"),
        }
    }
}

/// Container programs show this many characters of an id.
const SHORT_ID: usize = 12;

/// One stack of one thread name in one process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub pid: u32,
    pub process: Arc<str>,
    pub thread: Arc<str>,
    pub container: Option<Arc<str>>,
    pub stack: Stack,
}

/// The programs that processes run, by pid and name.
pub type Programs = HashMap<(u32, Arc<str>), Arc<Executable>>;

/// What is known of containers, by id.
pub type Containers = HashMap<Arc<str>, Arc<ContainerIdentity>>;

/// The reason of samples whose stack found no room in its window.
pub const WINDOW_FULL: &str = "window_full";

/// What an entry takes beside its stack and its names, with the table's spare room.
pub const ENTRY_BYTES: usize = (size_of::<Key>() + size_of::<u64>()) * 2;

/// Counts by reason, of what did not get into a profile.
pub type Losses = BTreeMap<&'static str, u64>;

/// Samples of one stretch of time. `taken` = `stored` + `outside` + every loss.
#[derive(Debug, Clone)]
pub struct Window {
    pub from: SystemTime,
    pub to: SystemTime,
    /// Samples that the kernel took.
    pub taken: u64,
    /// Samples counted in an entry.
    pub stored: u64,
    /// Samples of processes that were not asked for.
    pub outside: u64,
    /// Samples that were lost, by reason.
    pub lost: Losses,
    /// What ran, as far as it is known: what a profile of later needs that is not in a stack.
    pub programs: Programs,
    pub containers: Containers,
    entries: HashMap<Key, u64>,
    max_entries: usize,
}

impl Window {
    /// An empty window that holds at most `max_entries` different stacks.
    pub fn new(from: SystemTime, max_entries: usize) -> Self {
        Self {
            from,
            to: from,
            taken: 0,
            stored: 0,
            outside: 0,
            lost: Losses::new(),
            programs: Programs::new(),
            containers: Containers::new(),
            entries: HashMap::new(),
            max_entries,
        }
    }

    /// Notes what ran. Bound: the stacks that the window holds.
    pub fn note(&mut self, programs: Programs, containers: Containers) {
        let room = self.max_entries.saturating_sub(self.programs.len());
        self.programs.extend(programs.into_iter().take(room));
        let room = self.max_entries.saturating_sub(self.containers.len());
        self.containers.extend(containers.into_iter().take(room));
    }

    /// A copy with the entries of a scope only.
    pub fn of_scope(&self, scope: &Scope) -> Self {
        let is_wanted = |key: &Key| scope.matches(key.pid, key.container.as_deref());
        let entries = self.entries.iter().filter(|(key, _)| is_wanted(key));
        let entries = entries.map(|(key, count)| (key.clone(), *count)).collect();
        let (lost, programs, containers) =
            (self.lost.clone(), self.programs.clone(), self.containers.clone());
        Self { lost, programs, containers, entries, ..*self }
    }

    /// Counts samples of one stack, or counts them as lost when the window is full.
    pub fn add(&mut self, key: Key, count: u64) {
        if let Some(seen) = self.entries.get_mut(&key) {
            *seen += count;
        } else if self.entries.len() < self.max_entries {
            self.entries.insert(key, count);
        } else {
            *self.lost.entry(WINDOW_FULL).or_default() += count;
            return;
        }
        self.stored += count;
    }

    /// The stacks with their counts, in no order.
    pub fn entries(&self) -> impl Iterator<Item = (&Key, u64)> {
        self.entries.iter().map(|(key, count)| (key, *count))
    }

    /// How many different stacks there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pid: u32, container: Option<&str>, leaf: &str) -> Key {
        let stack = [Arc::from("main"), Arc::from(leaf)];
        Key {
            pid,
            process: "p".into(),
            thread: "t".into(),
            container: container.map(Arc::from),
            stack: Arc::from(stack.as_slice()),
        }
    }

    #[test]
    fn a_full_window_counts_what_it_leaves_out() {
        let mut window = Window::new(SystemTime::UNIX_EPOCH, 2);
        window.add(key(1, None, "a"), 5);
        window.add(key(1, None, "b"), 3);
        window.add(key(1, None, "c"), 2);
        window.add(key(1, None, "a"), 1);
        assert_eq!((window.stored, window.lost["window_full"], window.len()), (9, 2, 2));
    }

    #[test]
    fn a_scope_selects_its_own_samples_over_windows() {
        let id = "4f5e6d7c8b9a0f1e2d3c";
        let mut first = Window::new(SystemTime::UNIX_EPOCH, 9);
        first.add(key(1, None, "a"), 5);
        first.add(key(2, Some(id), "a"), 7);
        let second = first.clone();
        let samples = |scope| Selection::gather([&first, &second], &scope).map(|found| found.samples);
        assert_eq!(samples(Scope::Host), Some(24));
        assert_eq!(samples(Scope::Process(2)), Some(14));
        assert_eq!(samples(Scope::Container("4f5e6d7c8b9a".into())), Some(14));
        assert_eq!(samples(Scope::Container("4f5e".into())), Some(0), "too short to be one container's");
        assert!(Selection::gather([], &Scope::Host).is_none());
    }
}
