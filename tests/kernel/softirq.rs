//! Softirqs: counted against `/proc/softirqs`, timed against burns of known length.

use super::*;
use crate::burn::Burner;
use kpulse_tests::until;
use std::collections::BTreeMap;
use std::net::UdpSocket;

const NAME: &str = "softirq";
const LATENCY: &str = "kpulse_softirq_latency_seconds";
const DURATION: &str = "kpulse_softirq_duration_seconds";
const DATAGRAMS: usize = 2_000;
/// Slots above 31.25 ms, which a burn of 40 ms reaches.
const SLOW_SLOTS: std::ops::Range<usize> = 16..27;

/// Softirqs served by vector, by the kernel's own count.
fn served() -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string("/proc/softirqs").expect("every kernel has it");
    let line = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let count = counts.split_ascii_whitespace().map(|count| count.parse::<u64>().expect("a count")).sum();
        Some((name.trim().to_lowercase(), count))
    };
    text.lines().filter_map(line).collect()
}

/// Runs of each vector's handler by our count.
fn counted(set: &mut ProbeSet, family: &str) -> BTreeMap<String, u64> {
    let samples = scrape(set, NAME, &mut identities());
    let families = samples.families().iter().filter(|have| have.def.name == family);
    let count = |value: &Value| match value {
        Value::Histogram(histogram) => histogram.count(),
        other => panic!("{other:?}"),
    };
    families
        .flat_map(|family| family.series.iter())
        .map(|series| (series.labels[0].to_string(), count(&series.value)))
        .collect()
}

fn receive_datagrams() {
    let receiver = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    let address = receiver.local_addr().expect("it is bound");
    for _ in 0..DATAGRAMS {
        sender.send_to(b"x", address).expect("loopback takes it");
        receiver.recv(&mut [0]).expect("loopback delivers it");
    }
}

fn counts_what_the_kernel_counts(options: &LoadOptions) {
    let mut set = load(NAME, options);
    let kernel_outer = served();
    let ours_before = counted(&mut set, DURATION);
    let kernel_inner = served();
    receive_datagrams();
    let kernel_inner_end = served();
    let ours = counted(&mut set, DURATION);
    let latencies = counted(&mut set, LATENCY);
    let kernel_outer_end = served();
    // The kernel counts at the entry and we at the exit: one softirq of each CPU may be between the two.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    for (vector, end) in &kernel_inner_end {
        let least = (end - kernel_inner[vector]).saturating_sub(cpus);
        let most = kernel_outer_end[vector] - kernel_outer[vector] + cpus;
        let measured = ours.get(vector).unwrap_or(&0) - ours_before.get(vector).unwrap_or(&0);
        assert!((least..=most).contains(&measured), "{vector}: {measured} not in {least}..={most}");
    }
    let received = ours["net_rx"] - ours_before.get("net_rx").unwrap_or(&0);
    assert!(received >= DATAGRAMS as u64 / 2, "{received} for {DATAGRAMS} datagrams");
    assert!(latencies["net_rx"] * 100 >= ours["net_rx"] * 95, "{latencies:?} of {ours:?}");
}

#[test]
fn counts_what_the_kernel_counts_by_vector() {
    needs_root!();
    counts_what_the_kernel_counts(&wanting(Want::Metrics));
}

#[test]
fn raw_tracepoints_count_the_same() {
    needs_root!();
    let options = LoadOptions { avoid: ["tp_btf"].into(), ..wanting(Want::Metrics) };
    counts_what_the_kernel_counts(&options);
}

/// Waits until the burner made a slow one; gives its histogram and what was burnt before that was read.
fn slow(set: &mut ProbeSet, burner: &mut Burner, family: &str) -> (Histogram, Duration) {
    until("slow softirq", || {
        let (_, burnt) = burner.burnt();
        let samples = scrape(set, NAME, &mut identities());
        let Some(Value::Histogram(timer)) = value(&samples, family, &["timer"]) else { return None };
        (timer.slots[SLOW_SLOTS].iter().sum::<u64>() > 0).then_some((*timer, burnt))
    })
}

#[test]
fn time_in_a_handler_is_its_duration() {
    needs_root!();
    let mut set = load(NAME, &wanting(Want::Metrics));
    // Behind the probe on the same tracepoint: the handler has been entered, as the probe sees it.
    let mut burner = Burner::start(&burn::SOFTIRQ);
    let (duration, burnt) = slow(&mut set, &mut burner, DURATION);
    assert!(Duration::from_nanos(duration.sum_ns) >= burnt, "{duration:?} for {burnt:?}");
}

#[test]
fn time_before_the_handler_is_its_latency() {
    needs_root!();
    // Before the probe on the same tracepoint: the handler has not been entered yet, as the probe sees it.
    let mut burner = Burner::start(&burn::SOFTIRQ);
    let mut set = load(NAME, &wanting(Want::Metrics));
    slow(&mut set, &mut burner, LATENCY);
}

#[test]
fn a_handler_that_begins_late_is_an_event() {
    needs_root!();
    let mut burner = Burner::start(&burn::SOFTIRQ);
    let mut options = wanting(Want::Events);
    options.thresholds.softirq.min_delay = Duration::from_millis(36);
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    let mut facts = Vec::new();
    let burns = until("late handler", || {
        facts.extend(drain_for(&mut events, Duration::from_millis(10)));
        facts.iter().any(|fact| fact.body["vector"] == "timer").then(|| burner.burnt().0)
    });
    let ours: Vec<&Fact> = facts.iter().filter(|fact| fact.body["vector"] == "timer").collect();
    assert!(ours.len() as u64 <= burns, "{} events of {burns} burns", ours.len());
    for fact in &ours {
        assert_eq!((fact.kind, fact.threshold_ns), ("softirq_delay", Some(36_000_000)));
        assert!(fact.value_ns >= fact.threshold_ns && !fact.kernel_stack.is_empty(), "{fact:?}");
    }
    drop(burner);
    assert_sum_closes(set, &mut events, facts.len());
}
