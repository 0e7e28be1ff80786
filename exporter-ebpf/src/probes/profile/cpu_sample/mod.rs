#![doc = include_str!("README.md")]

use crate::attached;
use crate::cpu_clock::{self, CpuClock};
use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, cpu_clock};
use crate::loader::ProbeSet;
use crate::maps::{Maps, Table};
use crate::probe::{Priority, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::comm;
use kpulse_common::container::{CgroupId, Hierarchy};
use std::collections::HashMap;
use std::io;
use std::sync::Weak;

abi!("cpu_sample");

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "cpu_sample",
    object: bpf_object!("cpu_sample"),
    needs: &[Feature::CpuClock],
    hooks: &[Hook::any("cpu_clock", &[cpu_clock("cpu_clock")])],
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
}

/// Frames of a stack in the map: zero after the last one.
type Frames = [u64; abi::SAMPLE_FRAMES as usize];

struct Generation {
    stacks: Table<u32, Frames>,
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
    pub fn open(set: &mut ProbeSet) -> Result<Self, ProbeError> {
        let index = set.loaded.iter().position(|loaded| loaded.probe.name == PROBE.name);
        let loaded = index.map(|index| &set.loaded[index]);
        let Some((loaded, attached)) = loaded.and_then(|loaded| Some((loaded, loaded.attached.as_ref()?)))
        else {
            let why = set
                .status()
                .iter()
                .find(|status| status.name == PROBE.name)
                .map(|status| status.state.to_string());
            return Err(ProbeError::MissingFeature(
                why.unwrap_or_else(|| "cpu_sample was not loaded".into()),
            ));
        };
        let attached = attached::lock(attached);
        let maps = Maps(&attached.ebpf);
        let generation = |stacks, counts| {
            Ok::<_, ProbeError>(Generation { stacks: maps.table(stacks)?, counts: maps.table(counts)? })
        };
        Ok(Self {
            generations: [generation("stacks_0", "counts_0")?, generation("stacks_1", "counts_1")?],
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
        let stacks: HashMap<u32, Frames> = generation.stacks.drain()?.into_iter().collect();
        let totals = self.totals.get(&full)?.unwrap_or_default();
        self.totals.set(&full, &abi::cpu_sample_value::default())?;
        let frames = |id: i32| stacks.get(&u32::try_from(id).ok()?).copied();
        let stack = |id| frames(id).into_iter().flatten().take_while(|&address| address != 0).collect();
        let sample = |(key, count): (abi::cpu_sample_key, u64)| Sample {
            pid: key.tgid,
            tid: key.tid,
            comm: comm(&key.comm),
            cgroup: CgroupId { hierarchy: self.hierarchy, id: key.cgroup_id },
            user: stack(key.user_stack),
            kernel: stack(key.kernel_stack),
            count,
        };
        Ok(Drained {
            samples: counts.into_iter().map(sample).collect(),
            taken: totals.taken - totals.idle,
            lost: vec![("stack_collision", totals.stack_collisions), ("table_full", totals.counts_full)],
        })
    }
}

/// Returns once no CPU can still be in a program that began before: an RCU grace period.
fn wait_for_every_cpu() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: the call takes no pointers.
    let outcome = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
