//! Loading: what is missing disables one probe with its reason, and nothing stays in the kernel.

use super::*;
use std::path::PathBuf;

/// Probes of file systems that a machine need not have; without one the probe is disabled.
const FILE_SYSTEMS: [&str; 2] = ["jbd2", "xfs_log"];

#[test]
fn every_probe_is_active_on_this_kernel_and_leaves_nothing_in_it() {
    needs_root!();
    for want in [Want::Metrics, Want::Events, Want::Samples] {
        let set = ProbeSet::load(probes::ALL, &wanting(want));
        for status in set.status() {
            println!("{} {} {:?}", status.name, status.state, status.hooks);
            let is_absent =
                FILE_SYSTEMS.contains(&status.name) && matches!(status.state, ProbeState::Disabled { .. });
            assert!(is_absent || status.state == ProbeState::Active, "{}: {}", status.name, status.state);
        }
        assert!(bpf_descriptors() > 0, "the probes' programs are among the open files");
        drop(set);
        assert_eq!(bpf_descriptors(), 0, "nothing stays in the kernel");
    }
}

#[test]
fn a_kernel_without_types_disables_every_probe_with_its_reason() {
    let paths = Paths { sysfs: PathBuf::from("/nonexistent"), ..Paths::default() };
    let mut set = ProbeSet::load(probes::ALL, &LoadOptions { paths, ..wanting(Want::Metrics) });
    for status in set.status() {
        let ProbeState::Disabled { why } = &status.state else { panic!("{}: {}", status.name, status.state) };
        assert!(why.contains("CONFIG_DEBUG_INFO_BTF"), "{why}");
    }
    assert_eq!(set.collectors(), Vec::<&str>::new());
    let mut samples = Samples::default();
    set.collect("runqueue_latency", &mut identities(), &mut samples)
        .expect("a probe that is not active gives nothing");
    assert_eq!(samples.families(), []);
}

#[test]
fn a_probe_that_cannot_attach_stops_no_other() {
    needs_root!();
    let options = LoadOptions { avoid: ["tp_btf"].into(), ..wanting(Want::Metrics) };
    let set = ProbeSet::load(&["block_io", "runqueue_latency", "softirq"].map(probe), &options);
    let state = |name| set.status().into_iter().find(|status| status.name == name).map(|status| status.state);
    for name in ["runqueue_latency", "softirq"] {
        assert_eq!(state(name), Some(ProbeState::Active), "{name} has raw tracepoints too");
    }
    let failed = state("block_io").expect("it was wanted");
    assert!(matches!(&failed, ProbeState::Failed { why } if why.contains("avoided")), "{failed}");
    let mut samples = Samples::default();
    set.self_metrics(&mut samples);
    assert_eq!(number(&samples, "kpulse_probe_up", &["runqueue_latency"]), Some(1.0));
    assert_eq!(number(&samples, "kpulse_probe_up", &["block_io"]), Some(0.0));
}

#[test]
fn programs_for_cgroup_v1_load_on_a_v2_host_too() {
    needs_root!();
    let procfs = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(procfs.path().join("self")).expect("a folder");
    let controllers = "3:cpu,cpuacct:/\n4:memory:/\n5:blkio:/\n0::/\n";
    std::fs::write(procfs.path().join("self/cgroup"), controllers).expect("a file");
    let paths = Paths { procfs: procfs.path().to_owned(), ..Paths::default() };
    for want in [Want::Metrics, Want::Events, Want::Samples] {
        let options = LoadOptions { paths: paths.clone(), ..wanting(want) };
        for status in ProbeSet::load(probes::ALL, &options).status() {
            // A file system that is not there is no matter of cgroups.
            assert!(!matches!(status.state, ProbeState::Failed { .. }), "{}: {}", status.name, status.state);
        }
    }
}

#[test]
fn a_probe_that_is_turned_off_is_not_loaded() {
    let options = LoadOptions { disabled: ["block_io".to_owned()].into(), ..wanting(Want::Metrics) };
    let status = ProbeSet::load(&[probe("block_io")], &options).status();
    assert!(
        matches!(&status[0].state, ProbeState::Disabled { why } if why.contains("configuration")),
        "{}",
        status[0].state
    );
}

fn number(samples: &Samples, family: &str, labels: &[&str]) -> Option<f64> {
    match value(samples, family, labels) {
        Some(Value::Number(number)) => Some(number),
        _ => None,
    }
}

/// BPF maps, programs and links that this process holds; tests run one at a time.
fn bpf_descriptors() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").expect("our own");
    let targets = links.flatten().filter_map(|link| std::fs::read_link(link.path()).ok());
    targets.filter(|target| target.to_string_lossy().contains("bpf")).count()
}
