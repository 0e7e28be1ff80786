//! Which elements of an array are free? First fit, with neighbours joined.

use std::collections::BTreeMap;
use std::ops::Range;

/// Free elements: start → end.
#[derive(Debug)]
pub struct Ranges {
    free: BTreeMap<u32, u32>,
    left: u32,
}

impl Ranges {
    /// All of `0..size` is free.
    pub fn new(size: u32) -> Self {
        Self { free: BTreeMap::from([(0, size)]), left: size }
    }

    /// Takes so many neighbours.
    pub fn take(&mut self, count: usize) -> Option<Range<u32>> {
        let count = u32::try_from(count).ok()?;
        if count == 0 {
            return Some(0..0);
        }
        let (&start, &end) = self.free.iter().find(|(start, end)| *end - *start >= count)?;
        self.free.remove(&start);
        if start + count < end {
            self.free.insert(start + count, end);
        }
        self.left -= count;
        Some(start..start + count)
    }

    /// Gives back what was taken.
    pub fn give(&mut self, range: Range<u32>) {
        if range.is_empty() {
            return;
        }
        self.left += range.end - range.start;
        let end = self.free.remove(&range.end).unwrap_or(range.end);
        let before = self.free.range_mut(..range.start).next_back().filter(|(_, end)| **end == range.start);
        match before {
            Some((_, before)) => *before = end,
            None => {
                self.free.insert(range.start, end);
            }
        }
    }

    /// How many are free.
    pub fn left(&self) -> u32 {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_is_given_twice_and_all_comes_back(steps in prop::collection::vec((0usize..9, any::<bool>()), 0..200)) {
            let mut ranges = Ranges::new(64);
            let mut taken: Vec<Range<u32>> = Vec::new();
            for (number, is_take) in steps {
                if is_take {
                    if let Some(new) = ranges.take(number) {
                        prop_assert!(new.end <= 64 && new.len() == number);
                        prop_assert!(taken.iter().all(|old| new.end <= old.start || old.end <= new.start || new.is_empty()));
                        taken.push(new);
                    }
                } else if !taken.is_empty() {
                    ranges.give(taken.swap_remove(number % taken.len()));
                }
                let used: u32 = taken.iter().map(|range| range.end - range.start).sum();
                prop_assert_eq!(ranges.left(), 64 - used);
            }
            taken.into_iter().for_each(|range| ranges.give(range));
            prop_assert_eq!(ranges.take(64), Some(0..64));
        }
    }
}
