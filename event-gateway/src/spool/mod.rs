//! Where do events wait for the sink? In memory, bounded by number and by bytes, oldest first.
//!
//! The thread that reads the rings never waits for a disk: when the sink falls behind, the oldest waiting events
//! give way, and the caller counts them.

pub mod disk;
pub mod losses;

use crate::keys::Keys;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One event, encoded, with what a sink needs to file it.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// `event.id`.
    pub id: String,
    /// When it happened, nanoseconds since 1970.
    pub time_ns: i64,
    /// When it happened, by the kernel's boot clock.
    pub boot_ns: u64,
    /// The probe that told it.
    pub probe: &'static str,
    /// Kind of the event.
    pub kind: &'static str,
    /// What it is looked up by.
    pub keys: Keys,
    /// The JSON document.
    pub json: String,
}

/// What the spool may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Documents.
    pub events: usize,
    /// Bytes of JSON.
    pub bytes: usize,
}

/// How full the spool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Documents.
    pub events: usize,
    /// Bytes of JSON.
    pub bytes: usize,
}

/// A bounded queue between the rings and a sink.
#[derive(Debug)]
pub struct Spool {
    state: Mutex<State>,
    changed: Condvar,
    capacity: Capacity,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Document>,
    bytes: usize,
    closed: Option<Instant>,
    /// With so many documents whoever takes them goes on; 0 while nobody waits.
    awaited: usize,
}

impl Spool {
    /// An empty spool.
    pub fn new(capacity: Capacity) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), capacity }
    }

    /// What it may hold.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// What it holds.
    pub fn depth(&self) -> Depth {
        let state = self.lock();
        Depth { events: state.waiting.len(), bytes: state.bytes }
    }

    /// Adds a document and returns those that had to give way to it, oldest first.
    pub fn push(&self, document: Document) -> Vec<Document> {
        let mut state = self.lock();
        state.bytes += document.json.len();
        state.waiting.push_back(document);
        let mut given_way = Vec::new();
        while state.waiting.len() > self.capacity.events || state.bytes > self.capacity.bytes {
            let Some(oldest) = state.waiting.pop_front() else { break };
            state.bytes -= oldest.json.len();
            given_way.push(oldest);
        }
        // To wake somebody up for each document costs more than the document.
        let is_enough = state.waiting.len() == state.awaited;
        drop(state);
        if is_enough {
            self.changed.notify_all();
        }
        given_way
    }

    /// The next batch of at most `max`: waits up to `patience` for a first document and then up to `linger` for more.
    /// Empty after `patience`, and at once when the spool is closed and empty.
    pub fn take(&self, max: usize, patience: Duration, linger: Duration) -> Vec<Document> {
        let mut state = self.wait(self.lock(), 1, patience);
        if state.waiting.is_empty() {
            return Vec::new();
        }
        state = self.wait(state, max, linger);
        let count = state.waiting.len().min(max);
        let batch: Vec<_> = state.waiting.drain(..count).collect();
        state.bytes -= batch.iter().map(|document| document.json.len()).sum::<usize>();
        batch
    }

    /// Waits until there are so many documents, or none will come any more, at most for `time`.
    fn wait<'s>(
        &'s self,
        mut state: MutexGuard<'s, State>,
        events: usize,
        time: Duration,
    ) -> MutexGuard<'s, State> {
        state.awaited = events;
        let are_few = |state: &mut State| state.waiting.len() < events && state.closed.is_none();
        let wait = self.changed.wait_timeout_while(state, time, are_few);
        let (mut state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        state.awaited = 0;
        state
    }

    /// Nothing more will come; what is there can still be taken.
    pub fn close(&self) {
        self.lock().closed.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    /// When it was closed.
    pub fn closed_at(&self) -> Option<Instant> {
        self.lock().closed
    }

    /// Waits until the spool is closed, at most for `time`: how a retry sleeps without delaying a shutdown.
    pub fn wait_closed(&self, time: Duration) {
        let wait = self.changed.wait_timeout_while(self.lock(), time, |state| state.closed.is_none());
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    /// Every change of the state is complete before anything can panic, so a poisoned lock is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOT: Duration = Duration::ZERO;
    const LONG: Duration = Duration::from_secs(60);

    fn document(number: usize, bytes: usize) -> Document {
        Document {
            id: number.to_string(),
            time_ns: 0,
            boot_ns: 0,
            probe: "packet_drop",
            kind: "packet_drop",
            keys: Keys::default(),
            json: "x".repeat(bytes),
        }
    }

    #[test]
    fn the_oldest_gives_way() {
        let spool = Spool::new(Capacity { events: 2, bytes: 100 });
        assert_eq!(spool.push(document(1, 10)), []);
        assert_eq!(spool.push(document(2, 10)), []);
        assert_eq!(spool.push(document(3, 10)), [document(1, 10)]);
        assert_eq!(spool.push(document(4, 95)), [document(2, 10), document(3, 10)]);
        assert_eq!(spool.depth(), Depth { events: 1, bytes: 95 });
        assert_eq!(spool.push(document(5, 101)), [document(4, 95), document(5, 101)]);
        assert_eq!(spool.depth(), Depth::default());
    }

    #[test]
    fn a_closed_spool_is_emptied_without_waiting() {
        let spool = Spool::new(Capacity { events: 10, bytes: 100 });
        spool.push(document(1, 1));
        spool.close();
        let start = Instant::now();
        assert_eq!(spool.take(10, LONG, LONG), [document(1, 1)]);
        assert_eq!(spool.take(10, LONG, LONG), []);
        spool.wait_closed(LONG);
        assert!(start.elapsed() < LONG / 2);
    }

    #[test]
    fn a_full_batch_does_not_linger_and_an_arrival_ends_the_patience() {
        let spool = Spool::new(Capacity { events: 10, bytes: 100 });
        let start = Instant::now();
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| spool.take(2, LONG, LONG));
            spool.push(document(1, 1));
            spool.push(document(2, 1));
            assert_eq!(taker.join().unwrap().len(), 2);
        });
        assert!(start.elapsed() < LONG / 2);
    }

    proptest! {
        #[test]
        fn nothing_vanishes_and_the_bounds_hold(
            steps in prop::collection::vec((0usize..40, any::<bool>()), 0..200),
            events in 1usize..20,
            bytes in 1usize..200,
        ) {
            let spool = Spool::new(Capacity { events, bytes });
            let (mut pushed, mut out) = (0, Vec::new());
            for (size, is_push) in steps {
                if is_push {
                    out.extend(spool.push(document(pushed, size)));
                    pushed += 1;
                } else {
                    out.extend(spool.take(size, NOT, NOT));
                }
                let depth = spool.depth();
                prop_assert!(depth.events <= events && depth.bytes <= bytes);
            }
            out.extend(spool.take(usize::MAX, NOT, NOT));
            prop_assert_eq!(spool.depth(), Depth::default());
            let order: Vec<usize> = out.iter().map(|document| document.id.parse().unwrap()).collect();
            prop_assert_eq!(order, (0..pushed).collect::<Vec<_>>());
        }
    }
}
