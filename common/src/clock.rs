//! When did it happen? Turns the kernel's boot clock into wall-clock time.
//!
//! Kernel programs stamp records with `CLOCK_BOOTTIME`, which no administrator and no NTP daemon sets. The distance
//! to the wall clock is estimated anew every ten seconds, and at once when the wall clock was set.

use std::time::{Duration, SystemTime};

/// Age at which the distance between the clocks is estimated anew.
const ESTIMATE_FOR: Duration = Duration::from_secs(10);
/// The wall clock was set when the distance is off by more than this; a preemption between two readings may look like
/// it, and costs another estimate.
const STEP: Duration = Duration::from_millis(100);
/// Readings per estimate; the one least disturbed counts.
const READINGS: usize = 5;

/// Reads the two clocks.
pub trait ClockRead {
    /// `CLOCK_BOOTTIME` in nanoseconds.
    fn boot_ns(&self) -> u64;
    /// `CLOCK_REALTIME` in nanoseconds since 1970.
    fn real_ns(&self) -> u64;
}

/// The kernel's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClocks;

impl ClockRead for SystemClocks {
    fn boot_ns(&self) -> u64 {
        read(libc::CLOCK_BOOTTIME)
    }

    fn real_ns(&self) -> u64 {
        read(libc::CLOCK_REALTIME)
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds: the time base of every record.
pub fn boot_ns() -> u64 {
    SystemClocks.boot_ns()
}

/// `CLOCK_MONOTONIC` in nanoseconds, which stands still while the machine is suspended.
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// CPU time of the calling thread.
pub fn thread_cpu_time() -> Duration {
    Duration::from_nanos(read(libc::CLOCK_THREAD_CPUTIME_ID))
}

/// `CLOCK_REALTIME` minus `CLOCK_MONOTONIC` in nanoseconds.
pub fn real_offset_ns() -> u64 {
    let (before, real, after) = (monotonic_ns(), SystemClocks.real_ns(), monotonic_ns());
    real.wrapping_sub(before + after.saturating_sub(before) / 2)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result. The clocks exist on every Linux, so the call cannot fail; if it
    // did, `now` would stay zero.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Converts boot-clock stamps to wall-clock time.
#[derive(Debug, Clone)]
pub struct Clock<R: ClockRead = SystemClocks> {
    clocks: R,
    /// Wall clock minus boot clock; negative when the wall clock is set before the boot.
    distance_ns: i128,
    estimated_at_ns: u64,
}

impl Clock {
    /// A clock with a first estimate.
    pub fn new() -> Self {
        Self::with(SystemClocks)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: ClockRead> Clock<R> {
    /// A clock that reads the given clocks.
    pub fn with(clocks: R) -> Self {
        let (distance_ns, estimated_at_ns) = estimate(&clocks);
        Self { clocks, distance_ns, estimated_at_ns }
    }

    /// The wall-clock time of a boot-clock stamp.
    pub fn wall(&mut self, boot_ns: u64) -> SystemTime {
        let now_ns = self.clocks.boot_ns();
        let distance_ns = i128::from(self.clocks.real_ns()) - i128::from(now_ns);
        let is_old = now_ns.saturating_sub(self.estimated_at_ns) >= ESTIMATE_FOR.as_nanos() as u64;
        if is_old || distance_ns.abs_diff(self.distance_ns) > STEP.as_nanos() {
            (self.distance_ns, self.estimated_at_ns) = estimate(&self.clocks);
        }
        let wall_ns = i128::from(boot_ns) + self.distance_ns;
        let since_epoch = u64::try_from(wall_ns.max(0)).unwrap_or(u64::MAX);
        SystemTime::UNIX_EPOCH + Duration::from_nanos(since_epoch)
    }
}

/// Distance of the clocks, and when it was taken: from the reading with the shortest time between the two boot stamps
/// around it, since a preemption between reads would count as distance.
fn estimate(clocks: &impl ClockRead) -> (i128, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..READINGS {
        let before = clocks.boot_ns();
        let real = clocks.real_ns();
        let after = clocks.boot_ns();
        let span = after.saturating_sub(before);
        if span < best.0 {
            best = (span, i128::from(real) - i128::from(before + span / 2), after);
        }
    }
    (best.1, best.2)
}

/// RFC 3339 in UTC with nanoseconds: `2026-11-21T10:00:00.123456789Z`.
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(representable(time)).to_string()
}

/// The same in whole seconds, for people.
pub fn rfc3339_seconds(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(representable(time)).to_string()
}

/// The format has no year beyond 9999 and no time before 1970.
fn representable(time: SystemTime) -> SystemTime {
    time.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::new(253_402_300_799, 999_999_999))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const SECOND: u64 = 1_000_000_000;

    #[derive(Default)]
    struct Scripted {
        boot: Cell<u64>,
        real: Cell<u64>,
        /// Added to the boot clock by each read, from a list: a preemption is a large one.
        delays: Cell<Vec<u64>>,
    }

    impl ClockRead for &Scripted {
        fn boot_ns(&self) -> u64 {
            let mut delays = self.delays.take();
            let delay = delays.pop().unwrap_or(0);
            self.delays.set(delays);
            self.boot.set(self.boot.get() + delay);
            self.real.set(self.real.get() + delay);
            self.boot.get()
        }

        fn real_ns(&self) -> u64 {
            self.real.get()
        }
    }

    fn scripted(boot: u64, real: u64) -> Scripted {
        Scripted { boot: boot.into(), real: real.into(), delays: Cell::default() }
    }

    #[test]
    fn a_step_of_the_wall_clock_reaches_the_next_event_and_a_slow_change_one_in_ten_seconds() {
        let clocks = scripted(100 * SECOND, 1_000 * SECOND);
        let mut clock = Clock::with(&clocks);
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(seconds(clock.wall(90 * SECOND)), 990);
        clocks.boot.set(105 * SECOND);
        clocks.real.set(1_005 * SECOND - SECOND / 20);
        assert_eq!(seconds(clock.wall(105 * SECOND)), 1_005, "still the estimate of five seconds ago");
        clocks.boot.set(110 * SECOND);
        clocks.real.set(1_010 * SECOND - SECOND / 20);
        assert_eq!(seconds(clock.wall(110 * SECOND)), 1_009);
        clocks.real.set(5_010 * SECOND);
        assert_eq!(seconds(clock.wall(110 * SECOND)), 5_010, "a step");
        clocks.boot.set(111 * SECOND);
        clocks.real.set(11 * SECOND);
        assert_eq!(seconds(clock.wall(111 * SECOND)), 11, "a step back, before the boot");
        assert_eq!(seconds(clock.wall(99 * SECOND)), 0, "nothing is before 1970");
    }

    #[test]
    fn a_preempted_reading_does_not_count() {
        let clocks = scripted(100 * SECOND, 1_000 * SECOND);
        // Popped from the end: each reading takes two; only the third is undisturbed.
        clocks.delays.set(vec![9, 9 * SECOND, 9, SECOND, 0, 0, SECOND, 0, SECOND, 0]);
        let mut clock = Clock::with(&clocks);
        let wall = clock.wall(100 * SECOND).duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(wall, Duration::from_secs(1_000));
    }

    #[test]
    fn agrees_with_the_system_within_a_millisecond() {
        let mut clock = Clock::new();
        let before = SystemTime::now();
        let wall = clock.wall(boot_ns());
        let monotonic = SystemTime::UNIX_EPOCH + Duration::from_nanos(monotonic_ns() + real_offset_ns());
        let after = SystemTime::now();
        let tolerance = Duration::from_millis(1);
        for time in [wall, monotonic] {
            assert!(time + tolerance >= before && time <= after + tolerance, "{before:?} {time:?} {after:?}");
        }
    }

    #[test]
    fn formats_nanoseconds_and_survives_any_time() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_795_255_200, 123_456_789);
        assert_eq!(rfc3339(time), "2026-11-21T10:00:00.123456789Z");
        assert_eq!(
            rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)),
            "1970-01-01T00:00:00.000000000Z"
        );
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::MAX >> 4);
        assert_eq!(rfc3339(far), "9999-12-31T23:59:59.999999999Z");
    }
}
