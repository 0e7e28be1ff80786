use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

const HOST: Option<u32> = None;

fn labels(container: Option<u32>) -> [Arc<str>; 4] {
    ["".into(), "".into(), "".into(), container.map_or("".into(), |number| number.to_string().into())]
}

/// Cgroups, and a map that counts by cgroup.
#[derive(Default)]
struct World {
    cgroups: BTreeMap<u64, Cgroup>,
    map: BTreeMap<u64, u64>,
    counted: u64,
}

struct Cgroup {
    container: Option<u32>,
    is_alive: bool,
    is_known: bool,
}

impl World {
    fn add(&mut self, container: Option<u32>) -> u64 {
        let id = 1 + self.cgroups.len() as u64;
        self.cgroups.insert(id, Cgroup { container, is_alive: true, is_known: true });
        id
    }

    fn count(&mut self, id: u64, amount: u64) {
        *self.map.entry(id).or_default() += amount;
        self.counted += amount;
    }

    fn remove(&mut self, id: u64) {
        self.cgroups.get_mut(&id).unwrap().is_alive = false;
    }
}

impl Lives for World {
    fn life(&mut self, cgroup: CgroupId) -> Option<Life> {
        let found = self.cgroups.get(&cgroup.id).filter(|it| it.is_known)?;
        let labels = labels(found.container);
        Some(if found.is_alive { Life::Alive(labels) } else { Life::Gone(labels) })
    }

    fn containers(&mut self, _: Hierarchy) -> BTreeSet<Arc<str>> {
        let alive = self.cgroups.values().filter(|it| it.is_alive && it.container.is_some());
        alive.map(|it| labels(it.container)[3].clone()).collect()
    }
}

/// A collector of the world's map, and what it told last.
struct Scraped {
    containers: ByContainer<u64>,
    told: HashMap<String, u64>,
}

impl Scraped {
    fn new() -> Self {
        Self { containers: ByContainer::new(Hierarchy::Unified), told: HashMap::new() }
    }

    /// The series by container id, `~other` for the one that is shared, and nothing for the host's.
    fn scrape(&mut self, world: &mut World) -> &HashMap<String, u64> {
        let entries = world.map.iter().map(|(&cgroup_id, &total)| Entry { cgroup_id, labels: vec![], total });
        let entries = entries.collect();
        self.told.clear();
        let told = &mut self.told;
        let gone = self.containers.report_each(entries, world, |labels, total| {
            let name = if labels[2].is_empty() { &labels[3] } else { &labels[2] };
            assert_eq!(told.insert(name.to_string(), total), None, "one series twice");
        });
        assert!(gone.is_sorted());
        for id in gone {
            world.map.remove(&id);
        }
        &self.told
    }
}

fn told<const N: usize>(series: [(&str, u64); N]) -> HashMap<String, u64> {
    series.map(|(name, total)| (name.to_owned(), total)).into()
}

#[test]
fn a_containers_series_is_told_once_more_and_its_entry_goes_at_once() {
    let (mut world, mut scraped) = (World::default(), Scraped::new());
    let cgroup = world.add(Some(7));
    world.count(cgroup, 3);
    assert_eq!(*scraped.scrape(&mut world), told([("7", 3)]));
    world.count(cgroup, 2);
    world.remove(cgroup);
    assert_eq!(*scraped.scrape(&mut world), told([("7", 5)]), "what it counted at its end");
    assert!(world.map.is_empty());
    world.count(cgroup, 1);
    assert_eq!(*scraped.scrape(&mut world), told([("~other", 1)]), "what its tasks counted after it");
    assert_eq!(*scraped.scrape(&mut world), told([("~other", 1)]));
    let again = world.add(Some(7));
    world.count(again, 4);
    assert_eq!(*scraped.scrape(&mut world), told([("7", 4), ("~other", 1)]), "it was started again");
    world.remove(again);
    assert_eq!(*scraped.scrape(&mut world), told([("7", 4), ("~other", 1)]));
    assert_eq!(*scraped.scrape(&mut world), told([("~other", 1)]));
}

#[test]
fn a_container_and_the_host_keep_what_cgroups_below_them_had_counted() {
    for container in [HOST, Some(7)] {
        let (mut world, mut scraped) = (World::default(), Scraped::new());
        let name = container.map(|number| number.to_string()).unwrap_or_default();
        let (outer, inner) = (world.add(container), world.add(container));
        world.count(inner, 10);
        assert_eq!(*scraped.scrape(&mut world), told([(&name, 10)]));
        world.remove(inner);
        for _ in 0..2 {
            assert_eq!(*scraped.scrape(&mut world), told([(&name, 10)]), "though no entry is left");
            assert!(world.map.is_empty());
        }
        world.count(outer, 1);
        assert_eq!(*scraped.scrape(&mut world), told([(&name, 11)]));
    }
}

