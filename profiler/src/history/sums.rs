//! Sums of many windows, kept beside them, so that an answer about a day reads some dozens of them and few windows.
//!
//! A sum stands in an answer for the windows that it was made of when each of them is kept and wanted; else they are read
//! themselves. So it changes no answer, and one that is missing costs time only.

use super::DAMAGED;
use super::packed::Packed;
use super::store::{Evicted, Held, Store};
use crate::aggregate::{Detail, Gathering, Scope};
use anyhow::Result;
use std::collections::HashMap;
use std::time::SystemTime;

/// How many windows come into one sum, of the second kind by sums of the first: 10 minutes and an hour of windows of 10 s.
pub const SPANS: [u64; 2] = [60, 360];

/// The windows of a sum: so many numbers from a multiple of that on. Those that were lost are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    pub span: u64,
    pub first: u64,
}

impl Block {
    /// The one that has this window.
    pub fn of(span: u64, number: u64) -> Self {
        Self { span, first: number / span * span }
    }

    /// The number behind its last.
    pub fn end(&self) -> u64 {
        self.first + self.span
    }
}

/// Windows, and the sum that can stand for them.
#[derive(Debug, PartialEq, Eq)]
struct Piece<'a> {
    sum: Option<Block>,
    numbers: &'a [u64],
}

/// Cuts ascending numbers into as few pieces as can be, given of how many windows each sum was made.
fn pieces<'a>(mut numbers: &'a [u64], sums: &HashMap<Block, u64>) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    while let Some(&number) = numbers.first() {
        let whole = SPANS.iter().rev().find_map(|span| {
            let block = Block::of(*span, number);
            let wanted = numbers.partition_point(|number| *number < block.end());
            (*sums.get(&block)? == wanted as u64).then_some((block, wanted))
        });
        let (sum, length) = whole.map_or((None, 1), |(block, wanted)| (Some(block), wanted));
        let (piece, rest) = numbers.split_at(length);
        pieces.push(Piece { sum, numbers: piece });
        numbers = rest;
    }
    pieces
}

/// Adds the windows with these ascending numbers, as far as they are kept still.
pub fn gather(store: &Store, numbers: &[u64], gathering: &mut Gathering) -> Result<()> {
    for piece in pieces(numbers, &store.sums()?) {
        if let Some(block) = piece.sum
            && let Some(sum) = store.sum(block)?
        {
            match sum.gather(gathering) {
                Ok(()) => continue,
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(?block, error, "a sum cannot be read, its windows are");
                }
            }
        }
        for number in piece.numbers {
            if let Some(window) = store.window(*number)? {
                gather_window(&window, gathering);
            }
        }
    }
    Ok(())
}

/// Adds a compressed window, or counts its samples as lost.
pub fn gather_window(window: &Packed, gathering: &mut Gathering) {
    if let Err(error) = window.gather(gathering) {
        tracing::warn!(window = window.number, error = format!("{error:#}"), "a window cannot be read");
        gathering.add(window.from, window.to, |_, sum| sum.lose(DAMAGED, window.samples));
    }
}

/// Makes the newest sum of the smallest kind that is missing; says what had to give way to it, or `None` when none is.
pub fn make_next(store: &Store, max_stacks: usize, now: SystemTime) -> Result<Option<Evicted>> {
    let Some((block, numbers)) = next(store)? else { return Ok(None) };
    let mut gathering = Gathering::new(&Scope::Host, Detail::Stacks, max_stacks);
    gather(store, &numbers, &mut gathering)?;
    let Some(sum) = gathering.sum() else { return Ok(None) };
    store.append_sum(block, numbers.len() as u64, &Packed::of(block.first, &sum)?, now).map(Some)
}

