//! What kpulse-exporter serves, as Prometheus and its tools see it.

use crate::exporter::{exporter, ready};
use kpulse_tests::process::Service;
use kpulse_tests::{http, is_root, skip};
use std::io::Write;
use std::process::{Command, Stdio};

const OPENMETRICS: &str = "Accept: application/openmetrics-text;version=1.0.0\r\n";

/// What promtool has to say about a page; `None` when it is not installed.
fn lint(page: &str) -> Option<String> {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().ok()?;
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(output.status.success(), said.is_empty(), "{}", String::from_utf8_lossy(&said));
    Some(String::from_utf8_lossy(&said).into_owned())
}

/// OpenMetrics as the older format that promtool reads: counters named as their samples are.
fn as_text(openmetrics: &str) -> String {
    let page = openmetrics.strip_suffix("# EOF\n").unwrap();
    let counters: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let rename = |line: &str| {
        let name = line.split(' ').nth(2).filter(|name| line.starts_with("# ") && counters.contains(name));
        name.map_or_else(|| line.to_owned(), |name| line.replacen(name, &format!("{name}_total"), 1)) + "\n"
    };
    // It escapes quotes in HELP too.
    let unquote = |line: String| if line.starts_with("# HELP ") { line.replace("\\\"", "\"") } else { line };
    page.lines().map(rename).map(unquote).collect()
}

#[test]
fn promtool_has_nothing_to_say_on_a_live_scrape() {
    let (mut service, address) = ready(&mut exporter());
    let text = http::get(&address, "/metrics", "");
    assert!(text.headers.contains("text/plain; version=0.0.4"), "{}", text.headers);
    let open = http::get(&address, "/metrics", OPENMETRICS);
    assert!(open.headers.contains("application/openmetrics-text; version=1.0.0"), "{}", open.headers);
    match (lint(&text.body), lint(&as_text(&open.body))) {
        (Some(text), Some(open)) => assert_eq!((text, open), (String::new(), String::new())),
        _ => skip("promtool_has_nothing_to_say", "promtool is not installed"),
    }
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn no_series_is_told_twice() {
    let (mut service, address) = ready(&mut exporter());
    let page = http::get(&address, "/metrics", "").body;
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let mut series: Vec<&str> = samples.filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect();
    series.sort_unstable();
    let twice: Vec<_> = series.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    assert!(series.len() > 100 && twice.is_empty(), "{} series, twice: {twice:?}", series.len());
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn every_probe_and_collector_tells_how_it_fared() {
    let (mut service, address) = ready(&mut exporter());
    let metrics = http::get(&address, "/metrics", "").body;
    let probes: Vec<serde_json::Value> =
        serde_json::from_str(&http::get(&address, "/probes", "").body).unwrap();
    for probe in probes {
        let name = probe["name"].as_str().unwrap();
        let is_active = probe["state"] == "active";
        let up = format!("kpulse_probe_up{{probe=\"{name}\"}} {}\n", u8::from(is_active));
        assert!(metrics.contains(&up), "{up} of {metrics}");
        let success = format!("kpulse_scrape_collector_success{{collector=\"{name}\"}} 1\n");
        assert_eq!(metrics.contains(&success), is_active, "{success} of {metrics}");
    }
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn collect_and_exclude_answer_as_node_exporter_does() {
    let (mut service, address) = ready(exporter().arg("--no-collector.pressure"));
    let ask = |query: &str| http::get(&address, &format!("/metrics?{query}"), "");
    let only = ask("collect[]=load_average").body;
    assert!(
        only.contains("collector=\"load_average\"") && !only.contains("collector=\"block_io\""),
        "{only}"
    );
    let except = ask("exclude[]=load_average&exclude[]=nonexistent").body;
    assert!(!except.contains("collector=\"load_average\""), "{except}");
    let refused = "Couldn't create filtered metrics handler: couldn't create collector: ";
    for (query, body) in [
        ("collect[]=a&exclude[]=b", "Combined collect and exclude queries are not allowed.".to_owned()),
        ("collect[]=nonexistent", format!("{refused}missing collector: nonexistent")),
        ("collect[]=pressure", format!("{refused}disabled collector: pressure")),
    ] {
        let answer = ask(query);
        assert_eq!((answer.status, answer.body), (400, body));
    }
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn only_collectors_enabled_by_name_remain_without_defaults() {
    let (mut service, address) =
        ready(exporter().args(["--collector.disable-defaults", "--collector.load_average"]));
    let metrics = http::get(&address, "/metrics", "").body;
    let ran: Vec<_> = metrics.lines().filter(|line| line.contains("collector_success{")).collect();
    assert_eq!(ran, ["kpulse_scrape_collector_success{collector=\"load_average\"} 1"]);
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn serves_on_every_address_and_at_the_given_path() {
    let addresses = ["--web.listen-address=127.0.0.1:0", "--web.listen-address=[::1]:0"];
    let has_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    let mut service = Service::start(
        exporter()
            .args(&addresses[..1 + usize::from(has_ipv6)])
            .args(["--web.telemetry-path=/numbers", "--no-collector.pressure"]),
    );
    if !has_ipv6 {
        skip("serves_on_every_address", "no IPv6 here, one address is tried");
    }
    service.line("message=ready");
    let stderr = service.stderr();
    let listening = stderr.lines().filter(|line| line.contains("message=listening"));
    let bound: Vec<_> =
        listening.filter_map(|line| line.split(" address=").nth(1)?.split(' ').next()).collect();
    assert_eq!(bound.len(), 1 + usize::from(has_ipv6), "{stderr}");
    for address in bound {
        assert_eq!(http::get(address, "/numbers", "").status, 200);
        assert_eq!(http::get(address, "/metrics", "").status, 404);
        assert!(http::get(address, "/", "").body.contains("href=\"/numbers\""));
        assert_eq!(http::request(address, "POST", "/numbers", "").unwrap().status, 405);
    }
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn check_exits_0_exactly_when_no_enabled_probe_failed() {
    if !is_root() {
        return skip("check_exits_0", "probes need root");
    }
    let check = kpulse_tests::process::run(exporter().arg("check"));
    let lines: Vec<_> = check.stdout.lines().collect();
    assert!(lines[0].starts_with("PROBE") && lines[0].contains("WHY"), "{}", check.stdout);
    let has_failed = lines[1..].iter().any(|line| line.contains(" failed "));
    assert_eq!(check.code, Some(i32::from(has_failed)), "{}", check.stdout);
    let none = kpulse_tests::process::run(exporter().args(["check", "--collector.disable-defaults"]));
    assert_eq!(none.code, Some(0), "nothing is enabled, so nothing is missing: {}", none.stdout);
}

#[test]
fn a_hangup_names_what_changed_and_refuses_what_is_wrong() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "log: {{level: info}}").unwrap();
    let path = file.path().to_owned();
    let flag = format!("--config.file={}", path.display());
    let (mut service, _) = ready(exporter().args([&flag, "--collector.disable-defaults"]));
    service.until_it_catches(libc::SIGHUP);
    std::fs::write(&path, "log: {level: info}\nweb: {max_requests: 3}\n").unwrap();
    service.signal(libc::SIGHUP);
    assert!(service.line("key=web.max_requests").contains("after a restart"));
    std::fs::write(&path, "log: {level: loud}\n").unwrap();
    service.signal(libc::SIGHUP);
    assert!(service.line("stays as it was").contains("log.level"));
    std::fs::write(&path, "log: {level: debug}\n").unwrap();
    service.signal(libc::SIGHUP);
    service.line("key=log.level");
    assert_eq!(service.stop(), Some(0));
}
