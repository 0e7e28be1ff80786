//! What files and sockets of the kernel tell, with no program in it: probes of the gateway's own. They share switch,
//! thresholds, rate limit, counts and documents with those of BPF.

mod cpu_throttled;
mod events_lost;
mod filesystem_error;
mod filesystem_readonly;
mod limit;
mod link_change;
mod listen_overflow;
mod probe_degraded;
mod queue;
mod thread;

pub use queue::Queue;
pub use thread::{Watchers, check};

use crate::config::Config;
use crate::policies::Rules;
use crate::schema::Kind;
use anyhow::Result;
use kpulse_common::clock::boot_ns;
use kpulse_common::container::CgroupId;
use kpulse_common::thresholds::RateLimit;
use kpulse_exporter_ebpf::Pauses;
use serde::Serialize;
use serde_json::Value;
use std::os::fd::RawFd;
use std::time::Instant;

/// Every watch. A kind more is a file here and a line in this list.
pub const ALL: &[Watch] = &[
    cpu_throttled::WATCH,
    link_change::WATCH,
    filesystem_error::WATCH,
    filesystem_readonly::WATCH,
    listen_overflow::WATCH,
    events_lost::WATCH,
    probe_degraded::WATCH,
];

/// One kind of event and where it comes from.
pub struct Watch {
    /// The kind; its name is that of the probe too.
    pub kind: Kind,
    /// What is read: a file, or a group of a socket.
    pub hook: &'static str,
    /// `file`, or the kind of socket.
    pub hook_kind: &'static str,
    /// Gets ready; an error says in a sentence why it cannot be here.
    pub make: fn(&Config, &Pauses) -> Result<Box<dyn Watcher>>,
}

/// A watch at work. It lives on the thread of all watches, and must be bounded.
pub trait Watcher: Send {
    /// A descriptor that gets ready when there is something to look at, and the events of poll(2) that say so.
    fn wakes(&self) -> Option<(RawFd, i16)> {
        None
    }

    /// When it wants to look though nothing has woken it.
    fn next(&self) -> Instant;

    /// Looks, and tells what it finds.
    fn look(&mut self, rules: &Rules, now: Instant, tell: &mut dyn FnMut(Finding)) -> Result<()>;

    /// How often the kernel had more to say than it could hear; `None` where that cannot be.
    fn resyncs(&self) -> Option<u64> {
        None
    }
}

/// Something that reached its threshold.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// When, CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// The cgroup that it is about.
    pub cgroup: Option<CgroupId>,
    /// How often such may be told of this cgroup.
    pub limit: RateLimit,
    /// The fields of the kind.
    pub body: Value,
}

impl Finding {
    /// Of this moment and of the machine.
    pub fn new(limit: &RateLimit, body: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_value(body)?;
        Ok(Self { boot_ns: boot_ns(), cgroup: None, limit: limit.clone(), body })
    }
}

#[cfg(test)]
mod tests;
