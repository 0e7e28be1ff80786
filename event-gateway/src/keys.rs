//! By what is an event found? The fields of a document that a store has columns for.

use kpulse_common::event::Event;

/// What an event is looked up by, beside its time and its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Pid of its process.
    pub pid: Option<u32>,
    /// Name of its process; of its thread where the process has none.
    pub process: Option<String>,
    /// Id of its container.
    pub container: Option<String>,
    /// Name of its container.
    pub container_name: Option<String>,
    /// Name of its pod.
    pub pod: Option<String>,
    /// Uid of its pod.
    pub pod_uid: Option<String>,
    /// Id of its host; its name where it has no id.
    pub host: String,
    /// Whether it tells a fact rather than a time that was too long.
    pub is_fact: bool,
}

impl Keys {
    /// The keys of a document.
    pub fn of(event: &Event) -> Self {
        let process = event.process.as_ref();
        let container = event.container.as_ref();
        let pod = event.kubernetes.as_ref().and_then(|kubernetes| kubernetes.pod.as_ref());
        Self {
            pid: process.map(|process| process.pid),
            process: process.and_then(|process| process.name.clone().or_else(|| process.thread.name.clone())),
            container: container.map(|container| container.id.clone()),
            container_name: container.and_then(|container| container.name.clone()),
            pod: pod.and_then(|pod| pod.name.clone()),
            pod_uid: pod.and_then(|pod| pod.uid.clone()),
            host: event.host.id.clone().or_else(|| event.host.name.clone()).unwrap_or_default(),
            is_fact: event.kpulse.value_ns.is_none(),
        }
    }
}
