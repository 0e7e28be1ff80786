//! The example of CONTRIBUTING.md: how many programs were started? Built for its test only.

use crate::hook::{Hook, tp_btf};
use crate::keyed::KeyedByContainer;
use crate::probe::Probe;
use crate::probes::bpf_object;
use kpulse_common::metric::{Label, MetricDef};

const EXECS: MetricDef = MetricDef::counter("kpulse_execs_total", "Programs started.", &[Label::Container]);
pub const PROBE: Probe = Probe {
    name: "exec",
    object: bpf_object!("exec"),
    hooks: &[Hook::any("sched_process_exec", &[tp_btf("sched_process_exec", "sched_process_exec")])],
    sized_by_containers: &[("execs", 1)],
    metrics: &[EXECS],
    collector: Some(|maps, kernel| KeyedByContainer::counts(&EXECS, maps.table("execs")?, kernel)),
    ..Probe::EMPTY
};

#[test]
fn counts_the_programs_that_were_started() {
    use crate::{LoadOptions, ProbeSet, ProbeState};
    use kpulse_common::container::Identities;
    use kpulse_common::metric::{Samples, Value};
    use kpulse_common::paths::Paths;

    const STARTED: u64 = 5;
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIP counts_the_programs_that_were_started: needs root");
        return;
    }
    let mut probes = ProbeSet::load(&[&PROBE], &LoadOptions::default());
    assert_eq!(probes.status()[0].state, ProbeState::Active);
    let mut identities = Identities::new(&Paths::default());
    let mut execs = || {
        let mut samples = Samples::default();
        probes.collect("exec", &mut identities, &mut samples).unwrap();
        let series = samples.families().iter().flat_map(|family| &family.series);
        series.map(|series| if let Value::Count(count) = series.value { count } else { 0 }).sum::<u64>()
    };
    let before = execs();
    for _ in 0..STARTED {
        assert!(std::process::Command::new("true").status().unwrap().success());
    }
    assert!(execs() >= before + STARTED);
}
