//! What kpulse-event-gateway tells with no program in the kernel: facts of files and sockets, provoked.

use crate::gateway::{Gateway, Running, assert_obeys_the_schema};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::disk::SmallDisk;
use kpulse_tests::disk::{FileSystem, Loop};
use kpulse_tests::process::{Service, run};
use kpulse_tests::{is_root, network, skip, until};
use serde_json::Value;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A tenth of a CPU, in periods of a fiftieth of a second.
const QUOTA_US: u64 = 2_000;
const PERIOD_US: u64 = 20_000;

/// A process of its own program: a forked copy of the tests would keep the files open that they write meanwhile.
fn process_in(container: &Cgroup, script: &str) -> Service {
    let procs = container.path().join("cgroup.procs");
    let script = format!("echo 0 >\"$0\" && {script}");
    Service::start(Command::new("sh").args(["-c", &script, procs.to_str().unwrap()]))
}

fn limit(container: &Cgroup) -> io::Result<()> {
    container.set_cpu_quota(Duration::from_micros(QUOTA_US), Duration::from_micros(PERIOD_US))
}

#[test]
fn a_container_that_its_quota_stops_is_told_with_the_quota_and_one_that_sleeps_is_not() {
    const TEST: &str = "a_container_that_its_quota_stops";
    if !is_root() {
        return skip(TEST, "only root can make cgroups");
    }
    let numbers = [0x7407, 0x7408];
    let [busy, idle] = numbers.map(|number| Cgroup::container("cpu", number).unwrap());
    if let Err(error) = limit(&busy).and_then(|()| limit(&idle)) {
        return skip(TEST, &format!("this kernel has no CPU quota: {error}"));
    }
    let gateway = Gateway::new();
    let mut command = gateway.command("run");
    let mut running = Running::start(command.env("KPULSE_GATEWAY__THRESHOLDS__CPU_THROTTLED__WINDOW", "1s"));
    let _spins = process_in(&busy, "while :; do :; done");
    let _sleeps = process_in(&idle, "exec sleep 600");
    let told = |number: u32| {
        let id = Cgroup::id(number);
        let events = running.events("cpu_throttled").into_iter();
        events.filter(|event| event["container"]["id"] == *id).collect::<Vec<Value>>()
    };
    let events = until("two windows", || Some(told(numbers[0])).filter(|events| events.len() >= 2));
    for event in &events {
        assert_obeys_the_schema(event);
        let body = &event["kpulse"]["cpu_throttled"];
        let number = |key: &str| body[key].as_u64().unwrap_or_else(|| panic!("{key} of {event}"));
        assert_eq!((number("quota_ns"), number("period_ns")), (QUOTA_US * 1_000, PERIOD_US * 1_000));
        let (periods, throttled) = (number("periods"), number("throttled_periods"));
        assert!(throttled <= periods && 2 * throttled >= periods, "{event}");
        assert!(Some(throttled) <= busy.number("cpu.stat", Some("nr_throttled")), "{event}");
        assert!(periods * number("period_ns") <= number("window_ns") + 2 * number("period_ns"), "{event}");
        let (key, unit) = if busy.is_v1() { ("throttled_time", 1) } else { ("throttled_usec", 1_000) };
        let stopped = busy.number("cpu.stat", Some(key)).map(|count| count * unit);
        assert!(Some(number("throttled_ns")) <= stopped, "{event}");
        let path = event["kpulse"]["cgroup"]["path"].as_str().unwrap();
        assert!(busy.path().to_str().unwrap().ends_with(path), "{event}");
        assert!(event.get("process").is_none() && event["kpulse"].get("cpu").is_none(), "{event}");
    }
    assert_eq!(told(numbers[1]), [] as [Value; 0], "a container that sleeps is not stopped");
    running.accounts_for("cpu_throttled", 2);
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}

/// Runs `ip` in the network namespace of the calling thread; an error is what it says.
fn ip(arguments: &str) -> Result<(), String> {
    let ended = run(Command::new("ip").args(arguments.split(' ')));
    if ended.code == Some(0) { Ok(()) } else { Err(format!("ip {arguments}: {}", ended.stderr)) }
}

/// A pair of devices, of which each is the other's wire.
fn wire(ends: [&str; 2]) -> Result<(), String> {
    let [one, other] = ends;
    ip(&format!("link add {one} type veth peer name {other}"))?;
    ends.iter().try_for_each(|end| ip(&format!("link set {end} up")))
}

