//! What a store of profiles gets: a profile for each service, in the store's own form.

use super::{document, otlp};
use crate::aggregate::{Key, Scope, Selection};
use crate::config::UploadForm;
use crate::export::{Format, Profile};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::body::Bytes;
use kpulse_common::container::ContainerIdentity;
use kpulse_common::event::Host;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use prost::Message;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Services of one window; what the others ran is sent under one name.
const MAX_SERVICES: usize = 64;
const OTHERS: &str = "others";
/// All but what needs no encoding anywhere in an address.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A request to be made.
pub struct Outgoing {
    /// With what follows a question mark.
    pub path: String,
    pub content_type: &'static str,
    pub body: Bytes,
}

/// What is sent.
pub struct Source<'a> {
    pub window: &'a Selection,
    pub period: Duration,
    pub host: &'a Host,
}

/// What runs under one name, with its labels.
pub struct Service {
    pub labels: BTreeMap<&'static str, String>,
    pub selection: Selection,
}

impl Service {
    /// Its container; `None` for a program outside of containers.
    pub fn container(&self, source: &Source<'_>) -> Option<ContainerIdentity> {
        let id = self.labels.get("container_id")?;
        let known =
            source.window.containers.get(id.as_str()).map(|identity| ContainerIdentity::clone(identity));
        let unknown = || ContainerIdentity {
            id: id.clone(),
            runtime: None,
            pod_uid: None,
            namespace: None,
            pod: None,
            container: None,
        };
        Some(known.unwrap_or_else(unknown))
    }

    pub fn profile(&self, source: &Source<'_>) -> Profile<'_> {
        Profile { scope: &Scope::Host, selection: &self.selection, period: source.period }
    }

    /// Its labels as both stores of pprof have them, the kind of profile among them.
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::once(KIND).chain(self.labels.iter().map(|(name, value)| (*name, value.as_str())))
    }
}

/// All requests for a window.
pub fn requests(form: UploadForm, source: &Source<'_>) -> anyhow::Result<VecDeque<Outgoing>> {
    let services = services(source);
    let whole = |path: &str, content_type, body: Vec<u8>| {
        VecDeque::from([Outgoing { path: path.into(), content_type, body: body.into() }])
    };
    Ok(match form {
        UploadForm::Pyroscope => services.iter().map(|service| ingest(service, source)).collect(),
        UploadForm::PyroscopePush => {
            let series: anyhow::Result<_> = services.iter().map(|service| series(service, source)).collect();
            let push = push::PushRequest { series: series? };
            whole("/push.v1.PusherService/Push", "application/proto", push.encode_to_vec())
        }
        UploadForm::Otlp => {
            let body = otlp::encode(&services, source.period);
            whole("/v1development/profiles", "application/x-protobuf", body)
        }
        UploadForm::Gateway => document::requests(&services, source)?,
        UploadForm::Parca => {
            let series: anyhow::Result<Vec<Value>> =
                services.iter().map(|service| parca(service, source)).collect();
            let body = json!({ "normalized": true, "series": series? });
            whole("/profiles/writeraw", "application/json", serde_json::to_vec(&body)?)
        }
    })
}

/// A container, or a program outside of containers.
type Name<'a> = (Option<&'a Arc<str>>, &'a str);

/// The window by service: a container, or a program outside of containers.
fn services(source: &Source<'_>) -> Vec<Service> {
    let mut entries: HashMap<Name<'_>, HashMap<Key, u64>> = HashMap::new();
    for (key, &count) in &source.window.entries {
        let name = if key.container.is_some() { "" } else { &*key.process };
        entries.entry((key.container.as_ref(), name)).or_default().insert(key.clone(), count);
    }
    let samples = |entries: &HashMap<Key, u64>| entries.values().sum::<u64>();
    let mut entries: Vec<_> = entries.into_iter().collect();
    entries.sort_by_key(|(service, entries)| (Reverse(samples(entries)), *service));
    let mut services = Vec::new();
    let mut add = |labels, entries| {
        services.push(Service { labels, selection: source.window.part(entries) });
    };
    let rest = entries.split_off(entries.len().min(MAX_SERVICES - 1));
    for ((container, process), entries) in entries {
        add(labels(container, process, source), entries);
    }
    if !rest.is_empty() {
        let rest = rest.into_iter().flat_map(|(_, entries)| entries).collect();
        add(BTreeMap::from([("service_name", OTHERS.into())]), rest);
    }
    services
}

