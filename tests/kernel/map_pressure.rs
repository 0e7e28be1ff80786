//! More cgroups than a map has entries: what finds no room is counted together, and nothing is lost.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load;
use std::thread;

const NAME: &str = "runqueue_latency";
const FAMILY: &str = "kpulse_runqueue_latency_seconds";
const ROOM: u32 = 3;
const CONTAINERS: u32 = 40;
const SLEEPS: u64 = 20;

/// Waits by container id; those of the host and of `~other` are under those names.
fn waits(set: &mut ProbeSet, identities: &mut Identities) -> Vec<(String, u64)> {
    let samples = scrape(set, NAME, identities);
    let families = samples.families().iter().filter(|family| family.def.name == FAMILY);
    let series = families.flat_map(|family| &family.series).map(|series| {
        let Value::Histogram(waits) = &series.value else { panic!("{series:?}") };
        let [_, _, container, id] = &series.labels[..] else { panic!("{series:?}") };
        (if id.is_empty() { container.to_string() } else { id.to_string() }, waits.count())
    });
    series.collect()
}

fn sum(waits: &[(String, u64)]) -> u64 {
    waits.iter().map(|(_, count)| count).sum()
}

#[test]
fn over_its_capacity_a_map_loses_nothing() {
    needs_root!();
    let numbers = 0xc000..0xc000 + CONTAINERS;
    let containers: Vec<_> =
        numbers.clone().map(|number| Cgroup::container("cpu", number).expect("a cgroup")).collect();
    let mut identities = identities();
    // Both count the same facts; the wide one is read right before and after the narrow one.
    let mut wide = load(NAME, &LoadOptions { container_max: 4096, ..wanting(Want::Metrics) });
    let mut narrow = load(NAME, &LoadOptions { container_max: ROOM, ..wanting(Want::Metrics) });
    let mut read = || {
        let before = waits(&mut wide, &mut identities);
        let between = waits(&mut narrow, &mut identities);
        (before, between, waits(&mut wide, &mut identities))
    };
    let first = read();
    for container in &containers {
        let (_, went_well) = load::in_child(Some(container), || {
            (0..SLEEPS).for_each(|_| thread::sleep(Duration::from_millis(1)));
            Ok(())
        });
        assert!(went_well);
    }
    let last = read();
    let told = sum(&last.1) - sum(&first.1);
    let (low, high) = (sum(&last.0) - sum(&first.2), sum(&last.2) - sum(&first.0));
    assert!((low..=high).contains(&told), "{told} of {low} to {high}");

    let is_ours = |id: &str| numbers.clone().any(|number| id == Cgroup::id(number));
    let own = |waits: &[(String, u64)]| waits.iter().filter(|(id, _)| is_ours(id)).count();
    assert_eq!(own(&last.2), CONTAINERS as usize);
    assert!(own(&last.1) <= ROOM as usize, "{:?}", last.1);
    let other = |waits: &[(String, u64)]| waits.iter().find(|(id, _)| id == "~other").map_or(0, |it| it.1);
    assert!(other(&last.1) >= u64::from(CONTAINERS - ROOM) * SLEEPS, "{:?}", last.1);
    // The containers go, and nothing of what is counted together goes with them.
    drop(containers);
    let total = other(&last.1);
    kpulse_tests::until("end of the series", || {
        let now = waits(&mut narrow, &mut identities);
        assert!(other(&now) >= total, "{now:?} after {total}");
        (own(&now) == 0).then_some(())
    });
}
