//! Does a CPU fall behind with received packets? `/proc/net/softnet_stat`.

use super::{Host, HostCollector};
use anyhow::Context;
use kpulse_common::metric::{Label, MetricDef, Samples};

const CPU: &[Label] = &[Label::Named("cpu")];
const PROCESSED: MetricDef =
    MetricDef::counter("kpulse_softnet_processed_total", "Packets that the CPU took from its devices.", CPU);
const DROPPED: MetricDef = MetricDef::counter(
    "kpulse_softnet_dropped_total",
    "Packets dropped because the CPU's backlog was full.",
    CPU,
);
const SQUEEZED: MetricDef = MetricDef::counter(
    "kpulse_softnet_squeezed_total",
    "Times that the CPU stopped with packets left, out of budget or time.",
    CPU,
);
const RECEIVED_RPS: MetricDef = MetricDef::counter(
    "kpulse_softnet_received_rps_total",
    "Times that another CPU woke this one for packets.",
    CPU,
);
const FLOW_LIMITED: MetricDef = MetricDef::counter(
    "kpulse_softnet_flow_limited_total",
    "Packets dropped because their flow filled the backlog.",
    CPU,
);
const BACKLOG: MetricDef =
    MetricDef::gauge("kpulse_softnet_backlog_packets", "Packets that wait in the CPU's backlog.", CPU);

pub const COLLECTOR: HostCollector = HostCollector {
    name: "softnet",
    metrics: &[PROCESSED, DROPPED, SQUEEZED, RECEIVED_RPS, FLOW_LIMITED, BACKLOG],
    is_default: true,
    make: |_| Box::new(collect),
};

/// Columns of the file; 11 and 12 are there since 5.10, the number of the CPU among them.
const COLUMNS: [(&MetricDef, usize); 6] =
    [(&PROCESSED, 0), (&DROPPED, 1), (&SQUEEZED, 2), (&RECEIVED_RPS, 9), (&FLOW_LIMITED, 10), (&BACKLOG, 11)];
const CPU_COLUMN: usize = 12;

fn collect(host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
    let path = host.net_file("softnet_stat");
    for (line, row) in host.text.read(&path)?.lines().zip(0..) {
        let columns = parse(line).with_context(|| format!("softnet_stat holds {line:?}"))?;
        // Offline CPUs have no line, so the line's number is the CPU's only where the kernel does not tell it.
        let cpu = columns.get(CPU_COLUMN).copied().unwrap_or(row).to_string();
        for (def, column) in COLUMNS {
            if let Some(value) = columns.get(column) {
                out.count(def, &[&cpu], *value);
            }
        }
    }
    Ok(())
}

/// Hexadecimal numbers.
fn parse(line: &str) -> anyhow::Result<Vec<u64>> {
    line.split_ascii_whitespace()
        .map(|field| u64::from_str_radix(field, 16).context("which is no hexadecimal number"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_hexadecimal_columns() {
        assert_eq!(parse("0002352d 00000001 0000000a").unwrap(), [0x2352d, 1, 10]);
        assert!(parse("0002352d x").is_err());
    }
}
