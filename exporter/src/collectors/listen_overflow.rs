//! What listening sockets turned away and how often receivers were full, for the host and for each container that has
//! a network namespace of its own: no tracepoint tells it, and the namespace's counters do.

use super::namespaces::ByNamespace;
use super::pace::Pace;
use super::text::Text;
use super::{Collect, Host, HostCollector};
use kpulse_common::metric::{Label, MetricDef, MetricKind, Samples, Value};
use kpulse_common::paths::Paths;
use std::sync::Arc;

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
    make: |paths| Box::new(ListenOverflow::new(paths)),
};

/// The counters of one namespace, in the order of the families.
type Counts = [Option<u64>; 2];

/// The kernel adds up all counters of a namespace over all CPUs for each reading, which takes 40 µs and more.
struct ListenOverflow {
    containers: ByNamespace<Counts>,
    pace: Pace,
    text: Text,
}

impl ListenOverflow {
    fn new(paths: &Paths) -> Self {
        let containers = ByNamespace::new(paths, MetricKind::Counter);
        Self { containers, pace: Pace::new(), text: Text::default() }
    }
}

impl Collect for ListenOverflow {
    fn collect(&mut self, host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
        let path = host.net_file("netstat");
        push(&std::array::from_fn(|_| "".into()), parse(host.text.read(&path)?), out);
        for _ in 0..self.containers.begin(host) {
            if !self.pace.allows() {
                break;
            }
            let text = &mut self.text;
            self.containers.turn(host, &mut self.pace, |namespace| {
                text.read(&namespace.folder.join("netstat")).ok().map(parse)
            });
        }
        for (container, counts) in self.containers.values() {
            push(&container.labels, *counts, out);
        }
        Ok(())
    }
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
