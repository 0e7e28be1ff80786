//! Run-queue latency against the scheduler's own account of each thread, `/proc/PID/schedstat`.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load;
use std::io::{Read, Write};
use std::thread;

const NAME: &str = "runqueue_latency";
const FAMILY: &str = "kpulse_runqueue_latency_seconds";
const SPINNERS: usize = 4;
const TIME: Duration = Duration::from_millis(800);
const SLEEPS: u64 = 40;
const TURNS: u64 = 20;

/// Spins in threads that share CPU 0, in a container; how long they waited for it by the scheduler's account.
pub(super) fn contend(container: &Cgroup) -> Duration {
    let told = load::ask_child(Some(container), || {
        load::pin(0)?;
        let spinner = |_| {
            thread::spawn(|| {
                load::spin(TIME);
                load::run_delay()
            })
        };
        let threads: Vec<_> = (0..SPINNERS).map(spinner).collect();
        let mut delay = Duration::ZERO;
        for thread in threads {
            delay += thread.join().map_err(|_| std::io::Error::other("a spinner panicked"))??;
        }
        delay += load::run_delay()?;
        Ok(vec![delay.as_nanos() as u64])
    });
    Duration::from_nanos(told.expect("the work goes well")[0])
}

fn measures_what_the_scheduler_counts(options: &LoadOptions, number: u32) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut identities = identities();
    let mut set = load(NAME, options);
    let delay = contend(&container);
    let samples = scrape(&mut set, NAME, &mut identities);
    let measured = histogram(&samples, FAMILY, &[&Cgroup::id(number)]);
    let sum = Duration::from_nanos(measured.sum_ns);
    // It is the scheduler's own account, which the child's threads ask for before they end.
    let (low, high) = (delay.mul_f64(0.99), delay.mul_f64(1.15) + Duration::from_millis(20));
    assert!(
        sum >= low && sum <= high,
        "measured {sum:?} in {} waits, the scheduler counts {delay:?}",
        measured.count()
    );
    assert!(delay > TIME, "{SPINNERS} spinners on one CPU wait more than {TIME:?}: {delay:?}");
    assert_eq!(count(&samples, "kpulse_runqueue_latency_unmeasured_total", &["table_full"]), 0);
}

#[test]
fn a_container_waits_as_long_as_the_scheduler_says() {
    needs_root!();
    measures_what_the_scheduler_counts(&wanting(Want::Metrics), 0xa1);
}

#[test]
fn raw_tracepoints_measure_the_same() {
    needs_root!();
    let options = LoadOptions { avoid: ["tp_btf"].into(), ..wanting(Want::Metrics) };
    assert!(
        load(NAME, &options)
            .status()
            .iter()
            .all(|probe| probe.hooks.iter().all(|hook| hook.kind == "raw_tp"))
    );
    measures_what_the_scheduler_counts(&options, 0xa2);
}

/// Switches of a process and of its only thread, by the kernel: voluntary and involuntary.
fn switches_of_this_process() -> std::io::Result<[u64; 2]> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    let both = [line("voluntary_ctxt_switches:"), line("nonvoluntary_ctxt_switches:")];
    Ok(both.map(|count| count.expect("the kernel tells both")))
}

fn counts_switches_as_the_kernel_does(options: &LoadOptions, number: u32) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut set = load(NAME, options);
    let (mut questions, mut ask) = std::io::pipe().expect("a pipe");
    let (mut answers, mut answer) = std::io::pipe().expect("a pipe");
    // All on one CPU: each wake-up is then a part of the other's system call, and each tick gives another the turn.
    let echo = load::Worker::start(None, || {
        load::pin(0)?;
        let mut pid = [0; 4];
        loop {
            questions.read_exact(&mut pid)?;
            while !load::is_asleep(u32::from_ne_bytes(pid))? {
                thread::yield_now();
            }
            answer.write_all(&[1])?;
        }
    });
    let rival = load::Worker::start(None, || load::pin(0).map(|()| load::spin(Duration::from_secs(60))));
    let told = load::ask_child(Some(&container), || {
        load::pin(0)?;
        let begin = switches_of_this_process()?;
        for _ in 0..SLEEPS {
            ask.write_all(&std::process::id().to_ne_bytes())?;
            answers.read_exact(&mut [0])?;
        }
        let end = kpulse_tests::until("turns of the rival", || {
            load::spin(Duration::from_millis(20));
            let end = switches_of_this_process().expect("/proc tells them");
            (end[1] >= begin[1] + TURNS).then_some(end)
        });
        Ok(vec![end[0] - begin[0], end[1] - begin[1]])
    });
    drop(echo);
    drop(rival);
    let kernels = told.expect("the work goes well");
    let samples = scrape(&mut set, NAME, &mut identities());
    let ours = ["voluntary", "involuntary"]
        .map(|kind| count(&samples, "kpulse_context_switches_total", &[&Cgroup::id(number), kind]));
    assert!(kernels[0] >= SLEEPS && kernels[1] >= TURNS, "{kernels:?}");
    for (ours, kernels) in ours.into_iter().zip(kernels) {
        // Entering the cgroup, writing the answer and the end of the process come on top, with the rival's turns in between.
        assert!((kernels..=kernels + 30).contains(&ours), "{ours}, the kernel counted {kernels}");
    }
}

#[test]
fn a_container_switches_as_often_as_the_kernel_says() {
    needs_root!();
    counts_switches_as_the_kernel_does(&wanting(Want::Metrics), 0xa6);
}

#[test]
fn raw_tracepoints_count_the_same_switches() {
    needs_root!();
    let options = LoadOptions { avoid: ["tp_btf"].into(), ..wanting(Want::Metrics) };
    counts_switches_as_the_kernel_does(&options, 0xa7);
}

