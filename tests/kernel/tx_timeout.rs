//! Devices that hang, against the kernel's own count.

use super::*;
use std::fs;

const NAME: &str = "tx_timeout";
const FAMILY: &str = "kpulse_tx_timeouts_total";

/// Time-outs of all queues of this namespace's devices since boot.
fn by_the_kernel() -> u64 {
    let devices = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let queues =
        devices.filter_map(|device| fs::read_dir(device.path().join("queues")).ok()).flatten().flatten();
    let counts = queues.filter_map(|queue| fs::read_to_string(queue.path().join("tx_timeout")).ok());
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

/// No driver can be made to hang at will: this holds only that the probe attaches and invents nothing.
#[test]
fn a_device_without_a_time_out_has_no_series() {
    needs_root!();
    let before = by_the_kernel();
    let mut set = load(NAME, &wanting(Want::Metrics));
    let samples = scrape(&mut set, NAME, &mut identities());
    let happened = by_the_kernel() - before;
    assert!(total(&samples, FAMILY, &[]) <= happened, "{happened} by the kernel's count");
}
