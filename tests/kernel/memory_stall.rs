//! Tasks that are stopped over memory.high, against what they measure themselves.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::{load, skip};
use std::time::Instant;

const NAME: &str = "task_state";
const LIMIT: u64 = 8 << 20;
const PAGE: usize = 4096;
/// More than this the child never takes; what it waits for comes long before.
const PAGES_MAX: usize = (4 * LIMIT) as usize / PAGE;
/// The longer the task goes on beyond its limit the longer it is stopped.
const LONG: Duration = Duration::from_secs(1);

/// A container with the limit; `None` where there is none to set.
fn limited(number: u32) -> Option<Cgroup> {
    let container = Cgroup::container("memory", number).expect("a cgroup can be made");
    if container.is_v1() {
        skip(module_path!(), "cgroup v1 has no memory.high");
        return None;
    }
    container.set("memory.high", &LIMIT.to_string()).expect("the controller is there");
    // What is swapped out is used no more; without swap there is no such file.
    let _ = container.set("memory.swap.max", "0");
    Some(container)
}

/// Takes page after page in the container until one takes `LONG`, or there are enough: the child's pid, and the longest
/// by its own clock.
fn take_memory(container: &Cgroup) -> (u32, Duration) {
    let numbers = load::ask_child(Some(container), || {
        let mut memory: Vec<u8> = Vec::with_capacity(PAGES_MAX * PAGE);
        let mut longest = Duration::ZERO;
        for _ in 0..PAGES_MAX {
            let begin = Instant::now();
            memory.resize(std::hint::black_box(memory.len() + PAGE), 1);
            longest = longest.max(begin.elapsed());
            if longest >= LONG {
                break;
            }
        }
        Ok(vec![std::process::id().into(), longest.as_nanos() as u64])
    });
    let numbers = numbers.expect("memory is there");
    (numbers[0] as u32, Duration::from_nanos(numbers[1]))
}

#[test]
fn a_task_over_its_limit_is_told_with_how_long_it_was_stopped() {
    needs_root!();
    let Some(container) = limited(0x5a1) else { return };
    let mut set = load(NAME, &wanting(Want::Events));
    let mut events = set.take_events().expect("the rings open");
    let (pid, longest) = take_memory(&container);
    let facts = drain_for(&mut events, Duration::from_millis(200));
    assert!(longest >= LONG, "{longest:?}");
    let ours: Vec<&Fact> = facts.iter().filter(|fact| fact.pid == pid).collect();
    for fact in &ours {
        assert_eq!((fact.kind, fact.threshold_ns), ("memory_stall", Some(100_000_000)));
        assert!(fact.value_ns >= fact.threshold_ns, "{fact:?}");
        assert_eq!(fact.cgroup, Some(container.cgroup_id()));
        assert_eq!(fact.body["limited_cgroup_id"], container.cgroup_id().id);
        assert_eq!(fact.body["limit_bytes"], LIMIT);
        let usage = fact.body["usage_bytes"].as_u64().expect("it is known");
        assert!((LIMIT..4 * LIMIT).contains(&usage), "{usage}");
        assert!(fact.kernel_stack.iter().any(|it| it.contains("over_high")), "{:?}", fact.kernel_stack);
    }
    let told = ours.iter().filter_map(|fact| fact.value_ns).max().expect("an event");
    let share = told as f64 / longest.as_nanos() as f64;
    assert!((0.9..=1.0).contains(&share), "{told} ns of {longest:?}");
    assert_sum_closes(set, &mut events, facts.len());
}

#[test]
fn a_stop_below_the_threshold_is_no_event() {
    needs_root!();
    let Some(container) = limited(0x5a2) else { return };
    let mut options = wanting(Want::Events);
    // The kernel stops a task for 2 s at most, and then looks again.
    options.thresholds.task_state.min_memory_stall = 5 * LONG;
    options.thresholds.task_state.min_stuck = 5 * LONG;
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    let (_, longest) = take_memory(&container);
    assert!(longest >= LONG, "{longest:?}");
    assert_eq!(drain_for(&mut events, Duration::from_millis(200)), []);
    assert_sum_closes(set, &mut events, 0);
}
