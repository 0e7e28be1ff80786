//! What went through each network device of the host, and what got lost: `/proc/net/dev`, and links that went down.

use super::{Host, HostCollector};
use anyhow::bail;
use kpulse_common::metric::{Label, MetricDef, Samples};
use std::collections::BTreeSet;

/// Most devices that are told; a host with thousands of virtual ones has them counted by its first.
const DEVICES_MAX: usize = 256;

const DEVICE: &[Label] = &[Label::Named("device")];
const CARRIER_CHANGES: MetricDef = MetricDef::counter(
    "kpulse_network_carrier_changes_total",
    "Times that the link went up or down.",
    DEVICE,
);

/// Families with the column of `/proc/net/dev` that each is.
const COLUMNS: [(MetricDef, usize); 12] = [
    (counter("kpulse_netdev_receive_bytes_total", "Bytes received."), 0),
    (counter("kpulse_netdev_receive_packets_total", "Packets received."), 1),
    (counter("kpulse_netdev_receive_errors_total", "Packets received broken."), 2),
    (counter("kpulse_netdev_receive_dropped_total", "Packets received and dropped."), 3),
    (counter("kpulse_netdev_receive_fifo_errors_total", "Packets lost because the device was full."), 4),
    (counter("kpulse_netdev_receive_multicast_total", "Multicast packets received."), 7),
    (counter("kpulse_netdev_transmit_bytes_total", "Bytes sent."), 8),
    (counter("kpulse_netdev_transmit_packets_total", "Packets sent."), 9),
    (counter("kpulse_netdev_transmit_errors_total", "Packets that could not be sent."), 10),
    (counter("kpulse_netdev_transmit_dropped_total", "Packets dropped before they were sent."), 11),
    (
        counter(
            "kpulse_netdev_transmit_fifo_errors_total",
            "Packets lost because the device had no more to send.",
        ),
        12,
    ),
    (counter("kpulse_netdev_transmit_carrier_errors_total", "Packets lost because the link failed."), 14),
];

const METRICS: [MetricDef; COLUMNS.len() + 1] = {
    let mut defs = [CARRIER_CHANGES; COLUMNS.len() + 1];
    let mut index = 0;
    while index < COLUMNS.len() {
        defs[index] = COLUMNS[index].0;
        index += 1;
    }
    defs
};

pub const COLLECTOR: HostCollector =
    HostCollector { name: "netdev", metrics: &METRICS, is_default: true, make: |_| Box::new(collect) };

const fn counter(name: &'static str, help: &'static str) -> MetricDef {
    MetricDef::counter(name, help, DEVICE)
}

fn collect(host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
    let path = host.net_file("dev");
    let text = host.text.read(&path)?;
    let mut devices = BTreeSet::new();
    // Two lines of headings.
    for line in text.lines().skip(2).take(DEVICES_MAX) {
        let Some((device, columns)) = parse(line) else { bail!("dev holds {line:?}, not a device") };
        for (def, column) in &COLUMNS {
            if let Some(value) = columns.get(*column) {
                out.count(def, &[device], *value);
            }
        }
        devices.insert(device.to_owned());
    }
    for device in devices {
        let path = host.paths.sysfs.join("class/net").join(&device).join("carrier_changes");
        // A device that is gone meanwhile, or of another namespace than /sys shows, has none.
        if let Some(changes) = host.text.read(&path).ok().and_then(|text| text.trim_ascii().parse().ok()) {
            out.count(&CARRIER_CHANGES, &[&device], changes);
        }
    }
    Ok(())
}

/// The device's name may hold a colon, as an alias has it: the last one ends it.
fn parse(line: &str) -> Option<(&str, Vec<u64>)> {
    let (device, columns) = line.rsplit_once(':')?;
    let columns = columns.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
    (columns.len() >= 16).then_some((device.trim_ascii(), columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_device() {
        let line = "  eth0: 1161562753   32488    0    1    0     0          0         3  1526485   20061    0    0    0     0       7          0";
        let (device, columns) = parse(line).unwrap();
        assert_eq!((device, columns[0], columns[3], columns[14]), ("eth0", 1_161_562_753, 1, 7));
        assert_eq!(parse("eth0:1:5 5 5 5 5 5 5 5 5 5 5 5 5 5 5 5").unwrap().0, "eth0:1");
        assert_eq!(parse("eth0: 1 2 3"), None);
        assert_eq!(parse("no device"), None);
    }
}
