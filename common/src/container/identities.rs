//! From cgroup ids to paths and containers, kept for as long as someone may still ask.

use super::{CgroupId, ContainerIdentity, Hierarchies, Hierarchy, handle, parse_container};
use crate::paths::Paths;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most cgroups known at once; about 4 MiB of paths.
const PATHS_MAX: usize = 16_384;
/// Most ids remembered as not found.
const UNKNOWN_MAX: usize = 4_096;
/// Shortest time between two walks of one hierarchy for ids that are not known.
const WALK_INTERVAL: Duration = Duration::from_secs(1);
/// An id is never reused, so one that a walk did not find is not looked for again so soon.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);
/// A hierarchy in use is walked this often to notice which cgroups are gone.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// What is gone can still be asked for: its last events and the last scrape come late.
const KEEP_GONE: Duration = Duration::from_secs(300);

/// Answers which path and which container a cgroup id stands for.
#[derive(Debug)]
pub struct Identities {
    hierarchies: Hierarchies,
    known: HashMap<CgroupId, Entry>,
    unknown: HashMap<CgroupId, Instant>,
    walked: HashMap<Hierarchy, Walked>,
    /// Whether cgroups of a hierarchy can be opened by their id; then no walk is needed to find one.
    opened_by_handle: HashMap<Hierarchy, bool>,
    host_labels: [Arc<str>; 4],
    hits: u64,
    misses: u64,
    walks: u64,
}

#[derive(Debug)]
struct Entry {
    path: Arc<str>,
    container: Option<Arc<ContainerIdentity>>,
    labels: [Arc<str>; 4],
    gone_since: Option<Instant>,
    /// Whether it had no cgroups below it when it was last looked into.
    is_leaf: bool,
}

/// When a hierarchy was walked, and what is alive in it.
#[derive(Debug)]
struct Walked {
    at: Instant,
    /// When every directory was looked into, those of leaf containers too.
    whole_at: Option<Instant>,
    /// The outermost cgroup of each container; the same list while it has the same containers. Bound: [`PATHS_MAX`].
    containers: Arc<[ContainerCgroup]>,
}

/// The cgroup of a container: the outermost one where it made more below its own.
#[derive(Debug, Clone)]
pub struct ContainerCgroup {
    /// The cgroup.
    pub cgroup: CgroupId,
    /// Path within the hierarchy.
    pub path: Arc<str>,
    /// Values of the labels `namespace`, `pod`, `container`, `container_id`.
    pub labels: [Arc<str>; 4],
}

/// Whether a cgroup that is known is still there, and the values of the labels `namespace`, `pod`, `container`,
/// `container_id`, which are kept for a while after it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// It was there a second ago.
    Alive([Arc<str>; 4]),
    /// It is gone for good: an id is never reused.
    Gone([Arc<str>; 4]),
}

/// How deep a walk looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Into every directory.
    Whole,
    /// Not into containers that had no cgroups below their own.
    Containers,
}

impl Identities {
    /// Reads which hierarchies this host has; no cgroup is looked up yet.
    pub fn new(paths: &Paths) -> Self {
        let empty: Arc<str> = "".into();
        Self {
            hierarchies: Hierarchies::detect(paths),
            known: HashMap::new(),
            unknown: HashMap::new(),
            walked: HashMap::new(),
            opened_by_handle: HashMap::new(),
            host_labels: std::array::from_fn(|_| empty.clone()),
            hits: 0,
            misses: 0,
            walks: 0,
        }
    }

    /// The hierarchies that ids are looked up in.
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// The path of a cgroup within its hierarchy; `/` is the root.
    pub fn path(&mut self, cgroup: CgroupId) -> Option<Arc<str>> {
        self.find(cgroup, Instant::now()).map(|entry| entry.path.clone())
    }

    /// The container of a cgroup; `None` for the host and for a cgroup that is not known.
    pub fn container(&mut self, cgroup: CgroupId) -> Option<Arc<ContainerIdentity>> {
        self.find(cgroup, Instant::now()).and_then(|entry| entry.container.clone())
    }

