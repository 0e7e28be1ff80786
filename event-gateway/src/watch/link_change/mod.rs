//! Which network device lost its link, or has it again? rtnetlink tells each change as it comes.
//!
//! A change is told once it has stood for [`SETTLE`]: what flaps is one event with the number of changes, and what the
//! end of a container takes down and away at once is none. Neither is that a new device comes up for the first time.

mod driver;

use super::{Finding, Watch, Watcher};
use crate::netlink::links::{self, Link, Message};
use crate::netlink::{DATAGRAM_BYTES, Received, Socket};
use crate::policies::Rules;
use crate::schema::Kind;
use anyhow::{Context, Result};
use kpulse_common::clock::boot_ns;
use kpulse_common::event::{Affected, schema_of};

use schemars::JsonSchema;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a change must stand.
const SETTLE: Duration = Duration::from_millis(300);
/// Most datagrams of one look; the rest waits for the next.
const DATAGRAMS_MAX: usize = 1_024;
/// What may wait in the socket: some hundred messages.
const BUFFER_BYTES: libc::c_int = 1 << 20;
/// Most devices that are followed; a host with more has its first ones followed.
const DEVICES_MAX: usize = 16_384;
/// When it looks though nothing comes.
const IDLE: Duration = Duration::from_secs(60);

pub const WATCH: Watch = Watch {
    kind: Kind {
        name: "link_change",
        help: "The link of a network device went down, came up again, or flapped.",
        body: schema_of::<Body>,
    },
    hook: "RTMGRP_LINK",
    hook_kind: "rtnetlink",
    make: |config, _| Ok(Box::new(LinkChange::open(&config.path.procfs, BUFFER_BYTES)?)),
};

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// Name of the device.
    device: String,
    /// Its driver; absent for a device that names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    /// Whether the link is `up` or `down` now.
    state: &'static str,
    /// Whether the device is switched on: a link that is down all the same has lost its carrier.
    is_enabled: bool,
    /// How often the carrier came or went since the event before, or since the device was first seen. 0 where the device
    /// was only switched on or off.
    #[serde(skip_serializing_if = "Option::is_none")]
    carrier_changes: Option<u32>,
    /// Inode of the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
    /// Who used it; absent where the kernel does not tell. Addresses of IPv6 go when a device is switched off.
    #[serde(skip_serializing_if = "Option::is_none")]
    affected: Option<Affected>,
}

struct LinkChange {
    socket: Socket,
    buffer: Vec<u8>,
    /// By index. Bound: [`DEVICES_MAX`].
    devices: HashMap<u32, Device>,
    dump: Dump,
    netns: Option<u64>,
    resyncs: u64,
}

struct Device {
    /// As it was told last, or first seen.
    told: Link,
    now: Link,
    /// Since when the two differ: to wait from, and for the event.
    since: Option<(Instant, u64)>,
    /// It was made while we looked and had no link yet.
    is_new: bool,
}

/// Reading all links.
enum Dump {
    /// To be asked for.
    Wanted,
    /// The links that have come of one.
    Running { seen: HashSet<u32>, is_spoilt: bool },
    /// To be asked for again at the next look.
    Refused,
    /// Complete; from here on each change is told.
    Complete,
}

impl LinkChange {
    fn open(procfs: &Path, buffer_bytes: libc::c_int) -> Result<Self> {
        let socket = Socket::open(libc::NETLINK_ROUTE, libc::SOCK_NONBLOCK)
            .and_then(|socket| socket.join(libc::RTMGRP_LINK, buffer_bytes).map(|()| socket))
            .context("the kernel cannot tell of network devices")?;
        let netns = std::fs::metadata(procfs.join("self/ns/net")).ok().map(|namespace| namespace.ino());
        let (buffer, devices) = (vec![0; DATAGRAM_BYTES], HashMap::new());
        let mut opened = Self { socket, buffer, devices, dump: Dump::Wanted, netns, resyncs: 0 };
        // What is there at the start is known before anyone is told that the watch is active.
        opened.receive(Instant::now(), true)?;
        Ok(opened)
    }

