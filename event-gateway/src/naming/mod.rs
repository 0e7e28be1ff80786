//! What are the functions of a user stack called?
//!
//! The files of programs are read on a thread of its own, as soon as a record has come: its process may not live for long. No
//! event waits for it longer than [`PATIENCE`], whatever a container's file system does to whoever reads a file: it
//! goes on without names, and so does one that finds too many before it.

use crate::enrich::Draft;
use crate::spool::{Document, Spool};
use crate::tally::{QUEUE_FULL, Tally};
use anyhow::{Context, Result};
use kpulse_exporter_ebpf::{AddressSpace, UserStack};
use kpulse_symbolize::native::Detail;
use kpulse_symbolize::{Native, Processes, Unknown, cut, instructions, is_hostile};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Longest time that an event waits for the names of its user stack.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Most events that wait; together with what an event holds some megabytes.
const WAITING_MAX: usize = 256;
/// How often it is asked at the end whether all have their names.
const FINISH_INTERVAL: Duration = Duration::from_millis(5);
/// What stands for code without a name.
const UNNAMED: &str = "[unknown]";

/// Frames without a name, by reason.
type Unnamed = BTreeMap<&'static str, u64>;

/// Events on their way to the spool.
pub struct Naming {
    state: Mutex<State>,
    changed: Condvar,
    spool: Arc<Spool>,
    tally: Arc<Tally>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// On their way from here to the spool.
    leaving: u64,
    taken: u64,
    is_finished: bool,
}

struct Waiting {
    number: u64,
    since: Instant,
    stack: UserStack,
    draft: Draft,
}

impl Naming {
    /// Starts the thread, which ends with [`Naming::finish`].
    pub fn start(spool: &Arc<Spool>, tally: &Arc<Tally>) -> Result<Arc<Self>> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let naming = Arc::new(Self { state, changed, spool: spool.clone(), tally: tally.clone() });
        let its = naming.clone();
        // Not waited for: a file that cannot be read may hold it up for ever.
        Builder::new().name("names".to_owned()).spawn(move || its.run()).context("cannot start a thread")?;
        Ok(naming)
    }

    /// Takes an event: one without a user stack goes on at once.
    pub fn push(&self, mut draft: Draft) {
        let Some(stack) = draft.user_stack.take() else { return self.deliver(draft, Vec::new()) };
        let mut state = self.lock();
        if state.waiting.len() >= WAITING_MAX {
            drop(state);
            return self.give_up(QUEUE_FULL, &stack, draft);
        }
        state.taken += 1;
        let number = state.taken;
        state.waiting.push_back(Waiting { number, since: Instant::now(), stack, draft });
        self.count(&state);
        drop(state);
        self.changed.notify_one();
    }

    /// Sends on those that have waited for too long.
    pub fn hurry(&self) {
        let now = Instant::now();
        while let Some(late) = self.pop(|first| now.duration_since(first.since) >= PATIENCE) {
            self.give_up("late", &late.stack, late.draft);
            self.left();
        }
    }

    /// Waits until all have gone on, as long as the last may wait.
    pub fn finish(&self) {
        self.lock().is_finished = true;
        self.changed.notify_one();
        let is_empty = |state: &State| state.waiting.is_empty() && state.leaving == 0;
        while !is_empty(&self.lock()) {
            self.hurry();
            std::thread::sleep(FINISH_INTERVAL);
        }
    }

    fn run(&self) {
        // The reader goes by /proc whatever the configuration says; a process of another one's is told by its identity.
        let mut native = Native::new(Processes::new(Path::new("/proc")), Detail::Symbols);
        while let Some((number, stack)) = self.next() {
            let (names, unnamed) = name(&mut native, &stack, Instant::now());
            if let Some(named) = self.pop(|first| first.number == number) {
                self.unnamed(unnamed);
                self.deliver(named.draft, names);
                self.left();
            }
        }
    }

    /// The first that waits; it stays, since somebody may lose patience meanwhile. `None` at the end.
    fn next(&self) -> Option<(u64, UserStack)> {
        let is_idle = |state: &mut State| state.waiting.is_empty() && !state.is_finished;
        let state = self.changed.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
        state.waiting.front().map(|first| (first.number, first.stack.clone()))
    }

    fn pop(&self, is_wanted: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let mut state = self.lock();
        state.waiting.front().filter(|first| is_wanted(first))?;
        state.leaving += 1;
        state.waiting.pop_front()
    }

    fn left(&self) {
        let mut state = self.lock();
        state.leaving -= 1;
        self.count(&state);
    }

    fn count(&self, state: &State) {
        self.tally.update(|counts| counts.in_naming = state.waiting.len() as u64 + state.leaving);
    }

    fn give_up(&self, reason: &'static str, stack: &UserStack, draft: Draft) {
        self.unnamed(BTreeMap::from([(reason, stack.frames.len() as u64)]));
        self.deliver(draft, Vec::new());
    }

    fn unnamed(&self, unnamed: Unnamed) {
        self.tally.update(|counts| {
            for (reason, count) in unnamed {
                *counts.frames_unnamed.entry(reason).or_default() += count;
            }
        });
    }

    fn deliver(&self, draft: Draft, names: Vec<String>) {
        let given_way = self.spool.push(draft.encode(names));
        if !given_way.is_empty() {
            self.tally.lost(QUEUE_FULL, &given_way as &[Document]);
        }
    }

    /// What waits is whole after each change, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The frames of a user stack, innermost first, down to the first that is no code: without frame pointers a stack leads
/// astray, and so does what lies behind. None for a process that is gone or runs another program.
fn name(native: &mut Native, stack: &UserStack, now: Instant) -> (Vec<String>, Unnamed) {
    let addresses: Vec<u64> = instructions(&stack.frames).collect();
    native.resolve(vec![(stack.pid, addresses.clone())], now, &mut |name| cut(name).into());
    let identity = native.identity(stack.pid);
    let is_it = identity.is_some_and(|its| AddressSpace { code: its.code, stack: its.stack } == stack.space);
    let (mut names, mut unnamed) = (Vec::new(), Unnamed::new());
    for (depth, address) in addresses.iter().enumerate() {
        let left = (addresses.len() - depth) as u64;
        let nameless = match native.name(stack.pid, *address) {
            _ if !is_it => {
                unnamed.insert(Unknown::ProcessGone.label(), left);
                break;
            }
            Ok(functions) => {
                names.extend(functions.iter().rev().map(|function| clean(function)));
                continue;
            }
            Err(nameless) => nameless,
        };
        if matches!(nameless.why, Unknown::Unmapped | Unknown::ProcessGone) {
            unnamed.insert(nameless.why.label(), left);
            break;
        }
        *unnamed.entry(nameless.why.label()).or_default() += 1;
        names.push(nameless.file.as_deref().map_or_else(|| UNNAMED.to_owned(), clean));
    }
    (names, unnamed)
}

/// Names come from files that anybody may have written.
fn clean(name: &str) -> String {
    name.chars().map(|letter| if is_hostile(letter) { '_' } else { letter }).collect()
}

#[cfg(test)]
mod tests;
