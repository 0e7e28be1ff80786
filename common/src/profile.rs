//! What a profile looks like on its way to a store: one JSON document for each window and each service, with the names
//! that events have.
//!
//! Its stacks are text that no store searches; what is asked for has fields of its own. The JSON Schema is generated from
//! these types; within one [`SCHEMA_VERSION`](crate::event::SCHEMA_VERSION) fields are only added.

use crate::clock::rfc3339;
use crate::event::{
    Container, ECS_VERSION, Ecs, EventFields, Host, Kubernetes, Orchestrator, SCHEMA_VERSION, document_schema,
};
use ring::digest::{Context, SHA256};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use uuid::Builder;

/// `event.dataset` of each.
pub const DATASET: &str = "kpulse.profiles";
/// Where the gateway takes them, as newline-delimited JSON by POST.
pub const PATH: &str = "/api/v1/profiles";
/// What they are there.
pub const CONTENT_TYPE: &str = "application/x-ndjson";
/// Most bytes of one body there.
pub const BODY_BYTES_MAX: usize = 2 << 20;
/// Most bytes of one document: Kafka takes no larger message than a million bytes by default.
pub const DOCUMENT_BYTES_MAX: usize = 768 << 10;
/// Most bytes of [`Stacks::folded`], as JSON.
pub const FOLDED_BYTES_MAX: usize = 512 << 10;
/// Most functions of [`Stacks::top`].
pub const TOP_MAX: usize = 20;

/// CPU time of one service in one window.
// `T` is how its texts are kept: what is only looked at need not be copied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(bound(deserialize = "T: Deserialize<'de> + Ord"))]
pub struct Profile<T = String> {
    /// When the window ended, RFC 3339 in UTC with nanoseconds.
    #[serde(rename = "@timestamp")]
    #[schemars(extend("x-elasticsearch" = {"type": "date_nanos"}))]
    pub timestamp: T,
    /// The schema whose names are used.
    pub ecs: Ecs<T>,
    /// What kind of document it is; `event.duration` is the length of the window.
    pub event: EventFields<T>,
    /// The host that was sampled.
    pub host: Host<T>,
    /// What ran.
    pub service: Service<T>,
    /// The container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container<T>>,
    /// What runs the containers of this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orchestrator: Option<Orchestrator<T>>,
    /// The pod of that container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes<T>>,
    /// Labels of the gateway's configuration.
    #[schemars(extend("x-elasticsearch" = {"type": "object", "dynamic": true}))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<T, T>,
    /// What was sampled.
    pub kpulse: Sampled<T>,
}

/// What ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Service<T = String> {
    /// Name of the container, or of a program outside of containers; `others` for those beyond the busiest.
    pub name: T,
}

/// What was sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(bound(deserialize = "T: Deserialize<'de> + Ord"))]
pub struct Sampled<T = String> {
    /// Version of this document.
    pub schema: u32,
    /// The probe that took the samples.
    pub probe: T,
    /// The samples.
    pub profile: Stacks<T>,
}

/// The samples of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(bound(deserialize = "T: Deserialize<'de> + Ord"))]
pub struct Stacks<T = String> {
    /// CPU time that a sample stands for, in nanoseconds.
    pub period_ns: u64,
    /// Samples of this service.
    pub samples: u64,
    /// Those of them that are not in `folded`, which has a bound: of the stacks that were seen least.
    pub samples_left_out: u64,
    /// Samples that the whole host lost in this window, by reason: whose they were is not known, so each of its documents
    /// says the same.
    #[schemars(extend("x-elasticsearch" = {"type": "object", "dynamic": true}))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost: BTreeMap<T, u64>,
    /// The functions in which most samples were taken, most first, each with its name, `function`, and its `samples`; at most
    /// 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Function<T>>,
    /// The stacks, a line each: `thread;root;…;leaf samples`, most first.
    #[schemars(extend("x-elasticsearch" = {"type": "keyword", "index": false, "doc_values": false}))]
    pub folded: T,
}

/// A function and the samples that were taken in it, not in what it called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Function<T = String> {
    /// Its name as in `folded`; that of a kernel function ends in `_[k]`.
    pub function: T,
    /// The samples.
    pub samples: u64,
}