fn labels(
    container: Option<&Arc<str>>,
    process: &str,
    source: &Source<'_>,
) -> BTreeMap<&'static str, String> {
    let Some(id) = container else { return BTreeMap::from([("service_name", process.to_owned())]) };
    let identity = source.window.containers.get(id).map(AsRef::as_ref);
    let short: String = id.chars().take(12).collect();
    let name = identity.and_then(|identity| identity.container.clone());
    let mut labels = BTreeMap::from([
        ("service_name", name.clone().unwrap_or_else(|| short.clone())),
        ("container_id", id.to_string()),
    ]);
    let known = [
        ("container", name),
        ("pod", identity.and_then(|identity| identity.pod.clone())),
        ("namespace", identity.and_then(|identity| identity.namespace.clone())),
    ];
    labels.extend(known.into_iter().filter_map(|(name, value)| Some((name, value?))));
    labels
}

/// Folded lines, of which Pyroscope says `groups`; it takes no name without the kind of the profile behind a dot.
fn ingest(service: &Service, source: &Source<'_>) -> Outgoing {
    let mut labels = service.labels.clone();
    let name = labels.remove("service_name").unwrap_or_default();
    let plain = |text: &str| text.replace(['{', '}', ',', '=', '"'], "_");
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
    let name = format!("{}.cpu{{{}}}", plain(&name), labels.join(","));
    let name = utf8_percent_encode(&name, ENCODED);
    let [from, until] = [service.selection.from, service.selection.to].map(seconds);
    let hz = (1.0 / source.period.as_secs_f64()).round();
    let path = format!(
        "/ingest?name={name}&from={from}&until={until}&format=groups&sampleRate={hz}&spyName=kpulse&units=samples\
         &aggregationType=sum"
    );
    let body = service.profile(source).folded().text().into();
    Outgoing { path, content_type: "text/plain", body }
}

/// `push.v1`, with the fields' numbers of `push.proto` and `types.proto`.
pub mod push {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct PushRequest {
        #[prost(message, repeated, tag = "1")]
        pub series: Vec<RawProfileSeries>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct RawProfileSeries {
        #[prost(message, repeated, tag = "1")]
        pub labels: Vec<LabelPair>,
        #[prost(message, repeated, tag = "2")]
        pub samples: Vec<RawSample>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct LabelPair {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub value: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct RawSample {
        #[prost(bytes = "vec", tag = "1")]
        pub raw_profile: Vec<u8>,
    }
}

/// The kind of profile, as both stores of pprof name it.
const KIND: (&str, &str) = ("__name__", "process_cpu");

fn series(service: &Service, source: &Source<'_>) -> anyhow::Result<push::RawProfileSeries> {
    let raw_profile = service.profile(source).render(Format::Pprof)?;
    let pair = |(name, value): (&str, &str)| push::LabelPair { name: name.into(), value: value.into() };
    let labels = service.pairs().map(pair).collect();
    Ok(push::RawProfileSeries { labels, samples: vec![push::RawSample { raw_profile }] })
}

fn parca(service: &Service, source: &Source<'_>) -> anyhow::Result<Value> {
    let profile = BASE64_STANDARD.encode(service.profile(source).render(Format::Pprof)?);
    let pair = |(name, value)| json!({ "name": name, "value": value });
    let labels: Vec<Value> = service.pairs().map(pair).collect();
    Ok(json!({ "labels": { "labels": labels }, "samples": [{ "rawProfile": profile }] }))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
