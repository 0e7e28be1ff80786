//! Who turns connections away since nobody accepts them? The counters of each network namespace, and the queues of its
//! listening sockets once a counter moved.

use super::{Finding, Watch, Watcher};
use crate::netlink::namespaces::{Namespace, Namespaces};
use crate::netlink::sockets::{self, State, TcpSocket};
use crate::policies::Rules;
use crate::schema::Kind;
use anyhow::{Context, Result};
use kpulse_common::event::schema_of;
use kpulse_common::netns::tcp_counters;
use kpulse_common::paths::Paths;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between two looks: the kernel adds up a namespace's counters over all CPUs for each reading.
const INTERVAL: Duration = Duration::from_secs(5);

pub const WATCH: Watch = Watch {
    kind: Kind {
        name: "listen_overflow",
        help: "Connections were turned away since the queue of a listening socket was full.",
        body: schema_of::<Body>,
    },
    hook: "net/netstat",
    hook_kind: "file",
    make: |config, _| Ok(Box::new(ListenOverflow::open(&config.path)?)),
};

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// Connections turned away by a full queue of accept() in some seconds.
    overflows: u64,
    /// Connections turned away for any reason in that time, those too.
    drops: u64,
    /// Sockets of the namespace whose queue is full; absent where they cannot be asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    full_listeners: Option<usize>,
    /// The fullest of them; absent when all have room again.
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<Fullest>,
    /// Inode of the network namespace.
    netns: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Fullest {
    /// Address that it listens at.
    ip: IpAddr,
    /// Its port.
    port: u16,
    /// Connections that wait for accept().
    backlog: u32,
    /// How many may wait, as listen() and `net.core.somaxconn` allow; the kernel lets one more in.
    limit: u32,
}

struct ListenOverflow {
    namespaces: Namespaces,
    /// By inode of the namespace, of those that have a process. Bound: the containers, and the host.
    known: HashMap<u64, Counts>,
    /// For which reasons sockets could not be asked for; each is logged once. Bound: the numbers of errors.
    refusals: HashSet<Option<i32>>,
    next: Instant,
}

/// What a namespace has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    overflows: u64,
    drops: u64,
}

impl ListenOverflow {
    fn open(paths: &Paths) -> Result<Self> {
        let namespaces = Namespaces::new(paths);
        // What was counted before the start is no event.
        let own = namespaces.own().context("the network namespace cannot be read")?;
        let counts =
            Counts::read(&own.process).context("the counters of the network namespace cannot be read")?;
        let known = HashMap::from([(own.inode, counts)]);
        Ok(Self { namespaces, known, refusals: HashSet::new(), next: Instant::now() })
    }

    fn listeners(&mut self, namespace: &Namespace) -> Option<Vec<TcpSocket>> {
        let listeners = namespace.enter(|| sockets::tcp(State::Listen));
        if let Err(error) = &listeners
            && self.refusals.insert(error.raw_os_error())
        {
            tracing::warn!(%error, "the sockets of a network namespace cannot be asked for");
        }
        listeners.ok()
    }
}

impl Watcher for ListenOverflow {
    fn next(&self) -> Instant {
        self.next
    }

    fn look(&mut self, rules: &Rules, now: Instant, tell: &mut dyn FnMut(Finding)) -> Result<()> {
        self.next = now + INTERVAL;
        let mut known = HashMap::new();
        let own = self.namespaces.own();
        for namespace in own.into_iter().chain(self.namespaces.of_containers()) {
            // A process that ended meanwhile has taken its counters along.
            let Some(counts) = Counts::read(&namespace.process) else { continue };
            known.insert(namespace.inode, counts);
            let Some(counted) = self.known.get(&namespace.inode).map(|before| counts.since(before)) else {
                continue;
            };
            if counted.drops > 0 || counted.overflows > 0 {
                let thresholds =
                    namespace.container.as_ref().map_or(&rules.machine, |it| rules.of_container(it));
                let body = Body::new(counted, self.listeners(&namespace), namespace.inode);
                let finding = Finding::new(&thresholds.rate_limit, &body)?;
                tell(Finding { cgroup: namespace.container.map(|container| container.cgroup), ..finding });
            }
        }
        self.known = known;
        Ok(())
    }
}

impl Body {
    /// `listeners` are those of the namespace.
    fn new(counted: Counts, listeners: Option<Vec<TcpSocket>>, netns: u64) -> Self {
        let full = listeners.map(|all| all.into_iter().filter(TcpSocket::is_full).collect::<Vec<_>>());
        let fullest =
            full.iter().flatten().max_by_key(|listener| listener.receive_queue - listener.send_queue);
        let fullest = fullest.map(|listener| Fullest {
            ip: listener.local.ip(),
            port: listener.local.port(),
            backlog: listener.receive_queue,
            limit: listener.send_queue,
        });
        Self {
            overflows: counted.overflows,
            drops: counted.drops,
            full_listeners: full.map(|full| full.len()),
            listener: fullest,
            netns,
        }
    }
}

impl Counts {
    fn read(process: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(process.join("net/netstat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let [overflows, drops] = tcp_counters(text, ["ListenOverflows", "ListenDrops"]);
        Some(Self { overflows: overflows?, drops: drops? })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            overflows: self.overflows.saturating_sub(before.overflows),
            drops: self.drops.saturating_sub(before.drops),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    #[test]
    fn counters_are_found_by_name_and_compared() {
        let text = "TcpExt: A ListenDrops ListenOverflows\nTcpExt: 1 5 3\nIpExt: ListenDrops\nIpExt: 9\n";
        let counts = Counts::parse(text).unwrap();
        assert_eq!(counts, Counts { overflows: 3, drops: 5 });
        assert_eq!(counts.since(&Counts { overflows: 1, drops: 5 }), Counts { overflows: 2, drops: 0 });
        assert_eq!(Counts::parse("TcpExt: ListenDrops\nTcpExt: 1\n"), None);
    }

    #[test]
    fn listeners_that_cannot_be_asked_for_are_absent_and_not_zero() {
        let counted = Counts { overflows: 2, drops: 3 };
        let body = |listeners| serde_json::to_value(Body::new(counted, listeners, 7)).unwrap();
        let absent = serde_json::json!({ "overflows": 2, "drops": 3, "netns": 7 });
        assert_eq!(body(None), absent);
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let listener =
            |backlog| TcpSocket { receive_queue: backlog, send_queue: 1, ..TcpSocket::at(address) };
        assert_eq!(body(Some(vec![listener(1)]))["full_listeners"], 0);
        let full = body(Some(vec![listener(2), listener(3), listener(1)]));
        assert_eq!((&full["full_listeners"], &full["listener"]["backlog"]), (&2.into(), &3.into()));
    }
}
