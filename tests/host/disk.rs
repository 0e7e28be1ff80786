//! Block devices and the file systems on them.

use crate::{Exporter, assert_between, between};
use kpulse_tests::disk::{FileSystem, Loop, make_readonly};
use kpulse_tests::{is_root, load, skip};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;

/// Families in the order of the kernel's columns, and what turns those into the families' units.
const COLUMNS: [(&str, f64); 17] = [
    ("reads_completed_total", 1.0),
    ("reads_merged_total", 1.0),
    ("read_bytes_total", 512.0),
    ("read_time_seconds_total", 1e-3),
    ("writes_completed_total", 1.0),
    ("writes_merged_total", 1.0),
    ("written_bytes_total", 512.0),
    ("write_time_seconds_total", 1e-3),
    ("io_in_progress", 1.0),
    ("io_time_seconds_total", 1e-3),
    ("io_time_weighted_seconds_total", 1e-3),
    ("discards_completed_total", 1.0),
    ("discards_merged_total", 1.0),
    ("discarded_bytes_total", 512.0),
    ("discard_time_seconds_total", 1e-3),
    ("flushes_completed_total", 1.0),
    ("flush_time_seconds_total", 1e-3),
];

fn discard(device: &File, bytes: u64) -> io::Result<()> {
    const BLKDISCARD: libc::c_ulong = 0x1277;
    let range = [0, bytes];
    // SAFETY: the request reads two numbers, which live through the call.
    let outcome = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[test]
fn a_devices_counters_are_those_of_its_own_file_and_of_who_used_it() {
    const BYTES: u64 = 64 * 65_536;
    if !is_root() {
        return skip("a_devices_counters", "only root can make a loop device");
    }
    let Ok(device) = Loop::with_size(16 << 20) else {
        return skip("a_devices_counters", "no loop device can be made");
    };
    let name = device.name();
    let exporter = Exporter::start(&["diskstats"]);
    let value = |page: &crate::Page, family: &str| {
        page.find(&format!("kpulse_disk_{family}"), &[("device", &name)]).unwrap_or(0.0)
    };
    let unused = exporter.scrape();
    let mut node = OpenOptions::new().write(true).open(device.path()).unwrap();
    node.write_all(&vec![1; BYTES as usize]).unwrap();
    node.sync_all().unwrap();
    load::read_directly(&device.path(), 64).unwrap();
    let discarded = discard(&node, BYTES);

    let read = || {
        let text = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        text.split_ascii_whitespace().map(|field| field.parse::<f64>().unwrap()).collect::<Vec<_>>()
    };
    let (before, page, after) = between(&exporter, read);
    assert!(before.len() >= 11, "{before:?}");
    for (index, (family, unit)) in COLUMNS.iter().enumerate().take(before.len()) {
        assert_between(family, before[index] * unit, value(&page, family), after[index] * unit);
    }
    let grown = |family| value(&page, family) - value(&unused, family);
    let bytes = BYTES as f64;
    // Who looks for new devices may read as well, and nobody else writes.
    assert!(grown("reads_completed_total") >= 64.0 && grown("read_bytes_total") >= bytes);
    assert!(grown("writes_completed_total") >= 1.0 && grown("read_time_seconds_total") >= 0.0);
    assert_eq!(grown("written_bytes_total"), bytes);
    if before.len() > 15 {
        assert!(grown("flushes_completed_total") >= 1.0, "fsync flushes the device");
    }
    match discarded {
        Ok(()) => assert_eq!(grown("discarded_bytes_total"), bytes),
        Err(error) => skip("a_devices_counters", &format!("the device discards nothing: {error}")),
    }
}

#[test]
fn a_file_system_is_told_read_only_when_nobody_can_write_to_it() {
    const FAMILY: &str = "kpulse_filesystem_readonly";
    if !is_root() {
        return skip("a_file_system", "only root can mount one");
    }
    let file_system = match FileSystem::ext4(16 << 20) {
        Ok(made) => made,
        Err(why) => return skip("a_file_system", &why),
    };
    let point = file_system.mount.path().to_str().unwrap().to_owned();
    let labels = [("mountpoint", point.as_str())];
    let file = file_system.mount.path().join("file");
    let exporter = Exporter::start(&["filesystem"]);
    fs::write(&file, "writable").unwrap();
    assert_eq!(exporter.scrape().find(FAMILY, &labels), Some(0.0));
    make_readonly(file_system.mount.path()).unwrap();
    assert_eq!(fs::write(&file, "no more").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(exporter.scrape().find(FAMILY, &labels), Some(1.0));
    drop(file_system);
    assert_eq!(exporter.scrape().find(FAMILY, &labels), None);
}
