use super::*;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

const ID: &str = "0c1d2e3f405162738495a6b7c8d9eafb0c1d2e3f405162738495a6b7c8d9eafb";

/// A directory tree that stands for a unified hierarchy.
struct Tree {
    root: tempfile::TempDir,
    identities: Identities,
}

impl Tree {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("self")).unwrap();
        let mount = root.path().join("cgroup");
        fs::create_dir(&mount).unwrap();
        let mountinfo = format!("34 25 0:29 / {} rw - cgroup2 cgroup2 rw\n", mount.display());
        fs::write(root.path().join("self/mountinfo"), mountinfo).unwrap();
        let paths = Paths { procfs: root.path().to_owned(), cgroupfs: mount, ..Paths::default() };
        Self { identities: Identities::new(&paths), root }
    }

    fn add(&self, path: &str) -> CgroupId {
        let directory = self.root.path().join("cgroup").join(path);
        fs::create_dir_all(&directory).unwrap();
        unified(fs::metadata(directory).unwrap().ino())
    }

    fn remove(&self, path: &str) {
        fs::remove_dir_all(self.root.path().join("cgroup").join(path)).unwrap();
    }

    fn path(&mut self, cgroup: CgroupId, now: Instant) -> Option<String> {
        self.identities.find(cgroup, now).map(|entry| entry.path.to_string())
    }
}

fn unified(id: u64) -> CgroupId {
    CgroupId { hierarchy: Hierarchy::Unified, id }
}

#[test]
fn finds_paths_and_containers_by_a_walk() {
    let mut tree = Tree::new();
    let service = tree.add("system.slice/ssh.service");
    let container = tree.add(&format!("system.slice/docker-{ID}.scope"));
    let inner = tree.add(&format!("system.slice/docker-{ID}.scope/init.scope"));
    assert_eq!(tree.identities.path(service).as_deref(), Some("/system.slice/ssh.service"));
    assert_eq!(tree.identities.container(service), None);
    assert_eq!(tree.identities.labels(service).map(|label| label.to_string()), ["", "", "", ""]);
    for cgroup in [container, inner] {
        assert_eq!(tree.identities.container(cgroup).unwrap().id, ID);
        assert_eq!(tree.identities.labels(cgroup).map(|label| label.to_string()), ["", "", "", ID]);
    }
    assert_eq!(tree.identities.walks(), 1, "one walk must serve all");
}

#[test]
fn walks_at_most_once_a_second() {
    let mut tree = Tree::new();
    let start = Instant::now();
    tree.add("a");
    assert_eq!(tree.path(unified(u64::MAX), start), None);
    let b = tree.add("b");
    assert_eq!(tree.path(b, start + Duration::from_millis(900)), None);
    assert_eq!(tree.identities.walks(), 1);
    assert_eq!(tree.path(b, start + Duration::from_millis(1000)).as_deref(), Some("/b"));
    assert_eq!(tree.identities.walks(), 2);
    assert_eq!(tree.identities.misses(), 2);
    assert_eq!(tree.identities.hits(), 1);
}

#[test]
fn an_id_not_found_is_not_looked_for_again_for_a_minute() {
    let mut tree = Tree::new();
    let start = Instant::now();
    for second in 0..50 {
        assert_eq!(tree.path(unified(u64::MAX), start + Duration::from_secs(second)), None);
    }
    assert_eq!(tree.identities.walks(), 1);
}

#[test]
fn a_gone_cgroup_is_kept_for_five_minutes() {
    let mut tree = Tree::new();
    let start = Instant::now();
    let (alive, gone) = (tree.add("alive"), tree.add("gone"));
    assert_eq!(tree.path(gone, start).as_deref(), Some("/gone"));
    tree.remove("gone");
    // The sweep at one minute notices; five minutes later the entry goes.
    for minute in 1..=5 {
        assert_eq!(
            tree.path(gone, start + Duration::from_secs(60 * minute)).as_deref(),
            Some("/gone"),
            "minute {minute}"
        );
    }
    assert_eq!(tree.path(gone, start + Duration::from_secs(60 * 6)), None);
    assert_eq!(tree.path(alive, start + Duration::from_secs(60 * 6)).as_deref(), Some("/alive"));
}

