//! EVENTS.md: every kind of event with what it takes to be told, and the fields that all documents have, written from
//! the declarations; and the gateway's own metrics.

use crate::config::{event_probes, is_default};
use crate::schema::{self, resolve};
use crate::watch::{self, Watch};
use crate::{index, metrics};
use anyhow::Result;
use kpulse_common::thresholds::Thresholds;
use kpulse_common::{event, profile};
use kpulse_exporter_ebpf::hook::Hook;
use kpulse_exporter_ebpf::{Probe, Want};
use serde_json::{Map, Value};
use std::io::Write;

const HEAD: &str = "\
# Events of kpulse-event-gateway

Written by `make reference` from the declarations in the code; do not edit.

An event is one JSON document. What a kind tells beyond the fields that all have stands in `kpulse.KIND`. What is not known
is left out, never null and never zero. `event-gateway/schema/event.schema.json` is the JSON Schema; profiles, which are other
documents in a topic and a data stream of their own, have `profile.schema.json`.

## Kinds

A threshold is a key below `thresholds:` of the configuration, with its default. Each belongs to a probe: a kind whose probe
has none is told each time, and so is a failure. In front of all stands the rate limit, `thresholds.rate_limit`. A hook in
parentheses is one that not every kernel has. A probe whose hook is a file or a socket needs no BPF. One that is off by default
is switched on by its name: `probes: {NAME: true}`.

| kind | what | probe | thresholds of the probe | hooks |
|---|---|---|---|---|
";

const FIELDS: &str = "
## Fields that all documents have

| field | type | what |
|---|---|---|
";

const OWN: &str = "
## Fields of each kind

Below `kpulse.KIND`. A kind that is not here has none.
";

const PROFILES: &str = "
## Fields of profiles

A document for each window and service that kpulse-profiler sends (`upload.form: gateway`): a container, or a program outside
of containers.

| field | type | what |
|---|---|---|
";

const METRICS: &str = "
## Metrics of the gateway itself

At `/metrics` of `run`, `forward` and `index`, beside `kpulse_build_info`, `process_*` and what METRICS.md says of the probes
themselves.

| metric | type | labels | what |
|---|---|---|---|
";

const ROWS: &str = "| field | type | what |\n|---|---|---|\n";

/// Deepest field of a document; a schema that refers to itself would have no end.
const DEPTH_MAX: usize = 8;

/// Writes the whole page.
pub fn write(mut out: impl Write) -> Result<()> {
    write!(out, "{HEAD}")?;
    let thresholds = serde_json::to_value(Thresholds::default())?;
    let mut row = |kind: &str, help: &str, probe: &str, hooks: &str| {
        let note = if is_default(probe) { "" } else { " (off by default)" };
        writeln!(out, "| `{kind}` | {help} | `{probe}`{note} | {} | {hooks} |", limits(&thresholds, probe))
    };
    for probe in event_probes() {
        for event in probe.events {
            row(event.kind, event.help, probe.name, &hooks(probe))?;
        }
    }
    for Watch { kind, hook, hook_kind, .. } in watch::ALL {
        row(kind.name, kind.help, kind.name, &format!("{hook_kind} `{hook}`"))?;
    }
    write!(out, "{FIELDS}")?;
    table(&mut out, &event::schema(), "")?;
    write!(out, "{OWN}")?;
    for kind in schema::all_kinds() {
        let body = (kind.body)();
        if body.get("properties").is_some() {
            write!(out, "\n### {}\n\n{ROWS}", kind.name)?;
            table(&mut out, &body, "")?;
        }
    }
    write!(out, "{PROFILES}")?;
    table(&mut out, &profile::schema(), "")?;
    write!(out, "{METRICS}")?;
    let mut families: Vec<_> = metrics::FAMILIES.iter().chain(index::FAMILIES).collect();
    families.sort_by_key(|family| family.name);
    for family in families {
        let labels = family.label_names().collect::<Vec<_>>().join(", ");
        let kind = format!("{:?}", family.kind).to_lowercase();
        writeln!(out, "| `{}` | {kind} | {labels} | {} |", family.name, family.help)?;
    }
    Ok(())
}

/// A row for each field of a schema.
fn table(out: &mut impl Write, schema: &Value, parent: &str) -> Result<()> {
    let mut rows = Vec::new();
    fields(schema, schema, parent, DEPTH_MAX, &mut rows);
    rows.sort();
    for [name, kind, what] in rows {
        writeln!(out, "| `{name}` | {kind} | {what} |")?;
    }
    Ok(())
}

fn limits(thresholds: &Value, probe: &str) -> String {
    let Some(limits) = thresholds.get(probe).and_then(Value::as_object) else { return "–".to_owned() };
    let one = |(name, value): (&String, &Value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("`{probe}.{name}` {}", if value.is_empty() { "(empty)" } else { &value })
    };
    limits.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn hooks(probe: &Probe) -> String {
    let name = |hook: &Hook| {
        if hook.is_optional { format!("(`{}`)", hook.name) } else { format!("`{}`", hook.name) }
    };
    probe.hooks.iter().filter(|hook| hook.serves(Want::Events)).map(name).collect::<Vec<_>>().join(", ")
}

/// The fields of an object and of those in it, each with its full name, its type and its meaning.
fn fields(root: &Value, schema: &Value, parent: &str, depth: usize, rows: &mut Vec<[String; 3]>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    for (name, field) in properties {
        let path = if parent.is_empty() { name.clone() } else { format!("{parent}.{name}") };
        let of_type = resolve(root, field);
        let what = [field, of_type].into_iter().find_map(|it| it.get("description")?.as_str());
        if depth > 0 && of_type.get("properties").is_some() {
            fields(root, of_type, &path, depth - 1, rows);
        } else {
            let text = what.unwrap_or_default().replace('\n', " ").replace('|', "\\|");
            rows.push([path, kind(of_type), text]);
        }
    }
}

fn kind(schema: &Value) -> String {
    let name = schema.get("type").and_then(Value::as_str).unwrap_or("any");
    let empty = Map::new();
    let of = |key: &str| schema.get(key).and_then(Value::as_object).unwrap_or(&empty).get("type");
    match (name, of("items").and_then(Value::as_str), of("additionalProperties").and_then(Value::as_str)) {
        ("array", Some(item), _) => format!("array of {item}"),
        ("object", _, Some(value)) => format!("{value} by name"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_every_field_has_a_row_that_says_what_it_is() {
        let mut page = Vec::new();
        write(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        for kind in schema::all_kinds() {
            assert!(page.contains(&format!("\n| `{}` |", kind.name)), "{kind:?}");
        }
        assert!(page.contains("`runqueue_latency.min_wait` 50ms"), "{page}");
        assert!(page.contains("| `receive` (off by default) |"), "{page}");
        let fields = page.split_once("## Fields").unwrap().1.split_once(METRICS).unwrap().0;
        let fields = fields.lines().filter(|line| line.starts_with("| `"));
        let mut count = 0;
        for line in fields {
            let cells: Vec<&str> = line.split(" | ").collect();
            assert!(cells.len() == 3 && cells[1] != "any" && cells[2].len() > 5, "{line}");
            count += 1;
        }
        assert!(
            page.contains("### packet_drop\n") && page.contains("| `destination.ip` | string |"),
            "{page}"
        );
        assert!(page.contains("| `kpulse.profile.samples` | integer |"), "{page}");
        assert!(count > 100 && page.contains("| `process.thread.name` | string |"), "{page}");
    }
}
