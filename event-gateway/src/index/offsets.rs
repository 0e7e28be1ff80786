//! Up to where may a partition be committed? Up to the first event whose fate is not known yet.

use crate::sink::elasticsearch::{Partition, Place};
use std::collections::{BTreeMap, VecDeque};

/// The partitions that this member has.
#[derive(Debug, Default)]
pub struct Offsets {
    partitions: BTreeMap<Partition, Progress>,
    epochs: u64,
}

#[derive(Debug)]
struct Progress {
    epoch: u64,
    /// Offsets that were read, in order, and whether the event is where it should be.
    pending: VecDeque<(i64, bool)>,
    /// The next offset to be read by whoever comes after us; `None` until the first event is done.
    position: Option<i64>,
    committed: Option<i64>,
}

impl Offsets {
    /// Notes that a record was read; its place.
    pub fn read(&mut self, partition: Partition, offset: i64) -> Place {
        let epochs = &mut self.epochs;
        let its = self.partitions.entry(partition).or_insert_with(|| {
            *epochs += 1;
            Progress { epoch: *epochs, pending: VecDeque::new(), position: None, committed: None }
        });
        // Read once more from an earlier offset: what was pending comes again.
        if its.pending.back().is_some_and(|(last, _)| *last >= offset) {
            *epochs += 1;
            its.epoch = *epochs;
            its.pending.clear();
        }
        its.pending.push_back((offset, false));
        Place { partition, epoch: its.epoch, offset }
    }

    /// Notes that an event is where it should be. One of a partition that is not ours any more counts for nothing.
    pub fn done(&mut self, place: Place) {
        let its = self.partitions.get_mut(&place.partition).filter(|its| its.epoch == place.epoch);
        let Some(its) = its else { return };
        if let Ok(index) = its.pending.binary_search_by_key(&place.offset, |(offset, _)| *offset) {
            its.pending[index].1 = true;
        }
        while let Some((offset, true)) = its.pending.front() {
            its.position = Some(offset + 1);
            its.pending.pop_front();
        }
    }

    /// Whether the fate of an event of these partitions is not known yet.
    pub fn is_pending(&self, partitions: &[Partition]) -> bool {
        partitions
            .iter()
            .any(|partition| self.partitions.get(partition).is_some_and(|its| !its.pending.is_empty()))
    }

    /// What can be committed and is not yet.
    pub fn to_commit(&self) -> Vec<(Partition, i64)> {
        let moved = self.partitions.iter().filter(|(_, its)| its.position != its.committed);
        moved.filter_map(|(partition, its)| Some((*partition, its.position?))).collect()
    }

    /// Notes that Kafka has these.
    pub fn committed(&mut self, offsets: &[(Partition, i64)]) {
        for (partition, offset) in offsets {
            if let Some(its) = self.partitions.get_mut(partition) {
                its.committed = Some(*offset);
            }
        }
    }

    /// Notes that Kafka did not take what was committed of these: it is with the next commit.
    pub fn not_committed(&mut self, partitions: &[Partition]) {
        for (_, its) in self.partitions.iter_mut().filter(|(partition, _)| partitions.contains(partition)) {
            its.committed = None;
        }
    }

    /// Where a partition is committed.
    pub fn position(&self, partition: Partition) -> Option<i64> {
        self.partitions.get(&partition)?.position
    }

    /// The partition is another member's from here on.
    pub fn forget(&mut self, partitions: &[Partition]) {
        self.partitions.retain(|partition, _| !partitions.contains(partition));
    }

    /// The partitions of which something was read.
    pub fn partitions(&self) -> Vec<Partition> {
        self.partitions.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Dataset;
    use proptest::prelude::*;

    const fn of(number: i32) -> Partition {
        Partition { dataset: Dataset::Events, number }
    }

    #[test]
    fn the_partitions_of_two_topics_are_not_taken_for_each_other() {
        let mut offsets = Offsets::default();
        let other = Partition { dataset: Dataset::Profiles, number: 3 };
        let (event, profile) = (offsets.read(of(3), 10), offsets.read(other, 50));
        offsets.done(profile);
        assert_eq!(offsets.to_commit(), [(other, 51)]);
        assert!(offsets.is_pending(&[of(3)]) && !offsets.is_pending(&[other]));
        offsets.forget(&[other]);
        offsets.done(event);
        assert_eq!((offsets.to_commit(), offsets.partitions()), (vec![(of(3), 11)], vec![of(3)]));
    }

    #[test]
    fn the_result_of_an_earlier_assignment_counts_for_nothing() {
        let mut offsets = Offsets::default();
        let old = offsets.read(of(3), 10);
        offsets.forget(&[of(3)]);
        let new = offsets.read(of(3), 10);
        offsets.done(old);
        assert_eq!((offsets.to_commit(), offsets.is_pending(&[of(3)])), (Vec::new(), true));
        offsets.done(new);
        assert_eq!(offsets.to_commit(), [(of(3), 11)]);
        offsets.committed(&[(of(3), 11)]);
        assert_eq!(offsets.to_commit(), []);
        offsets.not_committed(&[of(3)]);
        assert_eq!(offsets.to_commit(), [(of(3), 11)]);
    }

    #[test]
    fn what_is_read_again_is_waited_for_again() {
        let mut offsets = Offsets::default();
        let first = offsets.read(of(0), 5);
        let again = offsets.read(of(0), 5);
        offsets.done(first);
        assert_eq!(offsets.to_commit(), []);
        offsets.done(again);
        assert_eq!(offsets.to_commit(), [(of(0), 6)]);
    }

    proptest! {
        #[test]
        fn nothing_is_committed_before_all_that_is_below_it(
            gaps in prop::collection::vec(1i64..4, 1..60),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let mut offsets = Offsets::default();
            let mut at = 100;
            let mut places = Vec::new();
            for gap in gaps {
                at += gap;
                places.push(offsets.read(of(0), at));
            }
            let mut open: Vec<_> = places.clone();
            for index in order {
                if open.is_empty() { break; }
                offsets.done(open.swap_remove(index.index(open.len())));
                let first_open = open.iter().map(|place| place.offset).min();
                let all_below = places.iter().map(|place| place.offset).filter(|offset| first_open.is_none_or(|open| *offset < open)).max();
                prop_assert_eq!(offsets.position(of(0)), all_below.map(|offset| offset + 1));
                prop_assert_eq!(offsets.is_pending(&[of(0)]), first_open.is_some());
            }
        }
    }
}
