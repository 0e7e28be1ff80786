//! What kpulse-event-gateway says when it cannot do what it is told.

use kpulse_tests::disk::SmallDisk;
use kpulse_tests::process::{Ended, Service, gateway, run};
use kpulse_tests::{binary, http, is_root, skip, until};
use serde_json::Value;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A state directory, and the gateway that keeps its files there and takes any free port.
pub struct Gateway {
    pub state: tempfile::TempDir,
    program: PathBuf,
}

impl Gateway {
    pub fn new() -> Self {
        Self { state: tempfile::tempdir().unwrap(), program: binary("kpulse-event-gateway") }
    }

    /// With a copy of the program, and in a directory, that nobody may enter.
    pub fn for_nobody() -> Self {
        let state = tempfile::tempdir_in("/tmp").unwrap();
        let program = state.path().join("kpulse-event-gateway");
        std::fs::copy(binary("kpulse-event-gateway"), &program).unwrap();
        set_mode(state.path(), 0o755);
        Self { state, program }
    }

    pub fn command(&self, subcommand: &str) -> Command {
        gateway(&self.program, self.state.path(), subcommand)
    }
}

const SCHEMA: &str = include_str!("../../event-gateway/schema/event.schema.json");
const PROFILE_SCHEMA: &str = include_str!("../../event-gateway/schema/profile.schema.json");

/// A gateway that is ready, with its two addresses.
pub struct Running {
    pub service: Service,
    pub web: String,
    pub api: String,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let service = Service::start(command);
        let (web, api) =
            (service.logged("message=listening", "web"), service.logged("message=listening", "api"));
        service.line("message=ready");
        Self { service, web, api }
    }

    pub fn metrics(&self) -> String {
        http::get(&self.web, "/metrics", "").body
    }

    /// The newest events of a kind.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        let path = format!("/api/v1/events?since=1m&kind={kind}&limit=1000");
        serde_json::from_str(&http::get(&self.api, &path, "").body).unwrap()
    }

    /// Waits until what a probe counted is stored or lost with a reason, and is this much at least.
    pub fn accounts_for(&self, probe: &str, least: u64) {
        until("equal sums", || {
            let metrics = self.metrics();
            let of = |family| sum(&metrics, family, probe);
            let accounted = of("kpulse_events_stored_total") + of("kpulse_records_lost_total");
            (of("kpulse_events_produced_total") == accounted && accounted >= least).then_some(())
        });
    }
}

/// The sum of a family's series of one probe.
fn sum(metrics: &str, family: &str, probe: &str) -> u64 {
    let start = format!("{family}{{probe=\"{probe}\"");
    let values =
        metrics.lines().filter(|line| line.starts_with(&start)).filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<u64>().unwrap()).sum()
}

pub fn assert_obeys_the_schema(event: &Value) {
    let validator = jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap();
    let errors: Vec<_> = validator.iter_errors(event).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?} in {event}");
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

