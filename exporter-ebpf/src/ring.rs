//! The rings of all probes as one stream: waits on them together, decodes, names kernel addresses, and counts what
//! was lost, so that produced = delivered + each loss.

use crate::abi::ring_counts;
use crate::attached;
use crate::cpu_clock::{self, CpuClock};
use crate::error::ProbeError;
use crate::loader::{Loaded, ProbeSet};
use crate::maps::{Maps, Table};
use crate::probe::{EventDef, Upkeep};
use crate::record::{Decoded, Header, Names, UserStack};
use crate::symbols::{KernelSymbols, UNKNOWN};
use aya::maps::{MapData, RingBuf};
use kpulse_common::container::{CgroupId, Hierarchy};
use serde_json::Value;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Weak;
use std::time::Duration;

/// Records taken from one ring before the next one has its turn.
const DRAIN_MAX: usize = 4096;
/// Cgroups whose last suppressed count is remembered, per probe; beyond it the oldest knowledge is dropped at once.
const SUPPRESSED_MAX: usize = 4096;

/// One decoded record of a ring, with names instead of kernel addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// The probe that saw it.
    pub probe: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// When it ended, CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// The measured value.
    pub value_ns: Option<u64>,
    /// The threshold that it reached.
    pub threshold_ns: Option<u64>,
    /// The CPU; `None` for what happened on none.
    pub cpu: Option<u32>,
    /// Process id; 0 when no task can be named.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name of the thread.
    pub comm: String,
    /// The cgroup, where the kernel could tell it.
    pub cgroup: Option<CgroupId>,
    /// Events like it that the rate limit kept back since the last one of this cgroup.
    pub suppressed: u64,
    /// Kernel functions, innermost first.
    pub kernel_stack: Vec<String>,
    /// Where the task was in its own code; `None` where it was not the current one.
    pub user_stack: Option<UserStack>,
    /// The probe's own fields.
    pub body: Value,
}

/// Records that a consumer never sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The probe.
    pub probe: &'static str,
    /// `suppressed`, `ring_full` or `decode_error`.
    pub reason: &'static str,
    /// How many since the probe attached.
    pub count: u64,
}

struct Ring {
    probe: &'static str,
    event: &'static EventDef,
    in_interrupt: bool,
    names: Names,
    hierarchy: Hierarchy,
    ring: RingBuf<MapData>,
    counts: Table<u32, ring_counts>,
    upkeep: Option<Box<dyn Upkeep>>,
    clocks: Vec<Weak<CpuClock>>,
    decode_errors: u64,
    suppressed_before: HashMap<Option<u64>, u64>,
}

/// All rings of a process.
pub struct EventStream {
    rings: Vec<Ring>,
    epoll: OwnedFd,
    symbols: KernelSymbols,
}

impl ProbeSet {
    /// The rings of all active probes. The set must live on: it keeps the probes attached.
    pub fn take_events(&mut self) -> Result<EventStream, ProbeError> {
        let mut rings = Vec::new();
        for index in 0..self.loaded.len() {
            let names = self.loaded[index].probe.events.first().map(|event| (event.names)(&self.types));
            rings.extend(open_ring(&mut self.loaded[index], names.unwrap_or_default())?);
        }
        let epoll = watch(&rings).map_err(|source| ProbeError::Map { map: "events".into(), source })?;
        Ok(EventStream { rings, epoll, symbols: KernelSymbols::new(&self.paths) })
    }
}

fn open_ring(loaded: &mut Loaded, names: Names) -> Result<Option<Ring>, ProbeError> {
    let (Some(event), Some(attached)) = (loaded.probe.events.first(), loaded.attached.as_ref()) else {
        return Ok(None);
    };
    let mut attached = attached::lock(attached);
    let counts = Maps(&attached.ebpf).table("event_counts")?;
    let Some(map) = attached.ebpf.take_map("events") else { return Ok(None) };
    let ring = RingBuf::try_from(map).map_err(|error| ProbeError::Load(error.to_string()))?;
    Ok(Some(Ring {
        probe: loaded.probe.name,
        event,
        in_interrupt: loaded.probe.in_interrupt,
        names,
        hierarchy: loaded.hierarchy,
        ring,
        counts,
        upkeep: loaded.upkeep.take(),
        clocks: attached.clocks(),
        decode_errors: 0,
        suppressed_before: HashMap::new(),
    }))
}

