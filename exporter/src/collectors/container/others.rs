//! Adds up containers without series of their own, so that their common counters never go backwards.

use std::collections::HashMap;

/// The sums of one source.
pub struct Others {
    is_counter: Vec<bool>,
    /// The last values of each cgroup. Bound: the containers that the roster has read.
    last: HashMap<u64, Last>,
    /// What the counters of those that are gone had reached.
    retired: Vec<Option<u64>>,
    round: u64,
}

struct Last {
    values: Vec<Option<u64>>,
    round: u64,
}

impl Others {
    /// For values of which these are counters.
    pub fn new(is_counter: Vec<bool>) -> Self {
        let retired = vec![None; is_counter.len()];
        Self { is_counter, last: HashMap::new(), retired, round: 0 }
    }

    /// Begins a scrape.
    pub fn begin(&mut self) {
        self.round += 1;
    }

    /// Adds one container. A counter that could not be read stands where it stood.
    pub fn add(&mut self, cgroup: u64, values: &[Option<u64>]) {
        let empty = || Last { values: vec![None; values.len()], round: 0 };
        let last = self.last.entry(cgroup).or_insert_with(empty);
        last.round = self.round;
        for ((last, value), is_counter) in last.values.iter_mut().zip(values).zip(&self.is_counter) {
            if value.is_some() || !is_counter {
                *last = *value;
            }
        }
    }

    /// Ends a scrape, with the sums; `None` where no container ever had the value.
    pub fn end(&mut self) -> Vec<Option<u64>> {
        let (round, is_counter, retired) = (self.round, &self.is_counter, &mut self.retired);
        self.last.retain(|_, last| {
            let is_alive = last.round == round;
            if !is_alive {
                for (index, value) in last.values.iter().enumerate().filter(|(index, _)| is_counter[*index]) {
                    add(&mut retired[index], *value);
                }
            }
            is_alive
        });
        let mut sums = self.retired.clone();
        for last in self.last.values() {
            for (sum, value) in sums.iter_mut().zip(&last.values) {
                add(sum, *value);
            }
        }
        sums
    }
}

fn add(sum: &mut Option<u64>, value: Option<u64>) {
    if let Some(value) = value {
        *sum = Some(sum.unwrap_or(0).saturating_add(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_counter_keeps_what_gone_containers_counted_and_a_gauge_does_not() {
        let mut others = Others::new(vec![true, false]);
        let mut scrape = |read: &[(u64, [Option<u64>; 2])]| {
            others.begin();
            read.iter().for_each(|(cgroup, values)| others.add(*cgroup, values));
            others.end()
        };
        assert_eq!(scrape(&[]), [None, None], "nothing is not zero");
        assert_eq!(scrape(&[(1, [Some(5), Some(50)]), (2, [Some(7), Some(70)])]), [Some(12), Some(120)]);
        assert_eq!(scrape(&[(2, [None, None])]), [Some(12), None], "unreadable stands where it stood");
        assert_eq!(scrape(&[]), [Some(12), None]);
        assert_eq!(scrape(&[(3, [Some(1), Some(2)])]), [Some(13), Some(2)]);
    }

    proptest! {
        #[test]
        fn the_sum_never_goes_backwards(
            scrapes in prop::collection::vec(prop::collection::vec((0u64..6, prop::option::of(0u64..100)), 0..6), 0..20)
        ) {
            let mut others = Others::new(vec![true]);
            let (mut counted, mut before) = ([0u64; 6], 0);
            for scrape in scrapes {
                others.begin();
                for (cgroup, more) in scrape {
                    let slot = &mut counted[usize::try_from(cgroup).unwrap()];
                    *slot += more.unwrap_or(0);
                    others.add(cgroup, &[more.map(|_| *slot)]);
                }
                let sum = others.end()[0].unwrap_or(0);
                prop_assert!(sum >= before);
                before = sum;
            }
        }
    }
}
