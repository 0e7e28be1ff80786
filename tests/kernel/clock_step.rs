//! The wall clock is set while events come. Only in guests: elsewhere the clock is not ours to set.

use super::*;
use kpulse_common::clock::Clock;
use kpulse_tests::network::drop_datagrams;
use kpulse_tests::until;
use std::time::SystemTime;

const HOUR: Duration = Duration::from_secs(3600);

fn set_clock(to: SystemTime) {
    let since = to.duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
    let time = libc::timespec {
        tv_sec: i64::try_from(since.as_secs()).expect("a year that time_t has"),
        tv_nsec: i64::from(since.subsec_nanos()),
    };
    // SAFETY: the kernel only reads the time.
    assert_eq!(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }, 0);
}

/// The time of a drop by the clock of events, and before and after it by the wall clock.
fn drop_one(events: &mut EventStream, clock: &mut Clock) -> [SystemTime; 3] {
    let before = SystemTime::now();
    let port = drop_datagrams(1).expect("loopback takes it");
    let is_ours = |fact: &Fact| fact.body["destination"]["port"] == port;
    let drop = until("the drop", || drain_for(events, Duration::from_millis(50)).into_iter().find(is_ours));
    [before, clock.wall(drop.boot_ns), SystemTime::now()]
}

#[test]
fn events_after_a_step_of_an_hour_have_the_new_time() {
    needs_guest!("this machine's clock is not a test's to set");
    let mut set = load("packet_drop", &wanting(Want::Events));
    let mut events = set.take_events().expect("the rings open");
    let mut clock = Clock::new();
    for step in ["none", "forward", "back"] {
        match step {
            "forward" => set_clock(SystemTime::now() + HOUR),
            "back" => set_clock(SystemTime::now() - HOUR),
            _ => {}
        }
        let [before, told, after] = drop_one(&mut events, &mut clock);
        let tolerance = Duration::from_millis(10);
        assert!(
            told + tolerance >= before && told <= after + tolerance,
            "{step}: {before:?} {told:?} {after:?}"
        );
    }
}
