//! Which thresholds hold where: the machine's, and in their place those of single containers and cgroups. They follow
//! containers as these come and go, and the configuration when it is read again; no probe is loaded anew for it.

use crate::config::Config;
use kpulse_common::container::{ContainerCgroup, Hierarchy, Identities};
use kpulse_common::thresholds::Thresholds;
use kpulse_exporter_ebpf::Policies;
use kpulse_exporter_ebpf::policy::CGROUPS_MAX;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How soon a new container has its rules.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most cgroups below a container's own that share its rules.
const CHILDREN_MAX: usize = 64;
/// Shortest beginning of a container's id that names it, as runtimes print it.
const ID_DIGITS_MIN: usize = 12;

/// Thresholds of one container or cgroup.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Override {
    /// Name of a container, its id, or at least the first 12 digits of that.
    pub container: String,
    /// Path of a cgroup in its hierarchy, for example `/system.slice/nginx.service`.
    pub cgroup: String,
    /// What differs from the machine's thresholds, in the same form.
    pub thresholds: Map<String, Value>,
}

impl Override {
    /// The thresholds that it puts in place of the machine's.
    pub fn resolve(&self, machine: &Thresholds) -> Result<Thresholds, String> {
        if self.container.is_empty() == self.cgroup.is_empty() {
            return Err("names neither or both of `container` and `cgroup`; name one".to_owned());
        }
        let mut whole = serde_json::to_value(machine).map_err(|error| error.to_string())?;
        merge(&mut whole, &Value::Object(self.thresholds.clone()));
        let resolved: Thresholds = serde_json::from_value(whole)
            .map_err(|error| format!("has thresholds that cannot be used: {error}"))?;
        resolved
            .check_own(machine)
            .map_err(|(key, why)| format!("has thresholds that cannot be used: {key} {why}"))?;
        Ok(resolved)
    }

    /// Whether the path is that of its cgroup, or of one below.
    fn holds(&self, path: &str) -> bool {
        let below = path.strip_prefix(self.cgroup.trim_end_matches('/'));
        !self.cgroup.is_empty() && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn fits(&self, labels: &[std::sync::Arc<str>; 4]) -> bool {
        let (name, id) = (&*labels[2], &*labels[3]);
        let is_id = self.container.len() >= ID_DIGITS_MIN && id.starts_with(&self.container);
        !self.container.is_empty() && (is_id || name == self.container)
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// Rules by hierarchy and cgroup id.
type Own = HashMap<Hierarchy, BTreeMap<u64, Thresholds>>;

/// The thresholds of a configuration, for the machine and for whom it names.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// What holds where nothing else does.
    pub machine: Thresholds,
    /// In the order of their names; of two that fit, the first counts.
    own: Vec<(Override, Thresholds)>,
}

impl Rules {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        let own = config
            .overrides
            .values()
            .filter_map(|it| Some((it.clone(), it.resolve(&config.thresholds).ok()?)));
        Self { machine: config.thresholds.clone(), own: own.collect() }
    }

    /// The thresholds that hold for a container.
    pub fn of_container(&self, container: &ContainerCgroup) -> &Thresholds {
        let own =
            self.own.iter().find(|(wish, _)| wish.fits(&container.labels) || wish.holds(&container.path));
        own.map_or(&self.machine, |(_, thresholds)| thresholds)
    }

    /// Every set of thresholds that may hold somewhere.
    pub fn all(&self) -> impl Iterator<Item = &Thresholds> {
        std::iter::once(&self.machine).chain(self.own.iter().map(|(_, thresholds)| thresholds))
    }
}

/// A thread that keeps the probes' rules as the configuration and the machine's cgroups want them.
pub struct Keeper {
    rules: Option<Sender<Rules>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts with the rules of this configuration.
    pub fn start(policies: Policies, config: &Config) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let (rules, identities) = (Rules::of(config), Identities::new(&config.path));
        let keep = move || keep(policies, identities, rules, &receiver);
        let thread = thread::Builder::new().name("policies".to_owned()).spawn(keep)?;
        Ok(Self { rules: Some(sender), thread: Some(thread) })
    }

