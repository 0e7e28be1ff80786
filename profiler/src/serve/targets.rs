//! Which processes and containers can be looked at, and how much they ran.

use crate::aggregate::{Key, Selection};
use kpulse_common::container::ContainerIdentity;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;

/// Longest list of each kind; the rest is counted.
pub const MAX_LISTED: usize = 1000;

/// Everything that ran, most first.
#[derive(Debug, Serialize)]
pub struct Targets {
    pub samples: u64,
    pub containers: Vec<Container>,
    pub containers_left_out: usize,
    pub processes: Vec<Process>,
    pub processes_left_out: usize,
}

/// A container with the names that are known of it.
#[derive(Debug, Serialize)]
pub struct Container {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    pub samples: u64,
}

/// A process; after an exec, it is called as it was called for longer.
#[derive(Debug, Serialize)]
pub struct Process {
    pub pid: u32,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    pub samples: u64,
}

#[derive(Default)]
struct Seen<'a> {
    names: HashMap<&'a Arc<str>, u64>,
    container: Option<&'a Arc<str>>,
    samples: u64,
}

impl Targets {
    /// Sums the entries of a selection.
    pub fn of(selection: &Selection) -> Self {
        let mut containers: HashMap<&Arc<str>, u64> = HashMap::new();
        let mut processes: HashMap<u32, Seen<'_>> = HashMap::new();
        for (Key { pid, process, container, .. }, count) in &selection.entries {
            let seen = processes.entry(*pid).or_default();
            *seen.names.entry(process).or_default() += count;
            seen.samples += count;
            seen.container = container.as_ref();
            if let Some(id) = container {
                *containers.entry(id).or_default() += count;
            }
        }
        let mut containers: Vec<_> = containers
            .into_iter()
            .map(|(id, samples)| {
                let identity = selection.containers.get(id);
                let named = |name: fn(&ContainerIdentity) -> &Option<String>| {
                    identity.and_then(|known| name(known).clone())
                };
                let (namespace, pod) = (named(|known| &known.namespace), named(|known| &known.pod));
                Container {
                    id: id.to_string(),
                    namespace,
                    pod,
                    container: named(|known| &known.container),
                    samples,
                }
            })
            .collect();
        containers.sort_by(|one, other| other.samples.cmp(&one.samples).then_with(|| one.id.cmp(&other.id)));
        let mut processes: Vec<_> = processes
            .into_iter()
            .filter_map(|(pid, seen)| {
                let longest =
                    seen.names.into_iter().max_by(|one, other| one.1.cmp(&other.1).then(other.0.cmp(one.0)));
                let name = longest?.0.to_string();
                Some(Process {
                    pid,
                    name,
                    container: seen.container.map(ToString::to_string),
                    samples: seen.samples,
                })
            })
            .collect();
        processes.sort_by_key(|process| (std::cmp::Reverse(process.samples), process.pid));
        let containers_left_out = containers.len().saturating_sub(MAX_LISTED);
        let processes_left_out = processes.len().saturating_sub(MAX_LISTED);
        containers.truncate(MAX_LISTED);
        processes.truncate(MAX_LISTED);
        Self { samples: selection.samples, containers, containers_left_out, processes, processes_left_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::{Scope, Window};
    use std::time::SystemTime;

    #[test]
    fn the_busiest_come_first_and_what_is_left_out_is_counted() {
        let mut window = Window::new(SystemTime::UNIX_EPOCH, 5000);
        for pid in 1..=1500u32 {
            let stack: [Arc<str>; 1] = ["main".into()];
            for (process, count) in [("before", 1), ("after", u64::from(pid))] {
                let key = Key {
                    pid,
                    process: process.into(),
                    thread: "t".into(),
                    container: None,
                    stack: Arc::from(stack.as_slice()),
                };
                window.add(key, count);
            }
        }
        let selection = Selection::gather([&window], &Scope::Host).unwrap();
        let targets = Targets::of(&selection);
        assert_eq!((targets.processes.len(), targets.processes_left_out), (MAX_LISTED, 500));
        let first = &targets.processes[0];
        assert_eq!((first.pid, first.name.as_str(), first.samples), (1500, "after", 1501));
    }
}
