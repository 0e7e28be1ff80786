//! What ran in the last day? The open window, and the closed ones before it: those of just now in memory, compressed,
//! and the others in a [`store`], bounded by age and by bytes, with [`sums`] beside them.

mod keeper;
mod packed;
mod store;
mod sums;

pub use keeper::Keeper;
pub use store::{FILE, Held, Retention, Store};

use crate::aggregate::{
    ANSWER_FULL, Containers, Detail, ENTRY_BYTES, Gathering, Key, Programs, Scope, Selection, Sum, Window,
};
use crate::names::{Interned, Stack};
use crate::pipeline::Shared;
use keeper::Bell;
use packed::Packed;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use store::Evicted;

/// The reason of samples whose window cannot be read any more.
const DAMAGED: &str = "window_damaged";
/// Reasons of samples that are in the history, and in no answer.
pub const LEFT_OUT: [&str; 2] = [ANSWER_FULL, DAMAGED];

/// How much is kept in memory.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Length of a window.
    pub window: Duration,
    /// Different stacks that one window holds, and one answer.
    pub window_entries: usize,
    /// Age at which a window goes.
    pub max_age: Duration,
    /// Memory of closed windows above which the oldest go: all there is where no store takes them.
    pub max_bytes: usize,
}

/// The samples of one drain with their names, ready to be counted.
#[derive(Debug, Default)]
pub struct Named {
    pub entries: Vec<(Key, u64)>,
    /// The programs and the containers of the entries, as far as they are known.
    pub programs: Programs,
    pub containers: Containers,
    pub taken: u64,
    pub outside: u64,
    pub lost: Vec<(&'static str, u64)>,
}

/// A stretch of time.
#[derive(Debug, Clone, Copy)]
pub struct Stretch {
    pub since: SystemTime,
    /// `None` for now, with the window that is open.
    pub until: Option<SystemTime>,
}

impl Stretch {
    /// That of this length which ended so long `ago`.
    pub fn of(last: Duration, ago: Duration, now: SystemTime) -> Self {
        let before = |span: Duration| now.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH);
        Self { since: before(last.saturating_add(ago)), until: (!ago.is_zero()).then(|| before(ago)) }
    }

    fn has(&self, from: SystemTime, to: SystemTime) -> bool {
        to > self.since && self.until.is_none_or(|until| from < until)
    }
}

/// The windows.
pub struct History {
    bounds: Bounds,
    open: (Instant, Window),
    stacks: Interned<[Arc<str>]>,
    /// Closed a moment ago and about to be compressed.
    closed: VecDeque<Arc<Window>>,
    /// Not in the store yet, the oldest first; behind them in number come the closed ones.
    waiting: VecDeque<Arc<Packed>>,
    waiting_bytes: usize,
    store: Option<(Arc<Store>, Option<Bell>)>,
    /// Numbers of the window that was closed first since the start, and of the one that is closed next.
    began: u64,
    next: u64,
    evicted: Evicted,
    write_errors: u64,
}

impl History {
    /// An empty history in memory that begins now.
    pub fn new(bounds: Bounds) -> Self {
        let open = (Instant::now(), Window::new(SystemTime::now(), bounds.window_entries));
        Self {
            bounds,
            open,
            stacks: Interned::default(),
            closed: VecDeque::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            store: None,
            began: 0,
            next: 0,
            evicted: Evicted::default(),
            write_errors: 0,
        }
    }

    /// Goes on where this store ends; whoever hears the bell writes to it. Before the first window is closed.
    fn keep_in(&mut self, store: Arc<Store>, bell: Bell) {
        (self.began, self.next) = (store.held().next, store.held().next);
        self.store = Some((store, Some(bell)));
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
        window.note(named.programs, named.containers);
        let stored = window.stored - before;
        if now.saturating_duration_since(self.open.0) >= self.bounds.window {
            self.close(now, wall);
        }
        stored
    }

    /// Closes the open window; [`Shared::pack`] is to follow.
    fn close(&mut self, now: Instant, wall: SystemTime) {
        let next = (now, Window::new(wall, self.bounds.window_entries));
        let (_, full) = std::mem::replace(&mut self.open, next);
        self.closed.push_back(Arc::new(full));
        self.next += 1;
        while self
            .waiting
            .front()
            .is_some_and(|oldest| wall.duration_since(oldest.to).is_ok_and(|age| age > self.bounds.max_age))
        {
            self.forget_oldest();
        }
    }

    /// The window that was closed first of those that are not compressed, and its number.
    fn unpacked(&self) -> Option<(u64, Arc<Window>)> {
        let number = self.next - self.closed.len() as u64;
        Some((number, self.closed.front()?.clone()))
    }