    /// Goes on with the rules of this configuration.
    pub fn change(&self, config: &Config) {
        if let Some(rules) = &self.rules {
            // The thread ends only after this sender.
            let _ = rules.send(Rules::of(config));
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.rules = None;
        if let Some(thread) = self.thread.take() {
            // A keeper that panicked has said so; the rules stay as they are.
            let _ = thread.join();
        }
    }
}

fn keep(mut policies: Policies, mut identities: Identities, mut rules: Rules, changes: &Receiver<Rules>) {
    let mut applied: Option<(Rules, Own)> = None;
    loop {
        let own = find(&rules, &mut identities, policies.hierarchies());
        let wanted = (rules.clone(), own);
        if applied.as_ref() != Some(&wanted) {
            match policies.apply(&wanted.0.machine, &wanted.1) {
                Ok(()) => tracing::debug!(
                    cgroups = wanted.1.values().map(BTreeMap::len).sum::<usize>(),
                    "rules applied"
                ),
                Err(error) => tracing::error!(%error, "thresholds could not be changed and may hold in part"),
            }
            applied = Some(wanted);
        }
        // Without rules for cgroups there is nothing to follow.
        let next = if rules.own.is_empty() {
            changes.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            changes.recv_timeout(INTERVAL)
        };
        match next {
            Ok(new) => rules = new,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The cgroups that have rules of their own now.
fn find(rules: &Rules, identities: &mut Identities, hierarchies: HashSet<Hierarchy>) -> Own {
    let mut found = Own::new();
    if rules.own.is_empty() {
        return found;
    }
    for hierarchy in hierarchies {
        let Some(mount) = identities.hierarchies().mount(hierarchy).map(Path::to_owned) else { continue };
        let here = found.entry(hierarchy).or_default();
        let containers = identities.alive(hierarchy);
        for (wish, thresholds) in &rules.own {
            let named = containers.iter().filter(|container| wish.fits(&container.labels));
            let paths = named
                .map(|container| &*container.path)
                .chain(Some(&*wish.cgroup).filter(|path| !path.is_empty()));
            for path in paths {
                for id in with_children(&mount.join(path.trim_start_matches('/'))) {
                    here.entry(id).or_insert_with(|| thresholds.clone());
                }
            }
        }
        if here.len() > CGROUPS_MAX {
            tracing::warn!(
                cgroups = here.len(),
                bound = CGROUPS_MAX,
                "more cgroups than can have thresholds of their own fit the overrides; the rest keep the machine's"
            );
            *here = std::mem::take(here).into_iter().take(CGROUPS_MAX).collect();
        }
    }
    found
}

/// The ids of a cgroup and of those below it; none when it is not there.
fn with_children(folder: &Path) -> Vec<u64> {
    let mut ids = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(about) = fs::metadata(&folder) else { continue };
        ids.push(about.ino());
        let below = fs::read_dir(&folder).into_iter().flatten().flatten();
        let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(below.map(|entry| entry.path()));
        if ids.len() > CHILDREN_MAX {
            break;
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wish(value: Value) -> Override {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_an_override_does_not_name_stays_the_machines() {
        let machine = Thresholds::default();
        let own = wish(json!({"container": "web", "thresholds": {"block_io": {"min_d2c": "7ms"}}}));
        let resolved = own.resolve(&machine).unwrap();
        assert_eq!(resolved.block_io.min_d2c, Duration::from_millis(7));
        assert_eq!(resolved.block_io.min_q2c, machine.block_io.min_q2c);
        assert_eq!(resolved.runqueue_latency, machine.runqueue_latency);
    }

    #[test]
    fn an_override_that_cannot_be_used_says_why() {
        let refused = |value| wish(value).resolve(&Thresholds::default()).unwrap_err();
        assert!(refused(json!({})).contains("name one"));
        assert!(refused(json!({"container": "a", "cgroup": "/b"})).contains("name one"));
        let unknown = refused(json!({"cgroup": "/b", "thresholds": {"block_oi": {}}}));
        assert!(unknown.contains("block_oi"), "{unknown}");
        let wrong = refused(json!({"cgroup": "/b", "thresholds": {"block_io": {"min_d2c": "soon"}}}));
        assert!(wrong.contains("thresholds"), "{wrong}");
        let shared = refused(json!({"cgroup": "/b", "thresholds": {"packet_drop": {"filter": "udp"}}}));
        assert!(shared.contains("packet_drop.filter holds for the whole machine"), "{shared}");
        let beyond = refused(json!({"cgroup": "/b", "thresholds": {"cpu_throttled": {"min_share": 2.0}}}));
        assert!(beyond.contains("cpu_throttled.min_share must be"), "{beyond}");
    }

    #[test]
    fn a_container_is_named_by_name_or_by_enough_of_its_id() {
        let labels = ["", "", "web", "0c1d2e3f40516273"].map(Into::into);
        let fits = |name: &str| wish(json!({"container": name})).fits(&labels);
        assert!(fits("web") && fits("0c1d2e3f4051") && fits("0c1d2e3f40516273"));
        let holds = |cgroup: &str, path: &str| wish(json!({"cgroup": cgroup})).holds(path);
        assert!(holds("/a/b", "/a/b") && holds("/a/b/", "/a/b/c") && holds("/", "/a"));
        assert!(!holds("/a/b", "/a/bc") && !holds("/a/b", "/a") && !holds("", "/a"));
        assert!(!fits("we") && !fits("0c1d2e3f405") && !fits("0c1d2e3f405162730") && !fits(""));
    }
}