#[test]
fn a_life_ends_within_a_second_and_keeps_its_labels() {
    let mut tree = Tree::new();
    let start = Instant::now();
    let after = |milliseconds| start + Duration::from_millis(milliseconds);
    let container = tree.add(&format!("docker/{ID}"));
    let labels = tree.identities.labels(container);
    assert_eq!(tree.identities.life_at(container, start), Some(Life::Alive(labels.clone())));
    assert_eq!(tree.identities.life_at(unified(u64::MAX), start), None);
    // What a leaf container makes below its own, a walk finds a minute later.
    let inner = tree.add(&format!("docker/{ID}/init.scope"));
    tree.identities.remember(inner, &format!("/docker/{ID}/init.scope"), start);
    for milliseconds in [1_000, 2_000, 3_000] {
        let life = tree.identities.life_at(inner, after(milliseconds));
        assert_eq!(life, Some(Life::Alive(labels.clone())), "{milliseconds}");
    }
    tree.remove(&format!("docker/{ID}"));
    assert_eq!(tree.identities.life_at(container, after(3_900)), Some(Life::Alive(labels.clone())));
    for cgroup in [container, inner] {
        assert_eq!(tree.identities.life_at(cgroup, after(4_000)), Some(Life::Gone(labels.clone())));
        assert!(tree.path(cgroup, after(4_000)).is_some(), "events may still ask");
    }
}

#[test]
fn another_directory_in_a_gone_cgroups_place_is_not_the_cgroup() {
    let mut tree = Tree::new();
    let start = Instant::now();
    let old = tree.add(&format!("docker/{ID}"));
    assert!(matches!(tree.identities.life_at(old, start), Some(Life::Alive(_))));
    // A new one first, so that its inode is another.
    tree.add("new");
    let cgroups = tree.root.path().join("cgroup");
    tree.remove(&format!("docker/{ID}"));
    fs::rename(cgroups.join("new"), cgroups.join("docker").join(ID)).unwrap();
    assert!(matches!(tree.identities.life_at(old, start + Duration::from_secs(1)), Some(Life::Gone(_))));
}

#[test]
fn newcomers_push_out_what_is_gone_for_longest_and_nothing_that_is_alive() {
    let mut tree = Tree::new();
    let start = Instant::now();
    let docker = |id: u64| format!("docker/{id:064x}");
    for id in 0..10 {
        tree.add(&docker(id));
    }
    assert_eq!(tree.identities.containers_at(Hierarchy::Unified, start).count(), 10);
    let later = start + WALK_INTERVAL;
    for id in 0..PATHS_MAX as u64 {
        tree.identities.remember(unified(id << 32), "/x", start);
        if let Some(entry) = tree.identities.known.get_mut(&unified(id << 32)) {
            entry.gone_since = Some(start + Duration::from_nanos(id));
        }
    }
    for id in 10..20 {
        tree.add(&docker(id));
    }
    assert_eq!(tree.identities.containers_at(Hierarchy::Unified, later).count(), 20);
    assert!(tree.identities.known.len() <= PATHS_MAX);
    assert!(!tree.identities.known.contains_key(&unified(0)), "gone for longest");
    assert!(tree.identities.known.contains_key(&unified(15_000 << 32)), "gone for less");
}