    /// Takes a compressed window in place of the closed one; `None` when it cannot be compressed.
    fn packed(&mut self, number: u64, packed: Option<Packed>) {
        if self.unpacked().is_none_or(|(first, _)| first != number) {
            return;
        }
        let window = self.closed.pop_front();
        self.stacks.sweep();
        match packed {
            Some(packed) => {
                self.waiting_bytes += packed.bytes();
                self.waiting.push_back(Arc::new(packed));
            }
            None => self.evicted += Evicted { windows: 1, samples: window.map_or(0, |window| window.stored) },
        }
        while self.waiting_bytes > self.bounds.max_bytes {
            let Some(samples) = self.forget_oldest() else { break };
            self.evicted += Evicted { windows: 1, samples };
        }
        if let Some((_, Some(bell))) = &self.store {
            // A bell that has been rung and not heard is enough.
            let _ = bell.try_send(());
        }
    }

    fn forget_oldest(&mut self) -> Option<u64> {
        let oldest = self.waiting.pop_front()?;
        self.waiting_bytes -= oldest.bytes();
        Some(oldest.samples)
    }

    /// The window that is to be written next.
    fn waiting(&self) -> Option<Arc<Packed>> {
        self.waiting.front().cloned()
    }

    /// A window is in the store.
    fn written(&mut self, number: u64, evicted: Evicted) {
        self.evicted += evicted;
        if self.waiting.front().is_some_and(|oldest| oldest.number == number) {
            self.forget_oldest();
        }
    }

    /// Windows went from the store for another reason than a new one.
    fn gave_way(&mut self, evicted: Evicted) {
        self.evicted += evicted;
    }

    fn not_written(&mut self) {
        self.write_errors += 1;
    }

    /// No further window will come.
    fn hang_up(&mut self) {
        if let Some((_, bell)) = &mut self.store {
            *bell = None;
        }
    }

    /// Number of the window that is or will be closed first since the start.
    pub fn began(&self) -> u64 {
        self.began
    }

    /// Whether this closed window is kept still.
    pub fn has(&self, number: u64) -> bool {
        let in_store = self.store.as_ref().map(|(store, _)| store.held());
        let in_store = in_store.filter(|held| held.windows > 0).map(|held| held.first);
        let first = in_store.unwrap_or_else(|| self.first_in_memory());
        (first..self.next).contains(&number)
    }

    fn first_in_memory(&self) -> u64 {
        self.waiting.front().map_or(self.next - self.closed.len() as u64, |oldest| oldest.number)
    }

    /// The store, if there is one.
    pub fn store(&self) -> Option<Arc<Store>> {
        self.store.as_ref().map(|(store, _)| store.clone())
    }

    /// Memory of stacks and of closed windows, estimated from above.
    pub fn bytes(&self) -> usize {
        let closed: usize = self.closed.iter().map(|window| window.len()).sum();
        (self.open.1.len() + closed) * ENTRY_BYTES + self.stacks.bytes() + self.waiting_bytes
    }

    /// Different stacks in memory, summed over the windows.
    pub fn entries(&self) -> u64 {
        let packed: u64 = self.waiting.iter().map(|window| window.entries).sum();
        let closed: usize = self.closed.iter().map(|window| window.len()).sum();
        packed + (closed + self.open.1.len()) as u64
    }

    /// Windows in memory, with the open one.
    pub fn windows(&self) -> usize {
        self.waiting.len() + self.closed.len() + 1
    }

    /// What went before its age so far, because there was no room.
    pub fn evicted(&self) -> Evicted {
        self.evicted
    }

    /// Times when a window could not be written.
    pub fn write_errors(&self) -> u64 {
        self.write_errors
    }
}

/// Closed windows, one behind the other, as one.
pub struct Closed {
    /// Number of the first of them, and of what comes behind the last.
    pub first: u64,
    pub next: u64,
    /// Less than what lies between these numbers where windows are lost.
    pub windows: u64,
    pub selection: Selection,
}

impl Shared {
    /// Compresses the windows that were closed. Not under the lock, which the samples need.
    pub fn pack(&self) {
        loop {
            let unpacked = self.lock().history.unpacked();
            let Some((number, window)) = unpacked else { return };
            let packed = Packed::of(number, &Sum::of(&window))
                .inspect_err(|error| tracing::error!(error = format!("{error:#}"), "a window is lost"));
            self.lock().history.packed(number, packed.ok());
        }
    }

