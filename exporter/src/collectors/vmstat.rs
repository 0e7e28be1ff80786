//! What the memory of the host is doing: fields of `/proc/vmstat`, each with its right type.
//!
//! The kernel's own names, so that its documentation applies. A field that this kernel lacks is absent.

use super::{Collect, Host, HostCollector};
use kpulse_common::metric::{MetricDef, Samples};
use std::collections::HashMap;

/// A family, and the fields that add up to it.
struct Field {
    def: MetricDef,
    keys: &'static [&'static str],
}

macro_rules! counter {
    ($name:literal, $help:literal) => {
        counter!($name, $help, [$name])
    };
    ($name:literal, $help:literal, [$($key:literal),+]) => {
        Field {
            def: MetricDef::counter(concat!("kpulse_vmstat_", $name, "_total"), $help, &[]),
            keys: &[$($key),+],
        }
    };
}

macro_rules! pages {
    ($name:literal, $help:literal) => {
        Field { def: MetricDef::gauge(concat!("kpulse_vmstat_", $name), $help, &[]), keys: &[$name] }
    };
}

const FIELDS: [Field; 66] = [
    counter!("pgfault", "Page faults, minor and major."),
    counter!("pgmajfault", "Page faults that had to wait for I/O."),
    counter!("pswpin", "Pages read from swap."),
    counter!("pswpout", "Pages written to swap."),
    counter!("pgactivate", "Pages moved to the active list."),
    counter!("pgdeactivate", "Pages moved to the inactive list."),
    counter!("pgrefill", "Pages of the active list that were looked at for reclaim."),
    counter!("pgrotated", "Pages moved to the tail of the inactive list after write-back."),
    counter!("pgscan_kswapd", "Pages looked at by the reclaim threads."),
    counter!("pgscan_direct", "Pages looked at by tasks that had to reclaim themselves."),
    counter!("pgscan_direct_throttle", "Times that a reclaiming task was made to wait."),
    counter!("pgsteal_kswapd", "Pages reclaimed by the reclaim threads."),
    counter!("pgsteal_direct", "Pages reclaimed by tasks that had to do it themselves."),
    counter!("pgscan_anon", "Anonymous pages looked at for reclaim."),
    counter!("pgscan_file", "File pages looked at for reclaim."),
    counter!("pgsteal_anon", "Anonymous pages reclaimed."),
    counter!("pgsteal_file", "File pages reclaimed."),
    counter!(
        "allocstall",
        "Allocations that had to reclaim first, in all zones.",
        [
            "allocstall_dma",
            "allocstall_dma32",
            "allocstall_normal",
            "allocstall_highmem",
            "allocstall_movable",
            "allocstall_device"
        ]
    ),
    counter!("pageoutrun", "Passes of the reclaim threads."),
    counter!("kswapd_low_wmark_hit_quickly", "Times that free memory fell below low right after reclaim."),
    counter!("kswapd_high_wmark_hit_quickly", "Times that free memory fell below high right after reclaim."),
    counter!("slabs_scanned", "Objects of slab caches looked at for reclaim."),
    counter!("pginodesteal", "Pages reclaimed by freeing inodes, by tasks."),
    counter!("kswapd_inodesteal", "Pages reclaimed by freeing inodes, by the reclaim threads."),
    counter!("workingset_refault_anon", "Anonymous pages that came back soon after they were reclaimed."),
    counter!("workingset_refault_file", "File pages that came back soon after they were reclaimed."),
    counter!("workingset_activate_anon", "Anonymous pages that came back and were active at once."),
    counter!("workingset_activate_file", "File pages that came back and were active at once."),
    counter!("nr_dirtied", "Pages that became dirty."),
    counter!("nr_written", "Pages that were written back."),
    counter!("nr_throttled_written", "Pages that were written back while reclaim waited for them."),
    counter!("nr_vmscan_write", "Pages that reclaim itself wrote."),
    counter!("nr_vmscan_immediate_reclaim", "Pages to be reclaimed as soon as they were written."),
    counter!("oom_kill", "Processes killed because memory ran out, in containers and on the host."),
    counter!("compact_stall", "Allocations that had to compact memory first."),
    counter!("compact_fail", "Direct compactions that did not help."),
    counter!("compact_success", "Direct compactions that helped."),
    counter!("compact_daemon_wake", "Wake-ups of the compaction threads."),
    counter!("compact_migrate_scanned", "Pages that compaction looked at in order to move them."),
    counter!("compact_free_scanned", "Pages that compaction looked at in order to fill them."),
    counter!("compact_isolated", "Pages that compaction took out of their lists."),
    counter!("pgmigrate_success", "Pages moved to another place."),
    counter!("pgmigrate_fail", "Pages that could not be moved."),
    counter!("thp_fault_alloc", "Page faults that got a huge page."),
    counter!("thp_fault_fallback", "Page faults that wanted a huge page and got small ones."),
    counter!("thp_collapse_alloc", "Huge pages made of small ones."),
    counter!("thp_collapse_alloc_failed", "Huge pages that could not be made of small ones."),
    counter!("thp_split_page", "Huge pages that were split."),
    counter!("thp_swpout_fallback", "Huge pages that were split in order to be swapped."),
    counter!("numa_hit", "Pages allocated on the node that was wanted."),
    counter!("numa_miss", "Pages allocated on another node than was wanted."),
    counter!("numa_pages_migrated", "Pages that automatic balancing moved to another node."),
    counter!("numa_hint_faults", "Page faults that automatic balancing provoked."),
    counter!("balloon_inflate", "Pages given back to the hypervisor."),
    counter!("balloon_deflate", "Pages taken back from the hypervisor."),
    counter!("drop_pagecache", "Times that someone had the page cache dropped."),
    counter!("drop_slab", "Times that someone had the slab caches dropped."),
    pages!("nr_free_pages", "Free pages."),
    pages!("nr_dirty", "Pages that are to be written back."),
    pages!("nr_writeback", "Pages that are being written back."),
    pages!("nr_dirty_threshold", "Dirty pages at which a writing task has to wait."),
    pages!("nr_dirty_background_threshold", "Dirty pages at which write-back begins."),
    pages!("nr_isolated_anon", "Anonymous pages that reclaim or compaction works on."),
    pages!("nr_isolated_file", "File pages that reclaim or compaction works on."),
    pages!("nr_page_table_pages", "Pages of page tables."),
    pages!("nr_slab_unreclaimable", "Pages of slab caches that cannot be reclaimed."),
];

