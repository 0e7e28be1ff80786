//! Block I/O against the block layer's own counters, `/sys/block/DEVICE/stat`.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::disk::{Loop, Mount};
use kpulse_tests::{is_guest, load, skip};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const NAME: &str = "block_io";
const READS: u64 = 64;
const BLOCK: u64 = 65_536;

/// A block device that nothing else uses.
enum Device {
    /// The empty disk of a matrix guest.
    Disk(PathBuf),
    /// A loop device on a file of our own.
    Loop(Loop),
}

impl Device {
    fn find() -> Option<Self> {
        let empty = Path::new("/dev/vda");
        if is_guest() && empty.exists() {
            return Some(Self::Disk(empty.into()));
        }
        Loop::with_size(16 << 20).ok().map(Self::Loop)
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Disk(path) => path.clone(),
            Self::Loop(device) => device.path(),
        }
    }

    fn name(&self) -> String {
        self.path().file_name().and_then(|name| name.to_str()).expect("device names are ASCII").to_owned()
    }

    /// Completed reads and bytes read, by the block layer.
    fn stat(&self) -> (u64, u64) {
        stat(&self.name())
    }
}

/// Completed reads and bytes read of a device, by the block layer.
fn stat(name: &str) -> (u64, u64) {
    let text = fs::read_to_string(format!("/sys/block/{name}/stat")).expect("every disk has it");
    let field = |index| text.split_ascii_whitespace().nth(index).and_then(|field| field.parse::<u64>().ok());
    (field(0).expect("reads"), field(2).expect("sectors") * 512)
}

macro_rules! device_or_skip {
    () => {{
        needs_root!();
        let Some(device) = Device::find() else {
            skip(module_path!(), "there is no spare disk, and no loop device can be made");
            return;
        };
        device
    }};
}

fn read(device: &Device, container: Option<&Cgroup>) -> u32 {
    let path = device.path();
    let (pid, went_well) = load::in_child(container, || load::read_directly(&path, READS));
    assert!(went_well);
    pid
}

