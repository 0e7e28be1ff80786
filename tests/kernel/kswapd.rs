//! Background reclaim against `/proc/vmstat`.

use super::*;
use kpulse_tests::pressure::{page_cache, vmstat};
use kpulse_tests::{skip, until};

const NAME: &str = "kswapd";

fn wakeups(samples: &Samples) -> u64 {
    let family = samples.families().iter().find(|family| family.def.name == "kpulse_kswapd_wakeups_total");
    let series = family.map_or(&[][..], |family| &family.series);
    series
        .iter()
        .map(|series| match series.value {
            Value::Count(count) => count,
            _ => panic!("a counter: {series:?}"),
        })
        .sum()
}

fn cpu_seconds(samples: &Samples) -> f64 {
    match value(samples, "kpulse_kswapd_cpu_seconds_total", &["0"]) {
        Some(Value::Number(seconds)) => seconds,
        other => panic!("{other:?}"),
    }
}

#[test]
fn background_reclaim_is_counted_as_the_kernel_counts_it() {
    needs_root!();
    let mut set = load(NAME, &wanting(Want::Metrics));
    let mut identities = identities();
    let (passes, cpu) = (vmstat(&["pageoutrun"]), cpu_seconds(&scrape(&mut set, NAME, &mut identities)));
    let stolen = vmstat(&["pgsteal_kswapd"]);
    let is_woken = || vmstat(&["pageoutrun"]) >= passes + 3 && vmstat(&["pgsteal_kswapd"]) > stolen;
    if !page_cache(is_woken).expect("files can be read") {
        skip(module_path!(), "this machine has more memory than can be filled in a minute");
        return;
    }
    // An episode ends when kswapd has found nothing more to do for a tenth of a second; then, and only then, the
    // kernel's counts and ours can be compared.
    let (counted, active, cpu) = until("end of all episodes", || {
        let samples = scrape(&mut set, NAME, &mut identities);
        let active = histogram(&samples, "kpulse_kswapd_active_seconds", &["0"]);
        let (counted, cpu) = (wakeups(&samples), cpu_seconds(&samples) - cpu);
        let is_settled = active.count() > 0
            && counted == vmstat(&["pageoutrun"]) - passes
            && active.sum_ns as f64 / 1e9 >= cpu;
        is_settled.then_some((counted, active, cpu))
    });
    assert!(counted >= 3 && active.count() <= counted, "an episode has one pass or more");
    assert!(cpu > 0.0, "reclaim takes time");
}
