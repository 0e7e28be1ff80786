//! Who may know whom.

use super::{files, read, root};
use kpulse_exporter_ebpf::probes;

/// Crate folders, and dependencies that each must not have.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    ("common", &["aya", "rusqlite", "kpulse-exporter-ebpf", "kpulse-symbolize", "blazesym"]),
    ("exporter-ebpf", &["rusqlite", "kpulse-symbolize", "blazesym"]),
    ("exporter", &["aya", "rusqlite", "kpulse-symbolize", "blazesym"]),
    ("symbolize", &["aya", "rusqlite", "kpulse-exporter-ebpf"]),
    ("event-gateway", &["aya"]),
    ("profiler", &["aya"]),
];

const SOURCES: [&str; 6] =
    ["common/src", "exporter-ebpf/src", "exporter/src", "event-gateway/src", "profiler/src", "symbolize/src"];

#[test]
fn crates_know_only_what_they_may() {
    for (folder, forbidden) in FORBIDDEN {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        for name in forbidden {
            let depends = manifest.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(name));
            assert!(!depends, "{folder} depends on {name}");
        }
    }
}

#[test]
fn exporter_and_gateway_name_no_probe() {
    for folder in ["exporter/src", "event-gateway/src"] {
        for path in files(&root().join(folder), ".rs") {
            let text = read(&path);
            // What tests provoke they may name.
            let product = text.split("#[cfg(test)]").next().expect("split gives at least one part");
            if path.to_string_lossy().ends_with("tests.rs") {
                continue;
            }
            // Files of /proc use the kernel's words too, and probes are named after those.
            if path.starts_with(root().join("exporter/src/collectors")) {
                continue;
            }
            for probe in probes::ALL {
                // By itself, as some are words of the language: receive, transmit.
                let names_it = [format!("\"{}\"", probe.name), format!("::{}", probe.name)];
                assert!(
                    !names_it.iter().any(|name| product.contains(name)),
                    "{} names {}",
                    path.display(),
                    probe.name
                );
            }
        }
    }
}

#[test]
fn kernel_versions_are_compared_nowhere() {
    for folder in SOURCES {
        for path in files(&root().join(folder), ".rs") {
            assert!(!read(&path).contains("KernelVersion"), "{}", path.display());
        }
    }
}

#[test]
fn every_unsafe_block_says_why_it_is_safe() {
    for folder in SOURCES {
        for path in files(&root().join(folder), ".rs") {
            let text = read(&path);
            let lines: Vec<&str> = text.lines().collect();
            for (index, _) in lines
                .iter()
                .enumerate()
                .filter(|(_, line)| line.contains("unsafe {") || line.contains("unsafe impl"))
            {
                let above = &lines[index.saturating_sub(6)..index];
                assert!(
                    above.iter().any(|line| line.contains("// SAFETY:")),
                    "{}:{}",
                    path.display(),
                    index + 1
                );
            }
        }
    }
}
