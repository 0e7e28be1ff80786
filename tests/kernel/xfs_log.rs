//! Waits for the log of XFS against its own account, the line `log` of a file system's statistics.

use super::*;
use kpulse_common::thresholds::RateLimit;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::disk::{FileSystem, Loop};
use kpulse_tests::load::Worker;
use kpulse_tests::{DEADLINE, skip};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const NAME: &str = "xfs_log";
const FORCE: &str = "kpulse_xfs_log_force_seconds";
const WRITE: &str = "kpulse_xfs_log_write_seconds";
const GRANT: &str = "kpulse_xfs_log_grant_wait_seconds";
const FSYNCS: u64 = 30;
/// New programs refuse less than 300 MiB; the file has no blocks but those that are used.
const SIZE: u64 = 320 << 20;

/// A number of a line of a mounted file system's statistics.
fn stat(device: &str, line: &str, index: usize) -> u64 {
    let text = fs::read_to_string(format!("/sys/fs/xfs/{device}/stats/stats")).expect("it is mounted");
    let line = text.lines().find_map(|it| it.strip_prefix(line)).expect("the line");
    line.split_ascii_whitespace().nth(index).and_then(|field| field.parse().ok()).expect("a number")
}

/// Log buffers written, and forces that slept.
fn log_stat(device: &str) -> (u64, u64) {
    (stat(device, "log ", 0), stat(device, "log ", 4))
}

/// How often somebody slept for room.
fn sleeps_for_room(device: &str) -> u64 {
    stat(device, "push_ail ", 1)
}

macro_rules! xfs_or_skip {
    ($made:expr) => {
        match $made {
            Ok(made) => made,
            Err(why) => {
                skip(module_path!(), &why);
                return;
            }
        }
    };
}

fn sync_often(folder: &Path) -> io::Result<()> {
    let mut file = File::create(folder.join("file"))?;
    for _ in 0..FSYNCS {
        file.write_all(&[1; 4096])?;
        file.sync_all()?;
    }
    Ok(())
}

fn measures_forces_and_writes(options: &LoadOptions, file_system: &FileSystem) {
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
    needs_root!();
    let file_system = xfs_or_skip!(FileSystem::xfs(Loop::with_size(SIZE), &[]));
    measures_forces_and_writes(&wanting(Want::Metrics), &file_system);
}

/// Creates and removes files in many threads: more changes than the log has room for while its device is stopped.
fn churn(folder: &Path, is_enough: &AtomicBool) -> io::Result<()> {
    std::thread::scope(|scope| {
        let worker = |number: u32| {
            let folder = folder.join(number.to_string());
            move || -> io::Result<()> {
                while !is_enough.load(Ordering::Relaxed) {
                    fs::create_dir(&folder)?;
                    (0..400).try_for_each(|file| File::create(folder.join(file.to_string())).map(drop))?;
                    fs::remove_dir_all(&folder)?;
                }
                Ok(())
            }
        };
        let workers: Vec<_> = (0..16).map(|number| scope.spawn(worker(number))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| io::Error::other("it panicked"))?)
    })
}

/// XFS on a file of ext4, which can be frozen: then the log's writes wait, on any machine and for as long as the test likes.
struct Stopped {
    upper: FileSystem,
    lower: FileSystem,
}

impl Stopped {
    fn make() -> Result<Self, String> {
        let lower = FileSystem::ext4(128 << 20)?;
        let path = lower.mount.path().join("xfs");
        let file = File::create(&path).and_then(|file| file.set_len(64 << 20));
        // With a log of 4 MiB, less than mkfs.xfs makes by itself.
        let device = file.and_then(|()| Loop::attach_cached(&path));
        let upper = FileSystem::xfs(device, &["--unsupported", "-l", "size=4m"])?;
        Ok(Self { upper, lower })
    }
}

/// How long the device is stopped.
const HELD: Duration = Duration::from_millis(300);

#[test]
fn a_full_log_lets_transactions_wait_and_a_long_wait_is_an_event() {
    needs_root!();
    let stopped = xfs_or_skip!(Stopped::make());
    let mut counting = load(NAME, &wanting(Want::Metrics));
    let mut options = wanting(Want::Events);
    options.thresholds.rate_limit = RateLimit { events_per_second: 10_000, burst: 10_000 };
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    let (mut facts, is_enough) = (Vec::new(), AtomicBool::new(false));
    let (number, name) = (stopped.upper.number(), stopped.upper.device.name());
    let is_ours = |fact: &&Fact| fact.body["device"] == number.as_str() && fact.body["wait"] == "grant";
    let is_told = |facts: &[Fact]| facts.iter().filter(is_ours).any(|fact| fact.pid == std::process::id());
    let before = sleeps_for_room(&name);
    std::thread::scope(|scope| {
        let work = scope.spawn(|| churn(stopped.upper.mount.path(), &is_enough));
        let begin = Instant::now();
        while !is_told(&facts) && begin.elapsed() < 2 * DEADLINE {
            // Tasks that wait for room show that it is scarce, so that some do when the device stops.
            let (now, sleeps) = (Instant::now(), sleeps_for_room(&name));
            while sleeps_for_room(&name) == sleeps && now.elapsed() < 3 * HELD {
                facts.extend(drain_for(&mut events, HELD / 10));
            }
            let frozen = stopped.lower.freeze().expect("ext4 can be frozen");
            facts.extend(drain_for(&mut events, HELD));
            drop(frozen);
        }
        is_enough.store(true, Ordering::Relaxed);
        work.join().expect("no panic").expect("the files can be made");
    });
    let sleeps = sleeps_for_room(&name) - before;
    if sleeps == 0 {
        skip(module_path!(), "by its own account this XFS let nobody wait for room");
        return;
    }
    assert!(is_told(&facts), "{sleeps} sleeps; {facts:?}");
    facts.extend(drain_for(&mut events, HELD));
    let samples = scrape(&mut counting, NAME, &mut identities());
    let grant = histogram(&samples, GRANT, &[&name]);
    assert!(grant.count() <= sleeps && grant.sum_ns > 0, "{sleeps} sleeps; {grant:?}");
    let ours: Vec<&Fact> = facts.iter().filter(is_ours).collect();
    for fact in &ours {
        assert_eq!((fact.kind, fact.threshold_ns), ("xfs_log_wait", Some(100_000_000)));
        assert!(fact.value_ns >= fact.threshold_ns && !fact.comm.is_empty(), "{fact:?}");
        let has = |name| fact.kernel_stack.iter().any(|function| function.contains(name));
        assert!(has("grant") || has("xfs_log_re"), "{:?}", fact.kernel_stack);
    }
    // Slots from the 18th on begin at 125 ms. Both measure by themselves, so what is near it may lie on either side.
    let surely = ours.iter().filter(|fact| fact.value_ns > Some(150_000_000)).count() as u64;
    let counted = grant.slots[18..].iter().sum::<u64>();
    assert!(
        (surely..=ours.len() as u64).contains(&counted),
        "{surely} and {} events of {counted}",
        ours.len()
    );
    assert_sum_closes(set, &mut events, facts.len());
}

