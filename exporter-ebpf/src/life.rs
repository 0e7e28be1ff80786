//! Which processes began and ended: what names the process of an event when it is gone before anyone can ask for it.
//!
//! These are no events: they have no kind, no threshold and no document, and only whoever enriches events reads them.

use crate::attached;
use crate::error::ProbeError;
use crate::loader::ProbeSet;
use crate::maps::Maps;
use aya::maps::{MapData, RingBuf};
use kpulse_common::container::Hierarchy;

/// Records taken in one go; the ring holds fewer than this of full length.
const DRAIN_MAX: usize = 8_192;

/// How a probe tells of processes.
pub struct LifeDef {
    /// The map with the records.
    pub ring: &'static str,
    /// Turns the bytes of a record into what they tell; pure.
    pub decode: fn(&[u8]) -> Result<Life, ProbeError>,
    /// Reads how many records found no room.
    pub ring_full: fn(&Maps) -> Result<RingFull, ProbeError>,
}

/// Reads how many records found no room in the ring since the probe attached.
pub type RingFull = Box<dyn Fn() -> u64 + Send>;

/// A process as the kernel tells two with one pid apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    /// Its pid.
    pub pid: u32,
    /// When it began, CLOCK_BOOTTIME.
    pub start_ns: u64,
}

/// What one record tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// The process.
    pub process: ProcessId,
    /// When it happened, CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// Its name from then on.
    pub name: String,
    /// Id of its cgroup; `None` when the kernel could not tell.
    pub cgroup_id: Option<u64>,
    /// What happened.
    pub change: Change,
}

/// What happened to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It runs another program.
    Exec {
        /// The file that runs, as it was named: of a script, the interpreter. `None` when that could not be read.
        executable: Option<String>,
        /// The beginning of the arguments, joined by blanks.
        command_line: Option<String>,
    },
    /// It ended.
    Exit {
        /// The process whose program it ran, when it never ran one of its own.
        forked_from: Option<ProcessId>,
    },
    /// No change: it is in a cgroup that was not told of lately.
    Cgroup {
        /// Path within the hierarchy, or the end of it.
        path: String,
        /// Whether the path begins at the root.
        is_whole: bool,
    },
}

/// The ring of a probe that tells of processes.
pub struct LifeStream {
    def: &'static LifeDef,
    ring: RingBuf<MapData>,
    ring_full: RingFull,
    hierarchy: Hierarchy,
    decode_errors: u64,
}

impl ProbeSet {
    /// The ring of the active probe that tells of processes, if there is one. The set must live on.
    pub fn take_lives(&mut self) -> Result<Option<LifeStream>, ProbeError> {
        for loaded in &mut self.loaded {
            let (Some(def), Some(attached)) = (loaded.probe.lives, loaded.attached.as_ref()) else {
                continue;
            };
            let mut attached = attached::lock(attached);
            let ring_full = (def.ring_full)(&Maps(&attached.ebpf))?;
            let Some(map) = attached.ebpf.take_map(def.ring) else { continue };
            let ring = RingBuf::try_from(map).map_err(|error| ProbeError::Load(error.to_string()))?;
            let hierarchy = loaded.hierarchy;
            return Ok(Some(LifeStream { def, ring, ring_full, hierarchy, decode_errors: 0 }));
        }
        Ok(None)
    }
}

impl LifeStream {
    /// Takes what the ring holds, a bounded number of records. It does not wait: nobody is woken for these.
    pub fn drain(&mut self, each: &mut dyn FnMut(Life)) {
        for _ in 0..DRAIN_MAX {
            let Some(record) = self.ring.next() else { break };
            let decoded = (self.def.decode)(&record);
            drop(record);
            match decoded {
                Ok(life) => each(life),
                Err(error) => {
                    self.decode_errors += 1;
                    tracing::debug!(%error, "record not decoded");
                }
            }
        }
    }

    /// The hierarchy that ids of cgroups belong to.
    pub fn hierarchy(&self) -> Hierarchy {
        self.hierarchy
    }

    /// Records that were lost since the probe attached, by reason.
    pub fn losses(&self) -> [(&'static str, u64); 2] {
        [("ring_full", (self.ring_full)()), ("decode_error", self.decode_errors)]
    }
}