#[test]
fn memory_is_bounded_and_room_is_made_of_what_is_gone() {
    let mut tree = Tree::new();
    let now = Instant::now();
    for id in 0..PATHS_MAX as u64 {
        tree.identities.remember(unified(id << 32), "/x", now);
    }
    tree.identities.remember(unified(7), "/new", now);
    assert_eq!(tree.identities.known.len(), PATHS_MAX);
    assert!(!tree.identities.known.contains_key(&unified(7)));
    tree.identities.known.get_mut(&unified(1 << 32)).unwrap().gone_since = Some(now);
    tree.identities.remember(unified(7), "/new", now);
    assert!(!tree.identities.known.contains_key(&unified(7)), "a walk may find it yet");
    tree.identities.remember(unified(7), "/new", now + WALK_INTERVAL);
    assert_eq!(tree.identities.known.len(), PATHS_MAX);
    assert!(tree.identities.known.contains_key(&unified(7)));
    tree.identities.unknown = (0..UNKNOWN_MAX as u64).map(|id| (unified((id << 32) | 3), now)).collect();
    assert_eq!(tree.path(unified(u64::MAX), now), None);
    assert!(tree.identities.unknown.len() <= UNKNOWN_MAX);
}

#[test]
fn lists_each_live_container_once_by_its_outermost_cgroup() {
    let mut tree = Tree::new();
    let start = Instant::now();
    let other = ID.replace('0', "f");
    tree.add("system.slice/ssh.service");
    let outer = tree.add(&format!("docker/{ID}"));
    tree.add(&format!("docker/{ID}/init.scope/x"));
    let inner = tree.add(&format!("docker/{ID}/docker/{other}"));
    let alive = |tree: &mut Tree, second| {
        let now = start + Duration::from_secs(second);
        let mut all: Vec<_> = tree.identities.containers_at(Hierarchy::Unified, now).collect();
        all.sort_by_key(|it| it.path.len());
        all.into_iter().map(|it| (it.cgroup, it.labels[3].to_string())).collect::<Vec<_>>()
    };
    let both = [(outer, ID.to_owned()), (inner, other)];
    tree.add(&format!("z/z/z/left-behind/z/z/z/z/z/z/z/z/docker/{ID}"));
    tree.add(&format!("z/{ID}"));
    assert_eq!(alive(&mut tree, 0).len(), 2, "one id is one container, wherever else a cgroup has its name");
    tree.remove("z");
    tree.identities.walked.clear();
    assert_eq!(alive(&mut tree, 0), both);
    tree.remove(&format!("docker/{ID}/docker"));
    assert_eq!(alive(&mut tree, 0), both, "one walk a second is enough");
    assert_eq!(alive(&mut tree, 1), both[..1]);
    tree.remove(&format!("docker/{ID}"));
    assert_eq!(alive(&mut tree, 2), []);
    assert_eq!(tree.identities.walks(), 4);
}

#[test]
fn a_container_inside_a_leaf_container_is_found_by_the_next_whole_walk() {
    let mut tree = Tree::new();
    let start = Instant::now();
    tree.add(&format!("docker/{ID}"));
    let count = |tree: &mut Tree, second| {
        tree.identities.containers_at(Hierarchy::Unified, start + Duration::from_secs(second)).count()
    };
    assert_eq!(count(&mut tree, 0), 1);
    tree.add(&format!("docker/{ID}/docker/{}", ID.replace('0', "f")));
    tree.add(&format!("docker/{}", ID.replace('0', "e")));
    assert_eq!(count(&mut tree, 1), 2, "a new neighbour is found at once");
    assert_eq!(count(&mut tree, 60), 3);
}

#[test]
fn the_list_is_the_same_until_a_container_comes_goes_or_is_renamed() {
    let mut tree = Tree::new();
    let start = Instant::now();
    let mut second = 0;
    let mut list = |tree: &mut Tree| {
        second += 1;
        tree.identities.alive_at(Hierarchy::Unified, start + Duration::from_secs(second))
    };
    tree.add(&format!("docker/{ID}"));
    let first = list(&mut tree);
    tree.add("system.slice/ssh.service");
    assert!(Arc::ptr_eq(&first, &list(&mut tree)));
    let cgroups = tree.root.path().join("cgroup");
    fs::rename(cgroups.join("docker").join(ID), cgroups.join(ID)).unwrap();
    assert_eq!(&*list(&mut tree)[0].path, format!("/{ID}"));
    let other = ID.replace('0', "f");
    tree.add(&other);
    tree.remove(ID);
    assert_eq!(list(&mut tree).iter().map(|it| &*it.labels[3]).collect::<Vec<_>>(), [other]);
}

