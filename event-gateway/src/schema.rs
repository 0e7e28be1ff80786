//! The JSON Schema of all documents: of events, what they share, and what each kind has of its own; and of profiles.

use crate::config::event_probes;
use crate::dataset::Dataset;
use crate::watch;
use kpulse_common::cli::Usage;
use kpulse_common::{event, profile};
use serde_json::Value;

/// A kind of event, whoever tells it.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// `event.action` of its documents, and the name of the object that holds its own fields.
    pub name: &'static str,
    /// What the event says, in one sentence.
    pub help: &'static str,
    /// JSON Schema of the fields, with what each means.
    pub body: fn() -> Value,
}

/// The schema of a dataset.
pub fn of(dataset: Dataset) -> Value {
    match dataset {
        Dataset::Events => whole(),
        Dataset::Profiles => profile::schema(),
    }
}

/// The whole schema of events. A kind that it does not know may have any fields: a later version has more of them.
pub fn whole() -> Value {
    let mut schema = event::schema();
    let kinds = schema.pointer_mut("/$defs/Kpulse/properties").and_then(Value::as_object_mut);
    let kinds = kinds.expect("the type has this field");
    for kind in all_kinds() {
        let mut body = (kind.body)();
        // The kind says more than the name of a type.
        body["description"] = kind.help.into();
        kinds.insert(kind.name.to_owned(), body);
    }
    schema
}

/// The kind of this name.
pub fn kind(name: &str) -> Result<Kind, Usage> {
    all_kinds().find(|kind| kind.name == name).ok_or_else(|| {
        let known: Vec<_> = all_kinds().map(|kind| kind.name).collect();
        Usage(format!("there is no kind of event {name:?}; the kinds are {}", known.join(", ")))
    })
}

/// What `#/$defs/NAME` stands for.
pub fn resolve<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    let pointer = schema.get("$ref").and_then(Value::as_str).and_then(|it| it.strip_prefix('#'));
    pointer.and_then(|pointer| root.pointer(pointer)).unwrap_or(schema)
}

/// Every kind of event.
pub fn all_kinds() -> impl Iterator<Item = Kind> {
    let of_bpf = event_probes().flat_map(|probe| probe.events);
    let of_bpf = of_bpf.map(|event| Kind { name: event.kind, help: event.help, body: event.body });
    of_bpf.chain(watch::ALL.iter().map(|watch| watch.kind))
}
