//! Errors of PCI Express, as if a device had reported them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// A root port that a driver looks after, and the way to make it meet errors.
pub struct RootPort {
    name: String,
    injector: File,
}

impl RootPort {
    /// The first that reports errors, or why none can be made.
    pub fn find() -> Result<Self, &'static str> {
        let name = Self::first().ok_or("there is no root port that reports errors")?;
        let injector = File::options().write(true).open("/dev/aer_inject");
        Ok(Self { name, injector: injector.map_err(|_| "there is no aer_inject")? })
    }

    fn first() -> Option<String> {
        let is_driven = |path: &PathBuf| {
            fs::read_link(path.join("driver")).is_ok_and(|driver| driver.ends_with("pcieport"))
                && path.join("aer_dev_correctable").exists()
        };
        let devices = fs::read_dir("/sys/bus/pci/devices").ok()?.flatten().map(|device| device.path());
        devices.into_iter().find(is_driven)?.file_name()?.to_str().map(str::to_owned)
    }

    /// As the kernel calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has the port report these bits of its error registers: `struct aer_error_inj`, for a device of the first domain
    /// and bus.
    pub fn inject(&self, uncorrectable: u32, correctable: u32) -> io::Result<()> {
        let place = self.name.strip_prefix("0000:00:").and_then(|place| place.split_once('.'));
        let (device, function) = place.ok_or_else(|| io::Error::other("the port is not on the first bus"))?;
        let number = |text| u8::from_str_radix(text, 16).map_err(io::Error::other);
        let words = [uncorrectable, correctable, 0x4a00_0001, 2, 3, 4, 0];
        let mut bytes = vec![0, number(device)?, number(function)?, 0];
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        self.injector.write_all_at(&bytes, 0)
    }
}
