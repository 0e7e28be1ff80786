//! What the hardware itself reports as broken or too hot: memory controllers, PCI Express and thermal limits in `/sys`.
//!
//! A machine that has neither has no series: virtual ones mostly do not.

use super::{Collect, Host, HostCollector};
use kpulse_common::metric::{Label, MetricDef, Samples};
use kpulse_common::paths::Paths;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Most files that are read.
const FILES_MAX: usize = 1024;

const ERRORS: MetricDef = MetricDef::counter(
    "kpulse_hardware_errors_total",
    "Errors that memory controllers counted since they were set up, error messages that PCI Express root ports received, \
     and times that a core was slowed down for heat.",
    &[Label::Named("type"), Label::Named("severity")],
);

pub const COLLECTOR: HostCollector = HostCollector {
    name: "hardware",
    metrics: &[ERRORS],
    is_default: true,
    make: |paths| Box::new(Hardware::new(paths)),
};

/// Which files there are is found once, since hardware does not come and go.
struct Hardware {
    sources: Vec<Source>,
}

struct Source {
    kind: &'static str,
    severity: &'static str,
    files: Vec<PathBuf>,
}

impl Hardware {
    fn new(paths: &Paths) -> Self {
        let controllers = numbered(&paths.sysfs.join("devices/system/edac/mc"), "mc");
        let of_controllers = |name: &str| existing(controllers.iter().map(|folder| folder.join(name)));
        let devices = fs::read_dir(paths.sysfs.join("bus/pci/devices")).into_iter().flatten().flatten();
        let devices: Vec<_> = devices.map(|device| device.path()).collect();
        let of_ports = |name: &str| existing(devices.iter().map(|folder| folder.join(name)));
        let cpus = numbered(&paths.sysfs.join("devices/system/cpu"), "cpu");
        let mut cores = BTreeSet::new();
        // Threads of one core count the same events.
        let of_cores = cpus.iter().filter(|cpu| core(cpu).is_none_or(|core| cores.insert(core)));
        let throttled = existing(of_cores.map(|cpu| cpu.join("thermal_throttle/core_throttle_count")));
        let source = |kind, severity, files| Source { kind, severity, files };
        Self {
            sources: vec![
                source("memory", "corrected", of_controllers("ce_count")),
                source("memory", "uncorrected", of_controllers("ue_count")),
                source("pcie", "corrected", of_ports("aer_rootport_total_err_cor")),
                source("pcie", "nonfatal", of_ports("aer_rootport_total_err_nonfatal")),
                source("pcie", "fatal", of_ports("aer_rootport_total_err_fatal")),
                source("thermal", "throttled", throttled),
            ],
        }
    }
}

impl Collect for Hardware {
    fn collect(&mut self, host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
        for source in &self.sources {
            let mut sum = None;
            for file in &source.files {
                let count: Option<u64> =
                    host.text.read(file).ok().and_then(|text| text.trim_ascii().parse().ok());
                // One that no longer answers, as of a core that is offline, would take its count back out of the sum.
                let Some(count) = count else {
                    sum = None;
                    break;
                };
                sum = Some(sum.unwrap_or(0) + count);
            }
            if let Some(sum) = sum {
                out.count(&ERRORS, &[source.kind, source.severity], sum);
            }
        }
        Ok(())
    }
}

/// Folders `PREFIX0`, `PREFIX1` and so on.
fn numbered(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let is_numbered = |name: &str| {
        let number = name.strip_prefix(prefix).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let names =
        entries.filter_map(Result::ok).filter(|entry| is_numbered(&entry.file_name().to_string_lossy()));
    let mut found: Vec<PathBuf> = names.map(|entry| entry.path()).collect();
    found.sort();
    found
}

fn existing(files: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    files.filter(|file| file.exists()).take(FILES_MAX).collect()
}

/// Package and core of a CPU.
fn core(cpu: &Path) -> Option<(String, String)> {
    let read = |name: &str| fs::read_to_string(cpu.join("topology").join(name)).ok();
    Some((read("physical_package_id")?, read("core_id")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpulse_common::metric::Value;

    #[test]
    fn controllers_and_cores_add_up_and_threads_of_a_core_count_once() {
        let sys = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (controller, corrected, uncorrected) in [("mc0", "3\n", "0\n"), ("mc1", "4\n", "1\n")] {
            write(&format!("devices/system/edac/mc/{controller}/ce_count"), corrected);
            write(&format!("devices/system/edac/mc/{controller}/ue_count"), uncorrected);
        }
        for (cpu, core, count) in [(0, "0", "5"), (1, "1", "7"), (2, "0", "5"), (3, "1", "7")] {
            write(&format!("devices/system/cpu/cpu{cpu}/topology/core_id"), core);
            write(&format!("devices/system/cpu/cpu{cpu}/topology/physical_package_id"), "0");
            write(&format!("devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count"), count);
        }
        write("devices/system/cpu/cpuidle/x", "");
        for (port, count) in [("0000:00:01.0", "2"), ("0000:00:02.0", "6")] {
            write(&format!("bus/pci/devices/{port}/aer_rootport_total_err_nonfatal"), count);
        }
        let paths = Paths { sysfs: sys.path().to_owned(), ..Paths::default() };
        let (mut hardware, mut host) = (Hardware::new(&paths), Host::new(&paths, 1));
        let mut read = || {
            let mut out = Samples::default();
            hardware.collect(&mut host, &mut out).unwrap();
            let series = out.families()[0].series.iter();
            series.map(|it| (it.labels[1].to_string(), it.value.clone())).collect::<Vec<_>>()
        };
        let told = |severity: &str, count| (severity.to_owned(), Value::Count(count));
        assert_eq!(
            read(),
            [told("corrected", 7), told("uncorrected", 1), told("nonfatal", 8), told("throttled", 12)]
        );
        fs::remove_file(sys.path().join("devices/system/edac/mc/mc1/ce_count")).unwrap();
        assert_eq!(
            read(),
            [told("uncorrected", 1), told("nonfatal", 8), told("throttled", 12)],
            "half a sum would go back"
        );
    }

    #[test]
    fn a_machine_without_any_has_no_series() {
        let paths = Paths { sysfs: "/nonexistent".into(), ..Paths::default() };
        let mut out = Samples::default();
        Hardware::new(&paths).collect(&mut Host::new(&paths, 1), &mut out).unwrap();
        assert!(out.families().is_empty());
    }
}
