//! Windows added up in the order of time, for an answer or for a sum that is kept.

use super::sum::{Entry, Frame, Process, Sum};
use super::{Scope, Selection, Window};
use std::time::SystemTime;

/// How much of each sample an answer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Its stack and its thread.
    Stacks,
    /// Its process and its container only.
    Targets,
}

/// What of a window is added.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub scope: Scope,
    pub detail: Detail,
}

/// Adds windows up. Memory is bounded by a number of different stacks, and by twice that while a window is added: of more
/// the rarer half is left out, and counted as lost.
pub struct Gathering {
    wanted: Wanted,
    max_stacks: usize,
    sum: Option<Sum>,
}

impl Gathering {
    /// Nothing of this scope yet.
    pub fn new(scope: &Scope, detail: Detail, max_stacks: usize) -> Self {
        Self { wanted: Wanted { scope: scope.clone(), detail }, max_stacks, sum: None }
    }

    /// Adds one window, or a sum of some, from one time to another.
    pub fn add<T>(
        &mut self,
        from: SystemTime,
        to: SystemTime,
        add: impl FnOnce(&Wanted, &mut Sum) -> T,
    ) -> T {
        let sum = self.sum.get_or_insert_with(|| Sum::new(from, to));
        (sum.from, sum.to) = (sum.from.min(from), sum.to.max(to));
        let added = add(&self.wanted, sum);
        while sum.entries.len() > self.max_stacks {
            sum.leave_out();
        }
        added
    }

    /// Adds a window that is in memory.
    pub fn window(&mut self, window: &Window) {
        self.add(window.from, window.to, |wanted, sum| {
            for (reason, count) in &window.lost {
                sum.lose(reason, *count);
            }
            for (key, count) in window.entries() {
                if !wanted.scope.matches(key.pid, key.container.as_deref()) {
                    continue;
                }
                let name = sum.text(&key.process);
                let container = key.container.as_deref().map_or(0, |id| sum.text(id));
                let process = sum.process(Process { pid: key.pid, name, container });
                if let Some(identity) = key.container.as_ref().and_then(|id| window.containers.get(id)) {
                    sum.note_container(identity);
                }
                let (mut thread, mut leaf) = (0, 0);
                if wanted.detail == Detail::Stacks {
                    if let Some(program) = window.programs.get(&(key.pid, key.process.clone())) {
                        sum.note_program(key.pid, name, program);
                    }
                    thread = sum.text(&key.thread);
                    for name in key.stack.iter() {
                        let name = sum.text(name);
                        leaf = sum.frame(Frame { caller: leaf, name });
                    }
                }
                sum.count(Entry { process, thread, leaf }, count);
            }
        });
    }

    /// What came together; `None` without a window.
    pub fn sum(self) -> Option<Sum> {
        self.sum
    }

    /// The same with its stacks as they are shown.
    pub fn finish(self) -> Option<Selection> {
        self.sum.map(Selection::of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Key;
    use std::sync::Arc;

    #[test]
    fn an_answer_with_too_many_stacks_keeps_the_frequent_ones_and_counts_the_rest() {
        let mut gathering = Gathering::new(&Scope::Host, Detail::Stacks, 100);
        let mut taken = 0;
        for round in 0..20u32 {
            let mut window = Window::new(SystemTime::UNIX_EPOCH, 1000);
            for leaf in 0..60 {
                // Ten leaves come in each window, fifty in one only.
                let name = if leaf < 10 { format!("hot{leaf}") } else { format!("cold{leaf}-{round}") };
                let stack = Arc::from([Arc::from("main"), Arc::from(name.as_str())].as_slice());
                let key = Key { pid: round, process: "p".into(), thread: "t".into(), container: None, stack };
                let key = if leaf < 10 { Key { pid: 7, ..key } } else { key };
                window.add(key, 3);
                taken += 3;
            }
            gathering.window(&window);
            let sum = gathering.sum.as_ref().unwrap();
            assert!(sum.entries.len() <= 100);
            // What only the others needed has gone with them.
            assert!(sum.frames.values.len() <= 161 && sum.texts.values.len() <= 164);
        }
        let all = gathering.finish().unwrap();
        assert_eq!(all.samples + all.lost["answer_full"], taken);
        assert_eq!(all.samples, all.entries.values().sum::<u64>());
        let hot = all.entries.iter().filter(|(key, _)| key.stack[1].starts_with("hot"));
        // Until they had come more often than the others, they were as rare.
        assert_eq!(hot.filter(|(_, count)| **count >= 50).count(), 10);
        assert!(all.entries.keys().all(|key| key.stack.len() == 2 && &*key.stack[0] == "main"));
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
