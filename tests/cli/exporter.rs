//! What kpulse-exporter says when it cannot do what it is told.

use kpulse_tests::process::{Ended, Service, command, hide_tracefs, run};
use kpulse_tests::{binary, http, is_root, skip};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;

pub fn exporter() -> Command {
    let mut command = command(binary("kpulse-exporter"));
    command.env("KPULSE_EXPORTER__WEB__LISTEN_ADDRESS", "127.0.0.1:0");
    command
}

/// Asserts that the program ended with `code` and one sentence, which holds every part.
fn refused(ended: &Ended, code: i32, parts: &[&str]) {
    let Ended { code: found, stdout, stderr } = ended;
    assert_eq!(*found, Some(code), "{stderr}");
    assert!(stdout.is_empty(), "{stdout}");
    assert!(stderr.starts_with("kpulse-exporter: ") && stderr.ends_with('\n'), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
}

fn with_file(text: &str) -> (tempfile::NamedTempFile, Command) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let mut command = exporter();
    command.arg(format!("--config.file={}", file.path().display()));
    (file, command)
}

#[test]
fn a_wrong_configuration_file_is_one_sentence_and_code_2() {
    let cases: &[(&str, &[&str])] = &[
        (
            "web:\n  listen_adress: [x]\n",
            &["`web.listen_adress`", "nearest known key is `web.listen_address`"],
        ),
        ("probes: {block_oi: false}\n", &["`probes.block_oi`", "`probes.block_io`"]),
        ("web: {max_requests: many}\n", &["`web.max_requests`", "\"many\"", "a whole number is expected"]),
        ("web: {max_requests: -1}\n", &["`web.max_requests`", "must not be negative"]),
        ("probes: {block_io: perhaps}\n", &["`probes.block_io`", "true or false"]),
        (
            "thresholds: {runqueue_latency: {min_wait: -5ms}}\n",
            &["`thresholds.runqueue_latency.min_wait`", "\"-5ms\"", "must not be negative"],
        ),
        ("thresholds: {block_io: {min_d2c: soon}}\n", &["`thresholds.block_io.min_d2c`", "\"soon\""]),
        (
            "thresholds: {block_io: {min_d2c: 100}}\n",
            &["`thresholds.block_io.min_d2c`", "a duration such as"],
        ),
        ("web: {telemetry_path: metrics}\n", &["`web.telemetry_path`", "\"metrics\""]),
        ("web: [\n", &["not valid YAML", "line"]),
    ];
    for (text, parts) in cases {
        let (file, mut command) = with_file(text);
        let path = file.path().display().to_string();
        // What the program itself refuses knows no layer any more.
        let names_file = !text.contains("telemetry_path");
        let mut parts = parts.to_vec();
        parts.extend(names_file.then_some(path.as_str()));
        refused(&run(&mut command), 2, &parts);
    }
}

#[test]
fn a_wrong_variable_or_flag_is_one_sentence_and_code_2() {
    refused(
        &run(exporter().env("KPULSE_EXPORTER__WEB__MAX_REQUEST", "4")),
        2,
        &["KPULSE_EXPORTER__WEB__MAX_REQUEST", "`web.max_requests`"],
    );
    refused(
        &run(exporter().env("KPULSE_EXPORTER__THRESHOLDS__BLOCK_IO__MIN_Q2C", "-1s")),
        2,
        &["KPULSE_EXPORTER__THRESHOLDS__BLOCK_IO__MIN_Q2C", "must not be negative"],
    );
    refused(&run(exporter().env("KPULSE_LOG", "a=b=c")), 2, &["KPULSE_LOG"]);
    let no_address = run(exporter().env("KPULSE_EXPORTER__WEB__LISTEN_ADDRESS", ""));
    refused(&no_address, 2, &["`web.listen_address`", "at least one address"]);
    for (flag, parts) in [
        ("--collector.blok_io", &["--collector.blok_io", "--collector.block_io"][..]),
        ("--web.max-requests=x", &["--web.max-requests", "'x'"]),
        ("--web.listen-address=nonsense", &["nonsense", "--web.listen-address", "127.0.0.1:10840"]),
        ("--config.file=/nonexistent.yaml", &["/nonexistent.yaml", "No such file"]),
        ("--log.level=loud", &["--log.level", "loud"]),
        ("--web.telemetry-path=/-/ready", &["web.telemetry_path", "taken by another endpoint"]),
        ("atack", &["atack"]),
    ] {
        refused(&run(exporter().arg(flag)), 2, parts);
    }
}

#[test]
fn a_taken_port_is_one_sentence_and_code_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = run(exporter().arg(format!("--web.listen-address={address}")));
    refused(&ended, 1, &[&address, "another process has this port", "--web.listen-address"]);
}

#[test]
fn help_and_version_are_no_errors() {
    let version = run(exporter().arg("--version"));
    assert_eq!(version.code, Some(0));
    assert!(version.stdout.starts_with("kpulse-exporter 0."), "{}", version.stdout);
    let help = run(exporter().arg("--help"));
    assert_eq!(help.code, Some(0));
    for flag in ["--web.listen-address", "--collector.block_io", "--no-collector.block_io", "--path.procfs"] {
        assert!(help.stdout.contains(flag), "{flag}");
    }
}