    /// Values of the labels `namespace`, `pod`, `container`, `container_id`; all empty for the host.
    pub fn labels(&mut self, cgroup: CgroupId) -> [Arc<str>; 4] {
        match self.find(cgroup, Instant::now()) {
            Some(entry) => entry.labels.clone(),
            None => self.host_labels.clone(),
        }
    }

    /// Whether a cgroup is alive, as of a second ago at most; `None` for one that is not known.
    pub fn life(&mut self, cgroup: CgroupId) -> Option<Life> {
        self.life_at(cgroup, Instant::now())
    }

    fn life_at(&mut self, cgroup: CgroupId, now: Instant) -> Option<Life> {
        self.walk_when_old(cgroup.hierarchy, now);
        let entry = self.find(cgroup, now)?;
        let (labels, path, is_missing) =
            (entry.labels.clone(), entry.path.clone(), entry.gone_since.is_some());
        // A walk does not look into every container, so what it has not found may be there.
        let is_gone = is_missing && self.is_elsewhere(cgroup, &path);
        Some(if is_gone { Life::Gone(labels) } else { Life::Alive(labels) })
    }

    /// Whether the directory of this path is surely not the cgroup's.
    fn is_elsewhere(&self, cgroup: CgroupId, path: &str) -> bool {
        let Some(mount) = self.hierarchies.mount(cgroup.hierarchy) else { return false };
        match std::fs::metadata(mount.join(path.trim_start_matches('/'))) {
            Ok(there) => there.ino() != cgroup.id,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        }
    }

