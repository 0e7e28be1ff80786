//! What kpulse-event-gateway tells: real facts of this kernel, from the ring to the reader.

use crate::gateway::{Gateway, Running, assert_obeys_the_schema};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::disk::SmallDisk;
use kpulse_tests::network::drop_datagrams;
use kpulse_tests::process::run;
use kpulse_tests::{http, is_root, skip, until};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

impl Running {
    /// The events of drops at this port.
    fn drops(&self, port: u16) -> Vec<Value> {
        self.events("packet_drop").into_iter().filter(|event| is_drop_at(event, port)).collect()
    }

    /// Whether drops can be told here; else the reason is printed.
    fn tells_drops(&self, test: &str) -> bool {
        let probes: Vec<Value> = serde_json::from_str(&http::get(&self.web, "/probes", "").body).unwrap();
        let probe = probes.iter().find(|probe| probe["name"] == "packet_drop").unwrap();
        if probe["state"] != "active" {
            skip(test, &format!("the probe packet_drop is not active: {}", probe["why"]));
        }
        probe["state"] == "active"
    }
}

fn is_drop_at(event: &Value, port: u16) -> bool {
    event["kpulse"]["packet_drop"]["destination"]["port"] == port
}

/// One document a line.
fn documents(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The port and the events of three drops. A machine that is busy with other tests may be slow, but not every time.
fn told_within_two_seconds(running: &Running) -> (u16, Vec<Value>) {
    let mut delays = Vec::new();
    while delays.len() < 5 {
        let port = drop_datagrams(3).unwrap();
        let sent = Instant::now();
        let events =
            until("event of each drop", || Some(running.drops(port)).filter(|events| events.len() >= 3));
        delays.push(sent.elapsed());
        if sent.elapsed() < Duration::from_secs(2) {
            return (port, events);
        }
    }
    panic!("the events took {delays:?}");
}

#[test]
fn a_dropped_datagram_is_told_with_reason_and_addresses_and_obeys_the_schema() {
    let gateway = Gateway::new();
    let mut running = Running::start(&mut gateway.command("run"));
    if !running.tells_drops("a_dropped_datagram") {
        return;
    }
    let (port, events) = told_within_two_seconds(&running);
    for event in &events {
        assert_obeys_the_schema(event);
        let drop = &event["kpulse"]["packet_drop"];
        assert_eq!(drop["destination"]["ip"], "127.0.0.1", "{event}");
        assert_eq!(drop["source"]["ip"], "127.0.0.1", "{event}");
        assert_eq!(drop["protocol"], "udp", "{event}");
        assert!(drop["reason"].is_string() || drop["location"].is_string(), "{event}");
    }
    // What the kernel counted is stored or lost with a reason, once the machine is quiet for a moment.
    running.accounts_for("packet_drop", 3);
    assert!(http::get(&running.api, "/", "").body.contains("packet_drop"));
    assert_eq!(http::get(&running.api, "/", "Host: evil.example\r\n").status, 403);
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
    the_store_answers_after_the_end(&gateway, port);
}

fn the_store_answers_after_the_end(gateway: &Gateway, port: u16) {
    let files: Vec<_> =
        std::fs::read_dir(gateway.state.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(files, ["events.db"], "SQLite's side files are left behind");
    let json = run(gateway.command("events").args(["-o", "json", "--kind", "packet_drop"]));
    assert_eq!(json.code, Some(0), "{}", json.stderr);
    let events = documents(&json.stdout);
    assert_eq!(events.iter().filter(|event| is_drop_at(event, port)).count(), 3);
    let table = run(&mut gateway.command("events"));
    let rows = table.stdout.lines().filter(|line| line.contains(&format!("destination.port={port}"))).count();
    assert_eq!(rows, 3, "{}", table.stdout);
    let none = run(gateway.command("events").args(["-o", "json", "--kind", "no_such_kind"]));
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""));
}

