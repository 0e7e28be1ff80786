//! What `forward`, `index` and `setup` say when they cannot do what they are told, and what they keep.

use super::gateway::{Gateway, Running, refused};
use kpulse_tests::disk::SmallDisk;
use kpulse_tests::process::{Service, run};
use kpulse_tests::{http, skip};
use std::path::PathBuf;
use std::process::Command;

/// Nobody listens at port 1.
const AWAY: (&str, &str) = ("KAFKA__BROKERS", "127.0.0.1:1");

type Variables = &'static [(&'static str, &'static str)];

fn command(gateway: &Gateway, subcommand: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = gateway.command(subcommand);
    for (key, value) in variables {
        command.env(format!("KPULSE_GATEWAY__{key}"), value);
    }
    command
}

/// A file with some events.
fn events(gateway: &Gateway, count: usize) -> PathBuf {
    let line = |number: usize| {
        format!(
            r#"{{"@timestamp":"2026-11-21T10:00:00Z","ecs":{{"version":"8.17"}},"event":{{"id":"{number}","kind":"event","module":"kpulse","dataset":"kpulse.events","action":"x"}},"host":{{}},"kpulse":{{"schema":1,"probe":"x","suppressed":0,"x":{{}}}}}}"#
        )
    };
    let path = gateway.state.path().join("events.ndjson");
    std::fs::write(&path, (0..count).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    path
}

#[test]
fn a_kafka_or_elasticsearch_that_cannot_be_used_is_one_sentence_and_code_2() {
    let cases: &[(&str, Variables, &[&str])] = &[
        ("forward", &[], &["no Kafka", "KPULSE_GATEWAY__KAFKA__BROKERS"]),
        ("index", &[AWAY], &["no Elasticsearch", "KPULSE_GATEWAY__ELASTICSEARCH__URL"]),
        ("index", &[("ELASTICSEARCH__URL", "http://127.0.0.1:1")], &["no Kafka"]),
        ("setup", &[], &["nothing to set up", "kafka.brokers"]),
        ("replay-dead-letters", &[], &["no Kafka"]),
        ("index", &[AWAY, ("KAFKA__TOPIC", "")], &["kafka.topic", "\"\""]),
        ("forward", &[AWAY, ("KAFKA__TOPIC", "a b")], &["kafka.topic", "\"a b\""]),
        ("forward", &[AWAY, ("KAFKA__PROPERTIES__ACKS", "0")], &["kafka.properties.acks", "cannot be set"]),
        (
            "forward",
            &[AWAY, ("KAFKA__PROPERTIES__NO_SUCH", "1")],
            &["kafka.properties.no.such", "librdkafka"],
        ),
        (
            "index",
            &[AWAY, ("ELASTICSEARCH__URL", "elsewhere:9200")],
            &["elasticsearch.url", "https://host:9200"],
        ),
        ("forward", &[AWAY, ("OUTPUT__SPOOL__MAX_BYTES", "1")], &["output.spool.max_bytes", "1048576"]),
    ];
    for (subcommand, variables, parts) in cases {
        let gateway = Gateway::new();
        refused(&run(&mut command(&gateway, subcommand, variables)), 2, parts);
    }
}

#[test]
fn a_certificate_that_cannot_be_read_is_one_sentence_and_code_1() {
    let gateway = Gateway::new();
    let url = ("ELASTICSEARCH__URL", "https://127.0.0.1:1");
    let ca = gateway.state.path().join("ca.pem");
    std::fs::write(&ca, "no certificate").unwrap();
    let path = ca.display().to_string();
    let ended = run(&mut command(&gateway, "index", &[AWAY, url, ("ELASTICSEARCH__CA_FILE", &path)]));
    refused(&ended, 1, &[&path, "certificate"]);
    let ended =
        run(&mut command(&gateway, "index", &[AWAY, url, ("ELASTICSEARCH__API_KEY_FILE", "/nonexistent")]));
    refused(&ended, 1, &["/nonexistent", "No such file"]);
}

#[test]
fn what_kafka_did_not_take_is_there_at_the_next_start() {
    let gateway = Gateway::new();
    let file = events(&gateway, 100);
    let mut forward = Service::start(command(&gateway, "forward", &[AWAY]).arg("--input").arg(&file));
    forward.line("Kafka cannot be used");
    assert_eq!(forward.stop(), Some(0), "{}", forward.stderr());
    let empty = gateway.state.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let mut again = command(&gateway, "forward", &[AWAY]);
    again
        .arg("--input")
        .arg(&empty)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = again.spawn().unwrap();
    std::io::Read::read(child.stderr.as_mut().unwrap(), &mut [0]).unwrap();
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: kill has no memory preconditions; the child is not reaped yet, so the pid is ours.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "0 events sent, 100 wait in the spool, 0 dropped\n");
}