/// Asserts that the program ended with `code` and one sentence, which holds every part.
pub fn refused(ended: &Ended, code: i32, parts: &[&str]) {
    let Ended { code: found, stderr, .. } = ended;
    assert_eq!(*found, Some(code), "{stderr}");
    let sentences: Vec<_> = stderr.lines().filter(|line| !line.starts_with("ts=")).collect();
    assert_eq!(sentences.len(), 1, "{stderr}");
    assert!(sentences[0].starts_with("kpulse-event-gateway: "), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

#[test]
fn a_wrong_configuration_is_one_sentence_and_code_2() {
    let cases: &[(&str, &[&str])] = &[
        ("api: {listen_adress: x}\n", &["`api.listen_adress`", "`api.listen_address`"]),
        ("probes: {packet_drp: false}\n", &["`probes.packet_drp`", "`probes.packet_drop`"]),
        ("thresholds: {runqueue_latency: {min_wait: -5ms}}\n", &["min_wait", "must not be negative"]),
        ("output: {local: {max_age: 5}}\n", &["output.local.max_age", "a duration such as"]),
        ("output: {local: {max_bytes: -1}}\n", &["output.local.max_bytes", "must not be negative"]),
        ("output: {local: {max_bytes: 1}}\n", &["output.local.max_bytes", "at least 1048576"]),
        ("output: {queue: {max_events: 0}}\n", &["output.queue.max_events", "at least 1"]),
        ("output: [\n", &["not valid YAML"]),
    ];
    for (text, parts) in cases {
        let gateway = Gateway::new();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        for subcommand in ["run", "check"] {
            let flag = format!("--config.file={}", file.path().display());
            refused(&run(gateway.command(subcommand).arg(flag)), 2, parts);
        }
        assert!(is_empty(gateway.state.path()), "a refused start left files behind");
    }
}

#[test]
fn a_wrong_flag_or_variable_is_one_sentence_and_code_2() {
    let gateway = Gateway::new();
    for (flag, parts) in [
        ("--web.listen-address=nonsense", &["nonsense", "--web.listen-address"][..]),
        ("--api.listen-address=nonsense", &["nonsense", "--api.listen-address"]),
        ("--web.listen-adress=:1", &["--web.listen-adress"]),
        ("--config.file=/nonexistent.yaml", &["/nonexistent.yaml", "No such file"]),
    ] {
        refused(&run(gateway.command("run").arg(flag)), 2, parts);
    }
    let variable = run(gateway.command("run").env("KPULSE_GATEWAY__OUTPUT__QUEUE__MAX_EVENT", "4"));
    refused(&variable, 2, &["KPULSE_GATEWAY__OUTPUT__QUEUE__MAX_EVENT", "`output.queue.max_events`"]);
    refused(&run(&mut gateway.command("rnu")), 2, &["rnu"]);
    refused(&run(gateway.command("events").arg("--since=yesterday")), 2, &["--since", "yesterday", "5m"]);
    refused(&run(gateway.command("events").arg("--process=-1")), 2, &["--process", "-1"]);
}

#[test]
fn the_api_is_not_offered_to_other_machines() {
    let gateway = Gateway::new();
    for address in [":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:10851"] {
        let ended = run(gateway.command("run").arg(format!("--api.listen-address={address}")));
        refused(&ended, 2, &[address, "--api.listen-address", "not a loopback address", "127.0.0.1:10851"]);
    }
}

#[test]
fn a_taken_port_is_one_sentence_and_code_1() {
    let gateway = Gateway::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--web.listen-address", "--api.listen-address"] {
        let ended = run(gateway.command("run").arg(format!("{flag}={address}")));
        refused(&ended, 1, &[&address, "another process has this port", flag]);
    }
    assert!(is_empty(gateway.state.path()), "a refused start left files behind");
}

#[test]
fn a_state_directory_that_cannot_be_written_is_one_sentence_and_code_1() {
    if !is_root() {
        return skip("a_state_directory_that_cannot_be_written", "only root can become nobody");
    }
    let gateway = Gateway::for_nobody();
    let before = std::fs::read_dir(gateway.state.path()).unwrap().count();
    for subcommand in ["run", "check"] {
        let ended = run(gateway.command(subcommand).uid(65534).gid(65534).current_dir("/"));
        refused(&ended, 1, &["events.db", "ermission denied", "KPULSE_STATE_DIR"]);
    }
    let file = Gateway::new();
    let path = file.state.path().join("file");
    std::fs::write(&path, "").unwrap();
    let ended = run(file.command("run").env("KPULSE_STATE_DIR", path.join("below")));
    refused(&ended, 1, &["events.db", "KPULSE_STATE_DIR"]);
    assert_eq!(std::fs::read_dir(gateway.state.path()).unwrap().count(), before);
}

#[test]
fn a_full_disk_at_the_start_is_one_sentence_and_code_1() {
    let Some(disk) = SmallDisk::new() else {
        return skip("a_full_disk_at_the_start", "a file system cannot be mounted here (needs root)");
    };
    disk.fill();
    let gateway = Gateway::new();
    let ended = run(gateway.command("run").env("KPULSE_STATE_DIR", disk.path()));
    refused(&ended, 1, &["events.db", "full", "KPULSE_STATE_DIR"]);
    let left: Vec<_> =
        std::fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["filler"], "a failed start left files behind");
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let gateway = Gateway::new();
    let path = gateway.state.path().join("events.db");
    let text =
        "something of the user's that is not a database at all, and longer than a database's header is";
    std::fs::write(&path, text).unwrap();
    refused(&run(&mut gateway.command("run")), 1, &["events.db", "not a database"]);
    refused(&run(&mut gateway.command("events")), 1, &["events.db", "not a database"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn without_a_store_events_says_where_it_looked_and_how_to_start() {
    let gateway = Gateway::new();
    let path = gateway.state.path().join("events.db").display().to_string();
    refused(
        &run(&mut gateway.command("events")),
        1,
        &[&path, "kpulse-event-gateway run", "KPULSE_STATE_DIR"],
    );
    assert!(is_empty(gateway.state.path()), "reading made files");
}

#[test]
fn sigterm_during_the_start_ends_with_code_0() {
    let gateway = Gateway::new();
    for _ in 0..5 {
        let mut service = Service::start(&mut gateway.command("run"));
        service.until_it_catches(libc::SIGTERM);
        assert_eq!(service.stop(), Some(0), "{}", service.stderr());
        assert!(!service.stderr().contains("panicked"), "{}", service.stderr());
    }
}

#[test]
fn help_version_and_schema_are_printed() {
    let gateway = Gateway::new();
    let version = run(&mut gateway.command("--version"));
    assert_eq!(version.code, Some(0));
    assert!(version.stdout.starts_with("kpulse-event-gateway 0."), "{}", version.stdout);
    let help = run(gateway.command("run").arg("--help"));
    assert_eq!(help.code, Some(0));
    for flag in ["--web.listen-address", "--api.listen-address", "--config.file", "--path.cgroupfs"] {
        assert!(help.stdout.contains(flag), "{flag}");
    }
    let schema = run(&mut gateway.command("schema"));
    assert_eq!(schema.code, Some(0));
    assert_eq!(schema.stdout, SCHEMA);
    let schema = run(gateway.command("schema").arg("profiles"));
    assert_eq!((schema.code, schema.stdout.as_str()), (Some(0), PROFILE_SCHEMA));
}
