//! METRICS.md and EVENTS.md are what the code declares, and rules and panels ask only for what it lists.

use super::{files, read, root};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What one machine may have any number of: never a label.
const UNBOUNDED: [&str; 7] = ["pid", "tid", "address", "ip", "port", "path", "command"];
/// What Prometheus itself makes.
const OF_PROMETHEUS: [&str; 1] = ["up"];

/// A line of a table of METRICS.md.
struct Row {
    name: String,
    kind: String,
    labels: Vec<String>,
    help: String,
}

fn rows(text: &str) -> Vec<Row> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.splitn(4, '|').map(str::trim).collect();
        let [name, kind, labels, help] = cells[..] else { panic!("{line} is no row") };
        let labels = labels.split(", ").filter(|label| !label.is_empty()).map(str::to_owned).collect();
        Row {
            name: name.trim_end_matches('`').to_owned(),
            kind: kind.to_owned(),
            labels,
            help: help.to_owned(),
        }
    };
    lines.map(row).collect()
}

fn reference() -> Vec<Row> {
    let rows = rows(&read(&root().join("METRICS.md")));
    assert!(rows.len() > 100, "the tables are found by their shape: {}", rows.len());
    rows
}

/// The gateway's own families, at the end of EVENTS.md.
fn gateway_reference() -> Vec<Row> {
    let text = read(&root().join("EVENTS.md"));
    let rows = rows(text.split_once("## Metrics of the gateway itself").expect("it ends with them").1);
    assert!(rows.len() > 30, "the table is found by its shape: {}", rows.len());
    rows
}

#[test]
fn the_gateway_lists_every_family_that_it_declares() {
    let listed: BTreeSet<_> = gateway_reference().into_iter().map(|row| row.name).collect();
    let declared: BTreeSet<_> = ["metrics.rs", "index/counts.rs"]
        .iter()
        .flat_map(|file| {
            let text = read(&root().join("event-gateway/src").join(file));
            let names = text.split('"').filter(|part| part.starts_with("kpulse_"));
            names.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(listed, declared);
}

#[test]
fn metrics_md_is_what_the_exporter_writes() {
    let output = Command::new(kpulse_tests::binary("kpulse-exporter")).arg("reference").output();
    let output = output.expect("the exporter runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (written, kept) = (String::from_utf8_lossy(&output.stdout), read(&root().join("METRICS.md")));
    let new = written.lines().find(|line| !kept.contains(line));
    assert!(written == kept, "METRICS.md is old, `make reference` writes it anew; for example {new:?}");
}

#[test]
fn events_md_is_what_the_gateway_writes() {
    let output = Command::new(kpulse_tests::binary("kpulse-event-gateway")).arg("reference").output();
    let output = output.expect("the gateway runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (written, kept) = (String::from_utf8_lossy(&output.stdout), read(&root().join("EVENTS.md")));
    let new = written.lines().find(|line| !kept.contains(line));
    assert!(written == kept, "EVENTS.md is old, `make reference` writes it anew; for example {new:?}");
}

#[test]
fn every_family_of_it_is_named_typed_and_told_as_prometheus_wants() {
    let mut seen = BTreeSet::new();
    for Row { name, kind, labels, help } in reference().into_iter().chain(gateway_reference()) {
        let is_ours = name.starts_with("kpulse_");
        assert!(is_ours || name.starts_with("process_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
        let is_plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
        assert!(name.chars().all(is_plain), "{name}");
        assert!(labels.iter().all(|label| !UNBOUNDED.contains(&label.as_str())), "{name}: {labels:?}");
        assert!(help.starts_with(char::is_uppercase) && help.ends_with('.'), "{name}: {help}");
        assert!(!help.contains(". "), "{name}: one sentence: {help}");
        assert!(seen.insert(name.clone()), "{name} is declared twice");
    }
}

fn rule_files() -> Vec<PathBuf> {
    let alerts = root().join("dashboards/alerts");
    files(&alerts, ".yml").into_iter().filter(|path| path.parent() == Some(&alerts)).collect()
}

/// The words of a text that can be names of metrics.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'))
}

/// Values of `KEY: value` lines.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let lines = text.lines().map(|line| line.trim_start().trim_start_matches("- "));
    lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).collect()
}

#[test]
fn rules_ask_only_for_families_that_exist() {
    let families = reference().into_iter().chain(gateway_reference());
    let kinds: BTreeMap<_, _> = families.map(|row| (row.name, row.kind)).collect();
    let texts: Vec<String> = rule_files().iter().map(|path| read(path)).collect();
    let recorded: BTreeSet<&str> = texts.iter().flat_map(|text| values(text, "record")).collect();
    let mut asked = 0;
    for text in &texts {
        for word in words(text).filter(|word| word.contains("kpulse_")) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
            let is_histogram =
                family.is_some_and(|family| kinds.get(family).is_some_and(|kind| kind == "histogram"));
            let is_plain = kinds.get(word).is_some_and(|kind| kind != "histogram");
            assert!(is_histogram || is_plain || recorded.contains(word), "no family {word}");
            asked += 1;
        }
        for word in OF_PROMETHEUS {
            asked += words(text).filter(|candidate| *candidate == word).count();
        }
    }
    assert!(asked > 30, "{asked}");
}

#[test]
fn every_alert_says_what_and_how_bad_and_has_a_test() {
    let mut alerts = 0;
    for path in rule_files() {
        let text = read(&path);
        let names = values(&text, "alert");
        for key in ["labels", "summary", "description"] {
            assert!(values(&text, key).len() >= names.len(), "{}: an alert lacks its {key}", path.display());
        }
        if names.is_empty() {
            continue;
        }
        let tests = read(&tests_of(&path));
        for name in names {
            assert!(values(&tests, "alertname").contains(&name), "{name} has no test");
            alerts += 1;
        }
    }
    assert!(alerts > 15, "{alerts}");
}

fn tests_of(rules: &Path) -> PathBuf {
    rules.with_file_name("tests").join(rules.file_name().expect("a file has a name"))
}

#[test]
fn promtool_accepts_the_rules_and_their_tests_pass() {
    let rules = rule_files();
    let tests: Vec<PathBuf> = rules.iter().map(|path| tests_of(path)).filter(|path| path.exists()).collect();
    for (what, files) in [("check", &rules), ("test", &tests)] {
        let mut promtool = Command::new("promtool");
        let Ok(output) = promtool.args([what, "rules"]).args(files).output() else {
            return kpulse_tests::skip("promtool_accepts_the_rules", "promtool is not installed");
        };
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "promtool {what} rules: {}", String::from_utf8_lossy(&said));
    }
}