    /// The containers that are alive in a hierarchy, as of a second ago at most.
    ///
    /// The cgroups of one container inside another are found a minute late when the outer one had none before.
    pub fn containers(&mut self, hierarchy: Hierarchy) -> impl Iterator<Item = ContainerCgroup> + '_ {
        self.containers_at(hierarchy, Instant::now())
    }

    fn containers_at(
        &mut self,
        hierarchy: Hierarchy,
        now: Instant,
    ) -> impl Iterator<Item = ContainerCgroup> + '_ {
        self.alive_at(hierarchy, now);
        self.walked.get(&hierarchy).map_or(&[][..], |walked| &walked.containers).iter().cloned()
    }

    /// As [`Self::containers`]: one list, which is the same again and again until a container comes or goes.
    pub fn alive(&mut self, hierarchy: Hierarchy) -> Arc<[ContainerCgroup]> {
        self.alive_at(hierarchy, Instant::now())
    }

    fn alive_at(&mut self, hierarchy: Hierarchy, now: Instant) -> Arc<[ContainerCgroup]> {
        self.walk_when_old(hierarchy, now);
        self.walked.get(&hierarchy).map_or_else(Arc::default, |walked| Arc::clone(&walked.containers))
    }

    fn walk_when_old(&mut self, hierarchy: Hierarchy, now: Instant) {
        let walked = self.walked.get(&hierarchy);
        if walked.is_none_or(|walked| now.duration_since(walked.at) >= WALK_INTERVAL)
            && let Some(mount) = self.hierarchies.mount(hierarchy).map(Path::to_owned)
        {
            self.walk(hierarchy, &mount, now, Depth::Containers);
        }
    }

    /// How many questions were answered.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// How many questions had no answer.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// How many times a tree was walked.
    pub fn walks(&self) -> u64 {
        self.walks
    }

    fn find(&mut self, cgroup: CgroupId, now: Instant) -> Option<&Entry> {
        self.sweep_when_due(cgroup.hierarchy, now);
        if !self.known.contains_key(&cgroup) {
            self.look_up(cgroup, now);
        }
        let found = self.known.get(&cgroup);
        match found {
            Some(_) => self.hits += 1,
            None => self.misses += 1,
        }
        found
    }

    /// By handle, else by a walk, which is allowed once a second.
    fn look_up(&mut self, cgroup: CgroupId, now: Instant) {
        if self.unknown.get(&cgroup).is_some_and(|since| now.duration_since(*since) < UNKNOWN_FOR) {
            return;
        }
        let Some(mount) = self.hierarchies.mount(cgroup.hierarchy).map(Path::to_owned) else { return };
        if *self.opened_by_handle.entry(cgroup.hierarchy).or_insert_with(|| handle::works(&mount)) {
            if let Some(path) = handle::path_of(&mount, cgroup.id) {
                self.remember(cgroup, &path, now);
            }
        } else if self
            .walked
            .get(&cgroup.hierarchy)
            .is_none_or(|walked| now.duration_since(walked.at) >= WALK_INTERVAL)
        {
            self.walk(cgroup.hierarchy, &mount, now, Depth::Whole);
        } else {
            // The next walk may find it.
            return;
        }
        if !self.known.contains_key(&cgroup) {
            if self.unknown.len() >= UNKNOWN_MAX {
                self.unknown.clear();
            }
            self.unknown.insert(cgroup, now);
        }
    }

    fn sweep_when_due(&mut self, hierarchy: Hierarchy, now: Instant) {
        let Some(walked) = self.walked.get(&hierarchy) else {
            // The first question starts the clock; there is nothing to sweep yet.
            let at = now.checked_sub(WALK_INTERVAL).unwrap_or(now);
            self.walked.insert(hierarchy, Walked { at, whole_at: None, containers: Arc::default() });
            return;
        };
        if now.duration_since(walked.at) >= SWEEP_INTERVAL
            && let Some(mount) = self.hierarchies.mount(hierarchy).map(Path::to_owned)
        {
            self.walk(hierarchy, &mount, now, Depth::Whole);
        }
    }

    /// Learns the cgroups below `mount`, marks those that are gone, and forgets those gone for long.
    fn walk(&mut self, hierarchy: Hierarchy, mount: &Path, now: Instant, depth: Depth) {
        self.walks += 1;
        let last_whole = self.walked.get(&hierarchy).and_then(|walked| walked.whole_at);
        let whole_at = last_whole
            .filter(|last| depth == Depth::Containers && now.duration_since(*last) < SWEEP_INTERVAL)
            .unwrap_or(now);
        let known_leaf = |id: u64| {
            let entry = self.known.get(&CgroupId { hierarchy, id })?;
            (whole_at != now && entry.is_leaf && entry.container.is_some()).then_some(&*entry.path)
        };
        let found = directories(mount, known_leaf);
        for (cgroup, entry) in &mut self.known {
            if cgroup.hierarchy == hierarchy && entry.gone_since.is_none() {
                entry.gone_since = Some(now);
            }
        }
        let (mut containers, mut seen) = (Vec::new(), HashSet::new());
        for Directory { id, path, is_leaf } in found {
            let cgroup = CgroupId { hierarchy, id };
            // A v1 cgroup can be renamed.
            if let Some(path) = path
                && self.known.get(&cgroup).is_none_or(|entry| *entry.path != *path)
            {
                self.remember(cgroup, &path, now);
            }
            let Some(entry) = self.known.get_mut(&cgroup) else { continue };
            (entry.gone_since, entry.is_leaf) = (None, is_leaf);
            // A directory comes before those below it, so the first of an id is the outermost. One id in two places
            // would be one series twice.
            if entry.container.is_some() && seen.insert(Arc::clone(&entry.labels[3])) {
                let (path, labels) = (Arc::clone(&entry.path), entry.labels.clone());
                containers.push(ContainerCgroup { cgroup, path, labels });
            }
        }
        self.known
            .retain(|_, entry| entry.gone_since.is_none_or(|since| now.duration_since(since) < KEEP_GONE));
        self.unknown.retain(|_, since| now.duration_since(*since) < UNKNOWN_FOR);
        let before = self.walked.remove(&hierarchy).map(|walked| walked.containers);
        let same = before.filter(|before| {
            let mut pairs = before.iter().zip(&containers);
            // What was renamed was remembered anew, with another path.
            before.len() == containers.len()
                && pairs.all(|(a, b)| a.cgroup == b.cgroup && Arc::ptr_eq(&a.path, &b.path))
        });
        let containers = same.unwrap_or_else(|| containers.into());
        self.walked.insert(hierarchy, Walked { at: now, whole_at: Some(whole_at), containers });
    }

    /// Room comes from what is gone for longest, half of it, so that this is rarely done; with nothing gone, a newcomer
    /// stays unknown. A walk under way has marked all with its own time until it finds them.
    fn make_room(&mut self, now: Instant) -> bool {
        let gone = self.known.values().filter_map(|entry| entry.gone_since);
        let mut gone: Vec<Instant> = gone.filter(|since| *since < now).collect();
        if gone.is_empty() {
            return false;
        }
        let middle = gone.len() / 2;
        let latest = *gone.select_nth_unstable(middle).1;
        self.known.retain(|_, entry| entry.gone_since.is_none_or(|since| since > latest));
        true
    }

    fn remember(&mut self, cgroup: CgroupId, path: &str, now: Instant) {
        if self.known.len() >= PATHS_MAX && !self.known.contains_key(&cgroup) && !self.make_room(now) {
            return;
        }
        let container = parse_container(path).map(Arc::new);
        let labels = container.as_ref().map_or_else(|| self.host_labels.clone(), |it| labels_of(it));
        self.unknown.remove(&cgroup);
        self.known
            .insert(cgroup, Entry { path: path.into(), container, labels, gone_since: None, is_leaf: false });
    }
}