fn watch(rings: &[Ring]) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nothing else owns it.
    let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
    for (index, ring) in rings.iter().enumerate() {
        let mut event = libc::epoll_event { events: libc::EPOLLIN.unsigned_abs(), u64: index as u64 };
        // SAFETY: both descriptors are open and `event` lives through the call.
        let outcome = unsafe {
            libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, ring.ring.as_raw_fd(), &raw mut event)
        };
        if outcome < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(epoll)
}

impl EventStream {
    /// Waits until a ring has records; `false` when the time is over.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let milliseconds = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the descriptor is open, and there is room for the one event asked for.
        let ready = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), &raw mut event, 1, milliseconds) };
        match ready {
            0 => Ok(false),
            1.. => Ok(true),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(error),
            },
        }
    }

    /// Takes what the rings hold, a bounded number of records from each.
    pub fn drain(&mut self, each: &mut dyn FnMut(Fact)) {
        for ring in &mut self.rings {
            if let Some(Err(error)) = ring.upkeep.as_mut().map(|upkeep| upkeep.keep()) {
                tracing::debug!(probe = ring.probe, %error, "what its programs need was not looked after");
            }
            cpu_clock::follow(&ring.clocks);
            for _ in 0..DRAIN_MAX {
                let Some(record) = ring.ring.next() else { break };
                let decoded = (ring.event.decode)(&record, &ring.names);
                drop(record);
                match decoded {
                    Ok(decoded) => each(ring.fact(decoded, &mut self.symbols)),
                    Err(error) => {
                        ring.decode_errors += 1;
                        tracing::debug!(probe = ring.probe, %error, "record not decoded");
                    }
                }
            }
        }
    }

    /// The bytes of the next record, as the kernel wrote them: for fixtures.
    pub fn next_record(&mut self) -> Option<Vec<u8>> {
        self.rings.iter_mut().find_map(|ring| ring.ring.next().map(|record| record.to_vec()))
    }

    /// What was lost since the probes attached, by probe and reason.
    pub fn losses(&mut self) -> Vec<Loss> {
        let losses = |ring: &Ring| {
            let counts = ring.counted();
            let of = |reason, count| Loss { probe: ring.probe, reason, count };
            [
                of("suppressed", counts.suppressed),
                of("ring_full", counts.ring_full),
                of("decode_error", ring.decode_errors),
            ]
        };
        self.rings.iter().flat_map(losses).collect()
    }

    /// How many times each probe had something to tell since it attached.
    pub fn produced(&mut self) -> Vec<(&'static str, u64)> {
        self.rings.iter().map(|ring| (ring.probe, ring.counted().produced)).collect()
    }
}

/// Functions of our programs and of what calls them.
const OWN: [&str; 5] = ["bpf_prog_", "bpf_trace_run", "bpf_get_stack", "__bpf_trace_", "__traceiter_"];
/// Where an interrupt begins, on x86 and on arm64.
const INTERRUPT_ENTRIES: [&str; 4] = ["asm_sysvec_", "asm_common_interrupt", "el1_irq", "el1h_64_irq"];
/// How softirqs begin: from an interrupt, or where a task lets them in again.
const SOFTIRQS: [&str; 5] =
    ["do_softirq", "__do_softirq", "handle_softirqs", "__softirqentry_text_start", "irq_exit"];

/// How many frames on top of a stack are our program and what called it, not the kernel's story.
fn own_frames(stack: &[String], in_interrupt: bool) -> usize {
    let begins_with =
        |function: &String, prefixes: &[&str]| prefixes.iter().any(|it| function.starts_with(it));
    let entry = stack.iter().position(|function| in_interrupt && begins_with(function, &INTERRUPT_ENTRIES));
    // What interrupted a program outside the kernel has nothing below it.
    entry
        .map(|entry| entry + 1)
        .filter(|below| *below < stack.len())
        .unwrap_or_else(|| stack.iter().take_while(|function| begins_with(function, &OWN)).count())
}

/// Whether the kernel did all of this for the task it stands on: an interrupt and a softirq work on top of anyone.
fn is_of_the_task(stack: &[String], in_interrupt: bool) -> bool {
    let is_any = |function: &String, prefixes: &[&str]| prefixes.iter().any(|it| function.starts_with(it));
    // The one that a program of ours runs in tells where the task is.
    let entry = stack.iter().position(|function| in_interrupt && is_any(function, &INTERRUPT_ENTRIES));
    let rest = &stack[entry.map_or(0, |entry| entry + 1)..];
    let is_known = stack.iter().any(|function| function != UNKNOWN);
    is_known
        && !rest.iter().any(|function| is_any(function, &INTERRUPT_ENTRIES) || is_any(function, &SOFTIRQS))
}

