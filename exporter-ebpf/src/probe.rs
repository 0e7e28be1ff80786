//! The contract of a probe: what it needs, where it hooks, what it tells.

use crate::btf::KernelTypes;
use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::Hook;
use crate::life::LifeDef;
use crate::loader::HookStatus;
use crate::maps::Maps;
use crate::record::{Decoded, Names};
use kpulse_common::container::{Hierarchy, Identities};
use kpulse_common::metric::{MetricDef, Samples};
use kpulse_common::paths::Paths;
use kpulse_common::thresholds::Thresholds;
use std::ops::Range;
use std::time::Duration;

/// Which half of the probes a process wants; each process loads its own copy, with the other half cut away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Aggregates for a scrape.
    Metrics,
    /// Records in rings.
    Events,
    /// CPU samples.
    Samples,
}

/// Values of `const volatile` variables of an object, by name.
pub type Globals = Vec<(&'static str, u64)>;

/// Opens the maps that a collector reads.
pub type MakeCollector = fn(&Maps, &Kernel<'_>) -> Result<Box<dyn Collector>, ProbeError>;

/// Puts in force what a probe's programs read of the thresholds beyond times.
pub type Rule = Box<dyn FnMut(&Thresholds) -> Result<(), ProbeError> + Send>;

/// Opens the maps that a rule writes.
pub type MakeRule = fn(&Maps) -> Result<Rule, ProbeError>;

/// Makes what the programs need from user space while they tell events.
pub type MakeUpkeep = fn(&Maps) -> Result<Box<dyn Upkeep>, ProbeError>;

/// What a probe's programs keep from one run to another that belongs together, such as when something began. It is
/// forgotten when they are attached again after a pause.
#[derive(Debug, Clone)]
pub struct InFlight {
    /// The map.
    pub map: &'static str,
    /// The bytes of its values; `None` = all entries.
    pub bytes: Option<Range<usize>>,
}

impl InFlight {
    /// The whole map.
    pub const fn all(map: &'static str) -> Self {
        Self { map, bytes: None }
    }

    /// These bytes of the map's values.
    pub const fn part(map: &'static str, bytes: Range<usize>) -> Self {
        Self { map, bytes: Some(bytes) }
    }
}

/// Which probes go first when all together cost more than their budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Detail: other families tell of the same trouble.
    Low,
    /// Most probes.
    Normal,
    /// What is looked at first when something is slow.
    High,
    /// What other parts of the process stand on: it never goes.
    Essential,
}

/// One kernel probe.
pub struct Probe {
    /// Name of its folder, of its configuration key, and of the `probe` label.
    pub name: &'static str,
    /// The compiled `<name>.bpf.c`.
    pub object: &'static [u8],
    /// What the kernel must have; a missing one disables the probe with the feature's sentence as the reason.
    pub needs: &'static [Feature],
    /// All of these must attach.
    pub hooks: &'static [Hook],
    /// Programs that others go on with, and the map and its index that lead there; without one its caller does what it
    /// can.
    pub tail_calls: &'static [(&'static str, u32, &'static str)],
    /// The cgroup controller whose hierarchy tells the containers of this probe's facts apart.
    pub controller: &'static str,
    /// Maps whose capacity is `container_max` times this factor.
    pub sized_by_containers: &'static [(&'static str, u32)],
    /// Maps that only processes which want events fill.
    pub of_events: &'static [&'static str],
    /// `const volatile __u64` variables that depend on the machine.
    pub globals: fn() -> Globals,
    /// From which values its events are told, in the order of its header's `THRESHOLD_…`.
    pub thresholds: fn(&Thresholds) -> Vec<Duration>,
    /// What of the thresholds is no time; put in force before anything attaches, and whenever they change.
    pub rule: Option<MakeRule>,
    /// Fills the maps that the programs read from the start, before anything attaches.
    pub prepare: fn(&Maps, &Kernel<'_>) -> Result<(), ProbeError>,
    /// What the programs keep of things that have begun and not ended.
    pub in_flight: &'static [InFlight],
    /// What its detail is worth when the probes cost too much.
    pub priority: Priority,
    /// Whether it is loaded unless it is switched off: false for what costs more than most want to pay.
    pub is_default: bool,
    /// The families that the collector fills.
    pub metrics: &'static [MetricDef],
    /// The events that its ring carries.
    pub events: &'static [EventDef],
    /// Whether its programs run in an interrupt, which then is no part of its stacks.
    pub in_interrupt: bool,
    /// What has to live, and to be looked after, for as long as its ring is read.
    pub upkeep: Option<MakeUpkeep>,
    /// Makes the reader of the probe's maps.
    pub collector: Option<MakeCollector>,
    /// Whether it takes CPU samples.
    pub samples: bool,
    /// How it tells of processes, which is wanted with events.
    pub lives: Option<&'static LifeDef>,
}

impl Probe {
    /// Nothing: the base of every `Probe { …, ..Probe::EMPTY }`.
    pub const EMPTY: Self = Self {
        name: "",
        object: &[],
        needs: &[],
        hooks: &[],
        tail_calls: &[],
        controller: "cpu",
        sized_by_containers: &[],
        of_events: &[],
        globals: Vec::new,
        thresholds: |_| Vec::new(),
        rule: None,
        prepare: |_, _| Ok(()),
        in_flight: &[],
        priority: Priority::Normal,
        is_default: true,
        metrics: &[],
        events: &[],
        in_interrupt: false,
        upkeep: None,
        collector: None,
        samples: false,
        lives: None,
    };

    /// Whether the probe has the half that is wanted.
    pub fn offers(&self, want: Want) -> bool {
        match want {
            Want::Metrics => self.collector.is_some(),
            Want::Events => !self.events.is_empty() || self.lives.is_some(),
            Want::Samples => self.samples,
        }
    }
}

/// What a probe may ask about the running kernel while it gets ready.
pub struct Kernel<'a> {
    /// The kernel's own types.
    pub types: &'a KernelTypes,
    /// Where its file systems are mounted.
    pub paths: &'a Paths,
    /// The hierarchy of the probe's controller.
    pub hierarchy: Hierarchy,
    /// What attached; nothing yet while the probe prepares its maps.
    pub hooks: &'a [HookStatus],
}

impl Kernel<'_> {
    /// Whether a hook of the probe attached: without an optional one, its series are absent and not zero.
    pub fn has_hook(&self, name: &str) -> bool {
        self.hooks.iter().any(|status| status.hook == name)
    }
}

/// Reads a probe's maps. Called once per scrape; bounded by the capacity of the maps.
pub trait Collector: Send {
    /// Adds what the maps hold to `out`.
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError>;
}

/// What a probe's programs need from user space while they tell events. Dropping it ends it.
pub trait Upkeep: Send {
    /// Looks after it; called each time that the rings are drained, so some times a second.
    fn keep(&mut self) -> Result<(), ProbeError>;
}

/// One kind of event.
pub struct EventDef {
    /// `event.action` of its documents, and the name of the object that holds its own fields.
    pub kind: &'static str,
    /// What the event says, in one sentence.
    pub help: &'static str,
    /// Turns the bytes of a record into fields; pure.
    pub decode: fn(&[u8], &Names) -> Result<Decoded, ProbeError>,
    /// JSON Schema of the fields, with what each means: `schema_of::<Body>`.
    pub body: fn() -> serde_json::Value,
    /// Names of kernel numbers that the decoder needs, read once at load.
    pub names: fn(&KernelTypes) -> Names,
}
