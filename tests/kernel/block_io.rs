//! Block I/O against the block layer's own counters, `/sys/block/DEVICE/stat`.

use super::*;
use kpulse_tests::{load, skip};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

const NAME: &str = "block_io";
const READS: u64 = 64;

/// A block device that nothing else uses.
enum Device {
    /// The empty disk of a matrix guest.
    Disk(PathBuf),
    /// A loop device on a file of our own.
    Loop { device: PathBuf, file: PathBuf },
}

impl Device {
    fn find() -> Option<Self> {
        let empty = Path::new("/dev/vda");
        if std::env::var_os("KPULSE_MATRIX").is_some() && empty.exists() {
            return Some(Self::Disk(empty.into()));
        }
        let file = std::env::temp_dir().join(format!("kpulse-loop-{}", std::process::id()));
        fs::File::create(&file).and_then(|file| file.set_len(16 << 20)).ok()?;
        let output =
            Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(&file).output().ok()?;
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || device.is_empty() {
            let _ = fs::remove_file(&file);
            return None;
        }
        Some(Self::Loop { device: device.into(), file })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Disk(path) | Self::Loop { device: path, .. } => path,
        }
    }

    fn name(&self) -> &str {
        self.path().file_name().and_then(|name| name.to_str()).expect("device names are ASCII")
    }

    /// Completed reads and bytes read, by the block layer.
    fn stat(&self) -> (u64, u64) {
        let text = fs::read_to_string(format!("/sys/block/{}/stat", self.name())).expect("every disk has it");
        let field =
            |index| text.split_ascii_whitespace().nth(index).and_then(|field| field.parse::<u64>().ok());
        (field(0).expect("reads"), field(2).expect("sectors") * 512)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Self::Loop { device, file } = self {
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
            let _ = fs::remove_file(file);
        }
    }
}

macro_rules! device_or_skip {
    () => {{
        needs_root!();
        let Some(device) = Device::find() else {
            skip(module_path!(), "there is no spare disk, and losetup made none");
            return;
        };
        device
    }};
}

fn read(device: &Device) -> u32 {
    let path = device.path().to_owned();
    let (pid, went_well) = load::in_child(None, || load::read_directly(&path, READS));
    assert!(went_well);
    pid
}

#[test]
fn counts_every_read_of_a_device_once() {
    let device = device_or_skip!();
    let mut set = load(NAME, &wanting(Want::Metrics));
    let before = device.stat();
    read(&device);
    let after = device.stat();
    let samples = scrape(&mut set, NAME, &mut identities());
    let labels = [device.name(), "read"];
    let (d2c, q2c) = (
        histogram(&samples, "kpulse_block_d2c_seconds", &labels),
        histogram(&samples, "kpulse_block_q2c_seconds", &labels),
    );
    assert_eq!(d2c.count(), after.0 - before.0, "reads by the block layer");
    assert_eq!(q2c.count(), d2c.count());
    assert!(q2c.sum_ns >= d2c.sum_ns, "the queue comes before the driver: {} < {}", q2c.sum_ns, d2c.sum_ns);
    assert!(d2c.sum_ns > 0);
    assert_eq!(count(&samples, "kpulse_block_bytes_total", &labels), after.1 - before.1);
    assert_eq!(count(&samples, "kpulse_block_errors_total", &labels), 0);
}

#[test]
fn a_slow_request_is_an_event_of_the_task_that_queued_it() {
    let device = device_or_skip!();
    let mut options = wanting(Want::Events);
    options.thresholds.block_io.min_d2c = Duration::from_nanos(1);
    options.thresholds.rate_limit.burst = 1000;
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    let number = device_number(device.path()).expect("a block device");
    let pid = read(&device);
    let facts = drain_for(&mut events, Duration::from_millis(200));
    let ours: Vec<&Fact> =
        facts.iter().filter(|fact| fact.body["device"] == number.as_str() && fact.pid == pid).collect();
    assert_eq!(ours.len() as u64, READS, "one event for each read: {facts:?}");
    for fact in &ours {
        assert_eq!(fact.body["operation"], "read");
        assert_eq!(fact.body["bytes"], 65_536);
        assert!(fact.body["q2c_ns"].as_u64() >= fact.body["d2c_ns"].as_u64(), "{fact:?}");
        assert_eq!(fact.value_ns, fact.body["d2c_ns"].as_u64());
    }
    assert_sum_closes(set, &mut events, facts.len());
}

#[test]
fn a_quick_request_is_no_event() {
    let device = device_or_skip!();
    let mut options = wanting(Want::Events);
    options.thresholds.block_io.min_d2c = Duration::from_secs(3600);
    options.thresholds.block_io.min_q2c = Duration::from_secs(3600);
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    read(&device);
    assert_eq!(drain_for(&mut events, Duration::from_millis(200)), []);
}

fn device_number(path: &Path) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata(path)?.rdev();
    Ok(format!("{}:{}", libc::major(device), libc::minor(device)))
}
