//! METRICS.md: every family that the exporter can tell, written from the declarations.

use super::{ALL, host, probes};
use kpulse_common::metric::{MetricDef, MetricKind};
use kpulse_common::self_metrics;
use std::io::Write;

const HEAD: &str = "\
# Metrics of kpulse-exporter

Written by `make reference` from the declarations in the code; do not edit.

`C` stands for the container labels `namespace`, `pod`, `container`, `container_id`, which are empty on series of the
host; `container=\"~other\"` is what found no room within `container_max`. A histogram has the bounds 2^-20 s to 2^5 s.
What cannot be measured on a machine is absent, never zero. `--collector.NAME` and `--no-collector.NAME` switch by the
name that heads a table.
";

/// Writes the whole page.
pub fn write(mut out: impl Write) -> anyhow::Result<()> {
    write!(out, "{HEAD}\n## From BPF\n")?;
    for probe in probes() {
        section(&mut out, probe.name, note(probe.is_default), probe.metrics)?;
    }
    write!(out, "\n## From procfs, sysfs, cgroup files and netlink\n")?;
    for collector in ALL {
        section(&mut out, collector.name, note(collector.is_default), collector.metrics)?;
    }
    write!(out, "\n## About the exporter itself\n")?;
    section(&mut out, "probes", "", kpulse_exporter_ebpf::SELF_METRICS)?;
    section(&mut out, "scrape", "", crate::scrape::METRICS)?;
    section(&mut out, "containers", "", host::METRICS)?;
    section(&mut out, "http", "", &[kpulse_common::http::REQUESTS])?;
    section(&mut out, "process", "", self_metrics::METRICS)
}

fn note(is_default: bool) -> &'static str {
    if is_default { "" } else { "Off unless it is enabled by name.\n\n" }
}

fn section(out: &mut impl Write, name: &str, note: &str, metrics: &[MetricDef]) -> anyhow::Result<()> {
    write!(out, "\n### {name}\n\n{note}| family | type | labels | what |\n|---|---|---|---|\n")?;
    for def in metrics {
        let kind = match def.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        writeln!(out, "| `{}` | {kind} | {} | {} |", def.name, labels(def), def.help.replace('|', "\\|"))?;
    }
    Ok(())
}

fn labels(def: &MetricDef) -> String {
    use kpulse_common::metric::Label;
    let names = def.labels.iter().map(|label| match label {
        Label::Container => "C",
        Label::Named(name) => name,
    });
    names.collect::<Vec<_>>().join(", ")
}
