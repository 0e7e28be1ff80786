//! The fragments of the Elasticsearch mapping beside the probes: whole, true to the schema and to real events, and of one
//! mind about each name.

use super::{files, read, root};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

/// Types that both Elasticsearch and OpenSearch have without extensions.
const TYPES: [&str; 9] =
    ["boolean", "date", "date_nanos", "double", "ip", "keyword", "long", "object", "text"];

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("it is JSON")
}

fn found(suffix: &str) -> BTreeMap<String, PathBuf> {
    let folders = ["exporter-ebpf/src/probes", "event-gateway/src/watch"];
    let paths = folders.iter().flat_map(|folder| files(&root().join(folder), suffix));
    let name = |path: &PathBuf| {
        let name = path.file_name().expect("a file has a name").to_string_lossy();
        name.strip_suffix(suffix).expect("it ends so").to_owned()
    };
    paths.map(|path| (name(&path), path)).collect()
}

/// The fragment of each kind.
fn fragments() -> BTreeMap<String, Value> {
    found(".mapping.json").into_iter().map(|(kind, path)| (kind, json(&read(&path)))).collect()
}

fn schema() -> Value {
    json(&read(&root().join("event-gateway/schema/event.schema.json")))
}

/// What each kind has of its own; what they share below `kpulse` is no object, or a type with a name.
fn kinds(schema: &Value) -> BTreeMap<String, &Value> {
    let fields = schema["$defs"]["Kpulse"]["properties"].as_object().expect("the type has fields");
    let own = fields.iter().filter(|(_, field)| field["type"] == "object");
    own.map(|(kind, body)| (kind.clone(), body)).collect()
}

/// The fields of an object and of those in it, by path, as a schema or a mapping names them.
fn leaves<'v>(root: &'v Value, object: &'v Value, parent: &str, out: &mut BTreeMap<String, &'v Value>) {
    for (name, field) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if parent.is_empty() { name.clone() } else { format!("{parent}.{name}") };
        let place = field.get("$ref").and_then(Value::as_str).map(|it| it.trim_start_matches('#'));
        let field = place.map_or(field, |place| root.pointer(place).expect("what is referred to is there"));
        if field.get("properties").is_some() {
            leaves(root, field, &path, out);
        } else {
            out.insert(path, field);
        }
    }
}

fn leaves_of(object: &Value) -> BTreeMap<String, &Value> {
    let mut out = BTreeMap::new();
    leaves(object, object, "", &mut out);
    out
}

fn type_of(field: &Value) -> &str {
    let name = field["type"].as_str().unwrap_or_else(|| panic!("{field} has no type"));
    assert!(TYPES.contains(&name), "{name} is a type that not every store has");
    name
}

/// Whether the store can index a value of a document as this type, without guessing.
fn fits(kind: &str, value: &Value) -> bool {
    match (kind, value) {
        (_, Value::Array(items)) => items.iter().all(|item| fits(kind, item)),
        ("keyword" | "text", Value::String(_))
        | ("boolean", Value::Bool(_))
        | ("double", Value::Number(_)) => true,
        ("long", Value::Number(number)) => number.is_i64(),
        ("ip", Value::String(text)) => text.parse::<IpAddr>().is_ok(),
        ("object", Value::Object(fields)) => fields.is_empty(),
        _ => false,
    }
}

/// Every value of a document has a field, and every field that it has takes it.
fn assert_takes(mapping: &Value, document: &Value, path: &str) {
    let Some(object) = document.as_object().filter(|_| mapping.get("type").is_none()) else {
        let kind = type_of(mapping);
        return assert!(fits(kind, document), "{path}: {document} is no {kind}");
    };
    for (name, value) in object {
        let field = mapping["properties"].get(name);
        assert_takes(
            field.unwrap_or_else(|| panic!("no field {path}.{name}")),
            value,
            &format!("{path}.{name}"),
        );
    }
}

#[test]
fn every_field_of_every_kind_has_a_type_and_no_other_has() {
    let (schema, fragments) = (schema(), fragments());
    let kinds = kinds(&schema);
    assert!(kinds.keys().eq(fragments.keys()), "{:?} and {:?}", kinds.keys(), fragments.keys());
    let mut checked = 0;
    for (kind, body) in kinds {
        let (fields, mapped) = (leaves_of(body), leaves_of(&fragments[&kind]));
        assert!(fields.keys().eq(mapped.keys()), "{kind}: {:?} and {:?}", fields.keys(), mapped.keys());
        checked += mapped.values().filter(|field| !type_of(field).is_empty()).count();
    }
    assert!(checked > 80, "{checked}");
}

#[test]
fn a_name_has_one_type_in_all_kinds() {
    let fragments = fragments();
    let mut types: BTreeMap<String, (&str, &String)> = BTreeMap::new();
    for (kind, fragment) in &fragments {
        for (path, field) in leaves_of(fragment) {
            let here = (type_of(field), kind);
            let there = types.entry(path.clone()).or_insert(here);
            assert_eq!(here.0, there.0, "{path} of {kind} and of {}", there.1);
        }
    }
}

#[test]
fn the_event_in_every_fixture_fits_its_fragment() {
    let fixtures = found(".json");
    for (kind, fragment) in fragments() {
        assert_takes(&fragment, &json(&read(&fixtures[&kind])), &kind);
    }
}

#[test]
fn the_gateway_composes_all_fragments_into_one_template() {
    let output = Command::new(kpulse_tests::binary("kpulse-event-gateway")).arg("mapping").output();
    let output = output.expect("the gateway runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let template = json(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(template["data_stream"], Value::Object(Map::new()));
    let mappings = &template["template"]["mappings"];
    assert_eq!(mappings["dynamic"], false, "a field gets no type by accident");
    let own = &mappings["properties"]["kpulse"]["properties"];
    let fragments = fragments();
    for (kind, fragment) in &fragments {
        assert_eq!(&own[kind], fragment, "{kind}");
    }
    let schema = schema();
    let (fields, mapped) = (leaves_of(&schema), leaves_of(mappings));
    assert!(fields.keys().eq(mapped.keys()), "{:?} and {:?}", fields.keys(), mapped.keys());
    assert!(mapped.values().all(|field| !type_of(field).is_empty()));
    assert!(mapped.len() > 120, "{}", mapped.len());
}