    /// What was sampled in a stretch; `None` when nothing is kept of it. Window by window, and not under the lock.
    pub fn select(
        &self,
        scope: &Scope,
        detail: Detail,
        stretch: Stretch,
    ) -> anyhow::Result<Option<Selection>> {
        let (max_stacks, store, before, waiting, closed, open) = {
            let state = self.lock();
            let history = &state.history;
            let waiting: Vec<_> = history
                .waiting
                .iter()
                .filter(|window| stretch.has(window.from, window.to))
                .cloned()
                .collect();
            let closed: Vec<_> =
                history.closed.iter().filter(|window| stretch.has(window.from, window.to)).cloned().collect();
            let open = &history.open.1;
            // It goes on until now, whenever it was last added to.
            let open = stretch.until.is_none_or(|until| open.from < until).then(|| open.of_scope(scope));
            let max_stacks = history.bounds.window_entries;
            (max_stacks, history.store(), history.first_in_memory(), waiting, closed, open)
        };
        let mut gathering = Gathering::new(scope, detail, max_stacks);
        if let Some(store) = store {
            let mut numbers = store.numbers(stretch.since, stretch.until)?;
            numbers.retain(|number| *number < before);
            sums::gather(&store, &numbers, &mut gathering)?;
        }
        waiting.iter().for_each(|window| sums::gather_window(window, &mut gathering));
        closed.iter().for_each(|window| gathering.window(window));
        open.iter().for_each(|window| gathering.window(window));
        Ok(gathering.finish())
    }

    /// The first closed window with this number or a later one; they are counted from 0 for ever.
    pub fn closed(&self, number: u64) -> anyhow::Result<Option<Closed>> {
        self.closed_while(number, |first, window| window.number == first.number)
    }

    /// The closed windows from this number on that began in one period, all of them: `None` while one may follow, unless
    /// none will.
    pub fn closed_period(
        &self,
        number: u64,
        length: Duration,
        is_last: bool,
    ) -> anyhow::Result<Option<Closed>> {
        let Some(first) = self.closed_from(number)? else { return Ok(None) };
        let period = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos()
                / length.as_nanos().max(1)
        };
        let is_over = {
            let history = &self.lock().history;
            history.closed.is_empty() && period(history.open.1.from) != period(first.from)
        };
        if !is_over && !is_last {
            return Ok(None);
        }
        self.closed_while(number, |first, window| period(window.from) == period(first.from))
    }

    fn closed_while(
        &self,
        number: u64,
        belongs: impl Fn(&Packed, &Packed) -> bool,
    ) -> anyhow::Result<Option<Closed>> {
        let Some(first) = self.closed_from(number)? else { return Ok(None) };
        let max_stacks = self.lock().history.bounds.window_entries;
        let mut gathering = Gathering::new(&Scope::Host, Detail::Stacks, max_stacks);
        let (mut windows, mut next) = (0, first.number);
        let mut window = Some(first.clone());
        while let Some(found) = window.filter(|window| belongs(&first, window)) {
            sums::gather_window(&found, &mut gathering);
            (windows, next) = (windows + 1, found.number + 1);
            window = self.closed_from(next)?;
        }
        let closed = |selection| Closed { first: first.number, next, windows, selection };
        Ok(gathering.finish().map(closed))
    }

    fn closed_from(&self, number: u64) -> anyhow::Result<Option<Arc<Packed>>> {
        let (store, before, waiting) = {
            let state = self.lock();
            let history = &state.history;
            let waiting = history.waiting.iter().find(|window| window.number >= number).cloned();
            (history.store(), history.first_in_memory(), waiting)
        };
        let stored = match store.filter(|_| number < before) {
            Some(store) => store.window_from(number)?.map(Arc::new),
            None => None,
        };
        Ok(stored.or(waiting))
    }

    /// Which window is next for a reader that takes them to this target: where it ended, else what is closed first since
    /// the start.
    pub fn place(&self, reader: &str, target: &str) -> anyhow::Result<u64> {
        let store = self.lock().history.store();
        let known = store.map_or(Ok(None), |store| store.place(reader, target))?;
        Ok(known.unwrap_or_else(|| self.lock().history.began()))
    }

    /// Notes it with the history, for as long as that lives.
    pub fn set_place(&self, reader: &str, target: &str, next: u64) -> anyhow::Result<()> {
        let store = self.lock().history.store();
        store.map_or(Ok(()), |store| store.set_place(reader, target, next))
    }

    /// Closes the open window: no sample will come.
    pub fn close(&self) {
        self.lock().history.close(Instant::now(), SystemTime::now());
        self.pack();
    }
}

#[cfg(test)]
mod day;
#[cfg(test)]
mod tests;
