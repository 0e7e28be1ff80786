//! What ran in the last hour? Closed windows in order of time, bounded by age and by memory.

use crate::aggregate::{ENTRY_BYTES, Key, Scope, Selection, Window};
use crate::names::{Interned, Stack};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Length of a window.
    pub window: Duration,
    /// Different stacks that one window holds.
    pub window_entries: usize,
    /// Age at which a window goes.
    pub max_age: Duration,
    /// Memory above which the oldest windows go.
    pub max_bytes: usize,
}

/// The samples of one drain with their names, ready to be counted.
#[derive(Debug, Default)]
pub struct Named {
    pub entries: Vec<(Key, u64)>,
    pub taken: u64,
    pub outside: u64,
    pub lost: Vec<(&'static str, u64)>,
}

/// Windows that went before their age, and why.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evicted {
    pub windows: u64,
    pub samples: u64,
}

/// The open window and the closed ones before it.
pub struct History {
    bounds: Bounds,
    open: (Instant, Window),
    closed: VecDeque<(Instant, Window)>,
    stacks: Interned<[Arc<str>]>,
    entries: usize,
    evicted: Evicted,
}

impl History {
    /// An empty history that begins now.
    pub fn new(bounds: Bounds) -> Self {
        let open = (Instant::now(), Window::new(SystemTime::now(), bounds.window_entries));
        Self {
            bounds,
            open,
            closed: VecDeque::new(),
            stacks: Interned::default(),
            entries: 0,
            evicted: Evicted::default(),
        }
    }

    /// The shared copy of a stack.
    pub fn stack(&mut self, frames: &[Arc<str>]) -> Stack {
        self.stacks.intern(frames)
    }

    /// Counts the samples of one drain that ended at `now`, and closes the window when it is long enough.
    /// Returns how many were stored.
    pub fn absorb(&mut self, named: Named, now: Instant, wall: SystemTime) -> u64 {
        let window = &mut self.open.1;
        let before = window.stored;
        window.to = wall;
        window.taken += named.taken;
        window.outside += named.outside;
        for (reason, count) in named.lost {
            *window.lost.entry(reason).or_default() += count;
        }
        for (key, count) in named.entries {
            window.add(key, count);
        }
        let stored = window.stored - before;
        if now.saturating_duration_since(self.open.0) >= self.bounds.window {
            self.close(now, wall);
        }
        stored
    }

    fn close(&mut self, now: Instant, wall: SystemTime) {
        let next = (now, Window::new(wall, self.bounds.window_entries));
        let (_, full) = std::mem::replace(&mut self.open, next);
        self.entries += full.len();
        self.closed.push_back((now, full));
        while self
            .closed
            .front()
            .is_some_and(|(end, _)| now.saturating_duration_since(*end) > self.bounds.max_age)
        {
            self.forget_oldest();
        }
        self.stacks.sweep();
        while self.bytes() > self.bounds.max_bytes {
            let Some(samples) = self.forget_oldest() else { break };
            self.evicted.windows += 1;
            self.evicted.samples += samples;
            self.stacks.sweep();
        }
    }

    fn forget_oldest(&mut self) -> Option<u64> {
        let (_, oldest) = self.closed.pop_front()?;
        self.entries -= oldest.len();
        Some(oldest.stored)
    }

    /// Closed windows that reach into the last `seconds`, and the open one.
    pub fn select(&self, scope: &Scope, last: Duration, now: Instant) -> Option<Selection> {
        let recent = self.closed.iter().filter(|(end, _)| now.saturating_duration_since(*end) < last);
        Selection::gather(recent.map(|(_, window)| window).chain([&self.open.1]), scope)
    }

    /// Memory of entries and stacks, estimated from above.
    pub fn bytes(&self) -> usize {
        self.entries() * ENTRY_BYTES + self.stacks.bytes()
    }

    /// Different stacks, summed over the windows.
    pub fn entries(&self) -> usize {
        self.entries + self.open.1.len()
    }

    /// Windows kept, with the open one.
    pub fn windows(&self) -> usize {
        self.closed.len() + 1
    }

    /// What the memory bound took away so far.
    pub fn evicted(&self) -> Evicted {
        self.evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn history(max_bytes: usize) -> History {
        History::new(Bounds { window: 10 * SECOND, window_entries: 100, max_age: 60 * SECOND, max_bytes })
    }

    fn drain(history: &mut History, at: Instant, leaf: &str) {
        let stack = history.stack(&[Arc::from("main"), Arc::from(leaf)]);
        let key = Key { pid: 7, process: "p".into(), thread: "t".into(), container: None, stack };
        let named = Named { entries: vec![(key, 10)], taken: 12, outside: 0, lost: vec![("map_full", 2)] };
        history.absorb(named, at, SystemTime::now());
    }

    #[test]
    fn a_window_closes_after_its_length_and_goes_at_its_age() {
        let mut history = history(1 << 20);
        let start = Instant::now();
        for second in 1..=100 {
            drain(&mut history, start + second * SECOND, "hot");
        }
        assert!((6..=8).contains(&history.windows()), "{} windows", history.windows());
        assert_eq!(history.evicted().windows, 0, "age is no loss");
        let now = start + 100 * SECOND;
        let last = history.select(&Scope::Process(7), 30 * SECOND, now).unwrap();
        assert!((300..=400).contains(&last.samples), "{}", last.samples);
        assert_eq!(last.lost["map_full"] * 5, last.samples);
        assert_eq!(history.select(&Scope::Process(8), 30 * SECOND, now).unwrap().samples, 0);
    }

    #[test]
    fn memory_bounds_the_history_and_the_loss_is_counted() {
        let bound = 20 * ENTRY_BYTES;
        let mut history = history(bound);
        let start = Instant::now();
        for second in 1..=400 {
            drain(&mut history, start + second * SECOND, &format!("leaf{second}"));
            assert!(history.bytes() < 2 * bound, "{} bytes", history.bytes());
        }
        assert!(history.evicted().windows > 0);
        assert_eq!(history.evicted().samples % 10, 0);
    }
}
