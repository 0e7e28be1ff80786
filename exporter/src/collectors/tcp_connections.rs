//! How many TCP connections are in which state, on the host and in containers with a network of their own?
//!
//! A container's network namespace is read through one of its processes. Containers that share one, as those of a pod
//! do, have it under the one that was found first.
//!
//! The kernel looks into every bucket of its table of sockets for each namespace, and once more for IPv6: 2 ms for the
//! 262,144 buckets that it makes on a machine of 24 GiB, however few sockets there are. So the host and containers take
//! turns, within what their pace allows, and tell what was read last.

use super::namespaces::{ByNamespace, Namespace, Turn};
use super::pace::Pace;
use super::{Collect, Host, HostCollector};
use anyhow::{Context, bail};
use kpulse_common::metric::{Label, MetricDef, MetricKind, Samples, Value};
use kpulse_common::paths::Paths;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Most bytes of one table: about 110,000 sockets. A longer one fails instead of telling a part of it.
const TABLE_MAX: usize = 16 << 20;
const CHUNK_BYTES: usize = 64 << 10;
/// By the kernel's number, from 1; requests that are not accepted yet are listed as `syn_recv`.
const STATES: [&str; 11] = [
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
];

const CONNECTIONS: MetricDef = MetricDef::gauge(
    "kpulse_tcp_connections",
    "TCP sockets by state, as of the last reading: of the host's network namespace under empty labels, of each other under its first container.",
    &[Label::Container, Label::Named("state")],
);

pub const COLLECTOR: HostCollector = HostCollector {
    name: "tcp_connections",
    metrics: &[CONNECTIONS],
    is_default: true,
    make: |paths| Box::new(TcpConnections::new(paths)),
};

struct TcpConnections {
    containers: ByNamespace<Counts>,
    of_host: Option<Counts>,
    is_hosts_turn: bool,
    pace: Pace,
    reader: Reader,
    states: [Arc<str>; STATES.len()],
}

/// Reads tables with one buffer.
struct Reader {
    chunk: Vec<u8>,
}

type Counts = [u64; STATES.len()];

impl Reader {
    /// Both tables of a namespace; a kernel may be without IPv6.
    fn counts(&mut self, folder: &Path) -> anyhow::Result<Counts> {
        let mut counts = Counts::default();
        self.add(&folder.join("tcp"), &mut counts)?;
        let second = folder.join("tcp6");
        if second.exists() {
            self.add(&second, &mut counts)?;
        }
        Ok(counts)
    }

    fn add(&mut self, path: &Path, counts: &mut Counts) -> anyhow::Result<()> {
        let told = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(told)?;
        let (mut kept, mut total) = (0, 0);
        loop {
            let length = file.read(&mut self.chunk[kept..]).with_context(told)?;
            if length == 0 {
                return Ok(());
            }
            total += length;
            if total > TABLE_MAX {
                bail!("{} holds more than {} MiB of sockets", path.display(), TABLE_MAX >> 20);
            }
            let filled = kept + length;
            let whole = self.chunk[..filled].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            for line in self.chunk[..whole].split(|byte| *byte == b'\n') {
                if let Some(count) = state(line).and_then(|state| counts.get_mut(state.checked_sub(1)?)) {
                    *count += 1;
                }
            }
            self.chunk.copy_within(whole..filled, 0);
            kept = filled - whole;
            if kept == self.chunk.len() {
                bail!("{} has a line without an end", path.display());
            }
        }
    }
}

impl TcpConnections {
    fn new(paths: &Paths) -> Self {
        Self {
            containers: ByNamespace::new(paths, MetricKind::Gauge),
            of_host: None,
            is_hosts_turn: true,
            pace: Pace::new(),
            reader: Reader { chunk: vec![0; CHUNK_BYTES] },
            states: STATES.map(Arc::from),
        }
    }

