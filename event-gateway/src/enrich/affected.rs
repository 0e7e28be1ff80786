//! Who used a network device that failed?

use crate::netlink::links::{self, Link};
use crate::netlink::namespaces::{Namespace, Namespaces};
use crate::netlink::sockets::{self, State, TcpSocket};
use crate::schema::{self, Kind};
use kpulse_common::container::{CgroupId, Hierarchy, Identities};
use kpulse_common::event::Affected;
use kpulse_common::paths::Paths;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;

/// A kind that declares this field is about a device, which `device` names, in the namespace of inode `netns`.
const FIELD: &str = "affected";
/// Most cgroups and most containers of one event.
const NAMED_MAX: usize = 16;

/// Finds them.
pub struct Users {
    /// Kinds that want them.
    kinds: Vec<&'static str>,
    namespaces: Namespaces,
    /// Why it failed before; each reason is logged once. Bound: the numbers of errors.
    failures: HashSet<Option<i32>>,
}

/// Connections by who has them.
#[derive(Default)]
struct Found {
    connections: u64,
    by_cgroup: HashMap<u64, u64>,
    /// Ids of containers behind the device.
    by_container: HashMap<String, u64>,
}

impl Users {
    pub fn new(paths: &Paths) -> Self {
        let wants = |kind: &Kind| (kind.body)()["properties"].get(FIELD).is_some();
        let kinds = schema::all_kinds().filter(wants).map(|kind| kind.name).collect();
        Self { kinds, namespaces: Namespaces::new(paths), failures: HashSet::new() }
    }

    /// Adds them to the fields of an event of a kind that wants them. Those of a device in another namespace than ours
    /// are not looked for.
    pub fn add(&mut self, kind: &str, body: &mut Value, identities: &mut Identities) {
        if !self.kinds.contains(&kind) {
            return;
        }
        let Some(device) = body["device"].as_str().map(str::to_owned) else { return };
        let found = match self.namespaces.own() {
            Ok(own) if body["netns"] == own.inode => self.find(&device, &own),
            Ok(_) => return,
            Err(error) => Err(error),
        };
        match found {
            Ok(Some(found)) => body[FIELD] = found.named(identities),
            Err(error) if self.failures.insert(error.raw_os_error()) => {
                tracing::warn!(%error, "who uses a network device cannot be told");
            }
            Ok(None) | Err(_) => {}
        }
    }

    /// `None` where the device is gone.
    fn find(&mut self, device: &str, own: &Namespace) -> io::Result<Option<Found>> {
        let links = links::all()?;
        let Some(device) = links.iter().find(|link| link.name == device) else { return Ok(None) };
        let mut found = Found::default();
        let addresses = links::addresses(device.index)?;
        for socket in sockets::tcp(State::Established)? {
            if socket.device == device.index || addresses.contains(&socket.local.ip()) {
                found.take(&socket);
            }
        }
        let own = File::open(own.process.join("ns/net"))?;
        for namespace in self.namespaces.of_containers() {
            // One that ends meanwhile has no connections any more.
            let Ok(Some(connections)) = namespace.enter(|| behind(device, &links, &own)) else { continue };
            let Some(container) = namespace.container else { continue };
            found.connections += connections;
            let [.., id] = container.labels;
            found.by_container.insert(id.to_string(), connections);
        }
        Ok(Some(found))
    }
}

/// The connections of the namespace of the calling thread, where one of its devices sends through this one of `own`, or
/// through a port of it.
fn behind(device: &Link, links: &[Link], own: &File) -> io::Result<Option<u64>> {
    let is_through = |index: u32| {
        let port = || links.iter().find(|link| link.index == index && link.master == Some(device.index));
        index == device.index || port().is_some()
    };
    let below: Vec<u32> = {
        let through = links::all()?.into_iter().filter(|link| link.below.is_some_and(is_through));
        through.filter_map(|link| link.below_in).collect()
    };
    if below.is_empty() || !links::name_of(own)?.is_some_and(|name| below.contains(&name)) {
        return Ok(None);
    }
    let sockets = sockets::tcp(State::Established)?;
    Ok(Some(sockets.iter().filter(|socket| !socket.local.ip().is_loopback()).count() as u64))
}

impl Found {
    fn take(&mut self, socket: &TcpSocket) {
        self.connections += 1;
        if let Some(cgroup) = socket.cgroup {
            *self.by_cgroup.entry(cgroup).or_default() += 1;
        }
    }

    /// With names. The root of the hierarchy, which every socket is in on a host of cgroup v1, is no name.
    fn named(mut self, identities: &mut Identities) -> Value {
        let mut cgroups = Vec::new();
        for (id, connections) in most(self.by_cgroup) {
            let cgroup = CgroupId { hierarchy: Hierarchy::Unified, id };
            cgroups
                .extend(identities.path(cgroup).filter(|path| &**path != "/").map(|path| path.to_string()));
            if let Some(container) = identities.container(cgroup) {
                *self.by_container.entry(container.id.clone()).or_default() += connections;
            }
        }
        cgroups.truncate(NAMED_MAX);
        let containers = most(self.by_container).into_iter().map(|(id, _)| id).take(NAMED_MAX);
        let affected =
            Affected { connections: self.connections, cgroups, container_ids: containers.collect() };
        serde_json::to_value(affected).expect("it has string keys only and no fallible field")
    }
}

/// Those with most connections first, and in the order of their names among equals.
fn most<K: Ord>(counts: HashMap<K, u64>) -> Vec<(K, u64)> {
    let mut sorted: Vec<_> = counts.into_iter().collect();
    sorted.sort_by(|(one, less), (other, more)| more.cmp(less).then_with(|| one.cmp(other)));
    sorted
}
