//! How many tasks ran, waited to run or were blocked in the kernel, on average: `/proc/loadavg`.

use super::{Host, HostCollector};
use anyhow::bail;
use kpulse_common::metric::{Label, MetricDef, Samples};

const LOAD_AVERAGE: MetricDef = MetricDef::gauge(
    "kpulse_load_average",
    "Runnable and uninterruptible tasks, averaged over the window as the kernel does.",
    &[Label::Named("window")],
);
const WINDOWS: [&str; 3] = ["1m", "5m", "15m"];

pub const COLLECTOR: HostCollector = HostCollector {
    name: "load_average",
    metrics: &[LOAD_AVERAGE],
    is_default: true,
    make: |_| Box::new(collect),
};

fn collect(host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
    let path = host.paths.procfs.join("loadavg");
    for (window, load) in WINDOWS.iter().zip(parse(host.text.read(&path)?)?) {
        out.number(&LOAD_AVERAGE, &[window], load);
    }
    Ok(())
}

fn parse(text: &str) -> anyhow::Result<[f64; 3]> {
    let fields: Vec<f64> =
        text.split_ascii_whitespace().take(3).map_while(|field| field.parse().ok()).collect();
    match fields[..] {
        [one, five, fifteen] => Ok([one, five, fifteen]),
        _ => bail!("loadavg holds {text:?}, not three numbers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_three_windows() {
        assert_eq!(parse("0.21 1.50 12.07 3/512 4711\n").unwrap(), [0.21, 1.5, 12.07]);
        assert!(parse("0.21 x 12.07").is_err());
        assert!(parse("").is_err());
    }
}
