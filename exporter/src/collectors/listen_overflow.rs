//! What listening sockets turned away and how often receivers were full, for the host and for each container that has
//! a network namespace of its own: no tracepoint tells it, and the namespace's counters do.

use super::roster::Place;
use super::text::Text;
use super::{Collect, Host, HostCollector};
use kpulse_common::container::ContainerCgroup;
use kpulse_common::metric::{Label, MetricDef, Samples, Value};
use kpulse_common::paths::Paths;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// Containers that one scrape reads, in turn; the others keep what was read last. The kernel adds up all counters of a
/// namespace for each read, which takes 40 µs.
const TURN: usize = 32;

const OVERFLOWS: MetricDef = MetricDef::counter(
    "kpulse_tcp_listen_overflows_total",
    "TCP connections turned away since the queue of accept() was full.",
    &[Label::Container],
);
const ZERO_WINDOWS: MetricDef = MetricDef::counter(
    "kpulse_tcp_zero_windows_total",
    "Times that a TCP receiver was full and told its peer to send no more.",
    &[Label::Container],
);

pub const COLLECTOR: HostCollector = HostCollector {
    name: "listen_overflow",
    metrics: &[OVERFLOWS, ZERO_WINDOWS],
    is_default: true,
    make: |_| Box::new(Namespaces::default()),
};

/// The counters of one namespace, in the order of the families.
type Counts = [Option<u64>; 2];

#[derive(Default)]
struct Namespaces {
    /// By container id. Bound: the containers that have series of their own.
    containers: BTreeMap<Arc<str>, Known>,
    /// The container that was read last.
    last: Option<Arc<str>>,
}

#[derive(Default)]
struct Known {
    /// Inode of its counters; `None` for one that is the host's or belongs to another container already.
    namespace: Option<u64>,
    /// A process in it.
    pid: Option<u32>,
    counts: Counts,
}

impl Collect for Namespaces {
    fn collect(&mut self, host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
        let path = host.net_file("netstat");
        let counts = parse(host.text.read(&path)?);
        let of_host = namespace(&path);
        push(&std::array::from_fn(|_| "".into()), counts, out);

        let hierarchy = host.identities.hierarchies().of("cpu");
        let Some(mount) = host.identities.hierarchies().mount(hierarchy).map(Path::to_owned) else {
            return Ok(());
        };
        let own = host.containers(hierarchy).into_iter().filter(|(_, place)| *place == Place::Own);
        let alive: BTreeMap<Arc<str>, ContainerCgroup> =
            own.map(|(container, _)| (container.labels[3].clone(), container)).collect();
        self.containers.retain(|id, _| alive.contains_key(id));
        for id in self.turn(&alive) {
            let folder = mount.join(alive[&id].path.trim_start_matches('/'));
            self.read(&id, &folder, of_host, &host.paths, &mut host.text);
            self.last = Some(id);
        }
        for (id, known) in &self.containers {
            if known.namespace.is_some() {
                push(&alive[id].labels, known.counts, out);
            }
        }
        Ok(())
    }
}

impl Namespaces {
    /// The next containers to read, behind the one that was last.
    fn turn(&self, alive: &BTreeMap<Arc<str>, ContainerCgroup>) -> Vec<Arc<str>> {
        let is_behind = |id: &&Arc<str>| self.last.as_ref().is_none_or(|last| *id > last);
        let (behind, before): (Vec<_>, Vec<_>) = alive.keys().partition(is_behind);
        behind.into_iter().chain(before).take(TURN).cloned().collect()
    }

    fn read(&mut self, id: &Arc<str>, cgroup: &Path, of_host: Option<u64>, paths: &Paths, text: &mut Text) {
        let mut known = self.containers.remove(id).unwrap_or_default();
        let file = |pid: u32| paths.procfs.join(pid.to_string()).join("net/netstat");
        // A pid may be another process' by now: it counts while it is in the namespace that it was found in.
        let is_still_in = |pid: &u32| known.namespace.is_some() && namespace(&file(*pid)) == known.namespace;
        known.pid = known.pid.filter(is_still_in).or_else(|| first_process(cgroup));
        if let Some(path) = known.pid.map(file)
            && let Some(found) = namespace(&path)
        {
            let is_taken = self.containers.values().any(|other| other.namespace == Some(found));
            known.namespace = Some(found).filter(|_| Some(found) != of_host && !is_taken);
            // A process that ended meanwhile leaves what was read last.
            if known.namespace.is_some()
                && let Ok(text) = text.read(&path)
            {
                known.counts = parse(text);
            }
        }
        self.containers.insert(id.clone(), known);
    }
}

/// What tells network namespaces apart: each has files of its own. `/proc/PID/ns/net` says the same, but only to who
/// may trace the process.
fn namespace(file: &Path) -> Option<u64> {
    Some(fs::metadata(file).ok()?.ino())
}

fn first_process(cgroup: &Path) -> Option<u32> {
    fs::read_to_string(cgroup.join("cgroup.procs")).ok()?.lines().next()?.parse().ok()
}

fn push(labels: &[Arc<str>; 4], counts: Counts, out: &mut Samples) {
    for (def, count) in COLLECTOR.metrics.iter().zip(counts) {
        if let Some(count) = count {
            out.push(def, labels.to_vec(), Value::Count(count));
        }
    }
}

/// The counters out of a line of names and a line of values.
fn parse(text: &str) -> Counts {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return [None; 2] };
    ["ListenOverflows", "TCPToZeroWindowAdv"].map(|wanted| {
        let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
        pairs.find(|(name, _)| *name == wanted)?.1.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name_and_absent_without_it() {
        let text =
            "TcpExt: A TCPToZeroWindowAdv ListenOverflows\nTcpExt: 1 2 3\nIpExt: ListenOverflows\nIpExt: 9\n";
        assert_eq!(parse(text), [Some(3), Some(2)]);
        assert_eq!(parse("TcpExt: ListenOverflows TCPToZeroWindowAdv\nTcpExt: 7\n"), [Some(7), None]);
        assert_eq!(parse("TcpExt: ListenOverflows\n"), [None, None]);
        assert_eq!(parse(""), [None, None]);
    }
}
