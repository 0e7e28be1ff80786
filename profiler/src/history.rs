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
    /// Windows that went, for whatever reason.
    gone: u64,
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
            gone: 0,
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
        self.gone += 1;
        Some(oldest.stored)
    }

    /// The first closed window with this number or a later one, and its number; they are counted from 0.
    pub fn closed(&self, number: u64) -> Option<(u64, Window)> {
        let number = number.max(self.gone);
        let (_, window) = self.closed.get(usize::try_from(number - self.gone).ok()?)?;
        Some((number, window.clone()))
    }

    /// Windows that reach into the stretch of this length which ended so long `ago`; the open one ends now.
    pub fn select(&self, scope: &Scope, last: Duration, ago: Duration, now: Instant) -> Option<Selection> {
        let is_in = |begin: Option<Instant>, end: Instant| {
            let age = |then: Instant| now.saturating_duration_since(then);
            age(end) < last + ago && begin.is_none_or(|begin| ago.is_zero() || age(begin) > ago)
        };
        // A window begins when the one before it ends.
        let mut before = None;
        let closed = self.closed.iter().filter(|(end, _)| {
            is_in(before.replace(*end).or_else(|| end.checked_sub(self.bounds.window)), *end)
        });
        let open = Some(&self.open.1).filter(|_| is_in(Some(self.open.0), now));
        Selection::gather(closed.map(|(_, window)| window).chain(open), scope)
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
        let last = history.select(&Scope::Process(7), 30 * SECOND, Duration::ZERO, now).unwrap();
        assert!((300..=400).contains(&last.samples), "{}", last.samples);
        assert_eq!(last.lost["map_full"] * 5, last.samples);
        assert_eq!(history.select(&Scope::Process(8), 30 * SECOND, Duration::ZERO, now).unwrap().samples, 0);
    }

    #[test]
    fn a_past_stretch_is_selected_by_how_long_ago_it_ended() {
        let mut history = history(1 << 20);
        let start = Instant::now();
        for second in 1..=55 {
            drain(&mut history, start + second * SECOND, if second <= 20 { "before" } else { "after" });
        }
        let now = start + 55 * SECOND;
        let leaves = |last: u32, ago: u32| {
            let found = history.select(&Scope::Host, last * SECOND, ago * SECOND, now);
            let mut leaves: Vec<_> =
                found?.entries.into_iter().map(|(key, count)| (key.stack[1].to_string(), count)).collect();
            leaves.sort();
            Some(leaves)
        };
        assert_eq!(leaves(10, 36), Some(vec![("before".into(), 200)]));
        assert_eq!(leaves(5, 0), Some(vec![("after".into(), 50)]), "the open window");
        assert_eq!(leaves(10, 15), Some(vec![("after".into(), 100)]));
        assert_eq!(leaves(5, 3600), None, "older than all that is kept");
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
