//! A profile for speedscope: one list of stacks for each thread name of each process, of which the busiest comes first.

use super::Profile;
use crate::names::Numbered;
use serde::Serialize;
use std::collections::HashMap;

const SCHEMA: &str = "https://www.speedscope.app/file-format-schema.json";

/// The file, as speedscope's `file-format-spec.ts` has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: &'static str,
    name: String,
    active_profile_index: usize,
    shared: Shared<'a>,
    profiles: Vec<Sampled>,
}

#[derive(Serialize)]
struct Shared<'a> {
    frames: Vec<Frame<'a>>,
}

#[derive(Serialize)]
struct Frame<'a> {
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sampled {
    r#type: &'static str,
    name: String,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

/// The whole profile; a weight is the CPU time of a stack.
pub fn document<'a>(profile: &'a Profile<'_>) -> Document<'a> {
    let nanoseconds = profile.period.as_nanos() as u64;
    let (mut frames, mut profiles, mut places) = (<Numbered<_>>::default(), Vec::new(), HashMap::new());
    for (key, count) in profile.sorted() {
        let place = *places.entry((key.pid, &key.process, &key.thread)).or_insert_with(|| {
            let name = format!("{} ({}) {}", key.process, key.pid, key.thread);
            let (samples, weights) = (Vec::new(), Vec::new());
            let (r#type, unit) = ("sampled", "nanoseconds");
            profiles.push(Sampled { r#type, name, unit, start_value: 0, end_value: 0, samples, weights });
            profiles.len() - 1
        });
        let thread = &mut profiles[place];
        thread.samples.push(key.stack.iter().map(|frame| frames.number(&**frame)).collect());
        thread.weights.push(count * nanoseconds);
        thread.end_value += count * nanoseconds;
    }
    profiles.sort_by_key(|thread| std::cmp::Reverse(thread.end_value));
    Document {
        schema: SCHEMA,
        exporter: concat!("kpulse-profiler ", env!("CARGO_PKG_VERSION")),
        name: profile.title(),
        active_profile_index: 0,
        shared: Shared { frames: frames.values.into_iter().map(|name| Frame { name }).collect() },
        profiles,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::{check, selection};
    use serde_json::{Value, json};

    /// What speedscope's format says of a file with sampled profiles.
    fn schema() -> Value {
        let number = json!({ "type": "number" });
        let text = json!({ "type": "string" });
        json!({
            "type": "object",
            "required": ["$schema", "shared", "profiles"],
            "additionalProperties": false,
            "properties": {
                "$schema": { "const": "https://www.speedscope.app/file-format-schema.json" },
                "exporter": text, "name": text, "activeProfileIndex": number,
                "shared": {
                    "type": "object", "required": ["frames"], "additionalProperties": false,
                    "properties": { "frames": { "type": "array", "items": {
                        "type": "object", "required": ["name"], "additionalProperties": false,
                        "properties": { "name": text, "file": text, "line": number, "col": number },
                    } } },
                },
                "profiles": { "type": "array", "items": {
                    "type": "object", "additionalProperties": false,
                    "required": ["type", "name", "unit", "startValue", "endValue", "samples", "weights"],
                    "properties": {
                        "type": { "const": "sampled" },
                        "name": text, "startValue": number, "endValue": number,
                        "unit": { "enum": ["bytes", "microseconds", "milliseconds", "nanoseconds", "none", "seconds"] },
                        "samples": { "type": "array", "items": { "type": "array", "items": number } },
                        "weights": { "type": "array", "items": number },
                    },
                } },
            },
        })
    }

    #[test]
    fn a_profile_is_what_the_format_says_and_adds_up() {
        let selection = selection();
        check(&selection, |profile| {
            let read = serde_json::to_value(document(profile)).unwrap();
            let schema = jsonschema::validator_for(&schema()).unwrap();
            let errors: Vec<String> = schema.iter_errors(&read).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{errors:?}");
            let threads = read["profiles"].as_array().unwrap();
            let names: Vec<&str> = threads.iter().filter_map(|thread| thread["name"].as_str()).collect();
            assert_eq!(names, ["burn (7) worker", "burn (7) main", "kthread (8) other"]);
            for thread in threads {
                let weights: Vec<u64> =
                    thread["weights"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
                assert_eq!(thread["samples"].as_array().unwrap().len(), weights.len());
                assert_eq!(thread["endValue"], weights.iter().sum::<u64>());
            }
            let frame =
                |index: &Value| read["shared"]["frames"][index.as_u64().unwrap() as usize]["name"].clone();
            let stack: Vec<Value> = threads[0]["samples"][0].as_array().unwrap().iter().map(frame).collect();
            assert_eq!(stack, ["main", "hot \"a\"", "read_[k]"]);
        });
    }
}