impl Profile {
    /// A document of a window, with what every profile has. Its id is made from host, window, service and container alone, so
    /// that one that is sent again is the same document.
    pub fn new(
        (from, to): (SystemTime, SystemTime),
        host: Host,
        service: &str,
        container: Option<Container>,
        kpulse: Sampled,
    ) -> Self {
        let [begin, end] = [from, to].map(since_epoch);
        let texts = [
            host.id.as_deref().unwrap_or_default(),
            host.name.as_deref().unwrap_or_default(),
            service,
            container.as_ref().map_or("", |container| &container.id),
        ];
        let event = EventFields {
            id: id(begin, end, texts),
            kind: "metric".to_owned(),
            module: "kpulse".to_owned(),
            dataset: DATASET.to_owned(),
            action: "cpu_profile".to_owned(),
            duration: Some(u64::try_from(end.saturating_sub(begin).as_nanos()).unwrap_or(u64::MAX)),
        };
        Self {
            timestamp: rfc3339(to),
            ecs: Ecs { version: ECS_VERSION.to_owned() },
            event,
            host,
            service: Service { name: service.to_owned() },
            container,
            orchestrator: None,
            kubernetes: None,
            labels: BTreeMap::new(),
            kpulse,
        }
    }
}

impl Sampled {
    /// The samples of the probe of this name.
    pub fn new(probe: &str, profile: Stacks) -> Self {
        Self { schema: SCHEMA_VERSION, probe: probe.to_owned(), profile }
    }
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// `UUIDv7` with the time of the end, and a digest where others have randomness.
fn id(begin: Duration, end: Duration, texts: [&str; 4]) -> String {
    let mut digest = Context::new(&SHA256);
    for time in [begin, end] {
        digest.update(&time.as_nanos().to_le_bytes());
    }
    for text in texts {
        digest.update(text.as_bytes());
        digest.update(&[0]);
    }
    let digest = digest.finish();
    let bytes = digest.as_ref().first_chunk().expect("a digest of SHA-256 has 32 bytes");
    let milliseconds = u64::try_from(end.as_millis()).unwrap_or(u64::MAX);
    Builder::from_unix_timestamp_millis(milliseconds, bytes).into_uuid().to_string()
}

/// The JSON Schema of [`Profile`] (draft 2020-12).
pub fn schema() -> Value {
    document_schema::<Profile>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Text;
    use proptest::prelude::*;

    fn stacks() -> Stacks {
        Stacks {
            period_ns: 10_101_010,
            samples: 9,
            samples_left_out: 2,
            lost: [("map_full".to_owned(), 3)].into(),
            top: vec![Function { function: "hot".to_owned(), samples: 7 }],
            folded: "t;main;hot 7\n".to_owned(),
        }
    }

    fn profile(from_ns: u64, length_ns: u64, host: &str, service: &str, container: Option<&str>) -> Profile {
        let from = SystemTime::UNIX_EPOCH + Duration::from_nanos(from_ns);
        let host = Host { id: Some(host.to_owned()), ..Host::default() };
        let container =
            container.map(|id| Container { id: id.to_owned(), name: None, runtime: None, image: None });
        let window = (from, from + Duration::from_nanos(length_ns));
        Profile::new(window, host, service, container, Sampled::new("cpu_sample", stacks()))
    }

    #[test]
    fn it_is_one_document_however_often_it_is_made() {
        let profile = profile(1_795_255_200_000_000_000, 10_000_000_001, "h", "web", Some("c0ffee"));
        let json = serde_json::to_value(&profile).unwrap();
        assert_eq!(json["@timestamp"], "2026-11-21T10:00:10.000000001Z");
        assert_eq!(json["event"]["duration"], 10_000_000_001_u64);
        assert_eq!(json["event"]["id"], "01a1fd8c-9010-7137-bcf3-e514136e505b");
        assert_eq!(json["service"]["name"], "web");
        assert_eq!(json["kpulse"]["profile"]["lost"]["map_full"], 3);
        assert!(!json.to_string().contains("null"), "{json}");
    }

    proptest! {
        #[test]
        fn ids_differ_when_anything_does_and_documents_read_back(
            one in (0..u64::MAX / 4, 0..u64::MAX / 4, "[ab]{0,2}", "[ab]{0,2}", prop::option::of("[ab]{1,2}")),
            other in (0..u64::MAX / 4, 0..u64::MAX / 4, "[ab]{0,2}", "[ab]{0,2}", prop::option::of("[ab]{1,2}")),
        ) {
            let make = |it: &(u64, u64, String, String, Option<String>)| {
                profile(it.0, it.1, &it.2, &it.3, it.4.as_deref())
            };
            let (first, second) = (make(&one), make(&other));
            prop_assert_eq!(first.event.id == second.event.id, one == other);
            prop_assert_eq!(&make(&one), &first);
            let json = serde_json::to_string(&first).unwrap();
            let id = first.event.id.clone();
            let back: Profile = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(back, first);
            let looked_at: Profile<Text<'_>> = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(&*looked_at.event.id.0, &*id);
        }
    }
}
