//! What was going on around a fact: which process, which container, which host, at what time.
//!
//! Any of it may be unknown, since processes and containers end before their events arrive. The event is then sent
//! without that field, never dropped.

mod affected;
mod past;
mod process;

pub use process::{Counts as ProcessCounts, Lives};

use crate::keys::Keys;
use crate::spool::Document;
use affected::Users;
use kpulse_common::clock::Clock;
use kpulse_common::container::{CgroupId, ContainerIdentity, Identities, parse_container};
use kpulse_common::event::{
    Cgroup, Event, Host, Kpulse, Process, SCHEMA_VERSION, Stack, Thread, of_container,
};
use kpulse_common::host;
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::{Fact, UserStack};
use process::{Known, Processes};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// An event that lacks the names of its user stack, if it has one.
pub struct Draft {
    event: Event,
    time: SystemTime,
    boot_ns: u64,
    probe: &'static str,
    kind: &'static str,
    /// Where the task was in its own code.
    pub user_stack: Option<UserStack>,
}

impl Draft {
    /// The encoded event, with this user stack.
    pub fn encode(mut self, user: Vec<String>) -> Document {
        if !user.is_empty() {
            self.event.kpulse.stack.get_or_insert_default().user = user;
        }
        let since_epoch = self.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Document {
            time_ns: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
            boot_ns: self.boot_ns,
            probe: self.probe,
            kind: self.kind,
            keys: Keys::of(&self.event),
            json: serde_json::to_string(&self.event)
                .expect("the document has string keys only and no fallible field"),
            id: self.event.event.id,
        }
    }
}

/// Turns facts into documents.
pub struct Enrich {
    host: Host,
    labels: BTreeMap<String, String>,
    clock: Clock,
    identities: Identities,
    processes: Processes,
    users: Users,
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
            users: Users::new(paths),
        }
    }

    /// From now on processes that are gone have names too.
    #[must_use]
    pub fn with_lives(mut self, lives: Option<Box<dyn Lives>>) -> Self {
        if let Some(lives) = lives {
            self.processes.follow(lives);
        }
        self
    }

    /// Takes in what is told of processes, whether or not there are events: its ring must not fill up.
    pub fn catch_up(&mut self) {
        self.processes.catch_up();
    }

    /// What became of the records of processes; `None` when there are none here.
    pub fn process_counts(&self) -> Option<ProcessCounts> {
        self.processes.counts()
    }

    /// The event, with all but the names of its user stack.
    pub fn draft(&mut self, mut fact: Fact) -> Draft {
        let time = self.clock.wall(fact.boot_ns);
        let (probe, kind, boot_ns) = (fact.probe, fact.kind, fact.boot_ns);
        let user_stack = fact.user_stack.take();
        self.users.add(kind, &mut fact.body, &mut self.identities);
        Draft { event: self.event(fact, time), time, boot_ns, probe, kind, user_stack }
    }

    fn event(&mut self, fact: Fact, time: SystemTime) -> Event {
        // Pid 0 is the idle task, or no task at all.
        let known = (fact.pid != 0).then(|| self.processes.find(fact.pid, fact.boot_ns));
        let of_process = known.as_ref().and_then(|known| known.as_ref()?.cgroup);
        let container = self.container(fact.cgroup, of_process);
        let process = known.map(|known| process(&fact, known));
        let kind = fact.kind;
        let mut event = Event::new(time, self.host.clone(), kind, self.kpulse(fact));
        event.labels.clone_from(&self.labels);
        event.process = process;
        if let Some(container) = container {
            add_container(&mut event, &container);
        }
        event
    }

    /// The container of a fact, also of one that came and went unseen. Where the cgroup is not known, or was in another
    /// hierarchy than the records tell of and is gone, it is the container of the process.
    fn container(
        &mut self,
        cgroup: Option<CgroupId>,
        of_process: Option<CgroupId>,
    ) -> Option<Arc<ContainerIdentity>> {
        let other =
            of_process.filter(|other| cgroup.is_none_or(|cgroup| cgroup.hierarchy != other.hierarchy));
        for cgroup in [cgroup, other].into_iter().flatten() {
            if self.identities.path(cgroup).is_some() {
                return self.identities.container(cgroup);
            }
            if let Some((path, _)) = self.processes.cgroup_path(cgroup) {
                return parse_container(&path).map(Arc::new);
            }
        }
        None
    }

    fn path(&mut self, cgroup: CgroupId) -> Option<Arc<str>> {
        let told =
            || self.processes.cgroup_path(cgroup).and_then(|(path, is_whole)| is_whole.then_some(path));
        self.identities.path(cgroup).or_else(told)
    }

    fn kpulse(&mut self, fact: Fact) -> Kpulse {
        let cgroup = fact.cgroup.map(|cgroup| Cgroup {
            id: cgroup.id,
            hierarchy: cgroup.hierarchy.name().to_owned(),
            path: self.path(cgroup).map(|path| path.to_string()),
        });
        let has_stack = !fact.kernel_stack.is_empty();
        Kpulse {
            schema: SCHEMA_VERSION,
            probe: fact.probe.to_owned(),
            cpu: fact.cpu,
            cgroup,
            value_ns: fact.value_ns,
            threshold_ns: fact.threshold_ns,
            suppressed: fact.suppressed,
            stack: has_stack.then_some(Stack { kernel: fact.kernel_stack, user: Vec::new() }),
            body: BTreeMap::from([(fact.kind.to_owned(), body(fact.body))]),
        }
    }
}

fn process(fact: &Fact, known: Option<Known>) -> Process {
    let comm = Some(fact.comm.clone()).filter(|comm| !comm.is_empty());
    let (name, executable, command_line) =
        known.map(|known| (known.name, known.executable, known.command_line)).unwrap_or_default();
    Process {
        pid: fact.pid,
        // A process has the name of its first thread, so that is known even when nothing else is.
        name: name.or_else(|| comm.clone().filter(|_| fact.pid == fact.tid)),
        executable,
        command_line,
        thread: Thread { id: fact.tid, name: comm },
    }
}

fn add_container(event: &mut Event, known: &ContainerIdentity) {
    let (container, orchestrator, kubernetes) = of_container(known);
    event.container = Some(container);
    event.orchestrator = orchestrator;
    event.kubernetes = kubernetes;
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
pub(crate) mod tests;
