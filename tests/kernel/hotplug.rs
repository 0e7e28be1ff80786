//! A CPU that goes and comes back is measured again. Only in guests: elsewhere CPUs are not ours to take away.

use super::*;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::CpuSamples;
use kpulse_tests::{load, until};
use std::fs;

const CPU: usize = 1;

/// A CPU that is offline until this value goes.
struct Offline;

impl Offline {
    fn begin() -> std::io::Result<Self> {
        fs::write(Self::file(), "0").map(|()| Self)
    }

    fn file() -> String {
        format!("/sys/devices/system/cpu/cpu{CPU}/online")
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        fs::write(Self::file(), "1").expect("what went can come back");
    }
}

/// Whether a process that keeps the CPU busy for a while is sampled there.
fn is_sampled(samples: &mut CpuSamples) -> bool {
    let (pid, went_well) = load::in_child(None, || {
        load::pin(CPU)?;
        load::spin(Duration::from_millis(300));
        Ok(())
    });
    assert!(went_well, "the CPU is online");
    samples.drain().expect("the maps can be read").samples.iter().any(|sample| sample.pid == pid)
}

#[test]
fn a_cpu_that_comes_back_is_sampled_again() {
    needs_guest!("this machine's CPUs are not a test's to take away");
    let set = load("cpu_sample", &LoadOptions { sample_hz: 99, ..wanting(Want::Samples) });
    let mut samples = CpuSamples::open(&set).expect("the maps open");
    assert!(is_sampled(&mut samples));
    drop(Offline::begin().expect("this kernel can take a CPU away"));
    until("samples of the CPU", || is_sampled(&mut samples).then_some(()));
}

#[test]
fn probes_count_on_while_a_cpu_is_away() {
    needs_guest!("this machine's CPUs are not a test's to take away");
    const SWITCHES: &str = "kpulse_context_switches_total";
    let mut set = load("runqueue_latency", &wanting(Want::Metrics));
    let switches = |set: &mut ProbeSet| {
        let samples = scrape(set, "runqueue_latency", &mut identities());
        count(&samples, SWITCHES, &["", "", "", "", "voluntary"])
    };
    let before = switches(&mut set);
    let offline = Offline::begin().expect("this kernel can take a CPU away");
    std::thread::sleep(Duration::from_millis(10));
    let meanwhile = switches(&mut set);
    drop(offline);
    std::thread::sleep(Duration::from_millis(10));
    let after = switches(&mut set);
    assert!(before < meanwhile && meanwhile < after, "{before} {meanwhile} {after}");
}
