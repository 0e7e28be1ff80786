//! Direct compaction for huge pages, against the kernel's own count of stalls.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::memory::touch_huge_pages;
use kpulse_tests::pressure::{page_cache, vmstat};
use kpulse_tests::{load, skip, until};
use std::fs;
use std::time::Instant;

const NAME: &str = "compaction";
const FAMILY: &str = "kpulse_compaction_duration_seconds";

fn huge_pages_compact() -> bool {
    let chosen = |file: &str| {
        let text =
            fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{file}")).unwrap_or_default();
        text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word.to_owned())
    };
    let is_off = |file| chosen(file).is_none_or(|word| word == "never");
    !is_off("enabled") && !is_off("defrag")
}

#[test]
fn a_container_that_wants_huge_pages_compacts_memory() {
    needs_root!();
    if !huge_pages_compact() {
        skip(module_path!(), "this kernel makes no transparent huge pages, or never waits for one");
        return;
    }
    let container = Cgroup::container("memory", 0xe1).expect("a cgroup can be made");
    let mut set = load(NAME, &wanting(Want::Metrics));
    let mut options = wanting(Want::Events);
    options.thresholds.compaction.min_duration = Duration::from_nanos(1);
    let mut telling = load(NAME, &options);
    let mut events = telling.take_events().expect("the rings open");
    let mut identities = identities();
    let begin = Instant::now();
    // Stalls of 5.10 may end with nothing tried; those that tried have looked at pages.
    let scanned = || vmstat(&["compact_migrate_scanned"]) - vmstat(&["compact_daemon_migrate_scanned"]);
    let (stalls, passes) = (vmstat(&["compact_stall"]), vmstat(&["pageoutrun"]));
    let is_ours = |fact: &Fact| fact.cgroup == Some(container.cgroup_id());
    let (mut facts, mut moments) = (Vec::new(), 0);
    let is_told = || {
        let before = (scanned(), vmstat(&["compact_stall"]));
        if vmstat(&["pageoutrun"]) == passes || !touch_huge_pages(&container, 16) {
            return false;
        }
        moments += u32::from(scanned() > before.0 && vmstat(&["compact_stall"]) > before.1);
        // In a guest this is a process of its own, which must leave the events to the test; and nobody else is there.
        if burn::is_guest() {
            return moments > 0;
        }
        facts.extend(drain_for(&mut events, Duration::from_millis(20)));
        // Others may have stalled in one of these moments, hardly in all.
        facts.iter().any(is_ours) || moments == 8
    };
    if !page_cache(is_told).expect("files can be read") {
        skip(
            module_path!(),
            "this machine's free memory stays in large blocks, or is compacted in the background",
        );
        return;
    }
    let time = begin.elapsed();
    let measured = until("direct compaction of the container", || {
        let samples = scrape(&mut set, NAME, &mut identities);
        value(&samples, FAMILY, &[&Cgroup::id(0xe1)])?;
        // The last call is counted a second after it.
        (begin.elapsed() > time + Duration::from_millis(1500))
            .then(|| histogram(&samples, FAMILY, &[&Cgroup::id(0xe1)]))
    });
    let stalls = vmstat(&["compact_stall"]) - stalls;
    // A stall that finds a zone good already has no attempt to measure.
    assert!(measured.count() > 0 && measured.count() <= stalls, "{} of {stalls} stalls", measured.count());
    assert!(measured.sum_ns > 0 && Duration::from_nanos(measured.sum_ns) < time);

    facts.extend(drain_for(&mut events, Duration::from_millis(100)));
    let ours: Vec<&Fact> = facts.iter().filter(|fact| is_ours(fact)).collect();
    assert_eq!(ours.len() as u64, measured.count(), "each call is told once");
    assert!(ours.iter().any(|fact| fact.body["order"] == 9), "a huge page is 2^9 pages: {ours:?}");
    assert!(ours.iter().all(|fact| fact.kind == "compaction" && !fact.kernel_stack.is_empty()));
    // Of the kernel's words, those that an attempt may end with.
    const RESULTS: [&str; 7] =
        ["SKIPPED", "DEFERRED", "NO_SUITABLE_PAGE", "COMPLETE", "PARTIAL_SKIPPED", "CONTENDED", "SUCCESS"];
    let has_result = |fact: &&Fact| fact.body["result"].as_str().is_some_and(|word| RESULTS.contains(&word));
    assert!(ours.iter().all(has_result), "{ours:?}");
    ours.iter().for_each(|fact| assert_user_stack(fact, fact.pid));
    assert_sum_closes(telling, &mut events, facts.len());
}

#[test]
fn compaction_on_demand_is_not_direct() {
    needs_root!();
    let container = Cgroup::container("memory", 0xe2).expect("a cgroup can be made");
    let mut set = load(NAME, &wanting(Want::Metrics));
    let scanned = vmstat(&["compact_migrate_scanned"]);
    let (_, went_well) = load::in_child(Some(&container), || fs::write("/proc/sys/vm/compact_memory", "1"));
    assert!(went_well && vmstat(&["compact_migrate_scanned"]) > scanned, "memory was compacted");
    std::thread::sleep(Duration::from_millis(1100));
    let samples = scrape(&mut set, NAME, &mut identities());
    assert!(value(&samples, FAMILY, &[&Cgroup::id(0xe2)]).is_none());
}