/// The block that is to be summed next, with its windows. One that has lost its first ones will not last.
fn next(store: &Store) -> Result<Option<(Block, Vec<u64>)>> {
    let Held { first, next, .. } = store.held();
    let sums = store.sums()?;
    for span in SPANS {
        let blocks = (first.div_ceil(span)..next / span).rev().map(|index| Block::of(span, index * span));
        for block in blocks.filter(|block| !sums.contains_key(block)) {
            let numbers = store.numbers_of(block)?;
            if !numbers.is_empty() {
                return Ok(Some((block, numbers)));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::packed::tests::{assert_same, window};
    use super::super::store::{FILE, Retention};
    use super::super::{Bounds, Stretch};
    use super::*;
    use crate::aggregate::{Selection, Sum, Window};
    use crate::pipeline::Shared;
    use proptest::prelude::*;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;
    use std::time::{Duration, UNIX_EPOCH};

    const WINDOWS: u64 = 800;

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000 + second)
    }

    /// Different windows; some were lost before they came to a store.
    fn windows() -> Vec<(u64, Window)> {
        let is_lost = |number: &u64| number % 97 == 13 || (590..660).contains(number);
        let numbers = (0..WINDOWS).filter(|number| !is_lost(number));
        let window = |number: u64| {
            let mut window = window(at(number * 10), &format!("leaf{}", number % 7));
            window.lost.insert("map_full", number);
            (number, window)
        };
        numbers.map(window).collect()
    }

    fn open(path: &Path, max_bytes: u64) -> Arc<Store> {
        let retention = Retention { max_age: Duration::from_secs(86_400), max_bytes };
        Arc::new(Store::open(path, retention, at(WINDOWS * 10)).unwrap())
    }

    fn append(store: &Store, number: u64, window: &Window) -> Evicted {
        store.append(&Packed::of(number, &Sum::of(window)).unwrap(), window.to).unwrap()
    }

    fn filled(path: &Path, windows: &[(u64, Window)]) -> Arc<Store> {
        let store = open(path, 1 << 30);
        for (number, window) in windows {
            assert_eq!(append(&store, *number, window), Evicted::default());
        }
        store
    }

    /// Makes every sum that is missing; says how many.
    fn make_all(store: &Store) -> usize {
        std::iter::from_fn(|| make_next(store, 1000, at(WINDOWS * 10)).unwrap()).count()
    }

    fn selected(store: &Arc<Store>, scope: &Scope, stretch: Stretch) -> Option<Selection> {
        let shared = Shared::new(Bounds {
            window: Duration::from_secs(10),
            window_entries: 1000,
            max_age: Duration::from_secs(86_400),
            max_bytes: 1 << 20,
        });
        shared.lock().history.keep_in(store.clone(), sync_channel(1).0);
        shared.select(scope, Detail::Stacks, stretch).unwrap()
    }

    /// Whether the store answers what its windows come to.
    fn check(store: &Arc<Store>, windows: &[(u64, Window)], stretch: Stretch) {
        let kept = windows.iter().filter(|(number, _)| store.window(*number).unwrap().is_some());
        let wanted: Vec<_> =
            kept.map(|(_, window)| window).filter(|window| stretch.has(window.from, window.to)).collect();
        for scope in [Scope::Host, Scope::Process(7), Scope::Container("4f5e6d7c8b9a".into())] {
            let expected = Selection::gather(wanted.iter().copied(), &scope);
            match (selected(store, &scope, stretch), expected) {
                (Some(found), Some(expected)) => assert_same(&found, &expected),
                (found, expected) => assert_eq!(found.is_some(), expected.is_some()),
            }
        }
    }

    fn all() -> Stretch {
        Stretch { since: UNIX_EPOCH, until: Some(at(WINDOWS * 10)) }
    }

    #[test]
    fn any_stretch_comes_to_the_same_with_sums_and_without() {
        let directory = tempfile::tempdir().unwrap();
        let windows = windows();
        let path = directory.path().join("summed.db");
        let summed = filled(&path, &windows);
        // The windows 600 to 659 are all lost.
        assert_eq!((make_all(&summed), make_all(&summed)), (12 + 2, 0));
        drop(summed);
        let summed = open(&path, 1 << 30);
        assert_eq!(summed.sums().unwrap().len(), 14, "they outlive the process");
        let alone = filled(&directory.path().join("alone.db"), &windows);
        let config = ProptestConfig::with_cases(16);
        proptest!(config, |(since in 0..8000u64, length in 0..8000u64, whole in 0..2u64)| {
            // Such as begin and end with a window, too.
            let [since, until] = [since, since + length].map(|second| at(second - whole * (second % 10)));
            let stretch = Stretch { since, until: Some(until) };
            check(&summed, &windows, stretch);
            check(&alone, &windows, stretch);
        });
        check(&summed, &windows, all());
    }

    #[test]
    fn a_sum_that_is_damaged_or_gone_is_replaced_by_its_windows() {
        let directory = tempfile::tempdir().unwrap();
        let windows = windows();
        let store = filled(&directory.path().join(FILE), &windows);
        make_all(&store);
        store.execute("UPDATE sums SET body = CAST(substr(body, 1, length(body) - 9) || x'01' AS BLOB)");
        check(&store, &windows, all());
        store.execute("DELETE FROM sums WHERE first % 3 = 0");
        check(&store, &windows, all());
    }

    #[test]
    fn windows_that_go_take_their_sums_along() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let mut windows = windows();
        let store = filled(&path, &windows);
        make_all(&store);
        drop(store);
        // Room for some hundred of them.
        let store = open(&path, (4 << 20) + (160 << 10));
        let mut evicted = Evicted::default();
        for number in WINDOWS..WINDOWS + 8 {
            let more = window(at(number * 10), "more");
            evicted += append(&store, number, &more);
            windows.push((number, more));
            check(&store, &windows, all());
            let first = store.held().first;
            let sums = store.sums().unwrap();
            assert!(sums.keys().all(|block| block.first >= first), "{first}: {sums:?}");
            make_next(&store, 1000, at(number * 10)).unwrap();
        }
        assert!(evicted.windows > 100, "{evicted:?}");
        assert!(!store.sums().unwrap().is_empty());
        // By age.
        let late = window(at(86_400 + 7000), "late");
        append(&store, 2000, &late);
        assert!(store.sums().unwrap().keys().all(|block| block.first >= 700));
    }

    #[test]
    fn a_sum_leaves_out_the_rarest_and_counts_them() {
        let directory = tempfile::tempdir().unwrap();
        let windows = windows();
        let store = filled(&directory.path().join(FILE), &windows);
        let samples = selected(&store, &Scope::Host, all()).unwrap().samples;
        while make_next(&store, 8, at(WINDOWS * 10)).unwrap().is_some() {}
        let found = selected(&store, &Scope::Host, all()).unwrap();
        assert!(found.lost["answer_full"] > 0);
        assert_eq!(found.samples + found.lost["answer_full"], samples);
    }

    proptest! {
        #[test]
        fn pieces_are_all_that_is_wanted_in_its_order(
            numbers in prop::collection::btree_set(0..1500u64, 0..1500),
            gaps in prop::collection::hash_set(0..1500u64, 0..40),
            made in prop::collection::vec(any::<bool>(), 29),
        ) {
            let numbers: Vec<u64> = numbers.into_iter().filter(|number| !gaps.contains(number)).collect();
            let blocks =
                SPANS.into_iter().flat_map(|span| (0..1500 / span).map(move |index| Block::of(span, index * span)));
            let count = |block: Block| {
                numbers.iter().filter(|number| (block.first..block.end()).contains(number)).count() as u64
            };
            // Some as they are, some of a window more.
            let sums = blocks.zip(made).map(|(block, is_whole)| (block, count(block) + u64::from(!is_whole)));
            let sums: HashMap<Block, u64> = sums.collect();
            let pieces = pieces(&numbers, &sums);
            let joined: Vec<u64> = pieces.iter().flat_map(|piece| piece.numbers).copied().collect();
            prop_assert_eq!(&joined, &numbers);
            for Piece { sum, numbers } in pieces {
                match sum {
                    Some(block) => {
                        prop_assert_eq!(sums[&block], numbers.len() as u64);
                        prop_assert!(numbers.iter().all(|number| Block::of(block.span, *number) == block));
                    }
                    None => prop_assert_eq!(numbers.len(), 1),
                }
            }
        }
    }
}