#[test]
fn a_link_that_goes_down_and_comes_back_is_told_and_a_device_that_comes_and_goes_is_not() {
    const TEST: &str = "a_link_that_goes_down_and_comes_back";
    if !is_root() {
        return skip(TEST, "only root can make a network namespace");
    }
    if !run(Command::new("sh").args(["-c", "command -v ip"])).stdout.contains("ip") {
        return skip(TEST, "there is no ip (iproute2)");
    }
    // The gateway is started by the thread that has the namespace, and so is in it.
    std::thread::spawn(|| {
        network::isolate().unwrap();
        if let Err(error) = wire(["near", "far"]).and_then(|()| wire(["last", "end"])) {
            return skip(TEST, &error);
        }
        links_are_told();
    })
    .join()
    .unwrap();
}

fn links_are_told() {
    let gateway = Gateway::new();
    let mut running = Running::start(&mut gateway.command("run"));
    let told = |device: &str| {
        let of_device = |event: &Value| event["kpulse"]["link_change"]["device"] == device;
        let mut events: Vec<Value> = running.events("link_change").into_iter().filter(of_device).collect();
        events.sort_by_key(|event| event["@timestamp"].to_string());
        events
    };
    let states = |device: &str, expected: &[(&str, bool)]| {
        let events = until("events of the link", || {
            Some(told(device)).filter(|events| events.len() >= expected.len())
        });
        for (event, (state, is_enabled)) in events.iter().zip(expected) {
            assert_obeys_the_schema(event);
            let body = &event["kpulse"]["link_change"];
            assert_eq!(
                (&body["state"], &body["is_enabled"]),
                (&(*state).into(), &(*is_enabled).into()),
                "{event}"
            );
            assert_eq!((&body["driver"], &body["carrier_changes"]), (&"veth".into(), &1.into()), "{event}");
            let netns = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
            assert_eq!(body["netns"], netns, "{event}");
        }
        assert_eq!(events.len(), expected.len(), "{events:?}");
    };
    let resyncs = "kpulse_watch_resyncs_total{probe=\"link_change\"} 0\n";
    assert!(running.metrics().contains(resyncs), "from the start: {}", running.metrics());
    ip("link set far down").unwrap();
    states("near", &[("down", true)]);
    states("far", &[("down", false)]);
    ip("link set far up").unwrap();
    states("near", &[("down", true), ("up", true)]);
    states("far", &[("down", false), ("up", true)]);
    // As containers come and go; what the last wire tells comes after it.
    wire(["pod", "peer"]).unwrap();
    ip("link del pod").unwrap();
    ip("link del near").unwrap();
    ip("link set end down").unwrap();
    states("last", &[("down", true)]);
    states("near", &[("down", true), ("up", true)]);
    assert_eq!(running.events("link_change").len(), 6, "{:?}", running.events("link_change"));
    running.accounts_for("link_change", 6);
    assert!(running.metrics().contains(resyncs), "{}", running.metrics());
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}

#[test]
fn a_link_that_goes_down_names_who_used_it() {
    const TEST: &str = "a_link_that_goes_down_names_who_used_it";
    if !is_root() {
        return skip(TEST, "only root can make network namespaces and cgroups");
    }
    if !run(Command::new("sh").args(["-c", "command -v ip && command -v unshare && command -v nsenter"]))
        .stdout
        .contains("nsenter")
    {
        return skip(TEST, "there is no ip (iproute2), unshare or nsenter (util-linux)");
    }
    std::thread::spawn(|| {
        network::isolate().unwrap();
        if let Err(error) = wire(["near", "far"]) {
            return skip(TEST, &error);
        }
        users_are_named();
    })
    .join()
    .unwrap();
}

