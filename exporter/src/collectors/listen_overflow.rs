//! What listening sockets turned away and how often receivers were full, for the host and for each container that has
//! a network namespace of its own: no tracepoint tells it, and the namespace's counters do.

use super::namespaces::ByNamespace;
use super::pace::Pace;
use super::text::Text;
use super::{Collect, Host, HostCollector};
use kpulse_common::metric::{Label, MetricDef, MetricKind, Samples, Value};
use kpulse_common::netns::tcp_counters;
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

/// What the kernel calls them, in the order of the families.
const COUNTERS: [&str; 2] = ["ListenOverflows", "TCPToZeroWindowAdv"];
/// Those of one namespace.
type Counts = [Option<u64>; COUNTERS.len()];

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
        let counts = tcp_counters(host.text.read(&path)?, COUNTERS);
        push(&std::array::from_fn(|_| "".into()), counts, out);
        for _ in 0..self.containers.begin(host) {
            if !self.pace.allows() {
                break;
            }
            let text = &mut self.text;
            self.containers.turn(host, &mut self.pace, |namespace| {
                text.read(&namespace.folder.join("netstat")).ok().map(|text| tcp_counters(text, COUNTERS))
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
