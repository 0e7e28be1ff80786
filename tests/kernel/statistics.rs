//! What the probes themselves cost: the kernel's own counts, of one window, scaled.

use super::*;
use kpulse_tests::until;
use std::collections::BTreeMap;
use std::fs;

/// Runs and nanoseconds of every program that this process holds, as fdinfo tells them, by program id.
fn fdinfo() -> BTreeMap<u64, (u64, u64)> {
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").expect("procfs is mounted") {
        // The directory itself is one of them, and gone by now.
        let Ok(text) = fs::read_to_string(entry.expect("a directory entry").path()) else { continue };
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
        };
        if let (Some(id), Some(runs), Some(time)) = (field("prog_id"), field("run_cnt"), field("run_time_ns"))
        {
            programs.insert(id, (runs, time));
        }
    }
    programs
}

fn seconds(samples: &Samples, probe: &str) -> f64 {
    match value(samples, "kpulse_probe_run_seconds_total", &[probe]) {
        Some(Value::Number(seconds)) => seconds,
        other => panic!("{other:?}"),
    }
}

#[test]
fn runs_and_their_time_are_what_the_kernel_counted() {
    needs_root!();
    const PROBE: &str = "runqueue_latency";
    let options = LoadOptions { container_max: 64, ..wanting(Want::Metrics) };
    let mut set = load(PROBE, &options);
    let mut before = Samples::default();
    set.self_metrics(&mut before);
    assert_eq!(value(&before, "kpulse_probe_runs_total", &[PROBE]), None, "absent until it is measured");
    set.watch_cost(|| {});
    let samples = until("the end of the first window", || {
        // Waiting makes context switches, which are what is counted.
        let mut samples = Samples::default();
        set.self_metrics(&mut samples);
        value(&samples, "kpulse_probe_runs_total", &[PROBE]).map(|_| samples)
    });
    let counted = fdinfo();
    let (runs, time) =
        counted.values().fold((0, 0), |(runs, time), (more, longer)| (runs + more, time + longer));
    let told = (count(&samples, "kpulse_probe_runs_total", &[PROBE]), seconds(&samples, PROBE));
    println!("told {told:?}, the kernel counted {runs} runs in {time} ns by {} programs", counted.len());
    assert!(runs > 50 && time > 0);
    // The window is nearly all of the time until then; others may have let the kernel count for longer.
    assert!((runs / 2..runs * 2).contains(&told.0), "{told:?} and {runs}");
    let seconds = time as f64 / 1e9;
    assert!((seconds / 2.0..seconds * 2.0).contains(&told.1), "{told:?} and {seconds}");
}

#[test]
fn maps_tell_how_full_they_are() {
    needs_root!();
    let mut set = load("runqueue_latency", &LoadOptions { container_max: 64, ..wanting(Want::Metrics) });
    set.watch_cost(|| {});
    let samples = until("maps", || {
        let mut samples = Samples::default();
        set.self_metrics(&mut samples);
        value(&samples, "kpulse_map_entries", &["accounts"]).map(|_| samples)
    });
    // One more for what finds no room; it and the root cgroup are there from the start.
    assert_eq!(count(&samples, "kpulse_map_capacity", &["accounts"]), 65);
    assert!((2..=65).contains(&count(&samples, "kpulse_map_entries", &["accounts"])));
}

#[test]
fn ends_at_once_when_the_probes_go() {
    needs_root!();
    let mut set = load("runqueue_latency", &wanting(Want::Metrics));
    set.watch_cost(|| {});
    drop(set);
    assert!(fdinfo().is_empty(), "no program is held any more");
}
