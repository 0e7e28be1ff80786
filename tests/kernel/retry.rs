//! Loading again what failed for a cause that passed: descriptors were short.

use super::*;
use kpulse_tests::until;
use std::io;

const NAMES: [&str; 2] = ["runqueue_latency", "tcp_reset"];
const FAMILY: &str = "kpulse_runqueue_latency_seconds";
/// Fewer than any probe takes, and enough to read the kernel's types.
const DESCRIPTORS: u64 = 3;

/// A soft limit of descriptors, for as long as the value lives.
struct FewDescriptors(libc::rlimit);

impl FewDescriptors {
    /// So many more than there are.
    fn more(count: u64) -> Self {
        let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `old` lives through the call.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut old) }, 0);
        // The limit is on numbers, of which the lowest that is free is taken: with one open, those below are in use.
        let file = std::fs::File::open("/dev/null").expect("a descriptor is free");
        let first = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&file)).expect("it is open");
        Self::set(libc::rlimit { rlim_cur: first + count, ..old });
        Self(old)
    }

    fn set(limit: libc::rlimit) {
        // SAFETY: `limit` lives through the call.
        let outcome = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        assert_eq!(outcome, 0, "setrlimit: {}", io::Error::last_os_error());
    }
}

impl Drop for FewDescriptors {
    fn drop(&mut self) {
        Self::set(self.0);
    }
}

fn wanted() -> [&'static Probe; 2] {
    NAMES.map(probe)
}

fn waits(set: &mut ProbeSet, identities: &mut Identities) -> u64 {
    let samples = scrape(set, NAMES[0], identities);
    let families = samples.families().iter().filter(|family| family.def.name == FAMILY);
    let series = families.flat_map(|family| &family.series);
    series.map(|series| if let Value::Histogram(waits) = &series.value { waits.count() } else { 0 }).sum()
}

#[test]
fn what_failed_for_want_of_descriptors_is_loaded_later_and_counts() {
    needs_root!();
    let options = wanting(Want::Metrics);
    let mut set = {
        let _few = FewDescriptors::more(DESCRIPTORS);
        ProbeSet::load(&wanted(), &options)
    };
    for status in set.status() {
        let ProbeState::Failed { why } = &status.state else { panic!("{}: {}", status.name, status.state) };
        assert!(why.contains("Too many open files"), "{why}");
    }
    assert_eq!(set.to_retry().iter().map(|probe| probe.name).collect::<Vec<_>>(), NAMES);
    set.watch_cost(|| {});
    let again = ProbeSet::load(&set.to_retry(), &options);
    set.adopt(again);
    assert!(set.status().iter().all(|status| status.state == ProbeState::Active), "{:?}", set.status());
    assert_eq!((set.to_retry().len(), set.collectors()), (0, NAMES.to_vec()));
    let mut identities = identities();
    until("waits", || (waits(&mut set, &mut identities) > 0).then_some(()));
    until("what the probe costs", || {
        let mut samples = Samples::default();
        set.self_metrics(&mut samples);
        value(&samples, "kpulse_probe_runs_total", &[NAMES[0]])
    });
}

#[test]
fn an_active_probe_keeps_its_totals_when_another_attempt_brings_it_too() {
    needs_root!();
    let options = wanting(Want::Metrics);
    let mut set = {
        let _few = FewDescriptors::more(DESCRIPTORS);
        ProbeSet::load(&wanted(), &options)
    };
    let mut identities = identities();
    let mut last = 0;
    for _ in 0..3 {
        // The second and the third find nothing to do.
        set.adopt(ProbeSet::load(&wanted(), &options));
        let now = until("more waits", || {
            Some(waits(&mut set, &mut identities)).filter(|waits| *waits > last.max(100))
        });
        assert!(now > last);
        last = now;
    }
    // One that was just loaded has next to nothing, and would have shown it.
    assert!(waits(&mut set, &mut identities) >= last);
}

#[test]
fn a_permanent_cause_is_not_retried() {
    needs_root!();
    let options = LoadOptions {
        avoid: ["tp_btf"].into(),
        disabled: [NAMES[0].to_owned()].into(),
        ..wanting(Want::Metrics)
    };
    let set = ProbeSet::load(&[probe("block_io"), probe(NAMES[0])], &options);
    let states: Vec<_> = set.status().into_iter().map(|status| status.state).collect();
    assert!(matches!(states[..], [ProbeState::Failed { .. }, ProbeState::Disabled { .. }]), "{states:?}");
    assert!(set.to_retry().is_empty());
    let paths = Paths { sysfs: "/nonexistent".into(), ..Paths::default() };
    assert!(ProbeSet::load(probes::ALL, &LoadOptions { paths, ..options }).to_retry().is_empty());
}
