//! Which types do the fields have in Elasticsearch and OpenSearch? A fragment for each kind, and the index template that
//! they make with what all documents share.
//!
//! A field has the type that its JSON Schema suggests, unless its declaration says another by `x-elasticsearch`. The
//! fragments lie beside the probes as `KIND.mapping.json`: a type that changes shows in a diff, since it would divide the
//! indices of those who have some.

use crate::schema::{self, Kind, resolve};
use kpulse_common::event::{ECS_VERSION, SCHEMA_VERSION};
use kpulse_common::profile;
use serde_json::{Map, Value, json};

/// Annotation of a field in the schema with its mapping.
const ANNOTATION: &str = "x-elasticsearch";
/// Above that of the templates that Elasticsearch itself has for `logs-*-*`.
const PRIORITY: u32 = 200;

/// What is kept in a data stream of its own, as the second part of its name.
pub const DATASETS: [&str; 3] = ["events", "profiles", "camera"];

/// The body of `PUT _index_template/kpulse-events`.
pub fn template() -> Value {
    let mut template = head("events");
    template["template"] = json!({"mappings": mappings(&schema::whole())});
    template
}

/// The body of `PUT _index_template/kpulse-profiles`.
pub fn profiles() -> Value {
    let mut template = head("profiles");
    template["template"] = json!({"mappings": mappings(&profile::schema())});
    template
}

/// The types of what every document has: all that is sure of one that is no event.
pub fn shared() -> Value {
    mappings(&kpulse_common::event::schema())
}

fn mappings(schema: &Value) -> Value {
    let mut mappings = object(schema, schema);
    // What a later version adds is kept in the document and not searched, rather than given a type by accident.
    mappings["dynamic"] = false.into();
    mappings["_meta"] = json!({"schema": SCHEMA_VERSION, "ecs": ECS_VERSION});
    mappings["dynamic_templates"] =
        json!([{"labels": {"path_match": "labels.*", "match_mapping_type": "string", "mapping": keyword()}}]);
    mappings
}

/// The index template of a dataset, but for what it gives its indices.
pub fn head(dataset: &str) -> Value {
    json!({
        "index_patterns": [format!("logs-kpulse.{dataset}-*")],
        "data_stream": {},
        "priority": PRIORITY,
    })
}

/// The part of one kind, as it lies beside its probe.
pub fn fragment(kind: &Kind) -> Value {
    let body = (kind.body)();
    object(&body, &body)
}

/// The mapping of an object, with all its fields.
fn object(root: &Value, schema: &Value) -> Value {
    let fields = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let properties: Map<String, Value> =
        fields.map(|(name, field)| (name.clone(), field_of(root, field))).collect();
    if properties.is_empty() { json!({"type": "object"}) } else { json!({ "properties": properties }) }
}

fn field_of(root: &Value, field: &Value) -> Value {
    let of_type = resolve(root, field);
    if let Some(own) = field.get(ANNOTATION).or_else(|| of_type.get(ANNOTATION)) {
        return own.clone();
    }
    let text = |key: &str| of_type.get(key).and_then(Value::as_str);
    match (text("type"), text("format")) {
        (Some("string"), Some("ip")) => json!({"type": "ip"}),
        (Some("integer"), _) => json!({"type": "long"}),
        (Some("number"), _) => json!({"type": "double"}),
        (Some("boolean"), _) => json!({"type": "boolean"}),
        // As in the store, where any field may have several values.
        (Some("array"), _) => of_type.get("items").map_or_else(keyword, |items| field_of(root, items)),
        (Some("object"), _) => object(root, of_type),
        _ => keyword(),
    }
}

