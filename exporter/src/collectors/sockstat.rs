//! How many sockets are there, and how much memory do they hold? `/proc/net/sockstat` and `sockstat6`.

use super::{Host, HostCollector};
use kpulse_common::metric::{Label, MetricDef, Samples};

const USED: MetricDef = MetricDef::gauge("kpulse_sockstat_used", "Sockets of all families in use.", &[]);
const IN_USE: MetricDef = MetricDef::gauge(
    "kpulse_sockstat_in_use",
    "Sockets in use, those of IPv6 under protocols of their own; TCP without time-wait.",
    &[Label::Named("protocol")],
);
const ORPHANED: MetricDef =
    MetricDef::gauge("kpulse_sockstat_tcp_orphaned", "TCP sockets that no process has open any more.", &[]);
const TIME_WAIT: MetricDef =
    MetricDef::gauge("kpulse_sockstat_tcp_time_wait", "TCP connections in time-wait.", &[]);
const ALLOCATED: MetricDef =
    MetricDef::gauge("kpulse_sockstat_tcp_allocated", "TCP sockets of the host, in every state.", &[]);
const MEMORY: MetricDef = MetricDef::gauge(
    "kpulse_sockstat_memory_bytes",
    "Memory of the host's socket buffers, counted in pages; reassembly counts bytes.",
    &[Label::Named("protocol")],
);

pub const COLLECTOR: HostCollector = HostCollector {
    name: "sockstat",
    metrics: &[USED, IN_USE, ORPHANED, TIME_WAIT, ALLOCATED, MEMORY],
    is_default: true,
    make: |_| Box::new(collect),
};

fn collect(host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
    let page_bytes = page_bytes();
    for (name, is_required) in [("sockstat", true), ("sockstat6", false)] {
        let path = host.net_file(name);
        // A kernel may be without IPv6.
        if !is_required && !path.exists() {
            continue;
        }
        for (protocol, key, value) in host.text.read(&path)?.lines().flat_map(fields) {
            let protocol = protocol.to_ascii_lowercase();
            match (&*protocol, key) {
                ("sockets", "used") => out.count(&USED, &[], value),
                (_, "inuse") => out.count(&IN_USE, &[&protocol], value),
                ("tcp", "orphan") => out.count(&ORPHANED, &[], value),
                ("tcp", "tw") => out.count(&TIME_WAIT, &[], value),
                ("tcp", "alloc") => out.count(&ALLOCATED, &[], value),
                (_, "mem") => out.count(&MEMORY, &[&protocol], value.saturating_mul(page_bytes)),
                (_, "memory") => out.count(&MEMORY, &[&protocol], value),
                _ => {}
            }
        }
    }
    Ok(())
}

/// `TCP: inuse 1 orphan 0 …` as protocol, key and value.
fn fields(line: &str) -> Vec<(&str, &str, u64)> {
    let Some((protocol, rest)) = line.split_once(": ") else { return Vec::new() };
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    words.chunks_exact(2).filter_map(|pair| Some((protocol, pair[0], pair[1].parse().ok()?))).collect()
}

fn page_bytes() -> u64 {
    // SAFETY: sysconf has no preconditions.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pairs_and_leaves_out_the_rest() {
        assert_eq!(
            fields("TCP: inuse 1 orphan 0 tw x alloc 4 mem"),
            [("TCP", "inuse", 1), ("TCP", "orphan", 0), ("TCP", "alloc", 4)]
        );
        assert!(fields("").is_empty());
    }
}
