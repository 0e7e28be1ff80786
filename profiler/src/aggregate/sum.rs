//! Windows added up: texts, processes and frames are numbers here, and stacks one tree, so that what came before is found
//! by a few small numbers. Those are given here, so a hash that does not resist chosen keys will do for them.

use super::{Containers, Detail, Gathering, Programs, Scope, Window};
use crate::names::{Numbered, Stack, number};
use kpulse_common::container::ContainerIdentity;
use kpulse_symbolize::process::{Executable, note};
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::collections::{BTreeMap, HashSet};
use std::mem::take;
use std::sync::Arc;
use std::time::SystemTime;

/// The reason of samples whose stack is among the rarest of a sum with too many.
pub const ANSWER_FULL: &str = "answer_full";

/// A process, with the texts of its name and of its container's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    pub pid: u32,
    pub name: u32,
    pub container: u32,
}

/// A place in the tree of stacks: the frame that called it, and the text of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Frame {
    pub caller: u32,
    pub name: u32,
}

/// One stack of one thread name in one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    pub process: u32,
    pub thread: u32,
    pub leaf: u32,
}

/// Windows added up.
pub struct Sum {
    pub from: SystemTime,
    pub to: SystemTime,
    /// Samples that were lost or left out, by reason.
    pub lost: BTreeMap<String, u64>,
    pub entries: FxHashMap<Entry, u64>,
    /// The first is empty and stands for none.
    pub texts: Numbered<Arc<str>>,
    pub processes: Numbered<Process>,
    /// Counted from 1, a caller before what it called; 0 stands for none.
    pub frames: Numbered<Frame, FxBuildHasher>,
    pub programs: Programs,
    pub containers: Containers,
}

impl Sum {
    /// Nothing yet of this time.
    pub fn new(from: SystemTime, to: SystemTime) -> Self {
        let mut sum = Self {
            from,
            to,
            lost: BTreeMap::new(),
            entries: FxHashMap::default(),
            texts: Numbered::default(),
            processes: Numbered::default(),
            frames: Numbered::default(),
            programs: Programs::new(),
            containers: Containers::new(),
        };
        sum.text("");
        sum
    }

    /// One window, whole.
    pub fn of(window: &Window) -> Self {
        let mut gathering = Gathering::new(&Scope::Host, Detail::Stacks, usize::MAX);
        gathering.window(window);
        gathering.sum().unwrap_or_else(|| Self::new(window.from, window.to))
    }

    /// The number of a text.
    pub fn text(&mut self, text: &str) -> u32 {
        number(self.texts.get(text).unwrap_or_else(|| self.texts.number(text.into())))
    }

    /// The number of a process.
    pub fn process(&mut self, process: Process) -> u32 {
        number(self.processes.number(process))
    }

    /// The number of a frame.
    pub fn frame(&mut self, frame: Frame) -> u32 {
        number(self.frames.number(frame) + 1)
    }

    /// Counts samples of one stack.
    pub fn count(&mut self, entry: Entry, samples: u64) {
        *self.entries.entry(entry).or_default() += samples;
    }

    /// Counts samples that are in no entry.
    pub fn lose(&mut self, reason: &str, samples: u64) {
        if samples == 0 {
            return;
        }
        match self.lost.get_mut(reason) {
            Some(known) => *known += samples,
            None => drop(self.lost.insert(reason.to_owned(), samples)),
        }
    }

    /// Notes what a process runs.
    pub fn note_program(&mut self, pid: u32, name: u32, program: &Arc<Executable>) {
        let name = self.texts.values[name as usize].clone();
        let known = self.programs.entry((pid, name)).or_insert_with(|| program.clone());
        note(known, &program.unnamed);
    }

    /// Notes what a container is called.
    pub fn note_container(&mut self, container: &Arc<ContainerIdentity>) {
        if !self.containers.contains_key(container.id.as_str()) {
            let id = self.text(&container.id);
            self.containers.insert(self.texts.values[id as usize].clone(), container.clone());
        }
    }

    /// Samples in it.
    pub fn samples(&self) -> u64 {
        self.entries.values().sum()
    }

    /// The names from the root to a frame.
    pub fn stack(&self, leaf: u32) -> Stack {
        let mut names = Vec::new();
        let mut at = leaf;
        while at != 0 {
            let Frame { caller, name } = self.frames.values[at as usize - 1];
            names.push(self.texts.values[name as usize].clone());
            at = caller;
        }
        names.reverse();
        names.into()
    }

    /// Takes the rarer half out, and counts it as lost.
    pub fn leave_out(&mut self) {
        let mut counts: Vec<u64> = self.entries.values().copied().collect();
        let half = counts.len() / 2;
        let (_, &mut median, _) = counts.select_nth_unstable(half);
        let (mut surplus, mut samples) = (half, 0);
        self.entries.retain(|_, count| {
            let goes = *count <= median && surplus > 0;
            if goes {
                surplus -= 1;
                samples += *count;
            }
            !goes
        });
        self.lose(ANSWER_FULL, samples);
        self.sweep();
    }

    /// Forgets what no entry needs.
    fn sweep(&mut self) {
        let entries = take(&mut self.entries);
        let texts = take(&mut self.texts).values;
        let processes = take(&mut self.processes).values;
        let frames = take(&mut self.frames).values;
        let mut is_needed = vec![false; frames.len() + 1];
        for entry in entries.keys() {
            is_needed[entry.leaf as usize] = true;
        }
        for (index, frame) in frames.iter().enumerate().rev() {
            is_needed[frame.caller as usize] |= is_needed[index + 1];
        }
        self.text("");
        let kept = |sum: &mut Self, text: u32| number(sum.texts.number(texts[text as usize].clone()));
        let mut numbers = vec![0; frames.len() + 1];
        for (index, frame) in frames.iter().enumerate().filter(|(index, _)| is_needed[index + 1]) {
            let name = kept(self, frame.name);
            numbers[index + 1] = self.frame(Frame { caller: numbers[frame.caller as usize], name });
        }
        let (mut running, mut containers) = (HashSet::new(), HashSet::new());
        for (Entry { process, thread, leaf }, count) in entries {
            let Process { pid, name, container } = processes[process as usize];
            running.insert((pid, texts[name as usize].clone()));
            containers.insert(texts[container as usize].clone());
            let (name, container) = (kept(self, name), kept(self, container));
            let process = self.process(Process { pid, name, container });
            let thread = kept(self, thread);
            self.count(Entry { process, thread, leaf: numbers[leaf as usize] }, count);
        }
        self.programs.retain(|process, _| running.contains(process));
        self.containers.retain(|id, _| containers.contains(id));
    }
}
