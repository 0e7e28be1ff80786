//! What was going on around a fact: which process, which container, which host, at what time.
//!
//! Any of it may be unknown, since processes and containers end before their events arrive. The event is then sent
//! without that field, never dropped.

mod host;
mod process;

use crate::spool::Document;
use kpulse_common::clock::Clock;
use kpulse_common::container::{ContainerIdentity, Identities};
use kpulse_common::event::{
    Cgroup, Container, Event, Host, Kpulse, Kubernetes, Named, Orchestrator, Pod, Process, SCHEMA_VERSION,
    Stack, Thread,
};
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::Fact;
use process::Processes;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// Turns facts into documents.
pub struct Enrich {
    host: Host,
    labels: BTreeMap<String, String>,
    clock: Clock,
    identities: Identities,
    processes: Processes,
}

impl Enrich {
    /// Reads what belongs to the host. `labels` go into every event.
    pub fn new(paths: &Paths, labels: BTreeMap<String, String>) -> Self {
        Self {
            host: host::read(paths),
            labels,
            clock: Clock::new(),
            identities: Identities::new(paths),
            processes: Processes::new(&paths.procfs),
        }
    }

    /// The encoded event.
    pub fn document(&mut self, fact: Fact) -> Document {
        let time = self.clock.wall(fact.boot_ns);
        let (probe, kind, boot_ns) = (fact.probe, fact.kind, fact.boot_ns);
        let event = self.event(fact, time);
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Document {
            time_ns: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
            boot_ns,
            probe,
            kind,
            pid: event.process.as_ref().map(|process| process.pid),
            container: event.container.as_ref().map(|container| container.id.clone()),
            json: serde_json::to_string(&event)
                .expect("the document has string keys only and no fallible field"),
            id: event.event.id,
        }
    }

    fn event(&mut self, fact: Fact, time: SystemTime) -> Event {
        let container = fact.cgroup.and_then(|cgroup| self.identities.container(cgroup));
        // Pid 0 is the idle task, or no task at all.
        let process = (fact.pid != 0).then(|| self.process(&fact));
        let kind = fact.kind;
        let mut event = Event::new(time, self.host.clone(), kind, self.kpulse(fact));
        event.labels.clone_from(&self.labels);
        event.process = process;
        if let Some(container) = container {
            add_container(&mut event, &container);
        }
        event
    }

    fn process(&mut self, fact: &Fact) -> Process {
        let known = self.processes.find(fact.pid, fact.boot_ns);
        let comm = Some(fact.comm.clone()).filter(|comm| !comm.is_empty());
        let name = known.as_ref().and_then(|known| known.name.clone());
        Process {
            pid: fact.pid,
            // A process has the name of its first thread, so that is known even when the process is gone.
            name: name.or_else(|| comm.clone().filter(|_| fact.pid == fact.tid)),
            executable: known.as_ref().and_then(|known| known.executable.clone()),
            command_line: known.as_ref().and_then(|known| known.command_line.clone()),
            thread: Thread { id: fact.tid, name: comm },
        }
    }

    fn kpulse(&mut self, fact: Fact) -> Kpulse {
        let cgroup = fact.cgroup.map(|cgroup| Cgroup {
            id: cgroup.id,
            hierarchy: cgroup.hierarchy.name().to_owned(),
            path: self.identities.path(cgroup).map(|path| path.to_string()),
        });
        let has_stack = !fact.kernel_stack.is_empty() || !fact.user_stack.is_empty();
        Kpulse {
            schema: SCHEMA_VERSION,
            probe: fact.probe.to_owned(),
            cpu: fact.cpu,
            cgroup,
            value_ns: fact.value_ns,
            threshold_ns: fact.threshold_ns,
            suppressed: fact.suppressed,
            stack: has_stack.then_some(Stack { kernel: fact.kernel_stack, user: fact.user_stack }),
            body: BTreeMap::from([(fact.kind.to_owned(), body(fact.body))]),
        }
    }
}

fn add_container(event: &mut Event, known: &ContainerIdentity) {
    event.container = Some(Container {
        id: known.id.clone(),
        name: known.container.clone(),
        runtime: known.runtime.map(str::to_owned),
        image: None,
    });
    if known.pod_uid.is_none() && known.pod.is_none() {
        return;
    }
    event.orchestrator = Some(Orchestrator {
        kind: "kubernetes".to_owned(),
        namespace: known.namespace.clone(),
        cluster: None,
    });
    event.kubernetes = Some(Kubernetes {
        pod: Some(Pod { name: known.pod.clone(), uid: known.pod_uid.clone() }),
        container: known.container.clone().map(|name| Named { name }),
        node: None,
    });
}

/// The probe's own fields as an object without nulls.
fn body(value: Value) -> Map<String, Value> {
    let mut fields = match value {
        Value::Object(fields) => fields,
        Value::Null => Map::new(),
        other => Map::from_iter([("value".to_owned(), other)]),
    };
    fields.retain(|_, value| !value.is_null());
    for value in fields.values_mut() {
        if let Value::Object(inner) = value {
            *inner = body(Value::Object(std::mem::take(inner)));
        }
    }
    fields
}

#[cfg(test)]
mod tests;
