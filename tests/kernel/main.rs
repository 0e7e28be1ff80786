//! Every probe in a real kernel: provoke a fact, and compare what kpulse tells with an oracle.
//!
//! Runs on this machine's kernel by `cargo test`, and in the guests of the matrix as a program of its own.
//! Needs root; says so and skips without.

mod block_io;
mod burn;
mod clock_step;
mod compaction;
mod cpu_sample;
#[cfg(target_arch = "x86_64")]
mod cpu_sample_java;
#[cfg(target_arch = "x86_64")]
mod cpu_sample_walk;
mod direct_reclaim;
mod governor;
mod hardirq;
mod hardware_error;
mod hotplug;
mod irqs_off;
mod jbd2;
mod kswapd;
mod loader;
mod map_pressure;
mod memory_stall;
mod oom_kill;
mod packet_drop;
mod policy;
mod process_life;
mod qdisc;
mod receive;
mod retry;
mod ring;
mod runqueue_latency;
mod socket_wait;
mod soft_lockup;
mod softirq;
mod statistics;
mod task_state;
mod tcp_connect;
mod tcp_reset;
mod tcp_retransmit;
mod transmit;
mod tx_timeout;
mod xfs_log;

use kpulse_common::container::Identities;
use kpulse_common::metric::{Histogram, Samples, Value};
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::{
    AddressSpace, EventStream, Fact, Host, LoadOptions, Loader, Probe, ProbeSet, ProbeState, ProbeStatus,
    Want, probes,
};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// Reading what the kernel says of its types takes longer than most tests, so they share it.
static HOST: LazyLock<Host> = LazyLock::new(|| Host::read(&Paths::default()));
static LOADER: LazyLock<Mutex<Loader<'static>>> = LazyLock::new(|| Mutex::new(Loader::new(&HOST)));

/// The probe of this name.
fn probe(name: &str) -> &'static Probe {
    probes::ALL.iter().find(|probe| probe.name == name).expect("the registry has it")
}

/// Loads one probe, which must become active.
fn load(name: &str, options: &LoadOptions) -> ProbeSet {
    load_probe(probe(name), options)
}

fn load_probe(probe: &'static Probe, options: &LoadOptions) -> ProbeSet {
    let set = LOADER.lock().unwrap_or_else(PoisonError::into_inner).load(&[probe], options);
    for status in set.status() {
        assert_eq!(status.state, ProbeState::Active, "{}: {}", probe.name, status.state);
    }
    set
}

fn wanting(want: Want) -> LoadOptions {
    LoadOptions { want, ..LoadOptions::default() }
}

/// One scrape of a probe.
fn scrape(set: &mut ProbeSet, name: &str, identities: &mut Identities) -> Samples {
    let mut samples = Samples::default();
    set.collect(name, identities, &mut samples).expect("the maps can be read");
    samples
}

/// The value of the series whose labels contain all of `labels`.
fn value(samples: &Samples, family: &str, labels: &[&str]) -> Option<Value> {
    let family = samples.families().iter().find(|candidate| candidate.def.name == family)?;
    let has_all =
        |have: &[std::sync::Arc<str>]| labels.iter().all(|label| have.iter().any(|value| &**value == *label));
    family.series.iter().find(|series| has_all(&series.labels)).map(|series| series.value.clone())
}

fn histogram(samples: &Samples, family: &str, labels: &[&str]) -> Histogram {
    match value(samples, family, labels) {
        Some(Value::Histogram(histogram)) => *histogram,
        other => panic!("{family}{labels:?} is {other:?}; there are {:?}", samples.families()),
    }
}

fn count(samples: &Samples, family: &str, labels: &[&str]) -> u64 {
    match value(samples, family, labels) {
        Some(Value::Count(count)) => count,
        None => 0,
        other => panic!("{family}{labels:?} is {other:?}"),
    }
}

