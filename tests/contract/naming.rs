//! Names of metrics, events and maps follow their field's conventions.

use super::{files, read, root};
use kpulse_common::metric::{Label, MetricDef, MetricKind};
use kpulse_exporter_ebpf::probes;
use std::collections::BTreeSet;

/// What one machine may have any number of: never a label.
const UNBOUNDED: [&str; 7] = ["pid", "tid", "address", "ip", "port", "path", "command"];
/// The kernel keeps 15 characters of a map's name; bpftool shows no more.
const MAP_NAME_MAX: usize = 15;

fn metrics() -> impl Iterator<Item = &'static MetricDef> {
    probes::ALL.iter().flat_map(|probe| probe.metrics)
}

#[test]
fn metrics_are_named_as_prometheus_wants() {
    for metric in metrics() {
        let name = metric.name;
        assert!(name.starts_with("kpulse_"), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == MetricKind::Counter, "{name}");
        assert!(metric.kind != MetricKind::Histogram || name.ends_with("_seconds"), "{name}");
        assert!(
            name.chars()
                .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_'),
            "{name}"
        );
    }
}

#[test]
fn help_is_one_sentence() {
    for metric in metrics() {
        let help = metric.help;
        assert!(
            help.starts_with(char::is_uppercase) && help.ends_with('.') && !help.contains(". "),
            "{}: {help}",
            metric.name
        );
    }
    for event in probes::ALL.iter().flat_map(|probe| probe.events) {
        assert!(event.help.ends_with('.') && !event.help.contains(". "), "{}: {}", event.kind, event.help);
    }
}

#[test]
fn labels_are_bounded() {
    for metric in metrics() {
        for label in metric.labels {
            assert!(
                !matches!(label, Label::Named(name) if UNBOUNDED.contains(name)),
                "{}: {label:?}",
                metric.name
            );
        }
    }
}

#[test]
fn no_metric_and_no_event_is_declared_twice() {
    let mut seen = BTreeSet::new();
    for name in metrics().map(|metric| metric.name) {
        assert!(seen.insert(name), "{name}");
    }
    for kind in probes::ALL.iter().flat_map(|probe| probe.events).map(|event| event.kind) {
        assert!(seen.insert(kind), "{kind}");
    }
}

#[test]
fn the_kernel_keeps_every_map_name_whole() {
    let mut checked = 0;
    for source in files(&root().join("exporter-ebpf"), ".bpf.c")
        .iter()
        .chain(&files(&root().join("exporter-ebpf/include"), ".h"))
    {
        for line in read(source).lines() {
            let Some(name) = line.strip_suffix(" SEC(\".maps\");").and_then(|line| line.strip_prefix("} "))
            else {
                continue;
            };
            assert!(name.len() <= MAP_NAME_MAX, "{}: {name}", source.display());
            checked += 1;
        }
    }
    assert!(checked > 10, "the maps' declarations are found by their shape");
}