#[test]
fn ids_of_two_hierarchies_are_kept_apart() {
    let mut tree = Tree::new();
    let a = tree.add("a");
    assert!(tree.identities.path(a).is_some());
    assert_eq!(tree.identities.path(CgroupId { hierarchy: Hierarchy::V1("cpu"), id: a.id }), None);
}

#[test]
fn what_can_be_opened_by_handle_needs_no_walk() {
    let hierarchies = Hierarchies::detect(&Paths::default());
    let hierarchy = hierarchies.of("cpu");
    let Some(mount) = hierarchies.mount(hierarchy).filter(|mount| handle::works(mount)) else {
        println!("SKIP: this kernel or container does not open cgroups by handle");
        return;
    };
    let root = fs::metadata(mount).unwrap().ino();
    let mut identities = Identities::new(&Paths::default());
    assert_eq!(identities.path(CgroupId { hierarchy, id: root }).as_deref(), Some("/"));
    for id in 0..100 {
        assert_eq!(identities.path(CgroupId { hierarchy, id: u64::MAX - id }), None);
    }
    assert_eq!(identities.walks(), 0);
}

/// A cgroup made for one test, removed with it.
struct RealCgroup(PathBuf);

impl RealCgroup {
    fn new(mount: &Path, name: &str) -> Option<Self> {
        let path = mount.join(format!("kpulse-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    fn id(&self) -> u64 {
        fs::metadata(&self.0).unwrap().ino()
    }
}

impl Drop for RealCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn resolves_real_cgroups_of_this_machine() {
    let hierarchies = Hierarchies::detect(&Paths::default());
    let mut tried = 0;
    let candidates = [hierarchies.of("cpu"), hierarchies.of("memory"), Hierarchy::Unified];
    for hierarchy in candidates {
        let Some(mount) = hierarchies.mount(hierarchy) else { continue };
        let Some(parent) = RealCgroup::new(mount, hierarchy.name()) else { continue };
        let Some(container) = RealCgroup::new(&parent.0, &format!("docker-{ID}.scope")) else { continue };
        let by_walk = directories(mount, |_| None).into_iter().find(|it| it.id == container.id());
        let relative = format!("/{}", container.0.strip_prefix(mount).unwrap().display());
        assert_eq!(by_walk.and_then(|it| it.path).as_ref(), Some(&relative), "{hierarchy:?}");
        let mut identities = Identities::new(&Paths::default());
        let cgroup = CgroupId { hierarchy, id: container.id() };
        assert_eq!(identities.path(cgroup).as_deref(), Some(relative.as_str()), "{hierarchy:?}");
        tried += 1;
    }
    if tried == 0 {
        println!("SKIP: cannot make a cgroup here (needs root and a mounted cgroup file system)");
    }
}

#[test]
fn resolves_a_real_cgroup_by_its_handle_and_only_while_it_exists() {
    let hierarchies = Hierarchies::detect(&Paths::default());
    let Some(mount) = hierarchies.mount(hierarchies.of("cpu")) else {
        println!("SKIP: no cgroup hierarchy with the cpu controller is mounted");
        return;
    };
    let Some(made) = RealCgroup::new(mount, "handle") else {
        println!("SKIP: cannot make a cgroup below {} (needs root)", mount.display());
        return;
    };
    let (id, name) = (made.id(), made.0.file_name().unwrap().to_string_lossy().into_owned());
    if !handle::works(mount) {
        println!("SKIP: this kernel or container does not open cgroups by handle");
        return;
    }
    assert_eq!(handle::path_of(mount, id), Some(format!("/{name}")));
    drop(made);
    assert_eq!(handle::path_of(mount, id), None);
}
