//! What an answer is made of: the entries of a scope, with their stacks as they are shown.

use super::sum::{Entry, Process, Sum};
use super::{Containers, Key, Programs};
#[cfg(test)]
use super::{Detail, Gathering, Scope, Window};
use crate::names::Stack;
use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

/// The entries of a scope over one or more windows.
#[derive(Debug, Clone)]
pub struct Selection {
    pub from: SystemTime,
    pub to: SystemTime,
    pub samples: u64,
    /// Samples that were lost or left out, by reason.
    pub lost: BTreeMap<String, u64>,
    pub entries: HashMap<Key, u64>,
    /// The programs that the processes ran.
    pub programs: Programs,
    pub containers: Containers,
}

impl Selection {
    /// What came together.
    pub fn of(sum: Sum) -> Self {
        let mut stacks: HashMap<u32, Stack> = HashMap::new();
        let key = |(entry, count): (&Entry, &u64)| {
            let Process { pid, name, container } = sum.processes.values[entry.process as usize];
            let text = |number: u32| sum.texts.values[number as usize].clone();
            let stack = stacks.entry(entry.leaf).or_insert_with(|| sum.stack(entry.leaf)).clone();
            let container = (container != 0).then(|| text(container));
            (Key { pid, process: text(name), thread: text(entry.thread), container, stack }, *count)
        };
        Self {
            from: sum.from,
            to: sum.to,
            samples: sum.samples(),
            entries: sum.entries.iter().map(key).collect(),
            lost: sum.lost,
            programs: sum.programs,
            containers: sum.containers,
        }
    }

    /// A part of what was sampled from `from` to `to`, which knows the same programs and containers.
    pub fn part(&self, entries: HashMap<Key, u64>) -> Self {
        Self {
            samples: entries.values().sum(),
            lost: BTreeMap::new(),
            entries,
            programs: self.programs.clone(),
            containers: self.containers.clone(),
            ..*self
        }
    }

    /// Gathers the entries of `scope` from windows in order of time; `None` without a window.
    #[cfg(test)]
    pub fn gather<'a>(windows: impl IntoIterator<Item = &'a Window>, scope: &Scope) -> Option<Self> {
        let mut gathering = Gathering::new(scope, Detail::Stacks, usize::MAX);
        windows.into_iter().for_each(|window| gathering.window(window));
        gathering.finish()
    }
}
