//! Load averages against those that sysinfo(2) gives.

use super::*;

/// By the system call, which counts in 2^-16.
fn by_sysinfo() -> [f64; 3] {
    // SAFETY: all bytes zero are a valid value of this plain struct, which the call fills.
    let loads = unsafe {
        let mut info: libc::sysinfo = std::mem::zeroed();
        assert_eq!(libc::sysinfo(&raw mut info), 0, "it only takes memory of ours");
        info.loads
    };
    loads.map(|load| load as f64 / 65_536.0)
}

#[test]
fn load_averages_are_those_of_sysinfo() {
    let exporter = Exporter::start(&["load_average"]);
    // The kernel computes them every five seconds; a scrape on both sides of that moment is taken again.
    let (told, expected) = until("two equal readings around a scrape", || {
        let (before, page, after) = between(&exporter, by_sysinfo);
        (before == after).then_some((page, before))
    });
    for (window, expected) in ["1m", "5m", "15m"].into_iter().zip(expected) {
        let told = told.value("kpulse_load_average", &[("window", window)]);
        assert!((told - expected).abs() <= 0.011, "{window}: {told} and {expected}, in hundredths");
    }
}
