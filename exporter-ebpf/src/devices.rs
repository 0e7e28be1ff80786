//! Names of block devices by their numbers, and when a device is gone.

use kpulse_common::paths::Paths;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

/// Scrapes in a row that find a device nowhere before its series end.
const SCRAPES_UNTIL_GONE: u8 = 3;

/// The kernel's number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// Of the driver.
    pub major: u32,
    /// Of the device within it.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the kernel's own `dev_t`, as tracepoints give it.
    pub fn from_dev(dev: u32) -> Self {
        Self { major: dev >> 20, minor: dev & 0xf_ffff }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.major, self.minor)
    }
}

/// Tells devices' names and remembers them, since a device may leave between its last I/O and the next scrape.
pub struct BlockDevices {
    links: PathBuf,
    /// Bound: the numbers that the caller's maps hold.
    known: BTreeMap<DeviceNumber, Known>,
}

struct Known {
    name: Arc<str>,
    missing: u8,
}

impl BlockDevices {
    /// For the devices of this `/sys`.
    pub fn new(paths: &Paths) -> Self {
        Self { links: paths.sysfs.join("dev/block"), known: BTreeMap::new() }
    }

    /// The names of all devices of a scrape. `None` when a device is gone for good, or its number belongs to another
    /// device by now: what was counted for it must be removed.
    pub fn names(&mut self, numbers: BTreeSet<DeviceNumber>) -> BTreeMap<DeviceNumber, Option<Arc<str>>> {
        self.known.retain(|number, _| numbers.contains(number));
        numbers.into_iter().map(|number| (number, self.name(number))).collect()
    }

    fn name(&mut self, number: DeviceNumber) -> Option<Arc<str>> {
        let text = number.to_string();
        let link = fs::read_link(self.links.join(&text)).ok();
        let current = link.as_deref().and_then(|path| path.file_name()).and_then(|name| name.to_str());
        let Some(current) = current else {
            // One that was never seen has its number for a name.
            let known = self.known.entry(number).or_insert_with(|| Known { name: text.into(), missing: 0 });
            known.missing += 1;
            let name = known.name.clone();
            if known.missing < SCRAPES_UNTIL_GONE {
                return Some(name);
            }
            self.known.remove(&number);
            return None;
        };
        let is_other = self.known.get(&number).is_some_and(|known| &*known.name != current);
        self.known.insert(number, Known { name: current.into(), missing: 0 });
        (!is_other).then(|| current.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const DISK: DeviceNumber = DeviceNumber { major: 259, minor: 1 };

    /// A `/sys` of our own, whose device 259:1 has this name.
    fn sysfs(test: &str) -> Paths {
        let sysfs = std::env::temp_dir().join(format!("kpulse-devices-{test}-{}", std::process::id()));
        fs::create_dir_all(sysfs.join("dev/block")).expect("a temporary folder");
        Paths { sysfs, ..Paths::default() }
    }

    fn set(paths: &Paths, name: Option<&str>) {
        let link = paths.sysfs.join("dev/block/259:1");
        let _ = fs::remove_file(&link);
        if let Some(name) = name {
            symlink(format!("../../devices/virtual/block/{name}"), link).expect("a link");
        }
    }

    fn name(devices: &mut BlockDevices) -> Option<String> {
        devices.names([DISK].into())[&DISK].as_deref().map(str::to_owned)
    }

    #[test]
    fn a_device_keeps_its_name_for_a_while_after_it_left() {
        let paths = sysfs("left");
        let mut devices = BlockDevices::new(&paths);
        set(&paths, Some("nvme0n1"));
        assert_eq!(name(&mut devices).as_deref(), Some("nvme0n1"));
        set(&paths, None);
        assert_eq!(name(&mut devices).as_deref(), Some("nvme0n1"));
        assert_eq!(name(&mut devices).as_deref(), Some("nvme0n1"));
        assert_eq!(name(&mut devices), None);
        let _ = fs::remove_dir_all(&paths.sysfs);
    }

    #[test]
    fn another_device_of_the_same_number_begins_anew() {
        let paths = sysfs("other");
        let mut devices = BlockDevices::new(&paths);
        set(&paths, Some("nvme0n1"));
        assert_eq!(name(&mut devices).as_deref(), Some("nvme0n1"));
        set(&paths, Some("nvme1n1"));
        assert_eq!(name(&mut devices), None, "its counts are another's");
        assert_eq!(name(&mut devices).as_deref(), Some("nvme1n1"));
        let _ = fs::remove_dir_all(&paths.sysfs);
    }

    #[test]
    fn one_that_was_never_seen_is_named_by_its_number() {
        let paths = sysfs("never");
        let mut devices = BlockDevices::new(&paths);
        assert_eq!(name(&mut devices).as_deref(), Some("259:1"));
        set(&paths, Some("nvme0n1"));
        assert_eq!(name(&mut devices), None, "the number's series ends where the name's begins");
        assert_eq!(name(&mut devices).as_deref(), Some("nvme0n1"));
        let _ = fs::remove_dir_all(&paths.sysfs);
    }

    #[test]
    fn numbers_are_split_as_the_kernel_joins_them() {
        assert_eq!(DeviceNumber::from_dev(259 << 20 | 1), DISK);
    }
}
