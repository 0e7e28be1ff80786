//! A record of Kafka as a document for Elasticsearch, or why it can be none.

use crate::dataset::Dataset;
use crate::sink::elasticsearch::Decode;
use crate::sink::kafka::Refusal;
use kpulse_common::event::{AnyObject, Event, SCHEMA_VERSION, Text, time_of_id};
use kpulse_common::profile::Profile;
use serde::Deserialize;
use std::borrow::Cow;
use std::time::{Duration, SystemTime};

/// Longest id that Elasticsearch takes.
const ID_MAX: usize = 512;

/// What becomes a document.
#[derive(Debug, PartialEq, Eq)]
pub struct Parsed<'p> {
    /// `event.id`, the id of the document.
    pub id: Cow<'p, str>,
    /// When it happened, nanoseconds since 1970.
    pub time_ns: i64,
    /// The JSON, in one line.
    pub json: Cow<'p, [u8]>,
}

/// The little that is looked at in any case; the rest must be JSON.
#[derive(Deserialize)]
struct Envelope<'p> {
    #[serde(rename = "@timestamp", borrow)]
    timestamp: Cow<'p, str>,
    #[serde(borrow)]
    event: EventId<'p>,
    kpulse: Version,
}

#[derive(Deserialize)]
struct EventId<'p> {
    #[serde(borrow)]
    id: Cow<'p, str>,
}

#[derive(Deserialize)]
struct Version {
    schema: u32,
}

/// Looks at a record as closely as is wanted; `known_id` is what its headers tell.
pub fn parse<'p>(
    payload: Option<&'p [u8]>,
    known_id: Option<&'p str>,
    decode: Decode,
    dataset: Dataset,
) -> Result<Parsed<'p>, Refusal> {
    let undecodable = |error: &dyn std::fmt::Display| undecodable(dataset, error);
    let payload = payload.ok_or_else(|| refusal("undecodable", "the record is empty".to_owned()))?;
    let text = std::str::from_utf8(payload).map_err(|error| undecodable(&error))?;
    let (id, time) = match (decode, known_id.and_then(|id| told_by(id, text))) {
        (Decode::Verbatim, Some(told)) => told,
        (Decode::Verbatim, None) => {
            let envelope = envelope(text, dataset)?;
            (envelope.event.id, time(&envelope.timestamp)?)
        }
        (Decode::Typed, _) => {
            let (id, timestamp) = typed(text, dataset)?;
            (id, time(&timestamp)?)
        }
    };
    if id.is_empty() || id.len() > ID_MAX {
        return Err(refusal("undecodable", format!("its event.id has {} bytes", id.len())));
    }
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let json = if memchr::memchr2(b'\n', b'\r', payload).is_some() {
        // Written over several lines: line breaks part the events of a request.
        let value: serde_json::Value =
            serde_json::from_slice(payload).map_err(|error| undecodable(&error))?;
        Cow::Owned(value.to_string().into_bytes())
    } else {
        Cow::Borrowed(payload)
    };
    Ok(Parsed { id, time_ns: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX), json })
}

/// The id of a header and the time in it. Elasticsearch will see whether the rest is JSON, if it only looks like an object:
/// anything else might spoil the request for other documents.
fn told_by<'p>(id: &'p str, text: &str) -> Option<(Cow<'p, str>, SystemTime)> {
    let is_object = text.starts_with('{') && text.ends_with('}');
    is_object.then(|| time_of_id(id)).flatten().map(|time| (id.into(), time))
}

fn time(timestamp: &str) -> Result<SystemTime, Refusal> {
    let no_time = |_| refusal("undecodable", format!("its @timestamp is not a time in UTC: {timestamp:?}"));
    humantime::parse_rfc3339(timestamp).map_err(no_time)
}

/// Its id and its time, if every field is what it should be.
fn typed(text: &str, dataset: Dataset) -> Result<(Cow<'_, str>, Cow<'_, str>), Refusal> {
    let decoded = match dataset {
        Dataset::Events => serde_json::from_str::<Event<Text<'_>, AnyObject>>(text)
            .map(|it| (it.kpulse.schema, it.event.id.0, it.timestamp.0)),
        Dataset::Profiles => serde_json::from_str::<Profile<Text<'_>>>(text)
            .map(|it| (it.kpulse.schema, it.event.id.0, it.timestamp.0)),
    };
    match decoded {
        Ok((SCHEMA_VERSION, id, timestamp)) => Ok((id, timestamp)),
        // Of another version nothing else can be said.
        outcome => {
            envelope(text, dataset)?;
            Err(undecodable(dataset, &outcome.err().map(|error| error.to_string()).unwrap_or_default()))
        }
    }
}