fn labels_of(container: &ContainerIdentity) -> [Arc<str>; 4] {
    let text = |value: &Option<String>| value.as_deref().unwrap_or_default().into();
    [
        text(&container.namespace),
        text(&container.pod),
        text(&container.container),
        container.id.as_str().into(),
    ]
}

/// A directory of a cgroup tree.
struct Directory {
    id: u64,
    /// `None` for a known leaf, which is where it was.
    path: Option<String>,
    is_leaf: bool,
}

/// `mount` and every directory below it, at most [`PATHS_MAX`], each before those below it. Those that vanish
/// meanwhile or cannot be read are left out. `known_leaf` gives the path of one that is not to be looked into.
fn directories<'a>(mount: &Path, known_leaf: impl Fn(u64) -> Option<&'a str>) -> Vec<Directory> {
    let Ok(root) = std::fs::metadata(mount) else { return Vec::new() };
    let mut found = vec![Directory { id: root.ino(), path: Some("/".to_owned()), is_leaf: false }];
    // Paths within the hierarchy; that of the root is empty, as every other begins with a slash.
    let mut pending: Vec<String> = vec![String::new()];
    while let Some(parent) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(mount.join(parent.trim_start_matches('/'))) else { continue };
        for entry in entries.filter_map(Result::ok) {
            if found.len() >= PATHS_MAX {
                return found;
            }
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let (id, name) = (entry.ino(), entry.file_name());
            let known = known_leaf(id);
            if known
                .and_then(|path| path.strip_prefix(&*parent)?.strip_prefix('/'))
                .is_some_and(|it| name == it)
            {
                found.push(Directory { id, path: None, is_leaf: true });
                continue;
            }
            // The kernel counts a directory's link from its parent, its own, and one from each directory in it.
            let is_leaf = known.is_some() || entry.metadata().is_ok_and(|it| it.nlink() == 2);
            let path = format!("{parent}/{}", name.to_string_lossy());
            if !is_leaf {
                pending.push(path.clone());
            }
            found.push(Directory { id, path: Some(path), is_leaf });
        }
    }
    found
}

#[cfg(test)]
#[path = "identities_tests.rs"]
mod tests;
