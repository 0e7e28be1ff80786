//! `rate_limit`: a token bucket over all clients, as exporter-toolkit's.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets `burst` requests pass at once, and one more for each interval.
pub(in crate::http) struct Limiter {
    interval: Duration,
    burst: u32,
    /// When the bucket was, or will be, empty and nothing owed: the past by at most the whole burst.
    empty_at: Mutex<Instant>,
}

impl Limiter {
    pub(super) fn new(interval: Duration, burst: u32) -> Self {
        Self::full_at(interval, burst, Instant::now())
    }

    fn full_at(interval: Duration, burst: u32, now: Instant) -> Self {
        // A machine that has just started cannot look back for as long as the burst may last.
        let empty_at = now.checked_sub(interval.saturating_mul(burst)).unwrap_or(now);
        Self { interval, burst, empty_at: Mutex::new(empty_at) }
    }

    /// Takes over what is left of another bucket of the same size: reading a file again fills no bucket.
    pub(super) fn continue_from(&mut self, old: &Self) {
        if (self.interval, self.burst) == (old.interval, old.burst) {
            self.empty_at = Mutex::new(*old.empty_at.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Whether one more request may pass now.
    pub(in crate::http) fn allows(&self) -> bool {
        self.allows_at(Instant::now())
    }

    fn allows_at(&self, now: Instant) -> bool {
        let mut empty_at = self.empty_at.lock().unwrap_or_else(PoisonError::into_inner);
        let fullest = now.checked_sub(self.interval.saturating_mul(self.burst)).unwrap_or(*empty_at);
        let after = (*empty_at).max(fullest) + self.interval;
        if after > now {
            return false;
        }
        *empty_at = after;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_a_burst_and_then_one_each_interval() {
        let start = Instant::now() + Duration::from_secs(1000);
        let limiter = Limiter::full_at(Duration::from_secs(2), 3, start);
        let passed = |seconds| limiter.allows_at(start + Duration::from_secs(seconds));
        assert_eq!([passed(0), passed(0), passed(0), passed(0)], [true, true, true, false]);
        assert_eq!([passed(1), passed(2), passed(2)], [false, true, false]);
        let later = [passed(1000), passed(1000), passed(1000), passed(1000)];
        assert_eq!(later, [true, true, true, false], "an idle hour gives no more than the burst");
    }
}
