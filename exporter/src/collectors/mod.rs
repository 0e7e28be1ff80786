//! What is read without BPF, and the list of everything that can be switched by name.

mod buddy;
mod container;
mod cpu;
mod diskstats;
mod filesystem;
mod hardware;
mod host;
mod listen_overflow;
mod load_average;
mod memory;
mod namespaces;
mod netdev;
mod netstat;
mod pace;
mod pressure;
mod reference;
mod roster;
mod sockstat;
mod softnet;
mod tcp_connections;
mod text;
mod vmstat;

pub use host::{Host, OVERFLOW};
pub use reference::write as write_reference;

use kpulse_common::metric::{MetricDef, Samples};
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::{Probe, probes};

/// A source of metrics that needs no BPF.
pub struct HostCollector {
    /// Configuration key, flag and `collector` label.
    pub name: &'static str,
    /// The families that it fills.
    pub metrics: &'static [MetricDef],
    /// Whether it runs unless it is switched off.
    pub is_default: bool,
    /// Makes the reader.
    pub make: fn(&Paths) -> Box<dyn Collect>,
}

/// Reads once a scrape. What it keeps between scrapes is bounded.
pub trait Collect: Send {
    /// Adds what is there to `out`.
    fn collect(&mut self, host: &mut Host, out: &mut Samples) -> anyhow::Result<()>;
}

/// A reader that keeps nothing between scrapes.
impl<F: FnMut(&mut Host, &mut Samples) -> anyhow::Result<()> + Send> Collect for F {
    fn collect(&mut self, host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
        self(host, out)
    }
}

/// All of them. Adding one: its file, and one line here.
pub const ALL: &[HostCollector] = &[
    load_average::COLLECTOR,
    cpu::COLLECTOR,
    pressure::COLLECTOR,
    memory::COLLECTOR,
    vmstat::COLLECTOR,
    buddy::COLLECTOR,
    netdev::COLLECTOR,
    netstat::COLLECTOR,
    listen_overflow::COLLECTOR,
    sockstat::COLLECTOR,
    softnet::COLLECTOR,
    tcp_connections::COLLECTOR,
    filesystem::COLLECTOR,
    hardware::COLLECTOR,
    diskstats::COLLECTOR,
];

/// The probes that have metrics.
pub fn probes() -> impl Iterator<Item = &'static Probe> {
    probes::ALL.iter().copied().filter(|probe| !probe.metrics.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_collector_fills_families_that_it_declares_and_no_other() {
        let mut host = Host::new(&Paths::default(), 512);
        for collector in ALL {
            let mut samples = Samples::default();
            if let Err(error) = (collector.make)(&Paths::default()).collect(&mut host, &mut samples) {
                println!("skipped {}: {error:#}", collector.name);
                continue;
            }
            // This machine may have no container, and report no errors.
            let may_be_empty = ["memory", "hardware"].contains(&collector.name);
            assert!(may_be_empty || !samples.families().is_empty(), "{} finds nothing", collector.name);
            for family in samples.families() {
                assert!(collector.metrics.contains(&family.def), "{}: {}", collector.name, family.def.name);
            }
        }
    }

    #[test]
    fn an_unreadable_proc_is_an_error_that_names_the_file() {
        let gone = "/nonexistent";
        let paths =
            Paths { procfs: gone.into(), sysfs: gone.into(), cgroupfs: gone.into(), ..Paths::default() };
        let mut host = Host::new(&paths, 512);
        // A host without containers, or without hardware that reports errors, is no failure.
        for collector in ALL.iter().filter(|collector| !["memory", "hardware"].contains(&collector.name)) {
            let error = (collector.make)(&paths).collect(&mut host, &mut Samples::default()).unwrap_err();
            assert!(format!("{error:#}").contains("/nonexistent/"), "{error:#}");
        }
    }

    #[test]
    fn no_two_collectors_and_no_probe_share_a_name_or_a_family() {
        let mut seen = std::collections::BTreeSet::new();
        let names = ALL.iter().map(|it| it.name).chain(probes().map(|probe| probe.name));
        let families = ALL.iter().flat_map(|it| it.metrics).chain(probes().flat_map(|probe| probe.metrics));
        for name in names.chain(families.map(|def| def.name)) {
            assert!(seen.insert(name), "{name}");
        }
    }
}
