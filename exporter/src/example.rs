//! The example of CONTRIBUTING.md: for how long has the machine run? Built for its test only.

use crate::collectors::{Host, HostCollector};
use kpulse_common::metric::{MetricDef, Samples};

const UPTIME: MetricDef = MetricDef::gauge("kpulse_uptime_seconds", "Time since the machine started.", &[]);
pub const COLLECTOR: HostCollector =
    HostCollector { name: "uptime", metrics: &[UPTIME], is_default: true, make: |_| Box::new(collect) };

fn collect(host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
    let path = host.paths.procfs.join("uptime");
    let uptime = host.text.read(&path)?.split(' ').next().unwrap_or_default().parse()?;
    out.number(&UPTIME, &[], uptime);
    Ok(())
}

#[test]
fn the_machine_has_run_for_as_long_as_its_clock() {
    use kpulse_common::metric::Value;
    use kpulse_common::paths::Paths;

    let boot_clock = || {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` lives through the call, which cannot fail for this clock.
        unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
        now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
    };
    // The file has hundredths.
    let before = boot_clock() - 0.01;
    let mut samples = Samples::default();
    let mut host = Host::new(&Paths::default(), 512);
    (COLLECTOR.make)(&Paths::default()).collect(&mut host, &mut samples).unwrap();
    let family = &samples.families()[0];
    assert!(COLLECTOR.metrics.contains(&family.def));
    let Value::Number(uptime) = family.series[0].value else { panic!("{family:?}") };
    assert!((before..=boot_clock()).contains(&uptime), "{uptime} after {before}");
}
