//! Memory of containers and of the host.

use crate::{Exporter, Page, assert_between, between, while_child_holds};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load::in_child;
use kpulse_tests::{is_root, skip, until};
use std::fs;

const MIB: usize = 1 << 20;

/// Anonymous memory, touched.
fn allocate(bytes: usize) -> Vec<u8> {
    let mut memory = vec![0u8; bytes];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(memory)
}

/// The file that tells how much a cgroup uses.
fn usage(cgroup: &Cgroup) -> &'static str {
    if cgroup.is_v1() { "memory.usage_in_bytes" } else { "memory.current" }
}

/// One field of `/proc/PID/status` in bytes.
fn status_bytes(pid: u32, field: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.split_ascii_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

#[test]
fn a_containers_anonymous_memory_is_that_of_its_process() {
    if !is_root() {
        return skip("a_containers_anonymous_memory", "only root can make cgroups");
    }
    let Ok(cgroup) = Cgroup::container("memory", 0x48_0010) else {
        return skip("a_containers_anonymous_memory", "no hierarchy has the memory controller");
    };
    let id = Cgroup::id(0x48_0010);
    if cgroup.number(usage(&cgroup), None).is_none() {
        return skip("a_containers_anonymous_memory", "the memory controller is off on this kernel");
    }
    let exporter = Exporter::start(&["memory"]);
    let (anon, page) = while_child_holds(
        &cgroup,
        || allocate(48 * MIB),
        |pid| {
            until("allocated memory", || (status_bytes(pid, "RssAnon:")? > 48.0 * MIB as f64).then_some(()));
            (status_bytes(pid, "RssAnon:").unwrap(), exporter.scrape())
        },
    );
    let kind = |kind| page.value("kpulse_memory_bytes", &[("kind", kind), ("container_id", &id)]);
    // Pages that the child shares with its parent since the fork are charged to the parent, and the kernel keeps
    // up to some hundred KiB of counts on each CPU.
    assert!((kind("anon") - anon).abs() < 6.0 * MIB as f64, "told {}, its process has {anon}", kind("anon"));
    assert!(kind("usage") >= kind("anon") * 0.95, "{} {}", kind("usage"), kind("anon"));
    assert_eq!(page.find("kpulse_memory_bytes", &[("kind", "limit"), ("container_id", &id)]), None);
}

#[test]
fn meeting_the_limit_and_dying_of_it_are_counted() {
    if !is_root() {
        return skip("meeting_the_limit", "only root can make cgroups");
    }
    let Ok(cgroup) = Cgroup::container("memory", 0x48_0011) else {
        return skip("meeting_the_limit", "no hierarchy has the memory controller");
    };
    let id = Cgroup::id(0x48_0011);
    let limit = (24 * MIB).to_string();
    let set = if cgroup.is_v1() {
        cgroup.set("memory.limit_in_bytes", &limit)
    } else {
        // Without this the process would go to swap instead of dying.
        let _ = cgroup.set("memory.swap.max", "0");
        cgroup.set("memory.max", &limit)
    };
    if let Err(error) = set {
        return skip("meeting_the_limit", &format!("this kernel sets no memory limit: {error}"));
    }
    let exporter = Exporter::start(&["memory"]);
    let event = |page: &Page, event| {
        page.value("kpulse_memory_events_total", &[("event", event), ("container_id", &id)])
    };
    let met = if cgroup.is_v1() { "failcnt" } else { "max" };
    let before = exporter.scrape();
    assert_eq!((event(&before, met), event(&before, "oom_kill")), (0.0, 0.0));
    assert_eq!(
        before.value("kpulse_memory_bytes", &[("kind", "limit"), ("container_id", &id)]),
        (24 * MIB) as f64
    );
    let (_, went_well) = in_child(Some(&cgroup), || {
        std::hint::black_box(allocate(64 * MIB).len());
        Ok(())
    });
    assert!(!went_well, "a process of 64 MiB cannot live within 24");
    let after = exporter.scrape();
    assert_eq!(event(&after, "oom_kill"), 1.0, "one process died");
    assert!(event(&after, met) >= 1.0);
}

/// Minor and major faults of this process and of the children that it waited for.
fn faults() -> f64 {
    let of = |who| {
        // SAFETY: an all-zero rusage is valid, and it lives through the call.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(who, &raw mut usage);
            usage
        };
        (usage.ru_minflt + usage.ru_majflt) as f64
    };
    of(libc::RUSAGE_SELF) + of(libc::RUSAGE_CHILDREN)
}

#[test]
fn page_faults_are_those_of_a_process_that_touches_memory() {
    let exporter = Exporter::start(&["vmstat"]);
    let family = "kpulse_vmstat_pgfault_total";
    // The kernel adds up what CPUs counted when a fold is due, at the latest after stat_interval.
    let before = exporter.scrape().value(family, &[]);
    let own = faults();
    let (_, went_well) = in_child(None, || {
        std::hint::black_box(allocate(40 * MIB).len());
        Ok(())
    });
    assert!(went_well);
    let own = faults() - own;
    // 10,240 small pages; a kernel that gives huge ones faults less.
    assert!(own > 20.0, "{own}");
    until("page faults of the host", || (exporter.scrape().value(family, &[]) - before >= own).then_some(()));
}

#[test]
fn fields_of_vmstat_stand_between_two_readings_of_the_file() {
    let exporter = Exporter::start(&["vmstat"]);
    let read = || fs::read_to_string("/proc/vmstat").unwrap();
    let (before, page, after) = between(&exporter, read);
    let field = |text: &str, key: &str| {
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse::<f64>().ok())
    };
    let mut checked = 0;
    let families = page.0.lines().filter_map(|line| line.strip_prefix("kpulse_vmstat_")?.split_once(' '));
    // Gauges go down as well, and what several fields make up has none of its name.
    for (key, value) in families.filter_map(|(family, value)| Some((family.strip_suffix("_total")?, value))) {
        let (Some(least), Some(most)) = (field(&before, key), field(&after, key)) else { continue };
        assert_between(key, least, value.parse().unwrap(), most);
        checked += 1;
    }
    assert!(checked >= 30, "{checked}");
    let stalls = |text: &str| {
        let lines = text.lines().filter(|line| line.starts_with("allocstall_"));
        lines.filter_map(|line| line.split_once(' ')?.1.parse::<f64>().ok()).sum::<f64>()
    };
    assert_between(
        "allocstall",
        stalls(&before),
        page.value("kpulse_vmstat_allocstall_total", &[]),
        stalls(&after),
    );
}

#[test]
fn free_blocks_add_up_to_free_memory() {
    let exporter = Exporter::start(&["buddy"]);
    let page = exporter.scrape();
    let mut pages = 0.0;
    for line in page.0.lines().filter_map(|line| line.strip_prefix("kpulse_buddy_free_blocks{")) {
        let order = line.split_once("order=\"").unwrap().1.split_once('"').unwrap().0;
        pages += line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() * 2f64.powi(order.parse().unwrap());
    }
    // Each zone's own count of free pages, from another file.
    let text = fs::read_to_string("/proc/zoneinfo").unwrap();
    let free =
        text.lines().filter_map(|line| line.trim().strip_prefix("pages free")?.trim().parse::<f64>().ok());
    let free: f64 = free.sum();
    // Other tests allocate meanwhile.
    assert!((pages - free).abs() < 0.2 * free + 16_384.0, "{pages} pages in blocks, {free} free");
    assert!(page.0.contains("order=\"10\""), "{}", page.0);
}