#[test]
fn sigterm_during_the_start_ends_with_code_0() {
    for _ in 0..5 {
        let mut service = Service::start(&mut exporter());
        service.until_it_catches(libc::SIGTERM);
        assert_eq!(service.stop(), Some(0), "{}", service.stderr());
        assert!(!service.stderr().contains("panicked"), "{}", service.stderr());
    }
}

/// Starts, waits until loading is over, and gives back the address.
pub fn ready(command: &mut Command) -> (Service, String) {
    let service = Service::start(command);
    let address = service.logged("message=listening", "address");
    service.line("message=ready");
    assert_eq!(http::get(&address, "/-/ready", "").status, 200);
    (service, address)
}

/// Every probe is down and says why; everything else works.
fn serves_without_probes(command: &mut Command) -> Vec<String> {
    let (mut service, address) = ready(command);
    let metrics = http::get(&address, "/metrics", "").body;
    assert!(metrics.contains("\nkpulse_load_average{window=\"1m\"} "), "{metrics}");
    assert!(metrics.contains("kpulse_probe_up{probe=\"block_io\"} 0\n"), "{metrics}");
    assert!(!metrics.contains("kpulse_runqueue_latency_seconds"), "absent, not zero: {metrics}");
    let probes: Vec<serde_json::Value> =
        serde_json::from_str(&http::get(&address, "/probes", "").body).unwrap();
    assert!(!probes.is_empty());
    let reasons = probes.iter().map(|probe| {
        assert_ne!(probe["state"], "active", "{probe}");
        probe["why"].as_str().unwrap().to_owned()
    });
    let reasons: Vec<_> = reasons.collect();
    assert!(reasons.iter().all(|why| !why.is_empty() && !why.contains('\n')), "{reasons:?}");
    // What is off by default is off for that reason, whatever the machine lacks.
    let reasons: Vec<_> =
        reasons.into_iter().filter(|why| why != "turned off by the configuration").collect();
    assert!(!reasons.is_empty());
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
    assert!(!service.stderr().contains("panicked"), "{}", service.stderr());
    reasons
}

#[test]
fn as_nobody_it_serves_what_needs_no_rights_and_says_why_the_rest_is_missing() {
    if !is_root() {
        return skip("as_nobody", "only root can become nobody");
    }
    // The build may be in a directory that nobody may not enter.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let copy = folder.path().join("kpulse-exporter");
    std::fs::copy(binary("kpulse-exporter"), &copy).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let as_nobody = || {
        let mut nobody = command(&copy);
        nobody.uid(65534).gid(65534).current_dir("/");
        nobody.env("KPULSE_EXPORTER__WEB__LISTEN_ADDRESS", "127.0.0.1:0");
        nobody
    };
    for why in serves_without_probes(&mut as_nobody()) {
        let told = ["CAP_BPF", "CAP_PERFMON", "EPERM", "not permitted"];
        assert!(told.iter().any(|part| why.contains(part)), "{why}");
    }
    let check = run(as_nobody().arg("check"));
    assert_eq!(check.code, Some(1));
    assert!(check.stdout.contains("block_io"), "{}", check.stdout);
    assert_eq!(check.stderr.lines().count(), 1, "{}", check.stderr);
    assert!(check.stderr.contains("enabled probes are not active"), "{}", check.stderr);
    assert_eq!(run(as_nobody().arg("doctor")).code, Some(0));
}

#[test]
fn without_kernel_types_no_probe_loads_and_the_rest_is_served() {
    let empty = tempfile::tempdir().unwrap();
    let reasons = serves_without_probes(exporter().arg(format!("--path.sysfs={}", empty.path().display())));
    assert!(reasons.iter().all(|why| why.contains("BTF")), "{reasons:?}");
}

#[test]
fn without_tracefs_it_starts_and_every_probe_has_a_state() {
    if !is_root() {
        return skip("without_tracefs", "only root can hide tracefs");
    }
    if !std::path::Path::new("/sys/kernel/tracing").exists() {
        return skip("without_tracefs", "this kernel has none to hide");
    }
    let mut hidden = exporter();
    hide_tracefs(&mut hidden);
    let (mut service, address) = ready(&mut hidden);
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", service.pid())).unwrap();
    assert!(mounts.contains("none /sys/kernel/tracing tmpfs"), "tracefs is still there: {mounts}");
    let probes: Vec<serde_json::Value> =
        serde_json::from_str(&http::get(&address, "/probes", "").body).unwrap();
    for probe in &probes {
        let is_told = probe["state"] == "active" || probe["why"].as_str().is_some_and(|why| !why.is_empty());
        assert!(is_told, "{probe}");
    }
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
}

#[test]
fn an_unreadable_procfs_costs_the_collectors_that_need_it() {
    let (mut service, address) = ready(exporter().arg("--path.procfs=/nonexistent"));
    let metrics = http::get(&address, "/metrics", "").body;
    assert!(metrics.contains("kpulse_scrape_collector_success{collector=\"load_average\"} 0\n"), "{metrics}");
    assert!(!metrics.contains("kpulse_load_average"), "{metrics}");
    assert!(metrics.contains("kpulse_build_info"), "{metrics}");
    assert!(service.line("collector=load_average").contains("/nonexistent/loadavg"));
    http::get(&address, "/metrics", "");
    assert_eq!(service.stderr().matches("collector=load_average").count(), 1, "logged once");
    assert_eq!(service.stop(), Some(0));
}
