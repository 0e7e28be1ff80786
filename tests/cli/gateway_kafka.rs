//! What `forward`, `index` and `setup` say when they cannot do what they are told, and what they keep.

use super::gateway::{Gateway, refused};
use kpulse_tests::disk::SmallDisk;
use kpulse_tests::process::{Service, run};
use kpulse_tests::skip;
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
