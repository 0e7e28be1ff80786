//! Pressure of the host and of containers.

use crate::{Exporter, assert_between, between};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load::{in_child, pin, run_delay, spin};
use kpulse_tests::{is_root, skip};
use std::fs;
use std::time::Duration;

fn total(path: &str, kind: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(kind))?;
    Some(line.rsplit_once("total=")?.1.trim().parse::<f64>().ok()? / 1e6)
}

#[test]
fn the_hosts_pressure_stands_between_two_readings() {
    if total("/proc/pressure/cpu", "some").is_none() {
        return skip("the_hosts_pressure", "this kernel has no pressure stall information (psi=1)");
    }
    let exporter = Exporter::start(&["pressure"]);
    for (kind, family) in [("some", "waiting"), ("full", "stalled")] {
        let read = || ["cpu", "memory", "io"].map(|name| total(&format!("/proc/pressure/{name}"), kind));
        let (before, page, after) = between(&exporter, read);
        for (index, resource) in ["cpu", "memory", "io"].into_iter().enumerate() {
            let value =
                page.find(&format!("kpulse_host_pressure_{family}_seconds_total"), &[("resource", resource)]);
            match (before[index], value, after[index]) {
                (Some(before), Some(value), Some(after)) => assert_between(resource, before, value, after),
                // Before 5.13 nobody says it of the CPU; and there it means nothing for the whole machine.
                (_, value, _) => assert_eq!((resource, value), ("cpu", None)),
            }
        }
    }
}

#[test]
fn two_tasks_on_one_cpu_wait_as_long_as_the_scheduler_says() {
    if !is_root() {
        return skip("two_tasks_on_one_cpu", "only root can make cgroups");
    }
    // No v1 hierarchy has this controller, so the cgroup is one of the unified hierarchy.
    let Ok(cgroup) = Cgroup::container("pressure", 0x48_0020) else {
        return skip("two_tasks_on_one_cpu", "no unified hierarchy is mounted");
    };
    let path = cgroup.path().join("cpu.pressure").display().to_string();
    if total(&path, "some").is_none() {
        return skip("two_tasks_on_one_cpu", "cgroups have no pressure stall information here (psi=1)");
    }
    let id = Cgroup::id(0x48_0020);
    let exporter = Exporter::start(&["pressure"]);
    let folder = tempfile::tempdir().unwrap();
    let delays: Vec<_> = (0..2).map(|index| folder.path().join(index.to_string())).collect();
    std::thread::scope(|scope| {
        let cgroup = &cgroup;
        for delay in &delays {
            scope.spawn(move || {
                let (_, went_well) = in_child(Some(cgroup), || {
                    pin(0)?;
                    let before = run_delay()?;
                    spin(Duration::from_millis(1500));
                    fs::write(delay, (run_delay()? - before).as_secs_f64().to_string())
                });
                assert!(went_well);
            });
        }
    });
    let waited: Vec<f64> =
        delays.iter().map(|path| fs::read_to_string(path).unwrap().parse().unwrap()).collect();
    let page = exporter.scrape();
    let labels = [("resource", "cpu"), ("container_id", id.as_str())];
    let told = page.value("kpulse_pressure_waiting_seconds_total", &labels);
    // Some task waited for at least as long as the one that waited longest, and no longer than both did together;
    // what the kernel has not folded in yet, and the time before and after the spinning, is left to the margin.
    let (longest, both) = (waited[0].max(waited[1]), waited[0] + waited[1]);
    assert!(told > 0.8 * longest - 0.1 && told < 1.1 * both + 0.3, "told {told}, waited {waited:?}");
    assert_eq!(Some(told), total(&path, "some"), "nothing runs there any more");
}

#[test]
fn a_quota_stalls_all_tasks_of_a_container() {
    const TEST: &str = "a_quota_stalls_all_tasks";
    if !is_root() {
        return skip(TEST, "only root can make cgroups");
    }
    let Ok(cgroup) = Cgroup::container("pressure", 0x48_0021) else {
        return skip(TEST, "no unified hierarchy is mounted");
    };
    let path = cgroup.path().join("cpu.pressure").display().to_string();
    if total(&path, "full").is_none() {
        return skip(TEST, "the kernel does not tell stalls of the CPU by cgroup (psi=1, since 5.13)");
    }
    let (quota, period) = (Duration::from_millis(20), Duration::from_millis(100));
    if let Err(error) = cgroup.set_cpu_quota(quota, period) {
        return skip(TEST, &format!("this kernel has no CPU quota: {error}"));
    }
    let exporter = Exporter::start(&["pressure"]);
    let (_, went_well) = in_child(Some(&cgroup), || {
        spin(Duration::from_millis(1500));
        Ok(())
    });
    assert!(went_well);
    let id = Cgroup::id(0x48_0021);
    let labels = [("resource", "cpu"), ("container_id", id.as_str())];
    let told = exporter.scrape().value("kpulse_pressure_stalled_seconds_total", &labels);
    let stopped = cgroup.number("cpu.stat", Some("throttled_usec")).unwrap() as f64 / 1e6;
    // It ran alone there: whenever it was stopped, so were all.
    assert!(told > 0.8 * stopped - 0.1 && stopped > 0.0, "told {told}, stopped {stopped}");
    assert_eq!(Some(told), total(&path, "full"), "nothing runs there any more");
}
