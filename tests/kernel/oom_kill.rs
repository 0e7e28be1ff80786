//! OOM kills against the memory cgroup's and the machine's own counts.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::memory::{exhaust, limited_for_good};
use kpulse_tests::skip;
use std::fs;

const NAME: &str = "oom_kill";
const FAMILY: &str = "kpulse_oom_kills_total";
const LIMIT: usize = 16 << 20;

/// Kills by the cgroup's own count.
fn kills_of(container: &Cgroup) -> Option<u64> {
    container
        .number(if container.is_v1() { "memory.oom_control" } else { "memory.events" }, Some("oom_kill "))
}

/// Kills by the machine's own count.
fn kills() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

#[test]
fn a_container_over_its_limit_counts_its_kills() {
    needs_root!();
    let Some(container) = limited_for_good(0xd1, LIMIT) else {
        skip(module_path!(), "the memory controller cannot be used here");
        return;
    };
    let mut set = load(NAME, &wanting(Want::Metrics));
    let mut telling = load(NAME, &wanting(Want::Events));
    let mut events = telling.take_events().expect("the rings open");
    let mut identities = identities();
    let labels = [Cgroup::id(0xd1), "memcg".to_owned()];
    let labels = [labels[0].as_str(), labels[1].as_str()];
    assert!(
        value(&scrape(&mut set, NAME, &mut identities), FAMILY, &labels).is_none(),
        "nobody was killed yet"
    );
    for _ in 0..3 {
        assert!(exhaust(&container, 4 * LIMIT), "the limit was not met");
    }
    let samples = scrape(&mut set, NAME, &mut identities);
    assert_eq!(count(&samples, FAMILY, &labels), 3);
    assert_eq!(Some(3), kills_of(&container), "by the cgroup");
    assert!(value(&samples, FAMILY, &[labels[0], "global"]).is_none());

    let facts = drain_for(&mut events, Duration::from_millis(100));
    let ours: Vec<&Fact> = facts.iter().filter(|fact| fact.cgroup == Some(container.cgroup_id())).collect();
    assert_eq!(ours.len(), 3, "{facts:?}");
    for kill in ours {
        assert_eq!((&kill.body["kind"], &kill.body["score_adjustment"]), (&"memcg".into(), &1000.into()));
        assert_eq!(kill.body["limit_bytes"], LIMIT);
        // The rest of what it may use is the kernel's own. It shares memory with its parent, beyond what is its own.
        let bytes = |field: &str| kill.body[field].as_u64().expect("it had memory") as usize;
        let anonymous = bytes("anon_bytes");
        assert!(anonymous >= LIMIT * 3 / 4 && anonymous < bytes("virtual_bytes"), "{kill:?}");
        assert_eq!(kill.body["trigger"]["pid"], kill.pid, "nobody else is in the container");
        assert!(!kill.kernel_stack.is_empty());
        assert_user_stack(kill, kill.pid);
    }
    assert_sum_closes(telling, &mut events, facts.len());
}

#[test]
fn a_machine_without_memory_counts_a_global_kill() {
    needs_guest!("only a guest of the matrix may run out of memory");
    let container = Cgroup::container("memory", 0xd2).expect("a cgroup can be made");
    let mut set = load(NAME, &wanting(Want::Metrics));
    let before = kills().expect("vmstat counts kills");
    assert!(exhaust(&container, usize::MAX), "memory has an end");
    let killed = kills().expect("vmstat counts kills") - before;
    let samples = scrape(&mut set, NAME, &mut identities());
    assert!(killed > 0);
    assert_eq!(count(&samples, FAMILY, &[&Cgroup::id(0xd2), "global"]), killed);
    assert!(value(&samples, FAMILY, &[&Cgroup::id(0xd2), "memcg"]).is_none());
}