#[test]
fn a_container_without_an_entry_of_its_own_ends_too() {
    let (mut world, mut scraped) = (World::default(), Scraped::new());
    let (outer, inner) = (world.add(Some(7)), world.add(Some(7)));
    world.count(inner, 10);
    scraped.scrape(&mut world);
    world.remove(inner);
    scraped.scrape(&mut world);
    world.remove(outer);
    assert_eq!(*scraped.scrape(&mut world), told([("7", 10)]));
    assert_eq!(*scraped.scrape(&mut world), told([]));
}

#[test]
fn what_was_never_known_is_told_as_other_after_three_scrapes() {
    let (mut world, mut scraped) = (World::default(), Scraped::new());
    let cgroup = world.add(Some(7));
    world.cgroups.get_mut(&cgroup).unwrap().is_known = false;
    world.count(cgroup, 3);
    for _ in 1..SCRAPES_UNTIL_GONE {
        assert_eq!(*scraped.scrape(&mut world), told([]));
    }
    for _ in 0..3 {
        assert_eq!(*scraped.scrape(&mut world), told([("~other", 3)]));
        assert!(world.map.is_empty());
    }
}

#[test]
fn what_is_remembered_has_a_bound() {
    let (mut world, mut scraped) = (World::default(), Scraped::new());
    for number in 0..3 * ENDED_MAX as u32 {
        let cgroup = world.add(Some(number));
        world.count(cgroup, 1);
        if number % 512 == 0 {
            scraped.scrape(&mut world);
        }
        world.remove(cgroup);
    }
    scraped.scrape(&mut world);
    scraped.scrape(&mut world);
    assert!((1..=ENDED_MAX).contains(&scraped.containers.ended.len()));
    assert!(scraped.containers.seen.is_empty() && scraped.containers.retired.is_empty());

    // Cgroups that come and go below containers that stay.
    let mut inner = Vec::new();
    for number in 0..2 * RETIRED_MAX as u32 {
        world.add(Some(number));
        inner.push(world.add(Some(number)));
    }
    for half in inner.chunks(RETIRED_MAX) {
        half.iter().for_each(|&id| world.count(id, 1));
        half.iter().for_each(|&id| world.remove(id));
        assert!(!scraped.scrape(&mut world).is_empty());
    }
    assert_eq!(scraped.scrape(&mut world).len(), 2 * RETIRED_MAX);
    assert_eq!((scraped.containers.retired.len(), world.map.len()), (RETIRED_MAX, RETIRED_MAX));
}

#[derive(Debug, Clone)]
enum Step {
    Add(Option<u32>),
    Hide(usize),
    Count(usize, u64),
    Remove(usize),
    Scrape,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => prop::option::weighted(0.8, 0..4u32).prop_map(Step::Add),
        1 => (0..64usize).prop_map(Step::Hide),
        6 => (0..64usize, 1..100u64).prop_map(|(which, amount)| Step::Count(which, amount)),
        3 => (0..64usize).prop_map(Step::Remove),
        3 => Just(Step::Scrape),
    ]
}

proptest! {
    /// Cgroups of the host and of containers come, count, go, count after they are gone, and are forgotten: no series
    /// goes back or vanishes while its container lives, and nothing that was counted is lost. One that is started
    /// again after its last scrape begins anew.
    #[test]
    fn no_series_ever_goes_back_and_every_count_is_told(steps in prop::collection::vec(step(), 0..120)) {
        let (mut world, mut scraped) = (World::default(), Scraped::new());
        let mut last: HashMap<String, u64> = HashMap::new();
        let (mut met, mut lived, mut ended) = (BTreeSet::new(), BTreeSet::new(), 0);
        for step in steps.into_iter().chain(std::iter::repeat_n(Step::Scrape, 5)) {
            let pick = |which: usize| 1 + (which % world.cgroups.len().max(1)) as u64;
            match step {
                Step::Add(container) => drop(world.add(container)),
                _ if world.cgroups.is_empty() => {}
                Step::Count(which, amount) => world.count(pick(which), amount),
                Step::Remove(which) => world.remove(pick(which)),
                // A container that was found once is forgotten only minutes after its end.
                Step::Hide(which) => {
                    let id = pick(which);
                    let cgroup = world.cgroups.get_mut(&id).unwrap();
                    cgroup.is_known &= cgroup.container.is_some() && met.contains(&id);
                }
                Step::Scrape => {
                    met.extend(world.map.keys().copied());
                    let now = scraped.scrape(&mut world);
                    for (name, before) in &last {
                        let value = now.get(name);
                        let is_container = name.parse::<u32>().is_ok();
                        if is_container && !lived.contains(name.as_str()) {
                            ended += before;
                        } else {
                            prop_assert!(value >= Some(before), "{name}: {value:?} after {before}");
                        }
                    }
                    last.clone_from(now);
                    lived = world.containers(Hierarchy::Unified);
                }
            }
        }
        prop_assert_eq!(last.values().sum::<u64>() + ended, world.counted);
    }
}