fn envelope(text: &str, dataset: Dataset) -> Result<Envelope<'_>, Refusal> {
    let envelope: Envelope = serde_json::from_str(text).map_err(|error| undecodable(dataset, &error))?;
    if envelope.kpulse.schema == SCHEMA_VERSION {
        return Ok(envelope);
    }
    let why = format!("its schema is {}, known is {SCHEMA_VERSION}", envelope.kpulse.schema);
    Err(refusal("schema", why))
}

fn undecodable(dataset: Dataset, error: &dyn std::fmt::Display) -> Refusal {
    refusal("undecodable", format!("the record is no {}: {error}", dataset.document()))
}

fn refusal(cause: &'static str, reason: String) -> Refusal {
    Refusal { status: None, reason, cause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn event() -> Value {
        json!({
            "@timestamp": "2026-11-21T10:00:00.000000001Z", "ecs": {"version": "8.17"},
            "event": {"id": "a", "kind": "event", "module": "kpulse", "dataset": "kpulse.events", "action": "x"},
            "host": {}, "kpulse": {"schema": 1, "probe": "x", "suppressed": 0, "x": {}},
        })
    }

    #[test]
    fn an_event_goes_on_as_it_is() {
        let json = event().to_string();
        for decode in [Decode::Typed, Decode::Verbatim] {
            let parsed = parse(Some(json.as_bytes()), None, decode, Dataset::Events).unwrap();
            assert_eq!((parsed.id.as_ref(), parsed.time_ns), ("a", 1_795_255_200_000_000_001));
            assert!(matches!(parsed.json, Cow::Borrowed(same) if same == json.as_bytes()));
        }
        let pretty = serde_json::to_string_pretty(&event()).unwrap();
        let parsed = parse(Some(pretty.as_bytes()), None, Decode::Typed, Dataset::Events).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&parsed.json).unwrap(), event());
        assert!(!parsed.json.contains(&b'\n'));
    }

    #[test]
    fn headers_tell_enough_of_what_goes_through_verbatim() {
        const ID: &str = "0192f1a0-0000-7000-8000-000000000001";
        let parsed = |json: &'static str, known_id, decode| {
            parse(Some(json.as_bytes()), known_id, decode, Dataset::Events)
        };
        let parsed_by_header = parsed("{}", Some(ID), Decode::Verbatim).unwrap();
        let time_ms = i64::from_str_radix("0192f1a00000", 16).unwrap();
        assert_eq!((parsed_by_header.id.as_ref(), parsed_by_header.time_ns), (ID, time_ms * 1_000_000));
        for (json, known_id, decode) in [
            ("{}", Some(ID), Decode::Typed),
            ("{}", None, Decode::Verbatim),
            ("{}", Some("of somebody else"), Decode::Verbatim),
            ("", Some(ID), Decode::Verbatim),
            ("{", Some(ID), Decode::Verbatim),
            ("{\n", Some(ID), Decode::Verbatim),
            ("{\n]}", Some(ID), Decode::Verbatim),
        ] {
            let refused = parsed(json, known_id, decode).unwrap_err();
            assert_eq!(refused.cause, "undecodable", "{json:?} {known_id:?}");
        }
    }

    #[test]
    fn what_can_be_no_document_says_why() {
        let changed = |pointer: &str, value: Value| {
            let mut event = event();
            *event.pointer_mut(pointer).unwrap() = value;
            event.to_string().into_bytes()
        };
        for (payload, cause, word) in [
            (b"".to_vec(), "undecodable", "EOF"),
            (b"\xff\x00".to_vec(), "undecodable", "utf-8"),
            (b"[]".to_vec(), "undecodable", "no event"),
            (changed("/kpulse/schema", 2.into()), "schema", "known is 1"),
            (changed("/event/id", "".into()), "undecodable", "event.id"),
            (changed("/event/id", "x".repeat(600).into()), "undecodable", "600"),
            (changed("/@timestamp", "yesterday".into()), "undecodable", "yesterday"),
            (changed("/kpulse/suppressed", "many".into()), "undecodable", "many"),
        ] {
            let refusal = parse(Some(&payload), None, Decode::Typed, Dataset::Events).unwrap_err();
            assert!(refusal.cause == cause && refusal.reason.contains(word), "{refusal:?}");
        }
        let empty = parse(None, None, Decode::Verbatim, Dataset::Profiles);
        assert_eq!(empty.unwrap_err().reason, "the record is empty");
        let event = event().to_string();
        let in_other_topic =
            parse(Some(event.as_bytes()), None, Decode::Typed, Dataset::Profiles).unwrap_err();
        assert!(in_other_topic.reason.starts_with("the record is no profile"), "{in_other_topic:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, id: String) {
            for dataset in Dataset::ALL {
                let _ = parse(Some(&bytes), None, Decode::Typed, dataset);
                let _ = parse(Some(&bytes), Some(&id), Decode::Verbatim, dataset);
            }
        }
    }
}