/// Longer values, which the store would refuse with their document, are kept and not searched.
fn keyword() -> Value {
    json!({"type": "keyword", "ignore_above": 1024})
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn files(folder: &Path, found: &mut Vec<PathBuf>) {
        for path in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                files(&path, found);
            } else if path.to_string_lossy().ends_with(".mapping.json") {
                found.push(path);
            }
        }
    }

    #[test]
    fn the_fragment_beside_each_probe_is_the_generated_one() {
        let mut found = Vec::new();
        files(Path::new("../exporter-ebpf/src/probes"), &mut found);
        files(Path::new("src/watch"), &mut found);
        for kind in schema::all_kinds() {
            let name = format!("{}.mapping.json", kind.name);
            let at = found.iter().position(|path| path.ends_with(&name));
            let path = found.swap_remove(at.unwrap_or_else(|| panic!("no probe has {name}")));
            let generated = serde_json::to_string_pretty(&fragment(&kind)).unwrap() + "\n";
            let kept = fs::read_to_string(&path).unwrap();
            assert!(kept == generated, "{} is stale: `make reference` writes it anew", path.display());
        }
        assert_eq!(found, Vec::<PathBuf>::new(), "of no kind");
    }

    #[test]
    fn a_field_has_the_type_that_its_schema_suggests_or_the_one_it_says() {
        let own = json!({"type": "text"});
        for (schema, mapping) in [
            (json!({"type": "string", "format": "ip"}), json!({"type": "ip"})),
            (json!({"type": "integer", "format": "uint64"}), json!({"type": "long"})),
            (json!({"type": "number"}), json!({"type": "double"})),
            (json!({"type": "boolean"}), json!({"type": "boolean"})),
            (json!({"type": "array", "items": {"type": "integer"}}), json!({"type": "long"})),
            (json!({"$ref": "#/$defs/Text"}), keyword()),
            (json!({"$ref": "#/$defs/Text", ANNOTATION: own}), own.clone()),
            (json!({"type": "string", ANNOTATION: own}), own.clone()),
            (
                json!({"type": "object", "properties": {"a": {"type": "boolean"}}}),
                json!({"properties": {"a": {"type": "boolean"}}}),
            ),
            (json!({"type": "object"}), json!({"type": "object"})),
        ] {
            let root = json!({"$defs": {"Text": {"type": "string"}}});
            assert_eq!(field_of(&root, &schema), mapping, "{schema}");
        }
    }

    #[test]
    fn a_profile_is_asked_by_its_fields_and_its_stacks_are_only_kept() {
        let template = profiles();
        assert_eq!(template["index_patterns"], json!(["logs-kpulse.profiles-*"]));
        let of = |path: &str| {
            let path = path.replace('.', "/properties/");
            template
                .pointer(&format!("/template/mappings/properties/{path}"))
                .unwrap_or_else(|| panic!("no {path}"))
        };
        for (field, wanted) in [
            ("@timestamp", "date_nanos"),
            ("event.duration", "long"),
            ("service.name", "keyword"),
            ("container.id", "keyword"),
            ("kpulse.profile.samples", "long"),
            ("kpulse.profile.samples_left_out", "long"),
            ("kpulse.profile.period_ns", "long"),
            ("kpulse.profile.lost", "object"),
            ("kpulse.profile.top.function", "keyword"),
            ("kpulse.profile.top.samples", "long"),
        ] {
            assert_eq!(of(field)["type"], wanted, "{field}");
        }
        let folded = of("kpulse.profile.folded");
        assert_eq!(folded, &json!({"type": "keyword", "index": false, "doc_values": false}));
    }

    #[test]
    fn what_all_documents_share_has_the_types_that_ecs_gives_it() {
        let template = template();
        let of = |path: &str| {
            let path = path.replace('.', "/properties/");
            let field = template.pointer(&format!("/template/mappings/properties/{path}"));
            field.and_then(|field| field["type"].as_str()).unwrap_or_else(|| panic!("no {path}")).to_owned()
        };
        for (field, wanted) in [
            ("@timestamp", "date_nanos"),
            ("event.duration", "long"),
            ("event.id", "keyword"),
            ("host.os.kernel", "keyword"),
            ("process.pid", "long"),
            ("process.thread.name", "keyword"),
            ("kubernetes.pod.uid", "keyword"),
            ("labels", "object"),
            ("kpulse.packet_drop.source.ip", "ip"),
        ] {
            assert_eq!(of(field), wanted, "{field}");
        }
    }
}
