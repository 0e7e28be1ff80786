//! Rings under more than they can hold: what finds no room is counted, exactly.

use super::runqueue_latency::contend;
use super::*;
use kpulse_tests::cgroup::Cgroup;

const NAME: &str = "runqueue_latency";

fn losses(events: &mut EventStream, reason: &str) -> u64 {
    events.losses().iter().filter(|loss| loss.reason == reason).map(|loss| loss.count).sum()
}

/// Every wait is an event, and no rate limits them.
fn unlimited() -> LoadOptions {
    let mut options = wanting(Want::Events);
    options.thresholds.runqueue_latency.min_wait = Duration::from_nanos(1);
    options.thresholds.rate_limit.events_per_second = 1_000_000_000;
    options.thresholds.rate_limit.burst = 1_000_000_000;
    options
}

#[test]
fn a_ring_that_nobody_reads_counts_what_it_cannot_hold_and_goes_on_afterwards() {
    needs_root!();
    let container = Cgroup::container("cpu", 0xa901).expect("a cgroup can be made");
    let mut set = load(NAME, &unlimited());
    let mut events = set.take_events().expect("the rings open");
    // 256 KiB hold some 700 records.
    kpulse_tests::until("full ring", || {
        contend(&container);
        (losses(&mut events, "ring_full") > 0).then_some(())
    });
    let mut facts = drain_for(&mut events, Duration::from_millis(100)).len();
    assert!(facts > 500, "the ring held {facts}");
    let full = losses(&mut events, "ring_full");
    contend(&container);
    let later = drain_for(&mut events, Duration::from_millis(100));
    let is_ours = |fact: &&Fact| fact.cgroup == Some(container.cgroup_id());
    assert!(later.iter().filter(is_ours).count() > 0, "it goes on: {full} did not fit");
    assert_eq!(losses(&mut events, "suppressed"), 0);
    facts += later.len();
    assert_sum_closes(set, &mut events, facts);
}

/// A flood far over the bucket: its rate leaves the kernel, and the rest is counted there, with no work in user space.
#[test]
fn a_flood_leaves_the_kernel_at_the_rate_of_its_bucket() {
    needs_root!();
    let container = Cgroup::container("cpu", 0xa902).expect("a cgroup can be made");
    let mut options = unlimited();
    options.thresholds.rate_limit.events_per_second = 10;
    options.thresholds.rate_limit.burst = 5;
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    let begin = std::time::Instant::now();
    let mut facts = Vec::new();
    kpulse_tests::until("flood", || {
        contend(&container);
        facts.extend(drain_for(&mut events, Duration::ZERO));
        (losses(&mut events, "suppressed") > 1_000).then_some(())
    });
    let ours: Vec<&Fact> = facts.iter().filter(|fact| fact.cgroup == Some(container.cgroup_id())).collect();
    // CPUs that take the same token at once may exceed the bucket by their number, each time.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let most = (5.0 + 10.0 * begin.elapsed().as_secs_f64()) * cpus;
    assert!((ours.len() as f64) <= most, "{} events, where {most} may come", ours.len());
    let (told, kept) = (facts.len() as u64, losses(&mut events, "suppressed"));
    assert!(kept > 10 * told, "{kept} suppressed and {told} told");
    assert_eq!(losses(&mut events, "ring_full"), 0);
    assert_sum_closes(set, &mut events, facts.len());
}
