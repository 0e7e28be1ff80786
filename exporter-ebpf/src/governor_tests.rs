use super::*;
use proptest::prelude::*;

const PAUSE: Duration = Duration::from_secs(60);
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn cost(probe: &'static str, priority: Priority, part: f64) -> Cost {
    Cost { probe, priority, part }
}

fn governor(budget: f64) -> Governor {
    Governor::new(&Bounds { budget, pause: PAUSE })
}

fn names(paused: &[(&'static str, Excess)]) -> Vec<&'static str> {
    paused.iter().map(|(probe, _)| *probe).collect()
}

/// The second of two windows alike.
fn judge_twice(governor: &mut Governor, costs: &[Cost], now: Instant) -> Vec<&'static str> {
    assert!(governor.judge(costs.to_vec(), now).is_empty(), "one window may have met a burst");
    names(&governor.judge(costs.to_vec(), now))
}

#[test]
fn what_matters_least_goes_first_and_the_costliest_of_it() {
    let costs = [
        cost("high", Priority::High, 0.02),
        cost("cheap", Priority::Low, 0.001),
        cost("dear", Priority::Low, 0.01),
        cost("normal", Priority::Normal, 0.003),
    ];
    let now = Instant::now();
    assert_eq!(judge_twice(&mut governor(0.0305), &costs, now), ["dear"]);
    assert_eq!(judge_twice(&mut governor(0.0275), &costs, now), ["normal", "dear"]);
    assert_eq!(judge_twice(&mut governor(0.001), &costs, now), ["high", "normal", "cheap", "dear"]);
}

#[test]
fn what_costs_little_stays_when_a_dear_one_had_to_go() {
    let costs = [
        cost("dear", Priority::High, 0.05),
        cost("cheap", Priority::High, 0.002),
        cost("a", Priority::Low, 0.006),
        cost("b", Priority::Low, 0.003),
        cost("c", Priority::Low, 0.0),
    ];
    let now = Instant::now();
    assert_eq!(judge_twice(&mut governor(0.0144), &costs, now), ["dear"]);
    assert_eq!(judge_twice(&mut governor(0.0126), &costs, now), ["dear", "a"]);
    let essential = [cost("essential", Priority::Essential, 0.05), costs[2], costs[4]];
    assert_eq!(
        judge_twice(&mut governor(0.01), &essential, now),
        ["a"],
        "one that costs nothing does not help"
    );
}

#[test]
fn a_burst_or_no_budget_pauses_nothing() {
    let (over, under) = ([cost("a", Priority::Low, 0.5)], [cost("a", Priority::Low, 0.005)]);
    let mut bounded = governor(0.01);
    for costs in [&over, &under, &over, &under] {
        assert!(bounded.judge(costs.to_vec(), Instant::now()).is_empty());
    }
    let mut unbounded = governor(0.0);
    for _ in 0..5 {
        assert!(unbounded.judge(over.to_vec(), Instant::now()).is_empty());
    }
}

#[test]
fn it_comes_back_later_each_time_until_it_was_calm_for_long() {
    let costs = [cost("a", Priority::Normal, 0.5)];
    let (mut governor, mut now) = (governor(0.01), Instant::now());
    for minutes in [1, 2, 4, 8, 12, 12] {
        assert_eq!(judge_twice(&mut governor, &costs, now), ["a"]);
        now += Duration::from_secs(minutes * 60 - 1);
        assert!(governor.due(now).is_empty(), "{minutes} minutes are not over");
        assert_eq!(governor.next_due(now), Some(Duration::from_secs(1)));
        now += Duration::from_secs(1);
        assert_eq!(governor.due(now), ["a"]);
        assert!(governor.due(now).is_empty(), "it is back");
    }
    now += PAUSE * PAUSES_MAX;
    assert_eq!(judge_twice(&mut governor, &costs, now), ["a"]);
    assert_eq!(governor.due(now + PAUSE), ["a"]);
}

#[test]
fn one_that_cannot_be_attached_waits_as_long_again() {
    let (mut governor, now) = (governor(0.01), Instant::now());
    judge_twice(&mut governor, &[cost("a", Priority::Normal, 0.5)], now);
    assert_eq!(governor.due(now + PAUSE), ["a"]);
    governor.put_off("a", now + PAUSE);
    assert!(governor.due(now + PAUSE).is_empty());
    assert_eq!(governor.due(now + PAUSE * 2), ["a"]);
}

proptest! {
    #[test]
    fn what_stays_fits_the_budget_and_nothing_goes_in_vain(
        parts in prop::collection::vec((0.0..0.02f64, 0..3u8), NAMES.len()),
        budget in 0.001..0.05f64,
    ) {
        let priority = |number| [Priority::Low, Priority::Normal, Priority::High][usize::from(number)];
        let costs: Vec<Cost> =
            NAMES.iter().zip(&parts).map(|(name, (part, number))| cost(name, priority(*number), *part)).collect();
        let mut governor = governor(budget);
        let now = Instant::now();
        governor.judge(costs.clone(), now);
        let gone = names(&governor.judge(costs.clone(), now));
        let left = |gone: &[&str]| -> f64 {
            costs.iter().filter(|cost| !gone.contains(&cost.probe)).map(|cost| cost.part).sum()
        };
        prop_assert!(left(&gone) <= budget + 1e-9);
        prop_assert!(gone.is_empty() || left(&gone) <= budget * AIM + 1e-9);
        for one in &gone {
            let others: Vec<_> = gone.iter().filter(|other| *other != one).copied().collect();
            prop_assert!(left(&others) > budget * AIM - 1e-9, "{one} could stay");
        }
    }
}
