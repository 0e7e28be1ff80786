//! Direct reclaim under a memory cgroup's limit, against the cgroup's own counters.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::memory::limited;
use kpulse_tests::{load, skip};
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;

const NAME: &str = "direct_reclaim";
const FAMILY: &str = "kpulse_direct_reclaim_duration_seconds";
const LIMIT: usize = 16 << 20;
const FILE_BYTES: usize = 48 << 20;

/// How often the limit was met, by the cgroup's own count.
fn limit_hits(container: &Cgroup) -> u64 {
    let hits = if container.is_v1() {
        container.number("memory.failcnt", None)
    } else {
        container.number("memory.events", Some("max "))
    };
    hits.expect("the memory controller counts them")
}

/// Reads a file three times the limit through the page cache, so that every page has to make room for itself.
fn exceed(container: &Cgroup) -> u32 {
    let path: PathBuf = std::env::temp_dir().join(format!("kpulse-reclaim-{}", std::process::id()));
    let (pid, went_well) = load::in_child(Some(container), || {
        fs::write(&path, vec![1; 1 << 20])?;
        let mut file = fs::OpenOptions::new().append(true).open(&path)?;
        for _ in 1..FILE_BYTES >> 20 {
            io::Write::write_all(&mut file, &vec![1; 1 << 20])?;
        }
        file.sync_all()?;
        for _ in 0..2 {
            io::copy(&mut fs::File::open(&path)?.take(FILE_BYTES as u64), &mut io::sink())?;
        }
        Ok(())
    });
    let _ = fs::remove_file(&path);
    assert!(went_well);
    pid
}

/// Where temporary files live in memory, reading them back needs no new page.
fn temp_is_on_disk() -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let temp = std::env::temp_dir();
    let best = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let holder = best.filter(|(mount, _)| temp.starts_with(mount)).max_by_key(|(mount, _)| mount.len());
    holder.is_some_and(|(_, kind)| !matches!(kind, "tmpfs" | "rootfs" | "ramfs"))
}

/// Fills the page cache from a disk where temporary files are in memory.
fn read_disk(container: &Cgroup) -> u32 {
    let (pid, went_well) = load::in_child(Some(container), || {
        let mut disk = fs::File::open("/dev/vda")?.take(FILE_BYTES as u64);
        io::copy(&mut disk, &mut io::sink()).map(drop)
    });
    assert!(went_well);
    pid
}

fn provoke(container: &Cgroup) -> u32 {
    if temp_is_on_disk() { exceed(container) } else { read_disk(container) }
}

macro_rules! container_or_skip {
    ($number:expr) => {{
        needs_root!();
        let Some(container) = limited($number, LIMIT) else {
            skip(module_path!(), "the memory controller cannot be used here");
            return;
        };
        container
    }};
}

#[test]
fn a_container_at_its_limit_reclaims_as_often_as_it_hits_it() {
    let container = container_or_skip!(0xb1);
    let mut set = load(NAME, &wanting(Want::Metrics));
    let mut identities = identities();
    let before = limit_hits(&container);
    provoke(&container);
    let hits = limit_hits(&container) - before;
    let measured = histogram(&scrape(&mut set, NAME, &mut identities), FAMILY, &[&Cgroup::id(0xb1), "memcg"]);
    assert!(hits > 0, "the load met no limit");
    // cgroup v2 counts each reclaim; v1 counts each refused charge, of which a reclaim has two: a batch, then a page.
    let expected = if container.is_v1() { hits / 3..=hits } else { hits * 9 / 10..=hits * 11 / 10 };
    assert!(expected.contains(&measured.count()), "{} reclaims for {hits} hits", measured.count());
    assert!(measured.sum_ns > 0);
}

#[test]
fn a_long_reclaim_is_an_event_of_the_task_that_allocated() {
    let container = container_or_skip!(0xb2);
    let mut options = wanting(Want::Events);
    options.thresholds.direct_reclaim.min_duration = Duration::from_nanos(1);
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    let pid = provoke(&container);
    let facts = drain_for(&mut events, Duration::from_millis(200));
    let ours: Vec<&Fact> = facts.iter().filter(|fact| fact.pid == pid).collect();
    assert!(!ours.is_empty(), "{facts:?}");
    for fact in &ours {
        assert_user_stack(fact, pid);
        assert_eq!(fact.cgroup, Some(container.cgroup_id()));
        assert_eq!(fact.body["kind"], "memcg");
        let [scanned, reclaimed] =
            ["scanned_pages", "reclaimed_pages"].map(|field| fact.body[field].as_u64().expect("it is there"));
        assert!(scanned > 0 && scanned >= reclaimed, "{fact:?}");
        assert!(
            fact.kernel_stack.iter().any(|function| function.contains("mem_cgroup")),
            "{:?}",
            fact.kernel_stack
        );
        assert!(
            fact.body["order"].as_i64().is_some_and(|order| (0..=10).contains(&order)),
            "{:?}",
            fact.body
        );
    }
    assert!(ours.iter().any(|fact| fact.body["reclaimed_pages"].as_u64() > Some(0)));
    assert_sum_closes(set, &mut events, facts.len());
}
