//! What an answer is made of: the entries of a scope, summed over windows in the order of time.

use super::{Containers, Key, Programs, Scope, Window};
use crate::names::{Interned, Stack};
use kpulse_common::container::ContainerIdentity;
use kpulse_symbolize::process::{Executable, note};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

/// The reason of samples whose stack is among the rarest of an answer with too many.
pub const ANSWER_FULL: &str = "answer_full";

/// How much of each sample an answer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Its stack and its thread.
    Stacks,
    /// Its process and its container only.
    Targets,
}

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

/// Sums windows. Memory is bounded by a number of different stacks: of more the rarer half is left out, and counted as lost.
pub struct Gathering {
    scope: Scope,
    detail: Detail,
    max_stacks: usize,
    selection: Option<Selection>,
    names: Interned<str>,
    stacks: Interned<[Arc<str>]>,
}

impl Gathering {
    /// Nothing of this scope yet.
    pub fn new(scope: &Scope, detail: Detail, max_stacks: usize) -> Self {
        Self {
            scope: scope.clone(),
            detail,
            max_stacks,
            selection: None,
            names: Interned::default(),
            stacks: Interned::default(),
        }
    }

    /// Adds a window that is in memory.
    pub fn window(&mut self, window: &Window) {
        self.begin(window.from, window.to);
        for (reason, count) in &window.lost {
            self.lose(reason, *count);
        }
        for (key, count) in window.entries() {
            if !self.wants(key.pid, key.container.as_deref()) {
                continue;
            }
            let program = window.programs.get(&(key.pid, key.process.clone()));
            let container = key.container.as_ref().and_then(|id| window.containers.get(id));
            self.describe(key.pid, &key.process, program, container);
            let key = match self.detail {
                Detail::Stacks => key.clone(),
                Detail::Targets => Key { thread: self.name(""), stack: self.stack(&[]), ..key.clone() },
            };
            self.count(key, count);
        }
    }

    /// Whether stacks are wanted at all.
    pub fn detail(&self) -> Detail {
        self.detail
    }

    /// Whether the samples of a process are wanted.
    pub fn wants(&self, pid: u32, container: Option<&str>) -> bool {
        self.scope.matches(pid, container)
    }

    /// The next window.
    pub fn begin(&mut self, from: SystemTime, to: SystemTime) {
        let begun = self.selection.get_or_insert_with(|| Selection {
            from,
            to,
            samples: 0,
            lost: BTreeMap::new(),
            entries: HashMap::new(),
            programs: Programs::new(),
            containers: Containers::new(),
        });
        begun.to = to;
    }

    /// Notes samples that the window lost.
    pub fn lose(&mut self, reason: &str, samples: u64) {
        let Some(selection) = self.selection.as_mut().filter(|_| samples > 0) else { return };
        match selection.lost.get_mut(reason) {
            Some(known) => *known += samples,
            None => drop(selection.lost.insert(reason.to_owned(), samples)),
        }
    }

    /// Notes what a process is that will be counted.
    pub fn describe(
        &mut self,
        pid: u32,
        process: &Arc<str>,
        program: Option<&Arc<Executable>>,
        container: Option<&Arc<ContainerIdentity>>,
    ) {
        let Some(selection) = &mut self.selection else { return };
        if let Some(program) = program.filter(|_| self.detail == Detail::Stacks) {
            let known = selection.programs.entry((pid, process.clone())).or_insert_with(|| program.clone());
            note(known, &program.unnamed);
        }
        if let Some(container) = container
            && !selection.containers.contains_key(container.id.as_str())
        {
            let id = self.names.intern(&container.id);
            selection.containers.insert(id, container.clone());
        }
    }

    /// Counts samples of one stack.
    pub fn count(&mut self, key: Key, samples: u64) {
        let Some(selection) = &mut self.selection else { return };
        *selection.entries.entry(key).or_default() += samples;
        selection.samples += samples;
        if selection.entries.len() > self.max_stacks {
            self.leave_out();
        }
    }

    /// The shared copy of a name.
    pub fn name(&mut self, name: &str) -> Arc<str> {
        self.names.intern(name)
    }

    /// The shared copy of a stack.
    pub fn stack(&mut self, frames: &[Arc<str>]) -> Stack {
        self.stacks.intern(frames)
    }

    /// Takes the rarer half out.
    fn leave_out(&mut self) {
        let Some(selection) = &mut self.selection else { return };
        let mut counts: Vec<u64> = selection.entries.values().copied().collect();
        let half = counts.len() / 2;
        let (_, &mut median, _) = counts.select_nth_unstable(half);
        let (mut surplus, mut samples) = (half, 0);
        selection.entries.retain(|_, count| {
            let goes = *count <= median && surplus > 0;
            if goes {
                surplus -= 1;
                samples += *count;
            }
            !goes
        });
        selection.samples -= samples;
        let processes: HashSet<_> =
            selection.entries.keys().map(|key| (key.pid, key.process.clone())).collect();
        let containers: HashSet<_> =
            selection.entries.keys().filter_map(|key| key.container.clone()).collect();
        selection.programs.retain(|process, _| processes.contains(process));
        selection.containers.retain(|id, _| containers.contains(id));
        drop((processes, containers));
        self.lose(ANSWER_FULL, samples);
        self.stacks.sweep();
        self.names.sweep();
    }

    /// The sum; `None` without a window.
    pub fn finish(self) -> Option<Selection> {
        self.selection
    }
}

impl Selection {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_too_many_stacks_keeps_the_frequent_ones_and_counts_the_rest() {
        let mut gathering = Gathering::new(&Scope::Host, Detail::Stacks, 100);
        let mut taken = 0;
        for round in 0..20u32 {
            let mut window = Window::new(SystemTime::UNIX_EPOCH, 1000);
            for leaf in 0..60 {
                // Ten leaves come in each window, fifty in one only.
                let name = if leaf < 10 { format!("hot{leaf}") } else { format!("cold{leaf}-{round}") };
                let stack = Arc::from([Arc::from(name.as_str())].as_slice());
                let key = Key { pid: round, process: "p".into(), thread: "t".into(), container: None, stack };
                let key = if leaf < 10 { Key { pid: 7, ..key } } else { key };
                window.add(key, 3);
                taken += 3;
            }
            gathering.window(&window);
            assert!(gathering.selection.as_ref().unwrap().entries.len() <= 100);
        }
        let all = gathering.finish().unwrap();
        assert_eq!(all.samples + all.lost["answer_full"], taken);
        assert_eq!(all.samples, all.entries.values().sum::<u64>());
        let hot = all.entries.iter().filter(|(key, _)| key.stack[0].starts_with("hot"));
        // Until they had come more often than the others, they were as rare.
        assert_eq!(hot.filter(|(_, count)| **count >= 50).count(), 10);
    }

    #[test]
    fn targets_need_no_stacks() {
        let mut window = Window::new(SystemTime::UNIX_EPOCH, 1000);
        for thread in ["one", "two"] {
            let stack = Arc::from([Arc::from(thread)].as_slice());
            let key = Key { pid: 7, process: "p".into(), thread: thread.into(), container: None, stack };
            window.add(key, 3);
        }
        let mut gathering = Gathering::new(&Scope::Host, Detail::Targets, 100);
        gathering.window(&window);
        let all = gathering.finish().unwrap();
        assert_eq!((all.samples, all.entries.len()), (6, 1));
    }
}
