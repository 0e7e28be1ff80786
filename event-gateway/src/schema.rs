//! The JSON Schema of all documents: what they share, and what each kind has of its own.

use crate::config::event_probes;
use kpulse_common::event;
use kpulse_exporter_ebpf::EventDef;
use serde_json::Value;

/// The whole schema. A kind that it does not know may have any fields: a later version has more of them.
pub fn whole() -> Value {
    let mut schema = event::schema();
    let kinds = schema.pointer_mut("/$defs/Kpulse/properties").and_then(Value::as_object_mut);
    let kinds = kinds.expect("the type has this field");
    for event in events() {
        let mut body = (event.body)();
        // The kind says more than the name of a type.
        body["description"] = event.help.into();
        kinds.insert(event.kind.to_owned(), body);
    }
    schema
}

/// Every kind of event.
pub fn events() -> impl Iterator<Item = &'static EventDef> {
    event_probes().flat_map(|probe| probe.events)
}
