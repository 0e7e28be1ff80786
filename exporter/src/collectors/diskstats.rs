//! The block layer's own counters of each device: `/proc/diskstats`, as node_exporter has them.
//!
//! Off unless it is enabled: latencies and bytes by operation come from BPF, and node_exporter often runs beside.

use super::{Host, HostCollector};
use anyhow::bail;
use kpulse_common::metric::{Label, MetricDef, Samples};

/// Most devices that are told.
const DEVICES_MAX: usize = 256;
const DEVICE: &[Label] = &[Label::Named("device")];
/// Sectors of these counters, whatever those of the device are.
const SECTOR_BYTES: u64 = 512;

/// What turns the kernel's number into the family's unit.
#[derive(Clone, Copy)]
enum Unit {
    Count,
    Sectors,
    Milliseconds,
}

const COLUMNS: [(MetricDef, usize, Unit); 17] = [
    (counter("kpulse_disk_reads_completed_total", "Reads completed."), 0, Unit::Count),
    (counter("kpulse_disk_reads_merged_total", "Reads merged with one that was queued."), 1, Unit::Count),
    (counter("kpulse_disk_read_bytes_total", "Bytes read."), 2, Unit::Sectors),
    (counter("kpulse_disk_read_time_seconds_total", "Time of all reads together."), 3, Unit::Milliseconds),
    (counter("kpulse_disk_writes_completed_total", "Writes completed."), 4, Unit::Count),
    (counter("kpulse_disk_writes_merged_total", "Writes merged with one that was queued."), 5, Unit::Count),
    (counter("kpulse_disk_written_bytes_total", "Bytes written."), 6, Unit::Sectors),
    (counter("kpulse_disk_write_time_seconds_total", "Time of all writes together."), 7, Unit::Milliseconds),
    (MetricDef::gauge("kpulse_disk_io_in_progress", "Requests in progress.", DEVICE), 8, Unit::Count),
    (counter("kpulse_disk_io_time_seconds_total", "Time with a request in progress."), 9, Unit::Milliseconds),
    (
        counter(
            "kpulse_disk_io_time_weighted_seconds_total",
            "Time with a request in progress, for each of them.",
        ),
        10,
        Unit::Milliseconds,
    ),
    (counter("kpulse_disk_discards_completed_total", "Discards completed."), 11, Unit::Count),
    (
        counter("kpulse_disk_discards_merged_total", "Discards merged with one that was queued."),
        12,
        Unit::Count,
    ),
    (counter("kpulse_disk_discarded_bytes_total", "Bytes discarded."), 13, Unit::Sectors),
    (
        counter("kpulse_disk_discard_time_seconds_total", "Time of all discards together."),
        14,
        Unit::Milliseconds,
    ),
    (counter("kpulse_disk_flushes_completed_total", "Flushes completed."), 15, Unit::Count),
    (
        counter("kpulse_disk_flush_time_seconds_total", "Time of all flushes together."),
        16,
        Unit::Milliseconds,
    ),
];

const METRICS: [MetricDef; COLUMNS.len()] = {
    let mut defs = [COLUMNS[0].0; COLUMNS.len()];
    let mut index = 0;
    while index < COLUMNS.len() {
        defs[index] = COLUMNS[index].0;
        index += 1;
    }
    defs
};

pub const COLLECTOR: HostCollector =
    HostCollector { name: "diskstats", metrics: &METRICS, is_default: false, make: |_| Box::new(collect) };

const fn counter(name: &'static str, help: &'static str) -> MetricDef {
    MetricDef::counter(name, help, DEVICE)
}

fn collect(host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
    let path = host.paths.procfs.join("diskstats");
    let mut devices = 0;
    for line in host.text.read(&path)?.lines() {
        let Some((device, columns)) = parse(line) else { bail!("diskstats holds {line:?}, not a device") };
        // A device that was never used, as most of the loop devices.
        if columns.iter().all(|value| *value == 0) {
            continue;
        }
        devices += 1;
        if devices > DEVICES_MAX {
            break;
        }
        for (def, column, unit) in &COLUMNS {
            let Some(value) = columns.get(*column).copied() else { continue };
            match unit {
                Unit::Count => out.count(def, &[device], value),
                Unit::Sectors => out.count(def, &[device], value.wrapping_mul(SECTOR_BYTES)),
                Unit::Milliseconds => out.number(def, &[device], value as f64 / 1e3),
            }
        }
    }
    Ok(())
}

/// `MAJOR MINOR NAME` and 11 numbers, 15 since 4.18, 17 since 5.5.
fn parse(line: &str) -> Option<(&str, Vec<u64>)> {
    let mut fields = line.split_ascii_whitespace().skip(2);
    let device = fields.next()?;
    let columns = fields.map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
    (columns.len() >= 11).then_some((device, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_device_of_old_and_new_kernels() {
        let (device, columns) =
            parse("   7       0 loop0 960 0 122880 91 0 0 0 0 0 88 91 0 0 0 0 2 1").unwrap();
        assert_eq!((device, columns[2], columns[16]), ("loop0", 122_880, 1));
        assert_eq!(parse("254 0 vda 1 2 3 4 5 6 7 8 9 10 11").unwrap().1.len(), 11);
        assert_eq!(parse("254 0 vda 1 2"), None);
        assert_eq!(parse("254 0 vda 1 2 3 4 5 6 7 8 9 10 x"), None);
    }
}
