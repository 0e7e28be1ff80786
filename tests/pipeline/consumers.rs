//! The example consumers of `event-gateway/examples` read what `forward` writes.

use crate::pair::{Way, event, id, pair};
use kpulse_tests::process::{command, run};
use kpulse_tests::services::Python;
use kpulse_tests::{binary, skip};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const EVENTS: usize = 300;

/// Runs a consumer over a topic with events, and with records that it cannot use.
fn reads_every_event_and_says_what_is_none(name: &str, kafka: &str, way: &Way, mut consumer: Command) {
    way.send(&way.events(EVENTS));
    let mut invalid = event(EVENTS);
    invalid["event"]["id"] = json!(7);
    way.put(Some("{}"));
    for (schema, payload) in
        [("2", Some("{}")), ("1", Some("no JSON")), ("1", None), ("1", Some(&*invalid.to_string()))]
    {
        way.put_with(&[("schema", schema), ("probe", "p"), ("host", "h")], payload);
    }
    let ended = run(consumer.args([kafka, name, name, &(EVENTS + 5).to_string()]));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let read: BTreeSet<_> = ended.stdout.lines().map(str::to_owned).collect();
    let sent: BTreeSet<_> = (0..EVENTS).map(|number| format!("h1 packet_drop {}", id(number))).collect();
    assert_eq!(read, sent);
    assert_eq!((ended.stdout.lines().count(), ended.stderr.lines().count()), (EVENTS, 5), "{}", ended.stderr);
    for why in ["no header schema", "its schema is 2", "it is empty", "is not of type"] {
        assert_eq!(ended.stderr.matches(why).count(), 1, "{why}: {}", ended.stderr);
    }
}

#[test]
fn the_consumer_in_rust_reads_every_event_and_says_what_is_none() {
    let pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("the_consumer_in_rust", &why),
    };
    let way = Way::new("rust", &pair.kafka, &pair.elasticsearch);
    let consumer = command(binary("examples/consumer"));
    reads_every_event_and_says_what_is_none("rust", &pair.kafka.address(), &way, consumer);
}

#[test]
fn the_consumer_in_python_reads_every_event_and_says_what_is_none() {
    let pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("the_consumer_in_python", &why),
    };
    if let Err(why) = Python::install() {
        return skip("the_consumer_in_python", &why);
    }
    let way = Way::new("python", &pair.kafka, &pair.elasticsearch);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../event-gateway/examples/consumer.py");
    let consumer = Python::command(&file);
    reads_every_event_and_says_what_is_none("python", &pair.kafka.address(), &way, consumer);
}
