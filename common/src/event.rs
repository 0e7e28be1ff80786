//! What an event looks like outside the kernel: one JSON document, the same in every store and on every wire.
//!
//! Names follow the Elastic Common Schema where it has one. What is not known is left out, never null and never
//! zero. The JSON Schema is generated from these types; within one [`SCHEMA_VERSION`] fields are only added.

use crate::clock::rfc3339;
use crate::container::ContainerIdentity;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use uuid::{NoContext, Timestamp, Uuid};

/// Version of the document, `kpulse.schema`.
pub const SCHEMA_VERSION: u32 = 1;
/// Version of the Elastic Common Schema whose names are used.
pub const ECS_VERSION: &str = "8.17";

/// One event: a decoded, enriched fact.
// `T` is how its texts are kept, `B` the fields of its probe: what is only looked at need not be copied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(bound(deserialize = "T: Deserialize<'de> + Default + Ord + Borrow<str>, B: Deserialize<'de>"))]
pub struct Event<T = String, B = Map<String, Value>> {
    /// When it happened, RFC 3339 in UTC with nanoseconds.
    #[serde(rename = "@timestamp")]
    #[schemars(extend("x-elasticsearch" = {"type": "date_nanos"}))]
    pub timestamp: T,
    /// The schema whose names are used.
    pub ecs: Ecs<T>,
    /// What kind of fact it is.
    pub event: EventFields<T>,
    /// The host it happened on.
    pub host: Host<T>,
    /// The process that it is about, where one can be named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process<T>>,
    /// The container of that process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container<T>>,
    /// What runs the containers of this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orchestrator: Option<Orchestrator<T>>,
    /// The pod of that container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes<T>>,
    /// Labels of the configuration.
    #[schemars(extend("x-elasticsearch" = {"type": "object", "dynamic": true}))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<T, T>,
    /// What the probe measured.
    pub kpulse: Kpulse<T, B>,
}

/// The schema whose names are used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ecs<T = String> {
    /// Version of the Elastic Common Schema.
    pub version: T,
}

/// What kind of fact it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventFields<T = String> {
    /// UUIDv7 made once from the event's own time: a replay anywhere collapses into the same document.
    pub id: T,
    /// `event`; of a profile `metric`.
    pub kind: T,
    /// Always `kpulse`.
    pub module: T,
    /// `kpulse.events`, or `kpulse.profiles`.
    pub dataset: T,
    /// Kind of the event: `packet_drop`, `runqueue_delay`; also the name of its object below `kpulse`. Of a profile
    /// `cpu_profile`.
    pub action: T,
    /// How long it took, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<u64>,
}

/// The host it happened on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host<T = String> {
    /// Host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<T>,
    /// Machine id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<T>,
    /// Operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<Os<T>>,
}

/// Operating system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Os<T = String> {
    /// Kernel release.
    pub kernel: T,
}

/// A process and the thread in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Process<T = String> {
    /// Process id in the host's pid namespace.
    pub pid: u32,
    /// Name of the process: the name of its first thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<T>,
    /// Path of the executable, as the process sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<T>,
    /// Command line, arguments joined by blanks.
    #[schemars(extend("x-elasticsearch" = {"type": "keyword", "ignore_above": 1024, "fields": {"text": {"type": "text"}}}))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_line: Option<T>,
    /// The thread.
    pub thread: Thread<T>,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Thread<T = String> {
    /// Thread id in the host's pid namespace.
    pub id: u32,
    /// Name of the thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<T>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Container<T = String> {
    /// Container id as the runtime prints it.
    pub id: T,
    /// Name of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<T>,
    /// `docker`, `containerd`, `cri-o`, `podman`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<T>,
    /// Its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Named<T>>,
}

/// What runs the containers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Orchestrator<T = String> {
    /// `kubernetes`.
    #[serde(rename = "type")]
    pub kind: T,
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<T>,
    /// The cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Named<T>>,
}

/// Names inside Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Kubernetes<T = String> {
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod<T>>,
    /// The container within the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Named<T>>,
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Named<T>>,
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pod<T = String> {
    /// Name of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<T>,
    /// Uid of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<T>,
}

/// Something that has a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Named<T = String> {
    /// The name.
    pub name: T,
}

/// What the probe measured.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Kpulse<T = String, B = Map<String, Value>> {
    /// Version of this document.
    pub schema: u32,
    /// The probe that told it.
    pub probe: T,
    /// The CPU it happened on, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// The cgroup of the task, where the kernel could tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Cgroup<T>>,
    /// The measured duration in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_ns: Option<u64>,
    /// The threshold it reached, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold_ns: Option<u64>,
    /// How many like it the rate limiter kept back since the last one that was sent.
    pub suppressed: u64,
    /// Call stacks, innermost frame first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<Stack<T>>,
    /// The probe's own fields, under the kind of the event.
    #[serde(flatten)]
    pub body: BTreeMap<T, B>,
}

