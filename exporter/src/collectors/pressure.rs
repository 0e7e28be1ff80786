//! How long the host's tasks waited for CPU, memory and I/O: pressure stall information.
//!
//! The host's own families, since the pressure of containers overlaps and does not add up to it.

use super::HostCollector;
use anyhow::Context;
use kpulse_common::metric::{Label, MetricDef, Samples};
use kpulse_common::paths::Paths;

const WAITING: MetricDef = MetricDef::counter(
    "kpulse_host_pressure_waiting_seconds_total",
    "Time in which at least one task of the host waited for the resource.",
    &[Label::Named("resource")],
);
const STALLED: MetricDef = MetricDef::counter(
    "kpulse_host_pressure_stalled_seconds_total",
    "Time in which every non-idle task of the host waited for the resource at once.",
    &[Label::Named("resource")],
);

pub const COLLECTOR: HostCollector =
    HostCollector { name: "pressure", metrics: &[WAITING, STALLED], collect };

fn collect(paths: &Paths, out: &mut Samples) -> anyhow::Result<()> {
    for resource in ["cpu", "memory", "io"] {
        let path = paths.procfs.join("pressure").join(resource);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!("cannot read {}; the kernel may need the boot parameter psi=1", path.display())
        })?;
        if let Some(micros) = total(&text, "some ") {
            out.number(&WAITING, &[resource], micros as f64 / 1e6);
        }
        // On a whole host some task always has the CPU: the kernel writes a zero that measures nothing.
        if let Some(micros) = total(&text, "full ").filter(|_| resource != "cpu") {
            out.number(&STALLED, &[resource], micros as f64 / 1e6);
        }
    }
    Ok(())
}

/// The total of one line in microseconds.
fn total(text: &str, kind: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
    line.split_ascii_whitespace().find_map(|field| field.strip_prefix("total="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_totals_of_both_lines() {
        let text = "some avg10=0.00 avg60=0.12 avg300=0.05 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=42\n";
        assert_eq!((total(text, "some "), total(text, "full ")), (Some(123_456), Some(42)));
        assert_eq!(total("some avg10=0.00", "some "), None);
    }
}
