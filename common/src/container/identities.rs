//! From cgroup ids to paths and containers, kept for as long as someone may still ask.

use super::{CgroupId, ContainerIdentity, Hierarchies, Hierarchy, handle, parse_container};
use crate::paths::Paths;
use std::collections::HashMap;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
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
    walked: HashMap<Hierarchy, Instant>,
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
                self.remember(cgroup, &path);
            }
        } else if self
            .walked
            .get(&cgroup.hierarchy)
            .is_none_or(|last| now.duration_since(*last) >= WALK_INTERVAL)
        {
            self.walk(cgroup.hierarchy, &mount, now);
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
        let Some(last) = self.walked.get(&hierarchy) else {
            // The first question starts the clock; there is nothing to sweep yet.
            self.walked.insert(hierarchy, now.checked_sub(WALK_INTERVAL).unwrap_or(now));
            return;
        };
        if now.duration_since(*last) >= SWEEP_INTERVAL
            && let Some(mount) = self.hierarchies.mount(hierarchy).map(Path::to_owned)
        {
            self.walk(hierarchy, &mount, now);
        }
    }

    /// Learns every cgroup below `mount`, marks those that are gone, and forgets those gone for long.
    fn walk(&mut self, hierarchy: Hierarchy, mount: &Path, now: Instant) {
        self.walks += 1;
        self.walked.insert(hierarchy, now);
        for (cgroup, entry) in &mut self.known {
            if cgroup.hierarchy == hierarchy && entry.gone_since.is_none() {
                entry.gone_since = Some(now);
            }
        }
        for (id, path) in directories(mount) {
            let cgroup = CgroupId { hierarchy, id };
            match self.known.get_mut(&cgroup) {
                Some(entry) if *entry.path == *path => entry.gone_since = None,
                // A v1 cgroup can be renamed.
                _ => self.remember(cgroup, &path),
            }
        }
        self.known
            .retain(|_, entry| entry.gone_since.is_none_or(|since| now.duration_since(since) < KEEP_GONE));
        self.unknown.retain(|_, since| now.duration_since(*since) < UNKNOWN_FOR);
    }

    fn remember(&mut self, cgroup: CgroupId, path: &str) {
        if self.known.len() >= PATHS_MAX && !self.known.contains_key(&cgroup) {
            // Room comes from what is gone; with nothing gone, the newcomer stays unknown.
            let gone =
                self.known.iter().find(|(_, entry)| entry.gone_since.is_some()).map(|(cgroup, _)| *cgroup);
            match gone {
                Some(gone) => self.known.remove(&gone),
                None => return,
            };
        }
        let container = parse_container(path).map(Arc::new);
        let labels = container.as_ref().map_or_else(|| self.host_labels.clone(), |it| labels_of(it));
        self.unknown.remove(&cgroup);
        self.known.insert(cgroup, Entry { path: path.into(), container, labels, gone_since: None });
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

/// Inode and path of `mount` and every directory below it, at most [`PATHS_MAX`]. Those that vanish meanwhile or
/// cannot be read are left out.
fn directories(mount: &Path) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    if let Ok(root) = std::fs::metadata(mount) {
        found.push((std::os::unix::fs::MetadataExt::ino(&root), "/".to_owned()));
    }
    let mut pending: Vec<PathBuf> = vec![mount.to_owned()];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.filter_map(Result::ok) {
            if found.len() >= PATHS_MAX {
                return found;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if let Ok(relative) = path.strip_prefix(mount) {
                    found.push((entry.ino(), format!("/{}", relative.to_string_lossy())));
                }
                pending.push(path);
            }
        }
    }
    found
}

#[cfg(test)]
#[path = "identities_tests.rs"]
mod tests;