/// The sum of the series whose labels contain all of `labels`.
fn total(samples: &Samples, family: &str, labels: &[&str]) -> u64 {
    let families = samples.families().iter().filter(|candidate| candidate.def.name == family);
    let has_all =
        |have: &[std::sync::Arc<str>]| labels.iter().all(|label| have.iter().any(|value| &**value == *label));
    let series = families.flat_map(|family| &family.series).filter(|series| has_all(&series.labels));
    series.map(|series| if let Value::Count(count) = series.value { count } else { 0 }).sum()
}

fn identities() -> Identities {
    Identities::new(&Paths::default())
}

/// Everything that is in the rings now, and what comes within `time`.
fn drain_for(events: &mut EventStream, time: Duration) -> Vec<Fact> {
    let begin = std::time::Instant::now();
    let mut facts = Vec::new();
    loop {
        events.drain(&mut |fact| facts.push(fact));
        let left = time.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return facts;
        }
        events.wait(left).expect("the rings can be waited for");
    }
}

/// Those events that are of a connection between these ports, from the side of the first.
fn of_flow(facts: &[Fact], [source, destination]: [u64; 2]) -> Vec<&Fact> {
    let is_ours = |fact: &&Fact| {
        fact.body["source"]["port"] == source && fact.body["destination"]["port"] == destination
    };
    facts.iter().filter(is_ours).collect()
}

/// Asserts that an event's flow has this address at both ends.
fn assert_address(fact: &Fact, address: &str) {
    assert_eq!(
        (&fact.body["source"]["ip"], &fact.body["destination"]["ip"]),
        (&address.into(), &address.into())
    );
}

/// Detaches the probes, and asserts that what they produced is what was delivered and what was lost, with its reason.
fn assert_sum_closes(set: ProbeSet, events: &mut EventStream, delivered: usize) {
    drop(set);
    // The machine's own facts may have come since the test last looked; rings and counters outlive the programs.
    let delivered = delivered + drain_for(events, Duration::from_millis(100)).len();
    let lost: u64 = events.losses().iter().map(|loss| loss.count).sum();
    let produced: u64 = events.produced().iter().map(|(_, count)| count).sum();
    assert_eq!(produced, delivered as u64 + lost, "losses: {:?}", events.losses());
}

/// Where the kernel put this program's code and its stack.
fn own_space() -> AddressSpace {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("every kernel has it");
    let (_, stat) = stat.rsplit_once(") ").expect("a name in parentheses");
    let field = |number: usize| stat.split(' ').nth(number - 3).and_then(|field| field.parse::<u64>().ok());
    let [code, stack] = [26, 28].map(|number| field(number).expect("an address"));
    AddressSpace { code, stack }
}

/// Asserts that an event tells where a process was that runs this program, as children of a test do.
fn assert_user_stack(fact: &Fact, pid: u32) {
    let stack = fact.user_stack.as_ref().unwrap_or_else(|| panic!("no user stack: {fact:?}"));
    assert_eq!((stack.pid, stack.space), (pid, own_space()), "{fact:?}");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("every kernel has it");
    let is_code = |line: &str| {
        let (range, rest) = line.split_once(' ').expect("a line of maps");
        let (start, end) = range.split_once('-').expect("a range");
        let [start, end] = [start, end].map(|it| u64::from_str_radix(it, 16).expect("an address"));
        rest[..4].ends_with("xp") && (start..end).contains(&stack.frames[0])
    };
    assert!(maps.lines().any(is_code), "{stack:x?} begins in no code of {maps}");
}

/// Returns from the test when the process may not load BPF programs; else what some of them attach by is there.
macro_rules! needs_root {
    () => {
        if !kpulse_tests::is_root() {
            kpulse_tests::skip(module_path!(), "needs root");
            return;
        }
        let _tracefs = kpulse_tests::disk::tracefs();
    };
}
use needs_root;

/// As `needs_root`, for what is done to no other machine.
macro_rules! needs_guest {
    ($why:literal) => {
        needs_root!();
        if !kpulse_tests::is_guest() {
            kpulse_tests::skip(module_path!(), $why);
            return;
        }
    };
}
use needs_guest;