#[test]
fn counts_every_read_of_a_device_once() {
    let device = device_or_skip!();
    let mut set = load(NAME, &wanting(Want::Metrics));
    let before = device.stat();
    read(&device, None);
    let after = device.stat();
    let samples = scrape(&mut set, NAME, &mut identities());
    let name = device.name();
    let labels = [name.as_str(), "read"];
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

/// Reads of a device by a cgroup's tasks, by the cgroup's own account.
fn reads_of(container: &Cgroup, number: &str) -> Option<u64> {
    let (file, key) =
        if container.is_v1() { ("blkio.throttle.io_serviced", "Read ") } else { ("io.stat", "rios=") };
    let text = fs::read_to_string(container.path().join(file)).ok()?;
    let lines = text.lines().filter_map(|line| line.strip_prefix(number)?.split_once(key));
    lines.filter_map(|(_, value)| value.split(' ').next()?.parse().ok()).next()
}

#[test]
fn a_container_owns_the_reads_that_its_cgroup_counts() {
    let device = device_or_skip!();
    let container = Cgroup::container("blkio", 0xc1).expect("a cgroup can be made");
    let number = device_number(&device.path()).expect("a block device");
    // v1 counts only where a device may be throttled. This limit is far above what the device can do, and ends with
    // the cgroup.
    let limits = ("blkio.throttle.read_bps_device", format!("{number} 1000000000000"));
    let counts = !container.is_v1() || container.set(limits.0, &limits.1).is_ok();
    let mut set = load(NAME, &wanting(Want::Metrics));
    let before = device.stat().0;
    read(&device, Some(&container));
    let requests = device.stat().0 - before;
    let samples = scrape(&mut set, NAME, &mut identities());
    let labels = [Cgroup::id(0xc1), "read".into()];
    let labels = [labels[0].as_str(), labels[1].as_str()];
    let d2c = histogram(&samples, "kpulse_container_block_d2c_seconds", &labels);
    let q2c = histogram(&samples, "kpulse_container_block_q2c_seconds", &labels);
    assert_eq!(d2c.count(), requests, "nobody else reads the device");
    assert_eq!(q2c.count(), requests);
    assert!(q2c.sum_ns >= d2c.sum_ns && d2c.sum_ns > 0);
    // The loop driver's own I/O to the file behind the device belongs to the container too, but no other operation.
    assert!(value(&samples, "kpulse_container_block_d2c_seconds", &[labels[0], "write"]).is_none());
    match reads_of(&container, &number).filter(|_| counts) {
        Some(reads) => assert_eq!(d2c.count(), reads, "reads by the cgroup"),
        None => skip(
            module_path!(),
            "the io controller of this kernel does not count; compared with the device only",
        ),
    }
}

#[test]
fn a_failed_write_is_counted_with_its_status() {
    needs_root!();
    // A loop device on a file larger than its file system: what finds no room there is an I/O error here.
    let small = Mount::new(Path::new("none"), "tmpfs", "size=1m").expect("root may mount");
    let file = small.path().join("file");
    File::create(&file).and_then(|file| file.set_len(16 << 20)).expect("a sparse file");
    let Ok(device) = Loop::attach(&file) else {
        skip(module_path!(), "no loop device can be made");
        return;
    };
    let mut set = load(NAME, &wanting(Want::Metrics));
    let mut telling = load(NAME, &wanting(Want::Events));
    let mut events = telling.take_events().expect("the rings open");
    let failed = write_directly(&device.path(), 64).expect("the device opens");
    assert!(failed > 0, "64 blocks of 64 KiB do not fit into 1 MiB");
    let samples = scrape(&mut set, NAME, &mut identities());
    let errors = |status| count(&samples, "kpulse_block_errors_total", &[&device.name(), "write", status]);
    assert_eq!(errors("io") + errors("no_space"), failed);
    assert_eq!(histogram(&samples, "kpulse_block_d2c_seconds", &[&device.name(), "write"]).count(), 64);

    let number = fs::read_to_string(format!("/sys/block/{}/dev", device.name())).expect("it has a number");
    let facts = drain_for(&mut events, Duration::from_millis(100));
    let is_ours = |fact: &&Fact| fact.kind == "block_io_error" && fact.body["device"] == number.trim();
    let ours: Vec<&Fact> = facts.iter().filter(is_ours).collect();
    assert_eq!(ours.len() as u64, failed);
    assert!(ours.iter().all(|fact| fact.body["operation"] == "write" && fact.body["error"] != 0));
    assert_sum_closes(telling, &mut events, facts.len());
}

/// Writes this many blocks, each past the page cache; how many of them failed.
fn write_directly(path: &Path, blocks: u64) -> io::Result<u64> {
    let device = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut memory = vec![1; BLOCK as usize + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let buffer = &mut memory[start..][..BLOCK as usize];
    Ok((0..blocks).filter(|index| device.write_at(buffer, index * BLOCK).is_err()).count() as u64)
}

#[test]
fn a_request_that_completes_in_parts_is_one_request() {
    needs_root!();
    let path = std::env::temp_dir().join(format!("kpulse-short-{}", std::process::id()));
    File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("a sparse file");
    let device = Loop::attach(&path);
    // The file ends in the middle of the second block: the loop driver completes what is there, tries the rest anew,
    // and fails it.
    let shortened = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(BLOCK * 3 / 2));
    let _ = fs::remove_file(&path);
    shortened.expect("the file is ours");
    let Some(device) = device.ok().filter(Loop::is_direct) else {
        skip(module_path!(), "no loop device with direct I/O can be made");
        return;
    };
    let mut set = load(NAME, &wanting(Want::Metrics));
    let before = stat(&device.name());
    load::read_directly(&device.path(), 1).expect("the first block is whole");
    load::read_directly(&device.path(), 2).expect_err("the second is not");
    let after = stat(&device.name());
    let samples = scrape(&mut set, NAME, &mut identities());
    let name = device.name();
    let labels = [name.as_str(), "read"];
    assert_eq!(histogram(&samples, "kpulse_block_d2c_seconds", &labels).count(), after.0 - before.0);
    assert_eq!(after.0 - before.0, 3, "reads by the block layer");
    assert_eq!(count(&samples, "kpulse_block_bytes_total", &labels), after.1 - before.1);
    assert_eq!(count(&samples, "kpulse_block_errors_total", &[&name, "read", "io"]), 1);
}

#[test]
fn the_series_of_a_device_that_is_gone_end() {
    needs_root!();
    let Ok(device) = Loop::with_size(1 << 20) else {
        skip(module_path!(), "no loop device can be made");
        return;
    };
    let mut set = load(NAME, &wanting(Want::Metrics));
    let mut identities = identities();
    load::read_directly(&device.path(), 4).expect("the device can be read");
    let name = device.name();
    let bytes = |samples: &Samples| count(samples, "kpulse_block_bytes_total", &[&name, "read"]);
    assert_eq!(bytes(&scrape(&mut set, NAME, &mut identities)), 4 * BLOCK);
    drop(device);
    // The last I/O before the end must still be scraped under the device's name.
    assert_eq!(bytes(&scrape(&mut set, NAME, &mut identities)), 4 * BLOCK);
    for _ in 0..2 {
        scrape(&mut set, NAME, &mut identities);
    }
    let samples = scrape(&mut set, NAME, &mut identities);
    assert!(value(&samples, "kpulse_block_bytes_total", &[&name, "read"]).is_none());
}

#[test]
fn a_slow_request_is_an_event_of_the_task_that_queued_it() {
    let device = device_or_skip!();
    let mut options = wanting(Want::Events);
    options.thresholds.block_io.min_d2c = Duration::from_nanos(1);
    options.thresholds.rate_limit.burst = 1000;
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    let number = device_number(&device.path()).expect("a block device");
    let pid = read(&device, None);
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
    read(&device, None);
    assert_eq!(drain_for(&mut events, Duration::from_millis(200)), []);
}

fn device_number(path: &Path) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata(path)?.rdev();
    Ok(format!("{}:{}", libc::major(device), libc::minor(device)))
}
