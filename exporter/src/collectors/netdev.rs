//! What went through each network device, and what got lost: `/proc/net/dev`, and links that went down.
//!
//! Of the host and of containers with a network of their own, where containers take turns and loopback is left out.

use super::namespaces::ByNamespace;
use super::pace::Pace;
use super::text::Text;
use super::{Collect, Host, HostCollector};
use anyhow::bail;
use kpulse_common::metric::{Label, MetricDef, MetricKind, Samples, Value};
use kpulse_common::paths::Paths;
use std::iter;
use std::sync::Arc;

/// Most devices that are told; a host with thousands of virtual ones has them counted by its first.
const DEVICES_MAX: usize = 256;
/// The same of a container, which has one or two.
const CONTAINER_DEVICES_MAX: usize = 8;
const LOOPBACK: &str = "lo";

const DEVICE: &[Label] = &[Label::Named("device")];
const CARRIER_CHANGES: MetricDef = MetricDef::counter(
    "kpulse_network_carrier_changes_total",
    "Times that the link went up or down.",
    DEVICE,
);

/// Families of every namespace with the column of `/proc/net/dev` that each is.
const COLUMNS: [(MetricDef, usize); 8] = [
    (by_container("kpulse_netdev_receive_bytes_total", "Bytes received."), 0),
    (by_container("kpulse_netdev_receive_packets_total", "Packets received."), 1),
    (by_container("kpulse_netdev_receive_errors_total", "Packets received broken."), 2),
    (by_container("kpulse_netdev_receive_dropped_total", "Packets received and dropped."), 3),
    (by_container("kpulse_netdev_transmit_bytes_total", "Bytes sent."), 8),
    (by_container("kpulse_netdev_transmit_packets_total", "Packets sent."), 9),
    (by_container("kpulse_netdev_transmit_errors_total", "Packets that could not be sent."), 10),
    (by_container("kpulse_netdev_transmit_dropped_total", "Packets dropped before they were sent."), 11),
];
/// Those of the host's devices alone: virtual ones do not have what they count.
const HOST_COLUMNS: [(MetricDef, usize); 4] = [
    (of_host("kpulse_netdev_receive_fifo_errors_total", "Packets lost because the device was full."), 4),
    (of_host("kpulse_netdev_receive_multicast_total", "Multicast packets received."), 7),
    (
        of_host(
            "kpulse_netdev_transmit_fifo_errors_total",
            "Packets lost because the device had no more to send.",
        ),
        12,
    ),
    (of_host("kpulse_netdev_transmit_carrier_errors_total", "Packets lost because the link failed."), 14),
];

const METRICS: [MetricDef; COLUMNS.len() + HOST_COLUMNS.len() + 1] = {
    let mut defs = [CARRIER_CHANGES; COLUMNS.len() + HOST_COLUMNS.len() + 1];
    let mut index = 0;
    while index < COLUMNS.len() {
        defs[index] = COLUMNS[index].0;
        index += 1;
    }
    while index < COLUMNS.len() + HOST_COLUMNS.len() {
        defs[index] = HOST_COLUMNS[index - COLUMNS.len()].0;
        index += 1;
    }
    defs
};

pub const COLLECTOR: HostCollector = HostCollector {
    name: "netdev",
    metrics: &METRICS,
    is_default: true,
    make: |paths| Box::new(NetDev::new(paths)),
};

const fn by_container(name: &'static str, help: &'static str) -> MetricDef {
    MetricDef::counter(name, help, &[Label::Container, Label::Named("device")])
}

const fn of_host(name: &'static str, help: &'static str) -> MetricDef {
    MetricDef::counter(name, help, DEVICE)
}

/// The columns behind a device's name.
type Columns = [u64; 16];

struct NetDev {
    containers: ByNamespace<Vec<(Arc<str>, Columns)>>,
    pace: Pace,
    text: Text,
}

impl NetDev {
    fn new(paths: &Paths) -> Self {
        let containers = ByNamespace::new(paths, MetricKind::Counter);
        Self { containers, pace: Pace::new(), text: Text::default() }
    }

    fn of_host(host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
        let path = host.net_file("dev");
        let devices = parse(host.text.read(&path)?, DEVICES_MAX)?;
        for (device, columns) in &devices {
            push(&std::array::from_fn(|_| "".into()), device, columns, out);
            for (def, column) in &HOST_COLUMNS {
                out.count(def, &[device], columns[*column]);
            }
            let path = host.paths.sysfs.join("class/net").join(&**device).join("carrier_changes");
            // A device that is gone meanwhile, or of another namespace than /sys shows, has none.
            if let Some(changes) = host.text.read(&path).ok().and_then(|text| text.trim_ascii().parse().ok())
            {
                out.count(&CARRIER_CHANGES, &[device], changes);
            }
        }
        Ok(())
    }
}

impl Collect for NetDev {
    fn collect(&mut self, host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
        Self::of_host(host, out)?;
        for _ in 0..self.containers.begin(host) {
            if !self.pace.allows() {
                break;
            }
            let text = &mut self.text;
            self.containers.turn(host, &mut self.pace, |namespace| {
                let mut devices =
                    parse(text.read(&namespace.folder.join("dev")).ok()?, CONTAINER_DEVICES_MAX + 1).ok()?;
                devices.retain(|(device, _)| &**device != LOOPBACK);
                devices.truncate(CONTAINER_DEVICES_MAX);
                Some(devices)
            });
        }
        for (container, devices) in self.containers.values() {
            for (device, columns) in devices {
                push(&container.labels, device, columns, out);
            }
        }
        Ok(())
    }
}

fn push(container: &[Arc<str>; 4], device: &Arc<str>, columns: &Columns, out: &mut Samples) {
    for (def, column) in &COLUMNS {
        let labels: Vec<_> = container.iter().chain(iter::once(device)).cloned().collect();
        out.push(def, labels, Value::Count(columns[*column]));
    }
}

/// At most so many devices. Two lines of headings come first.
fn parse(text: &str, devices_max: usize) -> anyhow::Result<Vec<(Arc<str>, Columns)>> {
    let mut devices = Vec::new();
    for line in text.lines().skip(2).take(devices_max) {
        let Some((device, columns)) = parse_line(line) else { bail!("dev holds {line:?}, not a device") };
        devices.push((device.into(), columns));
    }
    Ok(devices)
}

/// The device's name may hold a colon, as an alias has it: the last one ends it.
fn parse_line(line: &str) -> Option<(&str, Columns)> {
    let (device, rest) = line.rsplit_once(':')?;
    let mut fields = rest.split_ascii_whitespace();
    let mut columns = Columns::default();
    for column in &mut columns {
        *column = fields.next()?.parse().ok()?;
    }
    Some((device.trim_ascii(), columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_device() {
        let line = "  eth0: 1161562753   32488    0    1    0     0          0         3  1526485   20061    0    0    0     0       7          0";
        let (device, columns) = parse_line(line).unwrap();
        assert_eq!((device, columns[0], columns[3], columns[14]), ("eth0", 1_161_562_753, 1, 7));
        assert_eq!(parse_line("eth0:1:5 5 5 5 5 5 5 5 5 5 5 5 5 5 5 5").unwrap().0, "eth0:1");
        assert_eq!(parse_line("eth0: 1 2 3"), None);
        assert_eq!(parse_line("no device"), None);
    }
}
