//! Who used the CPU, and who was kept from it by a quota: `/proc/stat` for the host, cgroup files for containers.

use super::container::{FileDef, Form, Slot, Source};
use super::{Collect, Host, HostCollector};
use anyhow::bail;
use kpulse_common::container::{Hierarchies, Hierarchy};
use kpulse_common::metric::{Label, MetricDef, Samples};
use kpulse_common::paths::Paths;

const SECONDS: MetricDef = MetricDef::counter(
    "kpulse_cpu_seconds_total",
    "CPU time: user and system of containers, every mode of the host, whose user holds guest and nice guest_nice.",
    &[Label::Container, Label::Named("mode")],
);
const THROTTLED_SECONDS: MetricDef = MetricDef::counter(
    "kpulse_cpu_throttled_seconds_total",
    "Time in which the container's CPU quota stopped its run queues, added up over CPUs.",
    &[Label::Container],
);
const THROTTLED_PERIODS: MetricDef = MetricDef::counter(
    "kpulse_cpu_throttled_periods_total",
    "Periods of the CPU quota in which the container was throttled.",
    &[Label::Container],
);
const PERIODS: MetricDef = MetricDef::counter(
    "kpulse_cpu_periods_total",
    "Periods of the CPU quota in which the container ran.",
    &[Label::Container],
);
const CONTEXT_SWITCHES: MetricDef = MetricDef::counter(
    "kpulse_host_context_switches_total",
    "Context switches of the host, those of containers too.",
    &[],
);

pub const COLLECTOR: HostCollector = HostCollector {
    name: "cpu",
    metrics: &[SECONDS, THROTTLED_SECONDS, THROTTLED_PERIODS, PERIODS, CONTEXT_SWITCHES],
    is_default: true,
    make: |paths| Box::new(Cpu::new(paths)),
};

/// Modes of the first line of `/proc/stat`, in the kernel's order.
const MODES: [&str; 10] =
    ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];
/// Ticks a second in which the kernel tells CPU time to user space, on every architecture that has BPF.
const USER_HZ: u64 = 100;

const UNIFIED: &[FileDef] = &[FileDef {
    name: "cpu.stat",
    form: Form::Keyed,
    slots: &[
        Slot { key: "user_usec", def: &SECONDS, label: Some("user"), divisor: 1_000_000 },
        Slot { key: "system_usec", def: &SECONDS, label: Some("system"), divisor: 1_000_000 },
        Slot { key: "nr_periods", def: &PERIODS, label: None, divisor: 1 },
        Slot { key: "nr_throttled", def: &THROTTLED_PERIODS, label: None, divisor: 1 },
        Slot { key: "throttled_usec", def: &THROTTLED_SECONDS, label: None, divisor: 1_000_000 },
    ],
}];
const V1_CPU: &[FileDef] = &[FileDef {
    name: "cpu.stat",
    form: Form::Keyed,
    slots: &[
        Slot { key: "nr_periods", def: &PERIODS, label: None, divisor: 1 },
        Slot { key: "nr_throttled", def: &THROTTLED_PERIODS, label: None, divisor: 1 },
        Slot { key: "throttled_time", def: &THROTTLED_SECONDS, label: None, divisor: 1_000_000_000 },
    ],
}];
const V1_CPUACCT: &[FileDef] = &[FileDef {
    name: "cpuacct.stat",
    form: Form::Keyed,
    slots: &[
        Slot { key: "user", def: &SECONDS, label: Some("user"), divisor: USER_HZ },
        Slot { key: "system", def: &SECONDS, label: Some("system"), divisor: USER_HZ },
    ],
}];

struct Cpu {
    sources: Vec<Source>,
    /// The highest ticks seen of each mode: the kernel's own idle and iowait can go back by a few.
    highest: [u64; MODES.len()],
}

impl Cpu {
    fn new(paths: &Paths) -> Self {
        let hierarchies = Hierarchies::detect(paths);
        let sources = match hierarchies.of("cpu") {
            Hierarchy::Unified => vec![Source::new(Hierarchy::Unified, UNIFIED)],
            cpu @ Hierarchy::V1(_) => {
                vec![Source::new(Hierarchy::V1("cpuacct"), V1_CPUACCT), Source::new(cpu, V1_CPU)]
            }
        };
        Self { sources, highest: [0; MODES.len()] }
    }
}

impl Collect for Cpu {
    fn collect(&mut self, host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
        let path = host.paths.procfs.join("stat");
        let stat = Stat::parse(host.text.read(&path)?)?;
        for ((mode, highest), ticks) in MODES.iter().zip(&mut self.highest).zip(&stat.ticks) {
            *highest = (*highest).max(*ticks);
            out.number(&SECONDS, &["", "", "", "", mode], *highest as f64 / USER_HZ as f64);
        }
        if let Some(switches) = stat.context_switches {
            out.count(&CONTEXT_SWITCHES, &[], switches);
        }
        for source in &mut self.sources {
            source.collect(host, out);
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
struct Stat {
    ticks: Vec<u64>,
    context_switches: Option<u64>,
}

impl Stat {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let Some(line) = text.lines().find_map(|line| line.strip_prefix("cpu ")) else {
            bail!("stat has no line of all CPUs");
        };
        let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
        if ticks.len() < 4 {
            bail!("stat holds {line:?}, not a number for each mode");
        }
        let switches = text.lines().find_map(|line| line.strip_prefix("ctxt "));
        Ok(Self { ticks, context_switches: switches.and_then(|text| text.trim_ascii().parse().ok()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpulse_common::metric::Value;

    #[test]
    fn reads_modes_and_context_switches() {
        let text =
            "cpu  10 2 30 400 5 0 7 8 9 1\ncpu0 5 1 15 200 2 0 3 4 4 0\nintr 5 0 0\nctxt 15139120\nbtime 1\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.ticks, [10, 2, 30, 400, 5, 0, 7, 8, 9, 1]);
        assert_eq!(stat.context_switches, Some(15_139_120));
        for broken in ["", "cpu  1 2 x 4\n", "cpu0 1 2 3 4\n"] {
            assert!(Stat::parse(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn idle_time_that_the_kernel_takes_back_stays_where_it_was() {
        let proc = tempfile::tempdir().unwrap();
        let paths =
            Paths { procfs: proc.path().to_owned(), cgroupfs: "/nonexistent".into(), ..Paths::default() };
        let (mut host, mut cpu) = (Host::new(&paths, 1), Cpu::new(&paths));
        let mut idle = |ticks: u64| {
            std::fs::write(proc.path().join("stat"), format!("cpu  1 1 1 {ticks} 1 1 1 1 0 0\n")).unwrap();
            let mut out = Samples::default();
            cpu.collect(&mut host, &mut out).unwrap();
            out.families()[0].series[3].value.clone()
        };
        assert_eq!(idle(500), Value::Number(5.0));
        assert_eq!(idle(499), Value::Number(5.0));
        assert_eq!(idle(501), Value::Number(5.01));
    }
}