/// Makes a folder durable while the device is stopped; what that took by the child's own clock, and its pid.
fn sync_while_stopped(stopped: &Stopped, container: &Cgroup) -> (Duration, u32) {
    let (mut reader, mut writer) = io::pipe().expect("a pipe");
    let folder = stopped.upper.mount.path().join("folder");
    let frozen = stopped.lower.freeze().expect("ext4 can be frozen");
    let child = Worker::start(Some(container), || {
        // A folder has no data to write before its log.
        fs::create_dir(&folder)?;
        let begin = Instant::now();
        writer.write_all(&[1])?;
        File::open(&folder)?.sync_all()?;
        let took = u64::try_from(begin.elapsed().as_nanos()).map_err(io::Error::other)?;
        writer.write_all(&took.to_ne_bytes())
    });
    let (mut begun, mut took) = ([0], [0; 8]);
    reader.read_exact(&mut begun).expect("the child begins");
    std::thread::sleep(HELD);
    drop(frozen);
    reader.read_exact(&mut took).expect("the child ends");
    (Duration::from_nanos(u64::from_ne_bytes(took)), child.pid())
}

fn a_long_force_is_an_event(options: LoadOptions) {
    needs_root!();
    let stopped = xfs_or_skip!(Stopped::make());
    let container = Cgroup::container("cpu", 0xf5).expect("a container can be made");
    let mut set = load(NAME, &LoadOptions { want: Want::Events, ..options });
    let missing = set.status().remove(0).missing;
    let mut events = set.take_events().expect("the rings open");
    let (took, pid) = sync_while_stopped(&stopped, &container);
    let facts = drain_for(&mut events, Duration::from_millis(200));
    let number = stopped.upper.number();
    let ours: Vec<&Fact> =
        facts.iter().filter(|fact| fact.body["device"] == number.as_str() && fact.pid == pid).collect();
    assert_sum_closes(set, &mut events, facts.len());
    if !missing.is_empty() {
        assert!(ours.is_empty(), "{ours:?}");
        skip(module_path!(), &format!("this kernel does not tell of log buffers: {}", missing.join("; ")));
        return;
    }
    assert!(took >= HELD, "{took:?}");
    let [fact] = ours[..] else { panic!("{facts:?}") };
    assert_eq!((fact.kind, &fact.body["wait"]), ("xfs_log_wait", &"force".into()));
    assert_eq!((fact.cgroup, fact.tid), (Some(container.cgroup_id()), pid));
    let share = fact.value_ns.unwrap_or(0) as f64 / took.as_nanos() as f64;
    assert!((0.9..=1.0).contains(&share), "{:?} of {took:?}", fact.value_ns);
}

#[test]
fn a_long_force_is_an_event_of_the_task_that_waited() {
    a_long_force_is_an_event(LoadOptions::default());
}

#[test]
fn classic_tracepoints_tell_of_the_same_force() {
    a_long_force_is_an_event(LoadOptions { avoid: ["tp_btf"].into(), ..LoadOptions::default() });
}

#[test]
fn a_wait_below_the_threshold_is_no_event() {
    needs_root!();
    let stopped = xfs_or_skip!(Stopped::make());
    let container = Cgroup::container("cpu", 0xf6).expect("a container can be made");
    let mut options = wanting(Want::Events);
    options.thresholds.xfs_log.min_wait = 100 * HELD;
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    let (took, _) = sync_while_stopped(&stopped, &container);
    assert!(took >= HELD, "{took:?}");
    assert_eq!(drain_for(&mut events, Duration::from_millis(200)), []);
    assert_sum_closes(set, &mut events, 0);
}

#[test]
fn classic_tracepoints_measure_the_same() {
    needs_root!();
    let file_system = xfs_or_skip!(FileSystem::xfs(Loop::with_size(SIZE), &[]));
    let options = LoadOptions { avoid: ["tp_btf"].into(), ..wanting(Want::Metrics) };
    measures_forces_and_writes(&options, &file_system);
}
