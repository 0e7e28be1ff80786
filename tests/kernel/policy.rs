//! Thresholds that change while a probe is attached: for the machine, and for one container.

use super::runqueue_latency::contend;
use super::*;
use kpulse_common::thresholds::Thresholds;
use kpulse_exporter_ebpf::Policies;
use kpulse_tests::cgroup::Cgroup;
use std::collections::{BTreeMap, HashMap};

const NAME: &str = "runqueue_latency";
const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_micros(500);

fn waiting(min_wait: Duration) -> Thresholds {
    let mut thresholds = Thresholds::default();
    thresholds.runqueue_latency.min_wait = min_wait;
    thresholds
}

/// Puts rules in force: the machine's, and a container's own.
fn apply(policies: &mut Policies, machine: Duration, own: Option<(&Cgroup, Duration)>) {
    let own = own.map(|(container, min_wait)| {
        let cgroup = container.cgroup_id();
        (cgroup.hierarchy, BTreeMap::from([(cgroup.id, waiting(min_wait))]))
    });
    let own: HashMap<_, _> = own.into_iter().collect();
    policies.apply(&waiting(machine), &own).expect("the maps can be written");
}

/// How many waits of each container were told while both contended, and with which thresholds.
fn told(events: &mut EventStream, containers: [&Cgroup; 2]) -> [usize; 2] {
    for container in containers {
        contend(container);
    }
    let facts = drain_for(events, Duration::from_millis(100));
    containers.map(|container| facts.iter().filter(|it| it.cgroup == Some(container.cgroup_id())).count())
}

#[test]
fn a_container_has_its_own_threshold_until_it_is_taken_back() {
    needs_root!();
    let favoured = Cgroup::container("cpu", 0xa801).expect("a cgroup can be made");
    let other = Cgroup::container("cpu", 0xa802).expect("a cgroup can be made");
    let both = [&favoured, &other];
    let mut set = load(NAME, &LoadOptions { thresholds: waiting(NEVER), ..wanting(Want::Events) });
    let (mut events, mut policies) = (set.take_events().expect("rings"), set.policies().expect("maps"));
    assert_eq!(told(&mut events, both), [0, 0]);

    apply(&mut policies, NEVER, Some((&favoured, SOON)));
    let [ours, theirs] = told(&mut events, both);
    assert!(ours > 0 && theirs == 0, "{ours} and {theirs}");

    apply(&mut policies, SOON, Some((&favoured, NEVER)));
    let [ours, theirs] = told(&mut events, both);
    assert!(ours == 0 && theirs > 0, "{ours} and {theirs}");

    apply(&mut policies, NEVER, None);
    assert_eq!(told(&mut events, both), [0, 0]);
}