#[test]
fn a_full_disk_ends_the_sending_of_a_file_and_spares_the_spool() {
    let Some(disk) = SmallDisk::new() else {
        return skip("a_full_disk_ends_the_sending", "a file system cannot be mounted here (needs root)");
    };
    let gateway = Gateway::new();
    let file = events(&gateway, 20_000);
    let mut forward = command(&gateway, "forward", &[AWAY]);
    let ended = run(forward.env("KPULSE_STATE_DIR", disk.path()).arg("--input").arg(&file));
    refused(&ended, 1, &["spool.db", "full"]);
}

const PROFILE: &str = r#"{"@timestamp":"2026-11-21T10:00:00Z","ecs":{"version":"8.17"},"event":{"id":"a","kind":"metric","module":"kpulse","dataset":"kpulse.profiles","action":"cpu_profile"},"host":{},"service":{"name":"x"},"kpulse":{"schema":1,"probe":"x","profile":{"period_ns":1,"samples":1,"samples_left_out":0,"folded":"t;a 1\n"}}}"#;

fn post(api: &str, kind: &str, body: &str) -> (u16, String) {
    post_of(api, kind, body.len(), body)
}

/// With the length that is said, whatever it is.
fn post_of(api: &str, kind: &str, length: usize, body: &str) -> (u16, String) {
    let headers = format!("Content-Type: {kind}\r\nContent-Length: {length}\r\n");
    let answer = http::post(api, "/api/v1/profiles", &headers, body);
    (answer.status, answer.body)
}

#[test]
fn forward_takes_profiles_and_says_what_is_none() {
    const NDJSON: &str = "application/x-ndjson";
    let gateway = Gateway::new();
    let mut forward = Running::start(&mut command(&gateway, "forward", &[AWAY]));
    assert_eq!(post(&forward.api, NDJSON, PROFILE), (200, "1 profiles are taken.\n".to_owned()));
    for (kind, length, body, status, word) in [
        (NDJSON, 2, "{}", 400, "Line 1 cannot be taken"),
        ("text/plain", PROFILE.len(), PROFILE, 415, "application/x-ndjson"),
        (NDJSON, (2 << 20) + 1, "", 413, "2097152"),
    ] {
        let (answered, said) = post_of(&forward.api, kind, length, body);
        assert!(answered == status && said.contains(word) && said.ends_with(".\n"), "{answered} {said}");
    }
    assert_eq!(http::get(&forward.api, "/api/v1/profiles", "").status, 405);
    let metrics = forward.metrics();
    for series in
        ["kpulse_profiles_taken_total 1\n", "kpulse_profiles_refused_total{reason=\"undecodable\"} 1\n"]
    {
        assert!(metrics.contains(series), "{series} is not in {metrics}");
    }
    assert_eq!(forward.service.stop(), Some(0), "{}", forward.service.stderr());
}

#[test]
fn forward_offers_no_address_unless_it_is_given_one_of_this_machine() {
    let gateway = Gateway::new();
    let mut forward = Service::start(&mut command(&gateway, "forward", &[AWAY, ("API__LISTEN_ADDRESS", "")]));
    let listening = forward.line("message=listening");
    assert!(!listening.contains(" api="), "{listening}");
    assert_eq!(forward.stop(), Some(0), "{}", forward.stderr());
    let refuses = |arguments: &[&str], code, parts: &[&str]| {
        refused(&run(command(&gateway, "forward", &[AWAY]).args(arguments)), code, parts);
    };
    refuses(&["--api.listen-address=0.0.0.0:0"], 2, &["0.0.0.0:0", "not a loopback address"]);
    refuses(&["--api.listen-address=127.0.0.1:0", "--input=x"], 2, &["--api.listen-address", "--input"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flag = format!("--api.listen-address={address}");
    refuses(&[&flag], 1, &[&address, "another process has this port", "--api.listen-address"]);
}

#[test]
fn a_gateway_with_a_store_of_its_own_says_where_profiles_are() {
    let gateway = Gateway::new();
    let mut running = Running::start(&mut gateway.command("run"));
    let (status, said) = post(&running.api, "application/x-ndjson", PROFILE);
    assert!(status == 404 && said.contains("forward") && said.contains("http://localhost:10852/"), "{said}");
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}