#[test]
fn what_finds_no_room_is_counted_together() {
    needs_root!();
    let containers: Vec<_> =
        (0xa300..0xa308).map(|number| Cgroup::container("cpu", number).expect("a cgroup")).collect();
    let mut set = load(NAME, &LoadOptions { container_max: 2, ..wanting(Want::Metrics) });
    for container in &containers {
        let (_, went_well) = load::in_child(Some(container), || {
            thread::sleep(Duration::from_millis(5));
            Ok(())
        });
        assert!(went_well);
    }
    let samples = scrape(&mut set, NAME, &mut identities());
    assert!(histogram(&samples, FAMILY, &["~other"]).count() > 0);
    assert!(count(&samples, "kpulse_runqueue_latency_unmeasured_total", &["table_full"]) > 0);
}

#[test]
fn a_long_wait_is_an_event_with_its_occupant_and_a_short_one_is_none() {
    needs_root!();
    let container = Cgroup::container("cpu", 0xa4).expect("a cgroup can be made");
    let mut options = wanting(Want::Events);
    options.thresholds.runqueue_latency.min_wait = Duration::from_micros(500);
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    contend(&container);
    let facts = drain_for(&mut events, Duration::from_millis(100));
    let ours: Vec<&Fact> = facts.iter().filter(|fact| fact.cgroup == Some(container.cgroup_id())).collect();
    assert!(!ours.is_empty(), "of {} events none is of the container", facts.len());
    for fact in &ours {
        assert!(fact.value_ns >= fact.threshold_ns && fact.threshold_ns == Some(500_000));
        assert_eq!(fact.kind, "runqueue_delay");
        assert!(!fact.kernel_stack.is_empty(), "{fact:?}");
    }
    let is_of_a_tick =
        |fact: &&&Fact| fact.kernel_stack.iter().any(|function| function.contains("interrupt"));
    assert!(ours.iter().filter(is_of_a_tick).count() > 0, "who spins loses the CPU to a tick: {:?}", ours[0]);
    let is_named = |fact: &&&Fact| fact.body["occupant"]["name"].as_str() == Some(fact.comm.as_str());
    assert!(ours.iter().filter(is_named).count() > 0, "spinners wait for each other: {:?}", ours[0]);
    assert_sum_closes(set, &mut events, facts.len());

    options.thresholds.runqueue_latency.min_wait = Duration::from_secs(3600);
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    contend(&container);
    assert_eq!(drain_for(&mut events, Duration::from_millis(100)), []);
    assert_sum_closes(set, &mut events, 0);
}

/// What a quota is told to have held the tasks of a container under load back, in nanoseconds, and for how long the kernel
/// says that it stopped the container. It is so many milliseconds in each hundred, if there is one.
fn throttled(number: u32, quota_ms: Option<u64>) -> Option<[u64; 2]> {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    if let Some(quota_ms) = quota_ms {
        container.set_cpu_quota(Duration::from_millis(quota_ms), Duration::from_millis(100)).ok()?;
    }
    let mut options = wanting(Want::Events);
    options.thresholds.runqueue_latency.min_wait = Duration::from_millis(20);
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    contend(&container);
    let facts = drain_for(&mut events, Duration::from_millis(100));
    let ours = facts.iter().filter(|fact| fact.cgroup == Some(container.cgroup_id()));
    let told = ours.map(|fact| {
        let told =
            fact.body["throttled_ns"].as_u64().unwrap_or_else(|| panic!("pinned tasks stay: {fact:?}"));
        assert!(Some(told) <= fact.value_ns, "{fact:?}");
        told
    });
    let (key, unit) = if container.is_v1() { ("throttled_time", 1) } else { ("throttled_usec", 1_000) };
    let stopped = container.number("cpu.stat", Some(key)).unwrap_or(0) * unit;
    Some([told.sum(), stopped])
}

#[test]
fn a_wait_tells_how_long_a_quota_held_the_task_back() {
    needs_root!();
    let Some([told, stopped]) = throttled(0xa6, Some(20)) else {
        kpulse_tests::skip(module_path!(), "this kernel has no CPU quota");
        return;
    };
    // Each of the spinners waits while they are stopped. Those that had slept by chance do not, nor does the last of them.
    let all = stopped * (SPINNERS as u64 + 1);
    assert!(told >= stopped && told <= all && stopped > 0, "{told} ns, in {stopped} ns of all");
    let [told, _] = throttled(0xa7, None).expect("there is no quota to set");
    assert_eq!(told, 0, "waiting for other tasks is no quota's doing");
}

#[test]
fn the_rate_limit_keeps_back_and_counts() {
    needs_root!();
    let container = Cgroup::container("cpu", 0xa5).expect("a cgroup can be made");
    let mut options = wanting(Want::Events);
    options.thresholds.runqueue_latency.min_wait = Duration::from_nanos(1);
    options.thresholds.rate_limit.events_per_second = 1;
    options.thresholds.rate_limit.burst = 2;
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    contend(&container);
    let facts = drain_for(&mut events, Duration::from_millis(100));
    let ours = facts.iter().filter(|fact| fact.cgroup == Some(container.cgroup_id())).count();
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    assert!(
        (1..=2 + cpus + 20).contains(&ours),
        "{ours} events of one cgroup in about a second, where 2 and 1/s may come"
    );
    let suppressed =
        events.losses().iter().find(|loss| loss.reason == "suppressed").map_or(0, |loss| loss.count);
    assert!(suppressed > 0);
    assert_sum_closes(set, &mut events, facts.len());
}
