//! CPU samples of a busy process: all are accounted for, and its share is right.

use super::*;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::{CpuSamples, Drained};
use kpulse_tests::load;
use std::thread;

const NAME: &str = "cpu_sample";
const TIME: Duration = Duration::from_secs(2);
const HZ: u64 = 99;

#[test]
fn the_walk_by_tables_loads() {
    needs_root!();
    let set = load(NAME, &wanting(Want::Samples));
    assert!(set.status().iter().all(|status| status.missing.is_empty()), "{:?}", set.status());
}

fn assert_accounted(drained: &Drained) {
    let counted: u64 = drained.samples.iter().map(|sample| sample.count).sum();
    let lost: u64 = drained.lost.iter().map(|(_, count)| count).sum();
    assert_eq!(drained.taken, counted + lost);
}

#[test]
fn a_busy_thread_gets_its_share_of_samples() {
    needs_root!();
    let set = load(NAME, &LoadOptions { sample_hz: HZ, ..wanting(Want::Samples) });
    let mut samples = CpuSamples::open(&set).expect("the maps open");
    let before = load::cpu_time();
    let (pid, went_well) = load::in_child(None, || {
        load::spin(TIME);
        Ok(())
    });
    assert!(went_well);
    let busy = load::cpu_time() - before;
    let drained = samples.drain().expect("the maps can be read");
    assert_accounted(&drained);
    let ours: Vec<_> = drained.samples.iter().filter(|sample| sample.pid == pid).collect();
    let seen: u64 = ours.iter().map(|sample| sample.count).sum();
    let expected = busy.as_secs_f64() * HZ as f64;
    assert!(
        (expected * 0.8..=expected * 1.2).contains(&(seen as f64)),
        "{seen} samples of {busy:?} at {HZ} Hz"
    );
    assert!(ours.iter().any(|sample| !sample.user.is_empty()));
    assert_eq!(
        ours[0].comm,
        thread::current().name().map(|name| name.chars().take(15).collect::<String>()).unwrap_or_default()
    );
}

#[test]
fn no_sample_is_lost_or_counted_twice_between_drains() {
    needs_root!();
    let set = load(NAME, &LoadOptions { sample_hz: 999, ..wanting(Want::Samples) });
    let mut samples = CpuSamples::open(&set).expect("the maps open");
    let spinner = thread::spawn(|| load::spin(TIME));
    let (mut taken, mut drains) = (0, 0);
    while !spinner.is_finished() {
        let drained = samples.drain().expect("the maps can be read");
        assert_accounted(&drained);
        taken += drained.taken;
        drains += 1;
    }
    spinner.join().expect("it spins");
    assert!(drains > 5 && taken > 500, "{taken} samples in {drains} drains");
}
