//! Waits for the log of XFS against its own account, the line `log` of a file system's statistics.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::disk::{Loop, Mount};
use kpulse_tests::skip;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const NAME: &str = "xfs_log";
const FORCE: &str = "kpulse_xfs_log_force_seconds";
const WRITE: &str = "kpulse_xfs_log_write_seconds";
const GRANT: &str = "kpulse_xfs_log_grant_wait_seconds";
const FSYNCS: u64 = 30;
/// New programs refuse less than 300 MiB; the file has no blocks but those that are used.
const SIZE: u64 = 320 << 20;

/// A file system of our own; the mount goes before the device.
struct Xfs {
    mount: Mount,
    device: Loop,
}

impl Xfs {
    /// With more options for mkfs.xfs.
    fn make(bytes: u64, options: &[&str]) -> Result<Self, String> {
        if !Path::new("/proc/fs/xfs").exists() {
            return Err("this kernel has no XFS".into());
        }
        let device =
            Loop::with_size(bytes).map_err(|error| format!("no loop device can be made: {error}"))?;
        // Features that the oldest kernel does not know are off.
        let features = ["-m", "crc=1,bigtime=0,inobtcount=0,reflink=0", "-i", "sparse=0"];
        let made = Command::new("mkfs.xfs")
            .args(options)
            .args(["-q", "-f"])
            .args(features)
            .arg(device.path())
            .stdout(Stdio::null())
            .status();
        if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return Err(format!("mkfs.xfs: {made:?}"));
        }
        let mount = Mount::new(&device.path(), "xfs", "").map_err(|error| format!("no XFS here: {error}"))?;
        Ok(Self { mount, device })
    }
}

/// Log buffers written, and forces that slept.
fn log_stat(device: &str) -> (u64, u64) {
    let text = fs::read_to_string(format!("/sys/fs/xfs/{device}/stats/stats")).expect("it is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix("log ")).expect("the line of the log");
    let field = |index| line.split(' ').nth(index).and_then(|field| field.parse().ok()).expect("a number");
    (field(0), field(4))
}

macro_rules! xfs_or_skip {
    ($bytes:expr, $options:expr) => {{
        needs_root!();
        match Xfs::make($bytes, $options) {
            Ok(made) => made,
            Err(why) => {
                skip(module_path!(), &why);
                return;
            }
        }
    }};
}

fn sync_often(folder: &Path) -> io::Result<()> {
    let mut file = File::create(folder.join("file"))?;
    for _ in 0..FSYNCS {
        file.write_all(&[1; 4096])?;
        file.sync_all()?;
    }
    Ok(())
}

fn measures_forces_and_writes(options: &LoadOptions, file_system: &Xfs) {
    let mut set = load(NAME, options);
    let missing = set.status().remove(0).missing;
    let name = file_system.device.name();
    let before = log_stat(&name);
    sync_often(file_system.mount.path()).expect("the files can be written");
    let after = log_stat(&name);
    let samples = scrape(&mut set, NAME, &mut identities());
    if !missing.is_empty() {
        assert!(value(&samples, WRITE, &[&name]).is_none() && value(&samples, FORCE, &[&name]).is_none());
        skip(module_path!(), &format!("this kernel does not tell of log buffers: {}", missing.join("; ")));
        return;
    }
    let (force, write) = (histogram(&samples, FORCE, &[&name]), histogram(&samples, WRITE, &[&name]));
    // Workers of the log sleep too, and the last buffer may be under way.
    let (writes, sleeps) = (after.0 - before.0, after.1 - before.1);
    assert!(write.count() <= writes && write.count() + 2 >= writes, "{} of {writes} writes", write.count());
    assert!(force.count() <= sleeps && force.count() >= FSYNCS / 2, "{} of {sleeps} sleeps", force.count());
    assert!(write.sum_ns > 0 && force.sum_ns > 0);
    for reason in ["devices_full", "waiters_full"] {
        assert_eq!(count(&samples, "kpulse_xfs_log_unmeasured_total", &[reason]), 0);
    }
}

#[test]
fn an_fsync_waits_for_the_log_as_often_as_xfs_says() {
    let file_system = xfs_or_skip!(SIZE, &[]);
    let _tracefs = tracefs();
    measures_forces_and_writes(&wanting(Want::Metrics), &file_system);
}

/// Creates and removes files in many threads: more changes than the log has room for while its device is slow.
fn churn(folder: &Path) -> io::Result<()> {
    std::thread::scope(|scope| {
        let worker = |number: u32| {
            let folder = folder.join(number.to_string());
            move || -> io::Result<()> {
                for _ in 0..6 {
                    fs::create_dir(&folder)?;
                    for file in 0..400 {
                        File::create(folder.join(file.to_string()))?;
                    }
                    fs::remove_dir_all(&folder)?;
                }
                Ok(())
            }
        };
        let workers: Vec<_> = (0..8).map(|number| scope.spawn(worker(number))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| io::Error::other("it panicked"))?)
    })
}

#[test]
fn a_full_log_lets_transactions_wait() {
    // With a log of 6 MiB, less than mkfs.xfs makes by itself.
    let file_system = xfs_or_skip!(64 << 20, &["--unsupported", "-l", "size=6m"]);
    let _tracefs = tracefs();
    let name = file_system.device.name();
    let number = fs::read_to_string(format!("/sys/block/{name}/dev")).expect("every disk has it");
    // The root of v1 can be throttled, and only there the limit holds for the log's own threads.
    let Some(_limit) = Throttle::set(number.trim(), 800_000) else {
        skip(module_path!(), "the whole machine's writes to a device cannot be slowed down here");
        return;
    };
    let mut set = load(NAME, &wanting(Want::Metrics));
    churn(file_system.mount.path()).expect("the files can be made");
    let samples = scrape(&mut set, NAME, &mut identities());
    let grant = histogram(&samples, GRANT, &[&name]);
    assert!(grant.count() > 0 && grant.sum_ns > 0);
}

/// A limit on the writes of everything to one device, lifted with this value.
struct Throttle {
    file: std::path::PathBuf,
    number: String,
}

impl Throttle {
    fn set(number: &str, bytes_per_second: u64) -> Option<Self> {
        let probe = Cgroup::container("blkio", 0xf1).ok().filter(Cgroup::is_v1)?;
        let root = probe.path().parent()?.parent()?.to_owned();
        let limit = Self { file: root.join("blkio.throttle.write_bps_device"), number: number.to_owned() };
        fs::write(&limit.file, format!("{number} {bytes_per_second}")).ok()?;
        Some(limit)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let _ = fs::write(&self.file, format!("{} 0", self.number));
    }
}

#[test]
fn classic_tracepoints_measure_the_same() {
    let file_system = xfs_or_skip!(SIZE, &[]);
    let _tracefs = tracefs();
    let options = LoadOptions { avoid: ["tp_btf"].into(), ..wanting(Want::Metrics) };
    measures_forces_and_writes(&options, &file_system);
}