    /// Reads what the pace allows: the host at most once, and each container at most once.
    fn read(&mut self, host: &mut Host) -> anyhow::Result<()> {
        let Self { containers, of_host, is_hosts_turn, pace, reader, .. } = self;
        let mut containers_left = containers.begin(host);
        let mut is_host_left = true;
        while pace.allows() || of_host.is_none() {
            if is_host_left && (*is_hosts_turn || of_host.is_none() || containers_left == 0) {
                *of_host = None;
                *of_host = Some(pace.spend(|| reader.counts(&host.net_folder()))?);
                (is_host_left, *is_hosts_turn) = (false, false);
            } else if containers_left > 0 {
                containers_left -= 1;
                let read = |namespace: &Namespace| {
                    if has_sockets(&namespace.folder) {
                        reader.counts(&namespace.folder).ok()
                    } else {
                        Some(Counts::default())
                    }
                };
                *is_hosts_turn |= containers.turn(host, pace, read) == Turn::Read;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn push(&self, container: &[Arc<str>; 4], counts: &Counts, out: &mut Samples) {
        let is_host = container[3].is_empty();
        for (state, count) in self.states.iter().zip(counts) {
            // Of the host a zero is told; of many containers it would be most of the series.
            if is_host || *count > 0 {
                let labels: Vec<_> = container.iter().chain([state]).cloned().collect();
                out.push(&CONNECTIONS, labels, Value::Count(*count));
            }
        }
    }
}

impl Collect for TcpConnections {
    fn collect(&mut self, host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
        self.read(host)?;
        if let Some(counts) = &self.of_host {
            self.push(&std::array::from_fn(|_| "".into()), counts, out);
        }
        for (container, counts) in self.containers.values() {
            self.push(&container.labels, counts, out);
        }
        Ok(())
    }
}

/// Whether a namespace may have TCP sockets: a file that says so at once saves a walk of the tables.
fn has_sockets(folder: &Path) -> bool {
    let is_free = |name: &str, line: &str, fields: &[&str]| {
        fs::read_to_string(folder.join(name)).is_ok_and(|text| {
            let mut words =
                text.lines().find_map(|it| it.strip_prefix(line)).unwrap_or("?").split_ascii_whitespace();
            fields.iter().all(|field| words.any(|word| word == *field) && words.next() == Some("0"))
        })
    };
    let has_ipv6 = folder.join("sockstat6").exists();
    // Requests that are not established yet belong to a socket that listens.
    !(is_free("sockstat", "TCP:", &["inuse", "tw"])
        && (!has_ipv6 || is_free("sockstat6", "TCP6:", &["inuse"])))
}

/// The fourth column, `   0: 0100007F:2A58 00000000:0000 0A …`; `None` for the heading.
fn state(line: &[u8]) -> Option<usize> {
    let mut columns = line.split(|byte| *byte == b' ').filter(|column| !column.is_empty()).skip(3);
    usize::from_str_radix(std::str::from_utf8(columns.next()?).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    #[test]
    fn counts_states_across_the_ends_of_chunks() {
        let folder = tempfile::tempdir().unwrap();
        let line = |number: usize, state: &str| {
            format!(
                "{number:4}: 0100007F:2A58 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 18229 1 000 100 0\n"
            )
        };
        let rest = (0..3000).map(|number| line(number, if number % 3 == 0 { "01" } else { "06" }));
        let text = HEADING.to_owned() + &line(0, "0A") + &rest.collect::<String>() + "cut off 0 1 0";
        assert!(text.len() > 3 * CHUNK_BYTES);
        std::fs::write(folder.path().join("tcp"), text).unwrap();
        std::fs::write(folder.path().join("tcp6"), HEADING.to_owned() + &line(0, "0C") + &line(1, "08"))
            .unwrap();
        let counts = Reader { chunk: vec![0; CHUNK_BYTES] }.counts(folder.path()).unwrap();
        let named = |name| counts[STATES.iter().position(|state| *state == name).unwrap()];
        assert_eq!((named("established"), named("time_wait"), named("listen")), (1000, 2000, 1));
        assert_eq!(
            (named("close_wait"), counts.iter().sum::<u64>()),
            (1, 3002),
            "an unheard-of state is left out"
        );
    }

    #[test]
    fn a_table_without_lines_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tcp"), vec![b'x'; 2 * CHUNK_BYTES]).unwrap();
        assert!(Reader { chunk: vec![0; CHUNK_BYTES] }.counts(folder.path()).is_err());
    }

    #[test]
    fn only_a_namespace_without_any_socket_is_taken_for_empty() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let empty = "sockets: used 5\nTCP: inuse 0 orphan 0 tw 0 alloc 3 mem 0\nUDP: inuse 9\n";
        assert!(has_sockets(folder.path()), "what cannot be read is not empty");
        write("sockstat", empty);
        assert!(!has_sockets(folder.path()));
        write("sockstat6", "TCP6: inuse 1\n");
        assert!(has_sockets(folder.path()));
        write("sockstat6", "TCP6: inuse 0\n");
        assert!(!has_sockets(folder.path()));
        for text in
            [empty.replace("tw 0", "tw 1"), empty.replace("TCP: inuse 0", "TCP: inuse 10"), String::new()]
        {
            write("sockstat", &text);
            assert!(has_sockets(folder.path()), "{text}");
        }
    }
}