/// A container that is gone with its process before its event can be read: 10 ms is far less than a look takes.
#[test]
fn a_short_process_of_a_removed_container_is_named_whole() {
    if !is_root() {
        return skip("a_short_process_of_a_removed_container", "needs root");
    }
    let gateway = Gateway::new();
    let mut running = Running::start(&mut gateway.command("run"));
    if !running.tells_drops("a_short_process_of_a_removed_container") {
        return;
    }
    let (port, id) =
        (UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(), Cgroup::id(0x10ca1));
    let container = Cgroup::container("cpu", 0x10ca1).unwrap();
    let procs = container.path().join("cgroup.procs");
    // bash sends a datagram by itself, so the process that sends is the one that is named.
    let sends = format!("echo kpulse >/dev/udp/127.0.0.1/{port}");
    let mut command = Command::new("/bin/bash");
    command.args([
        "-c",
        "echo 0 >\"$0\" && exec /bin/bash -c \"$1\" sender",
        procs.to_str().unwrap(),
        &sends,
    ]);
    let mut child = command.spawn().unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success());
    container.remove().unwrap();
    let event = until("event of the drop", || running.drops(port).pop());
    assert_obeys_the_schema(&event);
    assert_eq!(event["process"]["pid"], pid, "{event}");
    assert_eq!(event["process"]["name"], "bash", "{event}");
    assert_eq!(event["process"]["executable"], "/bin/bash", "{event}");
    assert_eq!(event["process"]["command_line"], format!("/bin/bash -c {sends} sender"), "{event}");
    assert_eq!(event["container"]["id"], id, "{event}");
    let metrics = running.metrics();
    assert!(metrics.contains("kpulse_process_records_lost_total{reason=\"ring_full\"} 0\n"), "{metrics}");
    assert!(
        !metrics.contains("kpulse_events_produced_total{probe=\"process_life\"}"),
        "no events: {metrics}"
    );
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}

/// A document as `events -o json` prints it, so many minutes ago.
fn exported(number: u32, minutes: u64) -> String {
    let time = std::time::SystemTime::now() - Duration::from_secs(60 * minutes);
    let event = serde_json::json!({
        "@timestamp": kpulse_common::clock::rfc3339(time), "ecs": {"version": "8.17"},
        "event": {"id": format!("id-{number}"), "kind": "event", "module": "kpulse", "dataset": "kpulse.events",
            "action": if number.is_multiple_of(2) { "packet_drop" } else { "runqueue_delay" }},
        "host": {}, "container": {"id": format!("{number:064x}"), "name": format!("web-{number}")},
        "process": {"pid": number, "name": "nginx", "thread": {"id": number}},
        "orchestrator": {"type": "kubernetes"}, "kubernetes": {"pod": {"name": format!("shop-{number}")}},
        "kpulse": {"schema": 1, "probe": "x", "cpu": 0, "suppressed": 0, "stack": {"kernel": [format!("f{number}")]}},
    });
    assert_obeys_the_schema(&event);
    event.to_string()
}

