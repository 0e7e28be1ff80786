//! Thresholds of single containers, thresholds that change while the gateway runs, and which probes run at all.

use crate::gateway::Gateway;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load;
use kpulse_tests::process::{Service, hide_tracefs, run};
use kpulse_tests::{http, is_root, skip, until};
use serde_json::Value;
use std::fs;
use std::time::Duration;

const SLEEP: Duration = Duration::from_millis(100);
const NOBODY: &str = "thresholds: {task_state: {min_stuck: 1h}}\n";

/// Events of tasks that were stuck in the container.
fn told(api: &str, id: &str) -> usize {
    let body = http::get(api, "/api/v1/events?since=1m&kind=task_stuck&limit=1000", "").body;
    let events: Vec<Value> = serde_json::from_str(&body).unwrap();
    events.iter().filter(|event| event["container"]["id"] == id).count()
}

#[test]
fn a_container_has_its_own_threshold_until_the_configuration_takes_it_back() {
    if !is_root() {
        skip("a_container_has_its_own_threshold", "needs root");
        return;
    }
    let number = 0xe801;
    let (id, container) = (Cgroup::id(number), Cgroup::container("cpu", number).unwrap());
    let gateway = Gateway::new();
    let file = gateway.state.path().join("gateway.yaml");
    let own = format!(
        "{NOBODY}overrides: {{slow: {{container: {id:?}, thresholds: {{task_state: {{min_stuck: 50ms}}}}}}}}\n"
    );
    fs::write(&file, own).unwrap();
    let mut service = Service::start(gateway.command("run").arg("--config.file").arg(&file));
    let api = service.logged("message=listening", "api");
    service.line("message=ready");
    let sleep = || {
        let (_, went_well) = load::in_child(Some(&container), || load::sleep_uninterruptibly(SLEEP));
        assert!(went_well);
    };
    until("event of the container", || {
        sleep();
        (told(&api, &id) > 0).then_some(())
    });

    fs::write(&file, NOBODY).unwrap();
    service.signal(libc::SIGHUP);
    service.line("the configuration was read again");
    until("silence", || {
        let before = told(&api, &id);
        (0..3).for_each(|_| sleep());
        (told(&api, &id) == before).then_some(())
    });
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
}

#[test]
fn an_override_that_cannot_be_used_is_refused_by_its_name() {
    let gateway = Gateway::new();
    let file = gateway.state.path().join("gateway.yaml");
    for (own, why) in [
        ("{}", "name one"),
        ("{container: a, cgroup: /b}", "name one"),
        ("{cgroup: /b, thresholds: {task_stat: {}}}", "task_stat"),
        ("{cgroup: /b, thresholds: {task_state: {min_stuck: soon}}}", "thresholds"),
        (
            "{cgroup: /b, thresholds: {packet_drop: {filter: udp}}}",
            "packet_drop.filter holds for the whole machine",
        ),
    ] {
        fs::write(&file, format!("overrides: {{mine: {own}}}\n")).unwrap();
        let ended = run(gateway.command("run").arg("--config.file").arg(&file));
        assert_eq!(ended.code, Some(2), "{own}: {}", ended.stderr);
        assert!(ended.stderr.contains("overrides.mine") && ended.stderr.contains(why), "{}", ended.stderr);
    }
}

#[test]
fn a_filter_that_cannot_be_read_is_refused_at_its_column() {
    let gateway = Gateway::new();
    let (key, text) = ("thresholds.packet_drop.filter", "udp and port http");
    let file = gateway.state.path().join("gateway.yaml");
    fs::write(&file, format!("thresholds: {{packet_drop: {{filter: {text}}}}}\n")).unwrap();
    let (mut by_file, mut by_variable) = (gateway.command("check"), gateway.command("check"));
    by_file.arg("--config.file").arg(&file);
    by_variable.env("KPULSE_GATEWAY__THRESHOLDS__PACKET_DROP__FILTER", text);
    for command in [&mut by_file, &mut by_variable] {
        let ended = run(command);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        let why = "at column 14, \"http\" stands where port needs a number from 0 to 65535";
        assert!(ended.stderr.contains(key) && ended.stderr.contains(why), "{}", ended.stderr);
    }
}

#[test]
fn a_probe_that_needs_tracefs_says_how_to_have_it_and_stops_no_other() {
    if !is_root() {
        return skip("a_probe_that_needs_tracefs", "only root can hide tracefs");
    }
    let gateway = Gateway::new();
    let mut check = gateway.command("check");
    hide_tracefs(check.env("KPULSE_GATEWAY__PROBES__SOCKET_WAIT", "true"));
    let ended = run(&mut check);
    let line = |name| ended.stdout.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(
        line("socket_wait ").ends_with("; mount it: mount -t tracefs tracefs /sys/kernel/tracing"),
        "{}",
        ended.stdout
    );
    assert!(line("packet_drop ").contains(" active "), "{}", ended.stdout);
}

#[test]
fn a_probe_that_is_off_by_default_is_switched_on_by_its_name() {
    let gateway = Gateway::new();
    let file = gateway.state.path().join("config.yaml");
    fs::write(&file, "probes: {receive: true, socket_wait: true, softirq: false}\n").unwrap();
    let flag = format!("--config.file={}", file.display());
    let (mut default, mut by_file, mut by_variable) =
        (gateway.command("check"), gateway.command("check"), gateway.command("check"));
    by_file.arg(flag);
    by_variable.env("KPULSE_GATEWAY__PROBES__RECEIVE", "true");
    for (check, off) in
        [(&mut default, "receive socket_wait"), (&mut by_file, "softirq"), (&mut by_variable, "socket_wait")]
    {
        let table = run(check).stdout;
        let lines = table.lines().filter(|line| line.contains("turned off by the configuration"));
        let names: Vec<_> = lines.filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(names.join(" "), off, "{table}");
    }
}