const METRICS: [MetricDef; FIELDS.len()] = {
    let mut defs = [FIELDS[0].def; FIELDS.len()];
    let mut index = 0;
    while index < FIELDS.len() {
        defs[index] = FIELDS[index].def;
        index += 1;
    }
    defs
};

pub const COLLECTOR: HostCollector =
    HostCollector { name: "vmstat", metrics: &METRICS, is_default: true, make: |_| Box::new(Vmstat::new()) };

struct Vmstat {
    /// Where each key belongs.
    fields: HashMap<&'static str, usize>,
}

impl Vmstat {
    fn new() -> Self {
        let keys = FIELDS
            .iter()
            .enumerate()
            .flat_map(|(index, field)| field.keys.iter().map(move |key| (*key, index)));
        Self { fields: keys.collect() }
    }

    fn sums(&self, text: &str) -> [Option<u64>; FIELDS.len()] {
        let mut sums = [None; FIELDS.len()];
        for (index, value) in super::text::keyed(text, |key| self.fields.get(key).copied()) {
            let sum: &mut Option<u64> = &mut sums[index];
            *sum = Some(sum.unwrap_or(0).wrapping_add(value));
        }
        sums
    }
}

impl Collect for Vmstat {
    fn collect(&mut self, host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
        let path = host.paths.procfs.join("vmstat");
        let sums = self.sums(host.text.read(&path)?);
        for (def, value) in METRICS.iter().zip(sums) {
            if let Some(value) = value {
                out.count(def, &[], value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_added_up_and_what_the_kernel_lacks_is_absent() {
        let sums = Vmstat::new()
            .sums("pgfault 7\nallocstall_dma 1\nallocstall_normal 2\nnr_dirty x\nunheard_of 9\n");
        let named = |name: &str| sums[METRICS.iter().position(|def| def.name == name).unwrap()];
        assert_eq!(named("kpulse_vmstat_pgfault_total"), Some(7));
        assert_eq!(named("kpulse_vmstat_allocstall_total"), Some(3));
        assert_eq!(named("kpulse_vmstat_nr_dirty"), None);
        assert_eq!(named("kpulse_vmstat_pgmajfault_total"), None);
    }
}