#[test]
fn what_is_exported_is_imported_once_and_found_by_every_condition() {
    let (gateway, other) = (Gateway::new(), Gateway::new());
    let lines: Vec<String> = (1..=5).map(|number| exported(number, 10 - u64::from(number))).collect();
    let file = gateway.state.path().join("export.ndjson");
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    let stored = run(gateway.command("import").arg(&file));
    assert_eq!(
        (stored.code, &*stored.stdout),
        (Some(0), "5 events stored, 0 were there already\n"),
        "{}",
        stored.stderr
    );
    let export = |gateway: &Gateway, arguments: &[&str]| {
        let out = run(gateway.command("events").args(["-o", "json"]).args(arguments));
        assert_eq!((out.code, &*out.stderr), (Some(0), ""), "{arguments:?}");
        out.stdout
    };
    assert_eq!(export(&gateway, &["--since", "1h"]), lines.join("\n") + "\n");
    for (arguments, numbers) in [
        (&["--since", "450s"][..], &[3, 4, 5][..]),
        (&["--since", "1h", "--until", "450s"], &[1, 2]),
        (&["--since", "1h", "--kind", "packet_drop"], &[2, 4]),
        (&["--since", "1h", "--container", "web-3"], &[3]),
        (&["--since", "1h", "--container", &format!("{:064x}", 4)], &[4]),
        (&["--since", "1h", "--pod", "shop-5"], &[5]),
        (&["--since", "1h", "--process", "2"], &[2]),
        (&["--since", "1h", "--process", "nginx", "--limit", "2"], &[4, 5]),
        (&["--since", "1h", "--stack", "f3"], &[3]),
    ] {
        let expected: String =
            numbers.iter().map(|number: &usize| lines[number - 1].clone() + "\n").collect();
        assert_eq!(export(&gateway, arguments), expected, "{arguments:?}");
    }
    let again = run(gateway.command("import").arg(&file));
    assert_eq!(&*again.stdout, "0 events stored, 5 were there already\n");
    // A pipe into another store, whose fourth line is broken.
    let mut broken = lines.clone();
    broken[3] = "{\"no\": \"event\"}".to_owned();
    std::fs::write(&file, broken.join("\n")).unwrap();
    let refused = run(other.command("import").arg("-").stdin(std::fs::File::open(&file).unwrap()));
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(refused.stderr.contains("line 4: it is not an event"), "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().count(), 1, "one sentence: {}", refused.stderr);
    assert_eq!(refused.stdout, "3 events stored, 0 were there already\n");
    assert_eq!(export(&other, &["--since", "1h"]), lines[..3].join("\n") + "\n");
}

#[test]
fn events_are_followed_as_they_come() {
    let gateway = Gateway::new();
    let import = |number| {
        let file = gateway.state.path().join("export.ndjson");
        std::fs::write(&file, exported(number, 1)).unwrap();
        assert_eq!(run(gateway.command("import").arg(&file)).code, Some(0));
    };
    import(1);
    let mut command = gateway.command("events");
    command.args(["--follow", "-o", "json", "--process", "nginx"]).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["event"]["id"], "id-1");
    for number in 2..5 {
        import(number);
        assert_eq!(next()["event"]["id"], format!("id-{number}"));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_question_that_cannot_be_answered_is_wrong_usage() {
    let gateway = Gateway::new();
    let long = "x".repeat(300);
    for (arguments, word) in [
        (&["--since", "yesterday"][..], "--since"),
        (&["--since", "1m", "--until", "2m"], "--until"),
        (&["--process", "4294967296"], "--process"),
        (&["--stack", &long], "--stack"),
        (&["--kind", ""], "--kind"),
        (&["--limit", "0"], "--limit"),
        (&["--follow", "--until", "1m"], "--until"),
    ] {
        let refused = run(gateway.command("events").args(arguments));
        assert_eq!(refused.code, Some(2), "{arguments:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(word), "{arguments:?}: {}", refused.stderr);
    }
}

#[test]
fn a_killed_gateway_has_lost_nothing_that_could_be_read() {
    let gateway = Gateway::new();
    let mut running = Running::start(&mut gateway.command("run"));
    if !running.tells_drops("a_killed_gateway") {
        return;
    }
    let port = drop_datagrams(3).unwrap();
    until("event of each drop", || Some(running.drops(port)).filter(|events| events.len() >= 3));
    running.service.signal(libc::SIGKILL);
    running.service.wait();
    let json = run(gateway.command("events").args(["-o", "json", "--kind", "packet_drop"]));
    assert_eq!(json.code, Some(0), "{}", json.stderr);
    let events = documents(&json.stdout);
    assert_eq!(events.iter().filter(|event| is_drop_at(event, port)).count(), 3);
    let mut again = Running::start(&mut gateway.command("run"));
    assert_eq!(again.drops(port).len(), 3);
    assert_eq!(again.service.stop(), Some(0), "{}", again.service.stderr());
}

/// Drops datagrams until the store has no room for them, and gives back the last port. Slowly: the rate limit is shared
/// with the tests that run beside.
fn drop_until_the_sink_fails(running: &Running) -> u16 {
    let (mut port, mut dropped_at) = (drop_datagrams(1).unwrap(), Instant::now());
    until("full disk", || {
        if dropped_at.elapsed() > Duration::from_millis(50) {
            (port, dropped_at) = (drop_datagrams(1).unwrap(), Instant::now());
        }
        running.metrics().contains("kpulse_sink_up{sink=\"local\"} 0\n").then_some(port)
    })
}

#[test]
fn a_disk_that_fills_up_costs_no_event_once_there_is_room_again() {
    let Some(disk) = SmallDisk::new() else {
        return skip("a_disk_that_fills_up", "a file system cannot be mounted here (needs root)");
    };
    let gateway = Gateway::new();
    let mut running = Running::start(gateway.command("run").env("KPULSE_STATE_DIR", disk.path()));
    if !running.tells_drops("a_disk_that_fills_up") {
        return;
    }
    let filler = disk.fill();
    // The journal may have some room left: drop until nothing fits any more.
    let last = drop_until_the_sink_fails(&running);
    running.service.line("events wait in memory");
    assert_eq!(http::get(&running.web, "/-/ready", "").status, 503);
    assert_eq!(http::get(&running.web, "/-/healthy", "").status, 200);
    std::fs::remove_file(filler).unwrap();
    until("recovery", || running.metrics().contains("kpulse_sink_up{sink=\"local\"} 1\n").then_some(()));
    until("event of the full disk", || Some(running.drops(last)).filter(|events| !events.is_empty()));
    let metrics = running.metrics();
    for reason in ["queue_full", "sink_refused", "shutdown"] {
        assert!(!metrics.contains(&format!("reason=\"{reason}\"")), "{metrics}");
    }
    let errors = running.service.stderr().lines().filter(|line| line.contains("level=error")).count();
    assert_eq!(errors, 1, "a lasting error is logged once a minute: {}", running.service.stderr());
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}

#[test]
fn a_full_disk_does_not_hold_up_the_end() {
    let Some(disk) = SmallDisk::new() else {
        return skip(
            "a_full_disk_does_not_hold_up_the_end",
            "a file system cannot be mounted here (needs root)",
        );
    };
    let gateway = Gateway::new();
    let mut running = Running::start(gateway.command("run").env("KPULSE_STATE_DIR", disk.path()));
    if !running.tells_drops("a_full_disk_does_not_hold_up_the_end") {
        return;
    }
    disk.fill();
    drop_until_the_sink_fails(&running);
    let stopped = Instant::now();
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
    assert!(stopped.elapsed() < Duration::from_secs(15), "the end took {:?}", stopped.elapsed());
    assert!(running.service.stderr().contains("events are lost"), "{}", running.service.stderr());
}

#[test]
fn as_nobody_it_runs_without_bpf_and_says_why() {
    use std::os::unix::process::CommandExt;
    if !is_root() {
        return skip("as_nobody_it_runs_without_bpf", "only root can become nobody");
    }
    let gateway = Gateway::for_nobody();
    let state = gateway.state.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(65534), Some(65534)).unwrap();
    let as_nobody = |subcommand| {
        let mut command = gateway.command(subcommand);
        command.env("KPULSE_STATE_DIR", &state).uid(65534).gid(65534).current_dir("/");
        command
    };
    let mut running = Running::start(&mut as_nobody("run"));
    let probes: Vec<Value> = serde_json::from_str(&http::get(&running.web, "/probes", "").body).unwrap();
    let needs_no_rights = |probe: &&Value| {
        [
            "cpu_throttled",
            "link_change",
            "filesystem_readonly",
            "listen_overflow",
            "events_lost",
            "probe_degraded",
        ]
        .iter()
        .any(|name| probe["name"] == **name)
    };
    let (watches, bpf): (Vec<_>, Vec<_>) = probes.iter().partition(needs_no_rights);
    assert!(!bpf.is_empty() && bpf.iter().all(|probe| probe["why"].is_string()), "{bpf:?}");
    assert!(!watches.is_empty() && watches.iter().all(|probe| probe["state"] == "active"), "{watches:?}");
    // Counts are read once a second; those of the watches come in one go.
    let metrics = until("counts", || {
        Some(running.metrics()).filter(|metrics| metrics.contains("kpulse_events_produced_total{"))
    });
    assert!(metrics.contains("kpulse_probe_up{probe=\"packet_drop\"} 0\n"), "{metrics}");
    let produced = metrics.matches("kpulse_events_produced_total{").count();
    assert_eq!(produced, watches.len(), "absent, not zero: {metrics}");
    assert_eq!(http::get(&running.api, "/api/v1/events", "").body, "[]\n");
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
    let check = run(&mut as_nobody("check"));
    assert_eq!(check.code, Some(1), "{}", check.stdout);
    assert!(check.stdout.contains("packet_drop") && check.stderr.contains("not active"), "{}", check.stderr);
}
