use super::*;
use crate::ring::Ring;
use std::collections::BTreeSet;

#[test]
fn each_kind_is_told_once_and_says_what_it_is_in_one_sentence() {
    let kinds: Vec<Kind> = crate::schema::all_kinds().collect();
    let names: BTreeSet<&str> = kinds.iter().map(|kind| kind.name).collect();
    assert_eq!(names.len(), kinds.len());
    for Watch { kind, .. } in ALL {
        assert!(kind.help.ends_with('.') && !kind.help.contains(". "), "{kind:?}");
    }
}

#[test]
fn every_finding_is_handed_over_or_counted() {
    let mut queue = Queue::default();
    let watch = &ALL[0];
    queue.open(watch);
    assert_eq!(queue.produced(), [(watch.kind.name, 0)]);
    let (small, large) =
        (RateLimit { events_per_second: 1, burst: 2 }, RateLimit { events_per_second: 1, burst: 1_000_000 });
    let push = |limit: &RateLimit, count| {
        (0..count).for_each(|_| queue.push(watch, Finding::new(limit, &"x").unwrap()));
    };
    push(&small, 5);
    push(&large, 2_000);
    let mut taken = Vec::new();
    while queue.wait(std::time::Duration::ZERO).unwrap() {
        queue.drain(&mut |fact| taken.push(fact));
    }
    assert_eq!((taken[0].probe, taken[0].kind, taken[0].pid), (watch.kind.name, watch.kind.name, 0));
    assert_eq!(taken.iter().map(|fact| fact.suppressed).sum::<u64>(), 3, "told with the next one");
    let lost: Vec<u64> = queue.losses().iter().map(|loss| loss.count).collect();
    assert_eq!(lost[0], 3, "suppressed");
    assert!(lost[1] > 0 && taken.len() > 1_000, "{lost:?}, {}", taken.len());
    assert_eq!(queue.produced(), [(watch.kind.name, taken.len() as u64 + lost[0] + lost[1])]);
}
