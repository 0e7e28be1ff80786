//! Which containers have series of their own? The first `container_max`; the rest share one.

use kpulse_common::container::{ContainerCgroup, Hierarchy};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Containers without series of their own that are still read, as a multiple of those that have them.
const OTHERS_FACTOR: usize = 4;

/// Where the values of a container go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Into series of its own.
    Own,
    /// Into the series that is shared.
    Other,
    /// Nowhere: reading it would cost without a bound.
    Nowhere,
}

/// Decides for a container once, and keeps to it until the container is gone, so that no counter jumps.
#[derive(Debug)]
pub struct Roster {
    own_max: usize,
    /// By container id. Bound: the containers that `Identities` knows to be alive.
    members: BTreeMap<Arc<str>, Member>,
    own: usize,
    others: usize,
    overflow: u64,
}

#[derive(Debug)]
struct Member {
    place: Place,
    /// The hierarchies that it is alive in: a v1 host has one for each controller.
    alive_in: BTreeSet<&'static str>,
}

impl Roster {
    /// With room for so many containers.
    pub fn new(own_max: u32) -> Self {
        let own_max = usize::try_from(own_max).unwrap_or(usize::MAX);
        Self { own_max, members: BTreeMap::new(), own: 0, others: 0, overflow: 0 }
    }

    /// Containers that found no room, since the start.
    pub fn overflow(&self) -> u64 {
        self.overflow
    }

    /// The place of each container that is alive in a hierarchy. Those that left it make room first.
    pub fn place(
        &mut self,
        hierarchy: Hierarchy,
        alive: Vec<ContainerCgroup>,
    ) -> Vec<(ContainerCgroup, Place)> {
        let name = hierarchy.name();
        let ids: BTreeSet<&str> = alive.iter().map(|it| &*it.labels[3]).collect();
        let (own, others) = (&mut self.own, &mut self.others);
        self.members.retain(|id, member| {
            if !ids.contains(&**id) {
                member.alive_in.remove(name);
            }
            let stays = !member.alive_in.is_empty();
            match member.place {
                _ if stays => {}
                Place::Own => *own -= 1,
                Place::Other => *others -= 1,
                Place::Nowhere => {}
            }
            stays
        });
        alive
            .into_iter()
            .map(|it| {
                let place = self.admit(&it.labels[3], name);
                (it, place)
            })
            .collect()
    }

    fn admit(&mut self, id: &Arc<str>, hierarchy: &'static str) -> Place {
        if let Some(member) = self.members.get_mut(id) {
            member.alive_in.insert(hierarchy);
            return member.place;
        }
        let place = if self.own < self.own_max {
            self.own += 1;
            Place::Own
        } else if self.others < self.own_max.saturating_mul(OTHERS_FACTOR) {
            self.others += 1;
            Place::Other
        } else {
            Place::Nowhere
        };
        self.overflow += u64::from(place != Place::Own);
        self.members.insert(Arc::clone(id), Member { place, alive_in: [hierarchy].into() });
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpulse_common::container::CgroupId;

    fn places(roster: &mut Roster, hierarchy: Hierarchy, ids: &[&str]) -> Vec<Place> {
        let cgroup = |id: &&str| ContainerCgroup {
            cgroup: CgroupId { hierarchy, id: 1 },
            path: "/".into(),
            labels: ["".into(), "".into(), "".into(), (*id).into()],
        };
        roster
            .place(hierarchy, ids.iter().map(cgroup).collect())
            .into_iter()
            .map(|(_, place)| place)
            .collect()
    }

    #[test]
    fn a_container_keeps_its_place_and_room_comes_from_those_that_left() {
        let (mut roster, v2) = (Roster::new(2), Hierarchy::Unified);
        assert_eq!(places(&mut roster, v2, &["a", "b", "c"]), [Place::Own, Place::Own, Place::Other]);
        assert_eq!(places(&mut roster, v2, &["c", "b"]), [Place::Other, Place::Own]);
        assert_eq!(places(&mut roster, v2, &["c", "b", "d"]), [Place::Other, Place::Own, Place::Own]);
        assert_eq!(roster.overflow(), 1);
    }

    #[test]
    fn what_is_read_has_a_bound() {
        let mut roster = Roster::new(1);
        let ids: Vec<String> = (0..100).map(|id| id.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let found = places(&mut roster, Hierarchy::Unified, &ids);
        let count = |place| found.iter().filter(|it| **it == place).count();
        assert_eq!((count(Place::Own), count(Place::Other), count(Place::Nowhere)), (1, OTHERS_FACTOR, 95));
        assert_eq!(roster.overflow(), 99);
        places(&mut roster, Hierarchy::Unified, &[]);
        assert_eq!((roster.own, roster.others, roster.members.len()), (0, 0, 0));
    }

    #[test]
    fn a_container_of_two_hierarchies_has_one_place_until_it_left_both() {
        let (mut roster, cpu, memory) = (Roster::new(1), Hierarchy::V1("cpu"), Hierarchy::V1("memory"));
        assert_eq!(places(&mut roster, cpu, &["a", "b"]), [Place::Own, Place::Other]);
        assert_eq!(places(&mut roster, memory, &["b", "a"]), [Place::Other, Place::Own]);
        assert_eq!(places(&mut roster, cpu, &["c"]), [Place::Other], "a is still alive in memory");
        assert_eq!(places(&mut roster, memory, &[]), []);
        assert_eq!(places(&mut roster, cpu, &["c", "d"]), [Place::Other, Place::Own]);
        assert_eq!(roster.overflow(), 2, "each container counts once");
    }
}
