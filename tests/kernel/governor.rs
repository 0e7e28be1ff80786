//! Probes that cost more than they may are detached, and come back with all that they had counted.

use super::*;
use kpulse_common::governor::Governor;
use kpulse_common::metric::{MetricDef, Series, histogram_bound};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::disk::Loop;
use kpulse_tests::{load, network, until};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::thread;

/// How long probes stay away here.
const PAUSE: Duration = Duration::from_secs(4);
/// How long a task sleeps uninterruptibly, again and again.
const SLEEP: Duration = Duration::from_millis(300);

/// Probes that may take less than anything does.
fn stingy() -> LoadOptions {
    LoadOptions { governor: Governor { budget: 1e-12, pause: PAUSE }, ..wanting(Want::Metrics) }
}

fn told(set: &ProbeSet) -> Samples {
    let mut samples = Samples::default();
    set.self_metrics(&mut samples);
    samples
}

fn is_paused(set: &ProbeSet, name: &str) -> bool {
    let is_it =
        |status: &ProbeStatus| status.name == name && matches!(status.state, ProbeState::Paused { .. });
    set.status().iter().any(is_it)
}

/// A container in which things begin and end all the time, some of them with a pause of the probes between.
struct Busy {
    // Ends before what it uses.
    _work: load::Worker,
    disk: Loop,
    _container: Cgroup,
}

impl Busy {
    fn begin() -> Self {
        let container = Cgroup::container("cpu", 0xc7).expect("a cgroup can be made");
        let disk = Loop::with_size(4 << 20).expect("a loop device can be made");
        let path = disk.path();
        let work = load::Worker::start(Some(&container), move || {
            let keep = |work: fn(&Path) -> io::Result<()>| {
                let path = path.clone();
                thread::spawn(move || {
                    loop {
                        work(&path).expect("the load goes on");
                    }
                })
            };
            let threads = [
                keep(|_| load::sleep_uninterruptibly(SLEEP)),
                keep(|path| load::read_directly(path, 16)),
                keep(|_| network::pair("127.0.0.1").map(drop)),
            ];
            threads.into_iter().try_for_each(|it| it.join().map_err(|_| io::Error::other("it went wrong")))
        });
        Self { _work: work, disk, _container: container }
    }

    /// Whether others have no part in a series: what they do may really take long.
    fn owns(&self, def: &MetricDef, series: &Series) -> bool {
        let devices = [self.disk.name(), "lo".to_owned()];
        let id = Cgroup::id(0xc7);
        def.label_names().zip(series.labels.iter()).all(|(name, value)| match name {
            "container_id" => **value == *id,
            "device" => devices.iter().any(|device| **value == **device),
            _ => true,
        })
    }
}

/// Of these waits, those of a longer time.
fn beyond(time: Duration, waits: &Histogram) -> u64 {
    let is_longer = |slot: &usize| histogram_bound(*slot).is_none_or(|bound| bound > time.as_secs_f64());
    (0..waits.slots.len()).filter(is_longer).map(|slot| waits.slots[slot]).sum()
}

/// Waits longer than half a pause, by family and labels.
fn long_waits(set: &mut ProbeSet, identities: &mut Identities, busy: &Busy) -> BTreeMap<String, u64> {
    let mut waits = BTreeMap::new();
    for name in set.collectors() {
        for family in scrape(set, name, identities).families() {
            for series in family.series.iter().filter(|series| busy.owns(&family.def, series)) {
                if let Value::Histogram(found) = &series.value {
                    waits.insert(format!("{}{:?}", family.def.name, series.labels), beyond(PAUSE / 2, found));
                }
            }
        }
    }
    waits
}

/// How many of the container's sleeps that a child of vfork makes have ended; 0 while nobody counts.
fn sleeps(set: &mut ProbeSet, identities: &mut Identities) -> u64 {
    let samples = scrape(set, "task_state", identities);
    match value(&samples, "kpulse_offcpu_uninterruptible_seconds", &[&Cgroup::id(0xc7)]) {
        Some(Value::Histogram(slept)) => beyond(SLEEP / 2, &slept),
        _ => 0,
    }
}

#[test]
fn a_probe_over_the_budget_goes_and_comes_back_with_what_it_had_counted() {
    needs_root!();
    const PROBE: &str = "runqueue_latency";
    const SWITCHES: &str = "kpulse_context_switches_total";
    let mut set = load(PROBE, &stingy());
    let mut identities = identities();
    let mut switches =
        |set: &mut ProbeSet| total(&scrape(set, PROBE, &mut identities), SWITCHES, &["voluntary"]);
    let before = until("a switch", || Some(switches(&mut set)).filter(|&switches| switches > 0));
    set.watch_cost(|| {});

    until("the probe to be detached", || is_paused(&set, PROBE).then_some(()));
    assert_eq!(switches(&mut set), 0, "its series are absent");
    let samples = told(&set);
    let number = |family, labels: &[&str]| match value(&samples, family, labels) {
        Some(Value::Number(number)) => Some(number),
        _ => None,
    };
    assert_eq!(number("kpulse_probe_up", &[PROBE]), Some(0.0));
    assert_eq!(number("kpulse_probe_degraded", &[PROBE, "over_budget"]), Some(1.0));
    assert_eq!(number("kpulse_probe_info", &[PROBE]), None);
    assert_eq!(number("kpulse_governor_budget_ratio", &[]), Some(1e-12));
    assert!(number("kpulse_governor_used_ratio", &[]).is_some_and(|used| used > 1e-12 && used < 1.0));

    until("the probe to be back", || (!is_paused(&set, PROBE)).then_some(()));
    assert!(switches(&mut set) >= before, "counters go on");
    assert_eq!(value(&told(&set), "kpulse_probe_degraded", &[PROBE]), None);
}

#[test]
fn what_ended_during_a_pause_does_not_look_long() {
    needs_root!();
    // First of all: a child that is forked later holds the probes' links too, and they stay attached.
    let busy = Busy::begin();
    let mut identities = identities();
    let mut set = LOADER.lock().unwrap_or_else(PoisonError::into_inner).load(probes::ALL, &stingy());
    let before = until("something to be counted", || {
        Some(long_waits(&mut set, &mut identities, &busy)).filter(|it| it.len() > 5)
    });
    set.watch_cost(|| {});
    // The probes go and come, as often as they ran meanwhile; this one is among the last to go.
    until("the probes to be detached", || is_paused(&set, "task_state").then_some(()));
    until("the probes to be back", || (!is_paused(&set, "task_state")).then_some(()));
    let ended = sleeps(&mut set, &mut identities);
    until("a sleep to end", || (sleeps(&mut set, &mut identities) > ended).then_some(()));
    for (series, long) in long_waits(&mut set, &mut identities, &busy) {
        assert_eq!(long, before.get(&series).copied().unwrap_or(0), "{series}");
    }
}
