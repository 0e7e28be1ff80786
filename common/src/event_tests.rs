use super::*;
use serde_json::json;

/// The document that the documentation shows.
fn documented() -> Value {
    json!({
        "@timestamp": "2026-11-21T10:00:00.123456789Z",
        "ecs": {"version": "8.17"},
        "event": {"id": "019aa5f1-0000-7000-8000-000000000000", "kind": "event", "module": "kpulse",
            "dataset": "kpulse.events", "action": "packet_drop", "duration": 12345678},
        "host": {"name": "node-1", "id": "3d1219c7c4c5404aaa1f6d2a48adfda4", "os": {"kernel": "6.18.44"}},
        "process": {"pid": 1, "name": "nginx", "executable": "/usr/sbin/nginx", "command_line": "nginx -g daemon off;",
            "thread": {"id": 2, "name": "nginx"}},
        "container": {"id": "3f4d", "name": "web", "runtime": "containerd", "image": {"name": "nginx:1"}},
        "orchestrator": {"type": "kubernetes", "namespace": "shop", "cluster": {"name": "eu"}},
        "kubernetes": {"pod": {"name": "web-0", "uid": "8dbc5577-d0e2-4706-8787-57d52c03ddf2"},
            "container": {"name": "web"}, "node": {"name": "node-1"}},
        "labels": {"region": "eu-1"},
        "kpulse": {"schema": 1, "probe": "packet_drop", "cpu": 0, "cgroup": {"id": 1, "hierarchy": "unified", "path": "/"},
            "value_ns": 1, "threshold_ns": 1, "suppressed": 0, "stack": {"kernel": ["kfree_skb"], "user": ["main"]},
            "packet_drop": {"reason": "NO_SOCKET", "source_port": 1}}
    })
}

fn smallest(time: SystemTime) -> Event {
    let kpulse = Kpulse {
        schema: SCHEMA_VERSION,
        probe: "packet_drop".to_owned(),
        cpu: None,
        cgroup: None,
        value_ns: None,
        threshold_ns: None,
        suppressed: 0,
        stack: None,
        body: BTreeMap::from([("packet_drop".to_owned(), Map::new())]),
    };
    Event::new(time, Host::default(), "packet_drop", kpulse)
}

#[test]
fn the_documented_document_survives_a_round_trip() {
    let event: Event = serde_json::from_value(documented()).unwrap();
    assert_eq!(event.kpulse.body.keys().collect::<Vec<_>>(), ["packet_drop"]);
    assert_eq!(serde_json::to_value(&event).unwrap(), documented());
}

/// The place of each value in a document.
fn places(value: &Value, place: String, found: &mut Vec<String>) {
    let inner: Vec<_> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    inner.into_iter().for_each(|(name, value)| places(value, format!("{place}/{name}"), found));
    found.push(place);
}

#[test]
fn an_event_that_is_only_looked_at_is_refused_where_one_that_is_kept_is() {
    let mut found = Vec::new();
    places(&documented(), String::new(), &mut found);
    let mut refused = 0;
    for place in &found {
        for other in [json!(7), json!("\u{e9}\""), json!([7]), json!(["x"]), json!({"x": 7}), Value::Null] {
            let mut document = documented();
            *document.pointer_mut(place).unwrap() = other;
            let text = document.to_string();
            let kept = serde_json::from_str::<Event>(&text).ok().map(|event| event.event.id);
            let seen = serde_json::from_str::<Event<Text<'_>, AnyObject>>(&text).ok();
            refused += usize::from(kept.is_none());
            assert_eq!(seen.map(|event| event.event.id.0.into_owned()), kept, "{text}");
        }
    }
    assert!(refused > 2 * found.len(), "{refused} of {} places", found.len());
}

#[test]
fn what_is_not_known_is_left_out() {
    let document = serde_json::to_value(smallest(SystemTime::UNIX_EPOCH)).unwrap();
    let id = document["event"]["id"].clone();
    let expected = json!({
        "@timestamp": "1970-01-01T00:00:00.000000000Z",
        "ecs": {"version": "8.17"},
        "event": {"id": id, "kind": "event", "module": "kpulse", "dataset": "kpulse.events", "action": "packet_drop"},
        "host": {},
        "kpulse": {"schema": 1, "probe": "packet_drop", "suppressed": 0, "packet_drop": {}}
    });
    assert_eq!(document, expected);
}

#[test]
fn ids_are_unique_and_sort_by_the_events_own_time() {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_255_200_123);
    let id = |time| smallest(time).event.id;
    assert_ne!(id(time), id(time));
    assert!(id(time) < id(time + Duration::from_millis(1)));
    let parsed = Uuid::parse_str(&id(time)).unwrap();
    assert_eq!(parsed.get_version_num(), 7);
    assert_eq!(parsed.get_timestamp().unwrap().to_unix().0, 1_795_255_200);
}

#[test]
fn the_schema_allows_no_null_and_requires_only_what_is_always_there() {
    let schema = schema();
    assert!(!schema.to_string().contains("null\""), "{schema:#}");
    let mut required: Vec<_> =
        schema["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    required.sort_unstable();
    assert_eq!(required, ["@timestamp", "ecs", "event", "host", "kpulse"]);
}