    /// Takes in what has come, and all links where some of it was lost.
    fn receive(&mut self, now: Instant, is_start: bool) -> Result<()> {
        if matches!(self.dump, Dump::Refused) {
            self.dump = Dump::Wanted;
        }
        for _ in 0..DATAGRAMS_MAX {
            if matches!(self.dump, Dump::Wanted) {
                self.socket.ask(libc::RTM_GETLINK, &[0; 16]).context("cannot ask for the network devices")?;
                self.dump = Dump::Running { seen: HashSet::new(), is_spoilt: false };
            }
            let received = self.socket.receive(&mut self.buffer).context("cannot hear of network devices")?;
            match received {
                Received::Nothing => break,
                Received::Lost => {
                    self.resyncs += 1;
                    match &mut self.dump {
                        Dump::Running { is_spoilt, .. } => *is_spoilt = true,
                        dump => *dump = Dump::Wanted,
                    }
                }
                Received::Datagram(length) => {
                    let (messages, is_interrupted) = links::parse(&self.buffer[..length]);
                    if let (Dump::Running { is_spoilt, .. }, true) = (&mut self.dump, is_interrupted) {
                        *is_spoilt = true;
                    }
                    messages.into_iter().for_each(|message| self.take(message, now, is_start));
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, message: Message, now: Instant, is_start: bool) {
        match message {
            Message::Link(link) => {
                if let Dump::Running { seen, .. } = &mut self.dump {
                    seen.insert(link.index);
                }
                self.follow(link, now, is_start);
            }
            Message::Gone(index) => {
                self.devices.remove(&index);
            }
            Message::Done => self.complete(),
            Message::Refused(errno) => {
                tracing::debug!(errno, "no dump of the network devices");
                self.dump = Dump::Refused;
            }
        }
    }

    /// The end of a dump: what it did not name is gone, unless some of it was lost.
    fn complete(&mut self) {
        let Dump::Running { seen, is_spoilt } = &self.dump else { return };
        let is_spoilt = *is_spoilt;
        self.devices.retain(|index, _| is_spoilt || seen.contains(index));
        self.dump = if is_spoilt { Dump::Wanted } else { Dump::Complete };
    }

    fn follow(&mut self, link: Link, now: Instant, is_start: bool) {
        if let Some(device) = self.devices.get_mut(&link.index) {
            device.now = link;
            let is_other = device.now.is_up != device.told.is_up || device.now.changes != device.told.changes;
            if is_other && device.since.is_none() {
                device.since = Some((now, boot_ns()));
            }
        } else if self.devices.len() < DEVICES_MAX {
            let is_new = !is_start && !link.is_up;
            let device = Device { told: link.clone(), now: link, since: None, is_new };
            self.devices.insert(device.told.index, device);
        }
    }

    /// What has stood for long enough.
    fn settled(&mut self, now: Instant) -> Vec<(u64, Body)> {
        let mut found = Vec::new();
        for device in self.devices.values_mut() {
            let Some((since, boot_ns)) = device.since else { continue };
            if now.duration_since(since) < SETTLE {
                continue;
            }
            device.since = None;
            let link = device.now.clone();
            let told = std::mem::replace(&mut device.told, link.clone());
            let carrier_changes =
                link.changes.zip(told.changes).map(|(now, before)| now.wrapping_sub(before));
            let is_same = link.is_up == told.is_up && carrier_changes.is_none_or(|changes| changes == 0);
            let was_new = device.is_new;
            device.is_new &= !link.is_up;
            if !is_same && !was_new {
                found.push((
                    boot_ns,
                    Body {
                        driver: driver::of(&link.name, self.socket.fd()),
                        device: link.name,
                        state: if link.is_up { "up" } else { "down" },
                        is_enabled: link.is_enabled,
                        carrier_changes,
                        netns: self.netns,
                        affected: None,
                    },
                ));
            }
        }
        found
    }
}

impl Watcher for LinkChange {
    fn wakes(&self) -> Option<(RawFd, i16)> {
        Some((self.socket.fd(), libc::POLLIN))
    }

    fn next(&self) -> Instant {
        if matches!(self.dump, Dump::Wanted | Dump::Refused) {
            return Instant::now();
        }
        let pending = self.devices.values().filter_map(|device| Some(device.since?.0 + SETTLE)).min();
        pending.unwrap_or_else(|| Instant::now() + IDLE)
    }

    fn look(&mut self, rules: &Rules, now: Instant, tell: &mut dyn FnMut(Finding)) -> Result<()> {
        self.receive(now, false)?;
        for (boot_ns, body) in self.settled(now) {
            tell(Finding { boot_ns, ..Finding::new(&rules.machine.rate_limit, &body)? });
        }
        Ok(())
    }

    fn resyncs(&self) -> Option<u64> {
        Some(self.resyncs)
    }
}

#[cfg(test)]
mod tests;
