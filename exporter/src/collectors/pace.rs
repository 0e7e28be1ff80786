//! Keeps readings whose cost the kernel sets, such as walks of a table of sockets, to a part of the time.
//!
//! A scrape that comes soon after another finds little allowed, and tells what was read before.

use kpulse_common::clock::thread_cpu_time;
use std::time::{Duration, Instant};

/// CPU time that is allowed, as one in so many parts of the time that passes.
const PART: u32 = 1000;
/// Most CPU time that a pause between two scrapes saves up: bounds what one scrape pays.
const SAVED_MAX: Duration = Duration::from_millis(10);

/// What is allowed, and what was taken.
#[derive(Debug)]
pub struct Pace {
    allowed: Duration,
    /// Taken beyond what was allowed: a reading cannot be cut short.
    owed: Duration,
    at: Instant,
}

impl Pace {
    /// Begins with all that can be saved up.
    pub fn new() -> Self {
        Self { allowed: SAVED_MAX, owed: Duration::ZERO, at: Instant::now() }
    }

    /// Whether something may be read.
    pub fn allows(&mut self) -> bool {
        self.allows_at(Instant::now())
    }

    fn allows_at(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at) / PART;
        // Less than the division tells is kept for later.
        if !earned.is_zero() {
            self.at = now;
        }
        let paid = earned.min(self.owed);
        self.owed -= paid;
        self.allowed = (self.allowed + earned - paid).min(SAVED_MAX);
        self.owed.is_zero() && !self.allowed.is_zero()
    }

    /// Reads, and counts the CPU time that it takes.
    pub fn spend<T>(&mut self, read: impl FnOnce() -> T) -> T {
        let before = thread_cpu_time();
        let found = read();
        self.took(thread_cpu_time().saturating_sub(before));
        found
    }

    fn took(&mut self, time: Duration) {
        self.owed += time.saturating_sub(self.allowed);
        self.allowed = self.allowed.saturating_sub(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_too_much_is_waited_for() {
        let mut pace = Pace::new();
        let start = pace.at;
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        assert!(pace.allows_at(start));
        pace.took(SAVED_MAX + Duration::from_millis(4));
        assert!(!pace.allows_at(after(2_000)));
        assert!(!pace.allows_at(after(4_000)));
        assert!(pace.allows_at(after(4_001)));
        assert!(pace.allows_at(after(3_600_000)));
        assert_eq!(pace.allowed, SAVED_MAX);
    }

    #[test]
    fn work_is_counted() {
        let mut pace = Pace::new();
        while pace.owed.is_zero() {
            pace.spend(|| (0..1_000_000u64).map(std::hint::black_box).sum::<u64>());
        }
        assert!(pace.allowed.is_zero());
    }
}
