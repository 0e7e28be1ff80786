//! CPU time, quotas and context switches.

use crate::{Exporter, assert_between, between};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load::{in_child, spin};
use kpulse_tests::{is_root, skip};
use std::fs;
use std::time::Duration;

/// The modes of all CPUs in seconds, added up from the lines of the single ones.
fn modes_of_each_cpu() -> Vec<f64> {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let mut sums = vec![0.0; 10];
    for line in text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")) {
        for (sum, field) in sums.iter_mut().zip(line.split_ascii_whitespace().skip(1)) {
            *sum += field.parse::<f64>().unwrap() / 100.0;
        }
    }
    sums
}

#[test]
fn the_hosts_modes_are_those_of_its_cpus() {
    let exporter = Exporter::start(&["cpu"]);
    let (before, page, after) = between(&exporter, modes_of_each_cpu);
    let modes =
        ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];
    // The kernel rounds each CPU down to a tick, and its idle and iowait may go back by a few.
    let cpus = std::thread::available_parallelism().unwrap().get();
    let ticks = 0.01 * (cpus + 5) as f64;
    for (index, mode) in modes.into_iter().enumerate() {
        let value = page.value("kpulse_cpu_seconds_total", &[("mode", mode), ("container_id", "")]);
        assert_between(mode, before[index] - ticks, value, after[index] + ticks);
    }
}

#[test]
fn the_hosts_context_switches_grow_by_those_of_a_task_that_sleeps() {
    let exporter = Exporter::start(&["cpu"]);
    let family = "kpulse_host_context_switches_total";
    let before = exporter.scrape().value(family, &[]);
    let own = || {
        let text = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<f64>().unwrap()
    };
    let slept = own();
    for _ in 0..200 {
        std::thread::sleep(Duration::from_micros(50));
    }
    let slept = own() - slept;
    assert!(slept >= 100.0, "{slept}");
    let grown = exporter.scrape().value(family, &[]) - before;
    assert!(grown >= slept, "{grown} of the host, {slept} of one thread");
}

#[test]
fn a_containers_cpu_time_is_what_its_process_used() {
    if !is_root() {
        return skip("a_containers_cpu_time", "only root can make cgroups");
    }
    let exporter = Exporter::start(&["cpu"]);
    // Where the CPU time of v1 is counted; on v2 there is one hierarchy for both.
    let cgroup = Cgroup::container("cpuacct", 0x48_0001).unwrap();
    let id = Cgroup::id(0x48_0001);
    let used_before = kpulse_tests::load::cpu_time();
    let (_, went_well) = in_child(Some(&cgroup), || {
        spin(Duration::from_millis(600));
        Ok(())
    });
    assert!(went_well);
    let used = (kpulse_tests::load::cpu_time() - used_before).as_secs_f64();
    let page = exporter.scrape();
    let mode = |mode| page.value("kpulse_cpu_seconds_total", &[("mode", mode), ("container_id", &id)]);
    let told = mode("user") + mode("system");
    // The child began before it entered and ended after it was counted; v1 tells whole ticks for each mode.
    assert!((told - used).abs() < 0.03 + 0.05 * used, "told {told}, used {used}");
    assert!(mode("user") > mode("system"), "{} {}", mode("user"), mode("system"));
    drop(cgroup);
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(
        exporter.scrape().find("kpulse_cpu_seconds_total", &[("mode", "user"), ("container_id", &id)]),
        None
    );
}

#[test]
fn a_quota_shows_in_periods_and_in_time() {
    if !is_root() {
        return skip("a_quota_shows", "only root can make cgroups");
    }
    let exporter = Exporter::start(&["cpu"]);
    let cgroup = Cgroup::container("cpu", 0x48_0002).unwrap();
    let id = Cgroup::id(0x48_0002);
    if let Err(error) = cgroup.set_cpu_quota(Duration::from_millis(5), Duration::from_millis(100)) {
        return skip("a_quota_shows", &format!("this kernel sets no CPU quota: {error}"));
    }
    let began = std::time::Instant::now();
    let (_, went_well) = in_child(Some(&cgroup), || {
        spin(Duration::from_millis(1000));
        Ok(())
    });
    assert!(went_well);
    let elapsed = began.elapsed().as_secs_f64();
    // The same by another path, the kernel's own file, whose timer counts a period or two after the last task.
    let (key, unit) = if cgroup.is_v1() { ("throttled_time", 1e9) } else { ("throttled_usec", 1e6) };
    let kernel = || {
        let number = |key| cgroup.number("cpu.stat", Some(key)).unwrap() as f64;
        (number("nr_periods"), number(key) / unit)
    };
    let before = kernel();
    let page = exporter.scrape();
    let after = kernel();
    let value = |family| page.value(family, &[("container_id", &id)]);
    let (periods, throttled) =
        (value("kpulse_cpu_periods_total"), value("kpulse_cpu_throttled_periods_total"));
    let seconds = value("kpulse_cpu_throttled_seconds_total");
    // One process that wants all of a CPU and may have a twentieth: stopped in most periods, for most of each, even
    // where a busy machine gives it much less than a CPU.
    assert!(throttled >= 3.0 && throttled <= periods, "{throttled} of {periods}");
    assert!(seconds > 0.05 && seconds <= elapsed, "{seconds} s of {elapsed} s");
    assert!((before.0..=after.0).contains(&periods), "{before:?} {periods} {after:?}");
    assert!((before.1 - 1e-6..=after.1 + 1e-6).contains(&seconds), "{before:?} {seconds} {after:?}");
}
