//! What is read without BPF, and the list of everything that can be switched by name.

mod load_average;
mod pressure;

use kpulse_common::metric::{MetricDef, Samples};
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::{Probe, probes};

/// A source of metrics that needs no BPF.
pub struct HostCollector {
    /// Configuration key, flag and `collector` label.
    pub name: &'static str,
    /// The families that it fills.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the declaration that tests compare with what is filled")
    )]
    pub metrics: &'static [MetricDef],
    /// Reads once.
    pub collect: fn(&Paths, &mut Samples) -> anyhow::Result<()>,
}

/// All of them. Adding one: its file, and one line here.
pub const ALL: &[HostCollector] = &[load_average::COLLECTOR, pressure::COLLECTOR];

/// The probes that have metrics.
pub fn probes() -> impl Iterator<Item = &'static Probe> {
    probes::ALL.iter().copied().filter(|probe| !probe.metrics.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_collector_fills_the_families_that_it_declares_and_no_other() {
        for collector in ALL {
            let mut samples = Samples::default();
            if let Err(error) = (collector.collect)(&Paths::default(), &mut samples) {
                println!("skipped {}: {error:#}", collector.name);
                continue;
            }
            let found: Vec<_> = samples.families().iter().map(|family| family.def).collect();
            assert_eq!(found, collector.metrics, "{}", collector.name);
        }
    }

    #[test]
    fn an_unreadable_proc_is_an_error_that_names_the_file() {
        let paths = Paths { procfs: "/nonexistent".into(), ..Paths::default() };
        for collector in ALL {
            let error = (collector.collect)(&paths, &mut Samples::default()).unwrap_err();
            assert!(format!("{error:#}").contains("/nonexistent/"), "{error:#}");
        }
    }
}