/// A container at the other end, with one connection to us, and a service of ours with another.
fn users_are_named() {
    const NUMBER: u32 = 0x7409;
    let container = Cgroup::container("cpu", NUMBER).unwrap();
    let unified = UnifiedCgroup::make("kpulse-affected").unwrap();
    let pod = process_in(&container, "exec unshare --net sleep 600");
    let ours = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    let namespace = format!("/proc/{}/ns/net", pod.pid());
    until("the container's namespace", || (std::fs::metadata(&namespace).ok()?.ino() != ours).then_some(()));
    ip(&format!("link set far netns {}", pod.pid())).unwrap();
    ip("address add 10.97.0.1/24 dev near").unwrap();
    let inside = |command: &str| format!("nsenter --net={namespace} {command}");
    let set_up = inside("ip address add 10.97.0.2/24 dev far") + " && " + &inside("ip link set far up");
    assert_eq!(run(Command::new("sh").args(["-c", &set_up])).code, Some(0));

    let listener = TcpListener::bind("10.97.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = format!("bash -c 'exec 3<>/dev/tcp/10.97.0.1/{port} && exec sleep 600'");
    let _far = Service::start(Command::new("sh").args(["-c", &inside(&connect)]));
    let mut accepted = vec![listener.accept().unwrap()];
    let _near = Service::start(Command::new("sh").args(["-c", &unified.enter_and(&connect)]));
    accepted.push(listener.accept().unwrap());

    let gateway = Gateway::new();
    let mut running = Running::start(&mut gateway.command("run"));
    ip("link set near down").unwrap();
    let event = until("the event", || running.events("link_change").pop());
    assert_obeys_the_schema(&event);
    let affected = &event["kpulse"]["link_change"]["affected"];
    let expected = serde_json::json!({
        "connections": 4, // Two, each with both ends on this machine.
        "cgroups": ["/kpulse-affected"],
        "container_ids": [Cgroup::id(NUMBER)],
    });
    assert_eq!(*affected, expected, "{event}");
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}

/// A cgroup of the unified hierarchy, which is mounted for the calling thread and its children where it is not.
struct UnifiedCgroup {
    path: PathBuf,
    _mount: tempfile::TempDir,
}

impl UnifiedCgroup {
    fn make(name: &str) -> io::Result<Self> {
        let mount = tempfile::tempdir()?;
        // SAFETY: no memory is involved; the mounts are those of this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let script = "mount --make-rprivate / && mount -t cgroup2 none \"$0\" && mkdir -p \"$0/$1\"";
        let ended = run(Command::new("sh").args(["-c", script]).arg(mount.path()).arg(name));
        if ended.code != Some(0) {
            return Err(io::Error::other(ended.stderr));
        }
        Ok(Self { path: mount.path().join(name), _mount: mount })
    }

    /// The script, in this cgroup.
    fn enter_and(&self, script: &str) -> String {
        format!("echo 0 >{}/cgroup.procs && {script}", self.path.display())
    }
}

impl Drop for UnifiedCgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
        let _ = run(Command::new("umount").arg(self._mount.path()));
    }
}

#[test]
fn a_file_system_that_turns_read_only_is_told_once_with_its_mount_point() {
    const TEST: &str = "a_file_system_that_turns_read_only";
    let [Some(disk), Some(other), Some(third)] = [SmallDisk::new(), SmallDisk::new(), SmallDisk::new()]
    else {
        return skip(TEST, "a file system cannot be mounted here (needs root)");
    };
    other.make_readonly();
    let gateway = Gateway::new();
    let mut running = Running::start(&mut gateway.command("run"));
    let told = |disk: &SmallDisk| {
        let is_its = |event: &Value| {
            event["kpulse"]["filesystem_readonly"]["mount_point"].as_str() == disk.path().to_str()
        };
        running.events("filesystem_readonly").into_iter().filter(is_its).collect::<Vec<_>>()
    };
    disk.make_readonly();
    let events = until("event", || Some(told(&disk)).filter(|events| !events.is_empty()));
    assert_obeys_the_schema(&events[0]);
    let body = &events[0]["kpulse"]["filesystem_readonly"];
    assert_eq!((&body["type"], &body["source"]), (&"tmpfs".into(), &"kpulse".into()), "{body}");
    let device = std::fs::metadata(disk.path()).unwrap().dev();
    assert_eq!(body["device"], format!("{}:{}", libc::major(device), libc::minor(device)));
    // One that turns later: when it is told, the others have been looked at again.
    third.make_readonly();
    until("event of the other", || Some(told(&third)).filter(|events| !events.is_empty()));
    assert_eq!((told(&disk).len(), told(&other).len()), (1, 0), "once, and not what was so before");
    running.accounts_for("filesystem_readonly", 2);
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}

#[test]
fn an_error_of_ext4_its_journal_and_xfs_is_told_with_device_and_message() {
    const TEST: &str = "an_error_of_ext4_its_journal_and_xfs";
    if !is_root() {
        return skip(TEST, "only root can mount");
    }
    let made = FileSystem::ext4(32 << 20)
        .and_then(|ext4| Ok((ext4, FileSystem::xfs(Loop::with_size(320 << 20), &[])?)));
    let (ext4, xfs) = match made {
        Ok(made) => made,
        Err(why) => return skip(TEST, &why),
    };
    let log = std::fs::OpenOptions::new().write(true).open("/dev/kmsg");
    let gateway = Gateway::new();
    let mut running = Running::start(&mut gateway.command("run"));
    let told = |file_system: &FileSystem| {
        let device = file_system.device.name();
        let is_its = |event: &Value| event["kpulse"]["filesystem_error"]["device"] == device.as_str();
        let mut events: Vec<Value> = running.events("filesystem_error").into_iter().filter(is_its).collect();
        events.sort_by_key(|event| event["@timestamp"].to_string());
        events
    };
    let device = ext4.device.name();
    // What a program writes is not what the kernel says.
    let forged = format!("<2>EXT4-fs error (device {device}): forged:1: by a program\n");
    log.and_then(|mut log| log.write_all(forged.as_bytes())).expect("root may write to the log");
    let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
    std::fs::write(trigger, "provoked by a test").expect("root may provoke an error");
    xfs.shut_down().expect("root may shut XFS down");
    let of_xfs = until("event of XFS", || Some(told(&xfs)).filter(|events| !events.is_empty()));
    let of_ext4 = told(&ext4);
    assert_eq!(of_ext4.len(), 2, "{of_ext4:?}");
    for event in of_ext4.iter().chain(&of_xfs) {
        assert_obeys_the_schema(event);
    }
    let body = |event: &Value| event["kpulse"]["filesystem_error"].clone();
    let [error, abort] = [body(&of_ext4[0]), body(&of_ext4[1])];
    assert_eq!((&error["type"], &error["function"]), (&"ext4".into(), &"trigger_test_error".into()));
    assert!(error["message"].as_str().unwrap().ends_with("provoked by a test"), "{error}");
    let aborting = format!("Aborting journal on device {device}-8.");
    assert_eq!((&abort["type"], &abort["message"]), (&"journal".into(), &aborting.into()));
    assert!(of_xfs.iter().all(|event| body(event)["type"] == "xfs"), "{of_xfs:?}");
    running.accounts_for("filesystem_error", 2 + of_xfs.len() as u64);
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}

