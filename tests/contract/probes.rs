//! A probe is one folder, and every folder has the same parts.

use super::{files, read, root};
use kpulse_exporter_ebpf::probes::ALL;
use std::collections::BTreeSet;
use std::path::PathBuf;

const HEADINGS: [&str; 6] = ["## Question", "## Hooks", "## Metrics", "## Events", "## Cost", "## Limits"];

fn sources() -> Vec<PathBuf> {
    files(&root().join("exporter-ebpf/src/probes"), ".bpf.c")
}

#[test]
fn the_registry_lists_every_folder() {
    let folders: BTreeSet<String> = sources()
        .iter()
        .map(|source| {
            source
                .parent()
                .and_then(|folder| folder.file_name())
                .expect("a folder")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert_eq!(folders, ALL.iter().map(|probe| probe.name.to_owned()).collect());
}

#[test]
fn a_folder_has_its_parts() {
    for source in sources() {
        let folder = source.parent().expect("a folder");
        let name = folder.file_name().expect("a name").to_string_lossy();
        for part in [format!("{name}.bpf.c"), format!("{name}.h"), "mod.rs".into(), "README.md".into()] {
            assert!(folder.join(&part).exists(), "{} lacks {part}", folder.display());
        }
        let probe = ALL.iter().find(|probe| probe.name == name).expect("the registry lists it");
        for event in probe.events {
            for part in ["fixtures/KIND.hex", "fixtures/KIND.json", "KIND.mapping.json"] {
                let part = part.replace("KIND", event.kind);
                assert!(folder.join(&part).exists(), "{} lacks {part}", folder.display());
            }
        }
    }
}

#[test]
fn a_readme_answers_the_same_six_things() {
    for source in sources() {
        let path = source.with_file_name("README.md");
        let text = read(&path);
        let headings: Vec<&str> = text.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(headings, HEADINGS, "{}", path.display());
        let probe = ALL.iter().find(|probe| path.parent().is_some_and(|folder| folder.ends_with(probe.name)));
        let probe = probe.expect("the registry lists it");
        for name in
            probe.metrics.iter().map(|metric| metric.name).chain(probe.events.iter().map(|event| event.kind))
        {
            assert!(text.contains(name), "{} does not tell of {name}", path.display());
        }
    }
}

#[test]
fn an_abi_header_is_plain() {
    for source in sources() {
        let name = source.file_name().expect("a name").to_string_lossy().replace(".bpf.c", ".h");
        let path = source.with_file_name(name);
        let text = read(&path);
        for include in text.lines().filter_map(|line| line.strip_prefix("#include ")) {
            assert!(
                matches!(include, "\"record.h\"" | "\"histogram.h\"" | "\"flow.h\""),
                "{}: {include}",
                path.display()
            );
        }
        let structs = text.lines().filter(|line| line.starts_with("struct ")).count();
        let asserted = text.lines().filter(|line| line.starts_with("_Static_assert(sizeof(struct ")).count();
        assert_eq!(structs, asserted, "{}: every size is asserted", path.display());
        for word in [" bool ", " int ", " long ", "enum "] {
            assert!(
                !text.lines().any(|line| line.starts_with('\t') && line.contains(word)),
                "{}: {word}",
                path.display()
            );
        }
    }
}

#[test]
fn a_record_begins_with_the_header() {
    for source in sources() {
        let name = source.file_name().expect("a name").to_string_lossy().replace(".bpf.c", ".h");
        let text = read(&source.with_file_name(name));
        let lines: Vec<&str> = text.lines().collect();
        for pair in
            lines.windows(2).filter(|pair| pair[0].starts_with("struct ") && pair[0].ends_with("_record {"))
        {
            assert!(
                pair[1].trim_start().starts_with("struct record_header header;"),
                "{}: {}",
                source.display(),
                pair[1]
            );
        }
    }
}
