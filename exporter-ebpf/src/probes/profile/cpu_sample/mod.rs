#![doc = include_str!("README.md")]

use crate::attached::{self, Attached};
use crate::cpu_clock::{self, CpuClock};
use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, cpu_clock};
use crate::loader::{Loaded, ProbeSet};
use crate::maps::{Maps, Table};
use crate::probe::{Priority, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::comm;
use kpulse_common::container::{CgroupId, Hierarchy};
use std::collections::HashMap;
use std::io;
use std::sync::{MutexGuard, Weak};

abi!("cpu_sample");

mod tables;
pub use tables::{
    Heap, Hotspot, MAPPING_HOTSPOT, Mapping, Page, Process, Row, UnwindTables, cfa, frame, limits, rbp,
};

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "cpu_sample",
    object: bpf_object!("cpu_sample"),
    needs: &[Feature::CpuClock],
    hooks: &[Hook::any("cpu_clock", &[cpu_clock("cpu_clock")])],
    tail_calls: &[
        ("programs", abi::PROGRAM_NATIVE, "user_stack"),
        ("programs", abi::PROGRAM_JAVA_TOP, "java_top"),
        ("programs", abi::PROGRAM_JAVA, "java_stack"),
    ],
    controller: "cpu",
    samples: true,
    priority: Priority::Essential,
    ..Probe::EMPTY
};

/// A stack and how often it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name of the thread.
    pub comm: String,
    /// Its cgroup.
    pub cgroup: CgroupId,
    /// User addresses, leaf first; empty for a kernel thread.
    pub user: Vec<u64>,
    /// Kernel addresses, leaf first; empty when it ran user code.
    pub kernel: Vec<u64>,
    /// How many samples.
    pub count: u64,
}

/// What was counted since the last drain: `taken` = the samples' counts + `lost`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drained {
    /// The stacks.
    pub samples: Vec<Sample>,
    /// How many times a CPU that was not idle was looked at.
    pub taken: u64,
    /// Samples that are in no stack, by reason.
    pub lost: Vec<(&'static str, u64)>,
    /// Samples whose user stack is not sure to be whole, by reason.
    pub cut: Vec<(&'static str, u64)>,
}

struct Generation {
    stacks: Table<u64, abi::cpu_sample_stack>,
    counts: Table<abi::cpu_sample_key, u64>,
}

/// The samples of all CPUs, in two sets of maps: the kernel fills one while the other is read.
pub struct CpuSamples {
    generations: [Generation; abi::GENERATIONS as usize],
    totals: Table<u32, abi::cpu_sample_value>,
    switch: Table<u32, u32>,
    filled: u32,
    hierarchy: Hierarchy,
    clocks: Vec<Weak<CpuClock>>,
}

impl CpuSamples {
    /// Opens the maps of the loaded probe. The set must live on: it keeps the probe attached.
    pub fn open(set: &ProbeSet) -> Result<Self, ProbeError> {
        let (loaded, attached) = loaded(set)?;
        let maps = Maps(&attached.ebpf);
        let generation = |number: u32| {
            Ok::<_, ProbeError>(Generation {
                stacks: maps.table(&format!("stacks_{number}"))?,
                counts: maps.table(&format!("counts_{number}"))?,
            })
        };
        Ok(Self {
            generations: [generation(0)?, generation(1)?],
            totals: maps.table("totals")?,
            switch: maps.table(".bss")?,
            filled: 0,
            hierarchy: loaded.hierarchy,
            clocks: attached.clocks(),
        })
    }

    /// What was counted since the last call. Takes no longer than reading one generation's stacks.
    pub fn drain(&mut self) -> Result<Drained, ProbeError> {
        cpu_clock::follow(&self.clocks);
        let full = self.filled;
        self.filled = 1 - full;
        self.switch.set(&0, &self.filled)?;
        wait_for_every_cpu().map_err(|source| ProbeError::Map { map: "counts".into(), source })?;
        let generation = &self.generations[full as usize];
        let counts = generation.counts.drain()?;
        let stacks: HashMap<u64, abi::cpu_sample_stack> = generation.stacks.drain()?.into_iter().collect();
        let totals = self.totals.get(&full)?.unwrap_or_default();
        self.totals.set(&full, &abi::cpu_sample_value::default())?;
        let stack = |key: u64| {
            let stack = stacks.get(&key)?;
            Some(stack.frames.get(..stack.depth as usize)?.to_vec())
        };
        let sample = |(key, count): (abi::cpu_sample_key, u64)| Sample {
            pid: key.tgid,
            tid: key.tid,
            comm: comm(&key.comm),
            cgroup: CgroupId { hierarchy: self.hierarchy, id: key.cgroup_id },
            user: stack(key.user_stack).unwrap_or_default(),
            kernel: stack(key.kernel_stack).unwrap_or_default(),
            count,
        };
        Ok(Drained {
            samples: counts.into_iter().map(sample).collect(),
            taken: totals.taken - totals.idle,
            lost: vec![("table_full", totals.stacks_full + totals.counts_full)],
            cut: WALKS.iter().map(|&(end, reason)| (reason, totals.walks[end as usize])).collect(),
        })
    }
}

/// The ends of a walk that do not make a whole stack.
const WALKS: [(u32, &str); 6] = [
    (abi::WALK_UNPREPARED, "unprepared"),
    (abi::WALK_UNMAPPED, "unmapped"),
    (abi::WALK_UNREADABLE, "unreadable"),
    (abi::WALK_UNEXPRESSED, "unexpressed"),
    (abi::WALK_ASTRAY, "astray"),
    (abi::WALK_TOO_DEEP, "too_deep"),
];

/// The probe in a set, or why it is not there.
fn loaded(set: &ProbeSet) -> Result<(&Loaded, MutexGuard<'_, Attached>), ProbeError> {
    let loaded = set.loaded.iter().find(|loaded| loaded.probe.name == PROBE.name);
    loaded.and_then(|loaded| Some((loaded, attached::lock(loaded.attached.as_ref()?)))).ok_or_else(|| {
        let why = set.status().into_iter().find(|status| status.name == PROBE.name);
        let why = why.map_or_else(|| "cpu_sample was not loaded".into(), |status| status.state.to_string());
        ProbeError::MissingFeature(why)
    })
}

/// Returns once no CPU can still be in a program that began before: an RCU grace period.
fn wait_for_every_cpu() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: the call takes no pointers.
    let outcome = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