/// A network namespace with a process of the container in it, and a listener with room for two of the four connections
/// that are tried. TCP tries those that are turned away again and again.
fn overflow(container: &Cgroup) -> (TcpListener, Service) {
    let make = || {
        network::isolate().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        network::listen(listener.as_raw_fd(), 1).unwrap();
        for _ in 0..4 {
            std::thread::spawn(move || TcpStream::connect(address));
        }
        (listener, process_in(container, "exec sleep 600"))
    };
    std::thread::scope(|scope| scope.spawn(make).join().unwrap())
}

#[test]
fn a_queue_of_a_container_that_overflows_is_told_with_port_backlog_and_limit() {
    const TEST: &str = "a_queue_of_a_container_that_overflows";
    if !is_root() {
        return skip(TEST, "only root can make cgroups and network namespaces");
    }
    let number = 0x7409;
    let container = Cgroup::container("cpu", number).unwrap();
    let (listener, sleeper) = overflow(&container);
    let gateway = Gateway::new();
    let mut running = Running::start(&mut gateway.command("run"));
    let event = until("event", || {
        let mut events = running.events("listen_overflow").into_iter();
        events.find(|event| event["container"]["id"] == *Cgroup::id(number))
    });
    assert_obeys_the_schema(&event);
    let body = &event["kpulse"]["listen_overflow"];
    let port = listener.local_addr().unwrap().port();
    let full = serde_json::json!({"ip": "127.0.0.1", "port": port, "backlog": 2, "limit": 1});
    assert_eq!((&body["listener"], &body["full_listeners"]), (&full, &1.into()), "{event}");
    let (overflows, drops) = (body["overflows"].as_u64().unwrap(), body["drops"].as_u64().unwrap());
    assert!(overflows > 0 && overflows <= drops, "{event}");
    let netns = std::fs::metadata(format!("/proc/{}/ns/net", sleeper.pid())).unwrap().ino();
    assert_eq!(body["netns"], netns, "{event}");
    running.accounts_for("listen_overflow", 1);
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}

#[test]
fn a_probe_over_the_budget_is_told_when_it_goes_and_when_it_is_back() {
    if !is_root() {
        return skip("a_probe_over_the_budget", "only root can load probes");
    }
    const PROBE: &str = "runqueue_latency";
    let gateway = Gateway::new();
    let mut command = gateway.command("run");
    command
        .env("KPULSE_GATEWAY__GOVERNOR__BUDGET", "0.000000000001")
        .env("KPULSE_GATEWAY__GOVERNOR__PAUSE", "2s");
    let mut running = Running::start(&mut command);
    let told = |state: &str| {
        let is_it = |event: &Value| {
            let body = &event["kpulse"]["probe_degraded"];
            body["probe"] == PROBE && body["state"] == state
        };
        until("the event", || running.events("probe_degraded").into_iter().rfind(is_it))
    };
    let (gone, back) = (told("detached"), told("active"));
    for event in [&gone, &back] {
        assert_obeys_the_schema(event);
        let body = &event["kpulse"]["probe_degraded"];
        let part = |key: &str| body[key].as_f64().unwrap_or_else(|| panic!("{key} of {event}"));
        let (own, used) = (part("own_ratio"), part("used_ratio"));
        assert!(1e-12 < own && own <= used && used < 1.0 && part("budget_ratio") == 1e-12, "{event}");
        assert_eq!((&body["reason"], &body["pause_ns"]), (&"over_budget".into(), &2_000_000_000_u64.into()));
    }
    assert!(gone["@timestamp"].as_str() < back["@timestamp"].as_str(), "{gone} before {back}");
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}