impl Ring {
    fn counted(&self) -> ring_counts {
        self.counts.get(&0).ok().flatten().unwrap_or_default()
    }

    fn fact(&mut self, decoded: Decoded, symbols: &mut KernelSymbols) -> Fact {
        let Decoded { header, mut body, place, slept_in, kind, user_stack, is_in_call } = decoded;
        let mut addresses = header.stack.clone();
        addresses.extend(place.map(|(_, address)| address));
        let mut kernel_stack = symbols.names(&addresses);
        if let (Some((field, _)), Some(name)) = (place, kernel_stack.get(header.stack.len()).cloned()) {
            body[field] = name.into();
        }
        kernel_stack.truncate(header.stack.len());
        if let Some(field) = slept_in
            && let Some(frame) = header.stack.iter().position(|&address| !symbols.is_scheduler(address))
        {
            body[field] = kernel_stack[frame].clone().into();
        }
        let user_stack =
            user_stack.filter(|_| is_in_call || is_of_the_task(&kernel_stack, self.in_interrupt));
        kernel_stack.drain(..own_frames(&kernel_stack, self.in_interrupt));
        Fact {
            probe: self.probe,
            kind: kind.unwrap_or(self.event.kind),
            boot_ns: header.boot_ns,
            value_ns: header.value_ns,
            threshold_ns: header.threshold_ns,
            cpu: Some(header.cpu),
            pid: header.pid,
            tid: header.tid,
            suppressed: self.suppressed_since_last(&header),
            cgroup: header.cgroup_id.map(|id| CgroupId { hierarchy: self.hierarchy, id }),
            comm: header.comm,
            kernel_stack,
            user_stack,
            body,
        }
    }

    /// The kernel's count only grows, so the difference to the last event is exact; a smaller one is a fresh bucket.
    fn suppressed_since_last(&mut self, header: &Header) -> u64 {
        if self.suppressed_before.len() >= SUPPRESSED_MAX {
            self.suppressed_before.clear();
        }
        let total = header.suppressed_total;
        let before = self.suppressed_before.insert(header.cgroup_id, total).unwrap_or(0);
        total.checked_sub(before).unwrap_or(total)
    }
}

#[cfg(test)]
mod tests {
    use super::{is_of_the_task, own_frames};

    #[test]
    fn a_user_stack_is_the_tasks_unless_the_kernel_worked_on_top_of_it() {
        let own = |stack: &[&str], in_interrupt| {
            is_of_the_task(&stack.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>(), in_interrupt)
        };
        assert!(own(&["bpf_prog_1", "try_to_free_pages", "asm_exc_page_fault"], false));
        assert!(!own(&["kfree_skb", "udp_rcv", "__do_softirq", "do_softirq", "udp_sendmsg"], false));
        assert!(!own(&["kfree_skb", "net_rx_action", "irq_exit_rcu", "asm_common_interrupt"], false));
        let timer =
            ["bpf_prog_1", "hrtimer_interrupt", "asm_sysvec_apic_timer_interrupt", "fill_slab", "do_softirq"];
        assert!(own(&timer[..4], true) && own(&timer[..3], true), "it interrupted the task");
        assert!(!own(&timer, true), "it interrupted a softirq");
        assert!(!own(&["[unknown]"], false) && !own(&[], true), "nobody can tell");
    }

    #[test]
    fn a_stack_begins_below_our_program_and_below_the_interrupt_that_it_runs_in() {
        let own = |stack: &[&str], in_interrupt| {
            own_frames(&stack.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>(), in_interrupt)
        };
        let traced = ["bpf_prog_1", "bpf_trace_run2", "kfree_skb", "udp_rcv"];
        assert_eq!((own(&traced, false), own(&traced, true)), (2, 2));
        let timer = ["bpf_prog_1", "hrtimer_interrupt", "asm_sysvec_apic_timer_interrupt", "fill_slab"];
        assert_eq!((own(&timer, false), own(&timer, true)), (1, 3));
        assert_eq!(own(&timer[..3], true), 1, "it interrupted no kernel function");
        assert_eq!(own(&[], true), 0);
    }
}