/// A cgroup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cgroup<T = String> {
    /// Inode of its directory, unique within its hierarchy.
    pub id: u64,
    /// `unified`, or the controller of a v1 hierarchy.
    pub hierarchy: T,
    /// Path within the hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<T>,
}

/// Who had TCP connections through a network device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Affected {
    /// Established TCP connections that have an address of the device, and those of the containers behind it: at the other
    /// end of a veth, on top of it (macvlan, ipvlan, VLAN), or at a port of it where it is a bridge or a bond.
    pub connections: u64,
    /// Cgroups of the unified hierarchy that have connections at the device itself, most first; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<String>,
    /// Ids of the containers of these, and of those behind the device, most connections first; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container_ids: Vec<String>,
}

/// Call stacks, innermost frame first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stack<T = String> {
    /// Kernel frames.
    #[schemars(extend("x-elasticsearch" = {"type": "keyword", "index": false, "doc_values": false}))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<T>,
    /// Frames of the program, where the kernel worked for it when the record was made: functions, or `[FILE+OFFSET]` where the
    /// file has no symbol there. Found by frame pointers: in code built without them only the first is sure.
    #[schemars(extend("x-elasticsearch" = {"type": "keyword", "index": false, "doc_values": false}))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub user: Vec<T>,
}

impl Event {
    /// A document with what every event has. Its id comes from `time` and from randomness.
    pub fn new(time: SystemTime, host: Host, action: &str, kpulse: Kpulse) -> Self {
        Self {
            timestamp: rfc3339(time),
            ecs: Ecs { version: ECS_VERSION.to_owned() },
            event: EventFields {
                id: id_at(time),
                kind: "event".to_owned(),
                module: "kpulse".to_owned(),
                dataset: "kpulse.events".to_owned(),
                action: action.to_owned(),
                duration: kpulse.value_ns,
            },
            host,
            process: None,
            container: None,
            orchestrator: None,
            kubernetes: None,
            labels: BTreeMap::new(),
            kpulse,
        }
    }
}

/// What a document says of a container, of what runs it, and of its pod.
pub fn of_container(known: &ContainerIdentity) -> (Container, Option<Orchestrator>, Option<Kubernetes>) {
    let container = Container {
        id: known.id.clone(),
        name: known.container.clone(),
        runtime: known.runtime.map(str::to_owned),
        image: None,
    };
    if known.pod_uid.is_none() && known.pod.is_none() {
        return (container, None, None);
    }
    let orchestrator =
        Orchestrator { kind: "kubernetes".to_owned(), namespace: known.namespace.clone(), cluster: None };
    let kubernetes = Kubernetes {
        pod: Some(Pod { name: known.pod.clone(), uid: known.pod_uid.clone() }),
        container: known.container.clone().map(|name| Named { name }),
        node: None,
    };
    (container, Some(orchestrator), Some(kubernetes))
}

fn id_at(time: SystemTime) -> String {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let stamp = Timestamp::from_unix(NoContext, since_epoch.as_secs(), since_epoch.subsec_nanos());
    Uuid::new_v7(stamp).to_string()
}

/// When the event with this id happened, to the millisecond; `None` if the id was not made from a time.
pub fn time_of_id(id: &str) -> Option<SystemTime> {
    let (seconds, nanoseconds) = Uuid::try_parse(id).ok()?.get_timestamp()?.to_unix();
    Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds))
}

/// The JSON Schema of a part of an event, whole in itself.
pub fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let settings = settings.with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    if let Value::Object(fields) = &mut schema {
        fields.remove("title");
    }
    forbid_null(&mut schema);
    schema
}

/// The JSON Schema of [`Event`] (draft 2020-12); what each kind has of its own is any object here.
pub fn schema() -> Value {
    document_schema::<Event>()
}

/// The JSON Schema of a whole document (draft 2020-12), each of its types under its name.
pub fn document_schema<T: JsonSchema>() -> Value {
    let mut schema = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    forbid_null(&mut schema);
    schema
}

/// An optional field is left out, never null; the derived schema would allow both.
fn forbid_null(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Array(types)) = fields.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    fields.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
                choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    fields.remove("anyOf");
                    fields.extend(only);
                }
            }
            fields.values_mut().for_each(forbid_null);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_null),
        _ => {}
    }
}

#[path = "event_decode.rs"]
mod decode;
pub use decode::{AnyObject, Text};
#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
