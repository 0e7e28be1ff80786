use super::*;
use crate::config::Config;
use kpulse_common::paths::Paths;
use serde_json::{Value, json};

const ID: &str = "0c1d2e3f405162738495a6b7c8d9eafb0c1d2e3f405162738495a6b7c8d9eafb";
const SECOND: Duration = Duration::from_secs(1);

/// A container in a tree of cgroups that holds what a test writes.
struct Machine {
    root: tempfile::TempDir,
    watcher: CpuThrottled,
    config: Config,
    start: Instant,
}

impl Machine {
    /// With the controller in the unified hierarchy, or in one of its own.
    fn new(is_v1: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mount = root.path().join("cgroup");
        fs::create_dir_all(mount.join("docker").join(ID)).unwrap();
        fs::create_dir(root.path().join("self")).unwrap();
        let kind = if is_v1 { "cgroup cgroup rw,cpu" } else { "cgroup2 cgroup2 rw" };
        let line = format!("34 25 0:29 / {} rw - {kind}\n", mount.display());
        fs::write(root.path().join("self/mountinfo"), line).unwrap();
        let paths = Paths { procfs: root.path().into(), cgroupfs: mount, ..Paths::default() };
        let watcher = CpuThrottled::new(Identities::new(&paths)).unwrap();
        Self { root, watcher, config: Config::default(), start: Instant::now() }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.root.path().join("cgroup/docker").join(ID).join(file), text).unwrap();
    }

    fn count(&self, periods: u64, throttled: u64, throttled_us: u64) {
        let text = format!(
            "usage_usec 7\nnr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec {throttled_us}\n"
        );
        self.write("cpu.stat", &text);
    }

    /// What a look finds so many seconds after the first.
    fn look(&mut self, second: u32) -> Vec<Finding> {
        let mut found = Vec::new();
        let rules = Rules::of(&self.config);
        self.watcher.look(&rules, self.start + second * SECOND, &mut |finding| found.push(finding)).unwrap();
        found
    }
}

#[test]
fn half_of_the_periods_in_ten_seconds_is_told_and_less_is_not() {
    let mut machine = Machine::new(false);
    machine.write("cpu.max", "10000 100000\n");
    machine.count(1_000, 1_000, 5);
    assert_eq!(machine.look(0), [], "what was before the first look is of no window");
    machine.count(1_100, 1_049, 7);
    assert_eq!(machine.look(10), []);
    machine.count(1_200, 1_099, 8_912_352);
    let found = machine.look(20);
    let body = json!({"quota_ns": 10_000_000, "period_ns": 100_000_000, "window_ns": 10_000_000_000u64,
        "periods": 100, "throttled_periods": 50, "throttled_ns": 8_912_345_000u64});
    assert_eq!(found.iter().map(|finding| &finding.body).collect::<Vec<_>>(), [&body]);
    assert_eq!(found[0].cgroup.map(|cgroup| cgroup.hierarchy), Some(Hierarchy::Unified));
    assert_eq!(machine.look(30), [], "it did not run any more");
}

#[test]
fn the_files_of_v1_tell_the_same() {
    let mut machine = Machine::new(true);
    machine.write("cpu.cfs_quota_us", "10000\n");
    machine.write("cpu.cfs_period_us", "100000\n");
    machine.write("cpu.stat", "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n");
    assert_eq!(machine.look(0), []);
    machine.write("cpu.stat", "nr_periods 100\nnr_throttled 99\nthrottled_time 8912345000\n");
    let found = machine.look(10);
    let mut expected: Value = serde_json::from_str(include_str!("fixtures/cpu_throttled.json")).unwrap();
    expected["window_ns"] = 10_000_000_000u64.into();
    assert_eq!(found.iter().map(|finding| &finding.body).collect::<Vec<_>>(), [&expected]);
    assert_eq!(found[0].cgroup.map(|cgroup| cgroup.hierarchy), Some(Hierarchy::V1("cpu")));
}

#[test]
fn a_container_that_hardly_ran_is_left_alone() {
    let mut machine = Machine::new(false);
    machine.write("cpu.max", "10000 100000\n");
    machine.count(0, 0, 0);
    machine.look(0);
    machine.count(9, 9, 9);
    assert_eq!(machine.look(10), []);
    machine.count(19, 19, 19);
    assert_eq!(machine.look(20).len(), 1);
}

#[test]
fn a_container_has_its_own_share_and_window() {
    let mut machine = Machine::new(false);
    machine.write("cpu.max", "10000 100000\n");
    machine.count(0, 0, 0);
    let own = json!({"mine": {"cgroup": "/docker", "thresholds": {"cpu_throttled": {"min_share": 0.1, "window": "1s"}}}});
    machine.config.overrides = serde_json::from_value(own).unwrap();
    assert_eq!(machine.look(0), []);
    assert_eq!(machine.watcher.next(), machine.start + SECOND);
    machine.count(10, 1, 1);
    assert_eq!(machine.look(1).len(), 1);
    machine.config.overrides.clear();
    machine.count(20, 2, 2);
    assert_eq!(machine.look(2), []);
}

#[test]
fn what_has_no_quota_or_is_gone_is_no_event() {
    let mut machine = Machine::new(false);
    machine.write("cpu.stat", "usage_usec 1\n");
    assert_eq!(machine.look(0), []);
    machine.count(100, 100, 1);
    assert_eq!(machine.look(10), [], "the first numbers");
    fs::remove_dir_all(machine.root.path().join("cgroup/docker").join(ID)).unwrap();
    assert_eq!(machine.look(20), []);
    assert!(machine.watcher.known.is_empty());
    assert_eq!(Stat::parse("nr_periods x\nnr_throttled 1\nthrottled_usec 1\n"), None);
}
