//! Fits probes to the running kernel: what is missing disables one probe with its reason, and never another.

use crate::attached::{self, Attached};
use crate::btf::KernelTypes;
use crate::error::{ProbeError, may_pass, program_error};
use crate::features::{Feature, Lack};
use crate::governor::{Excess, Pauses};
use crate::hook::Hook;
use crate::maps::Maps;
use crate::object::ObjectLoader;
use crate::policy;
use crate::probe::{Collector, Kernel, Probe, Upkeep, Want};
use crate::statistics::{self, Statistics};
use aya::maps::{MapError, ProgramArray};
use aya::programs::Program;
use aya::{Btf, Ebpf};
use kpulse_common::container::{Hierarchies, Hierarchy, Identities};
use kpulse_common::governor::Governor;
use kpulse_common::metric::{Label, MetricDef, Samples};
use kpulse_common::paths::Paths;
use kpulse_common::thresholds::Thresholds;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

/// Kernel enumerations that probes name numbers by.
const ENUMERATIONS: [&str; 7] = [
    "skb_drop_reason",
    "compact_result",
    "qdisc_drop_reason",
    "sk_rst_reason",
    "hw_event_mc_err_type",
    "mf_action_page_type",
    "mf_result",
];

const PROBE_UP: MetricDef =
    MetricDef::gauge("kpulse_probe_up", "Whether the probe is attached.", &[Label::Named("probe")]);
const PROBE_INFO: MetricDef = MetricDef::gauge(
    "kpulse_probe_info",
    "Where the probe is attached, and by which kind of program.",
    &[Label::Named("probe"), Label::Named("hook"), Label::Named("kind")],
);
const PROBE_DEGRADED: MetricDef = MetricDef::gauge(
    "kpulse_probe_degraded",
    "Set to 1 where a probe tells less than it could: over_budget while it is detached since the probes cost too much, \
     missing_hook where the kernel lacks what a part of it needs.",
    &[Label::Named("probe"), Label::Named("reason")],
);

/// The families that [`ProbeSet::self_metrics`] fills.
pub const SELF_METRICS: &[MetricDef] = &{
    let [runs, seconds, entries, capacity, budget, used] = statistics::METRICS;
    [PROBE_UP, PROBE_INFO, PROBE_DEGRADED, runs, seconds, entries, capacity, budget, used]
};

/// How a process wants its probes.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// From which values events are told.
    pub thresholds: Thresholds,
    /// Which half of the probes.
    pub want: Want,
    /// Probes that the configuration turned off.
    pub disabled: BTreeSet<String>,
    /// Cgroups that a map can tell apart; the rest are counted together.
    pub container_max: u32,
    /// CPU samples a second and CPU.
    pub sample_hz: u64,
    /// What the programs may cost.
    pub governor: Governor,
    /// Kinds of attach points that must not be used, as [`Attach::kind`] names them: for tests of the fallbacks.
    pub avoid: BTreeSet<&'static str>,
    /// Mount points.
    pub paths: Paths,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            thresholds: Thresholds::default(),
            want: Want::Metrics,
            disabled: BTreeSet::new(),
            container_max: 512,
            sample_hz: 99,
            governor: Governor::default(),
            avoid: BTreeSet::new(),
            paths: Paths::default(),
        }
    }
}

/// Whether a probe works, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ProbeState {
    /// Attached.
    Active,
    /// Detached for a while, since the probes took more than their budget.
    Paused {
        /// One sentence.
        why: String,
    },
    /// Turned off, or the kernel lacks what it needs.
    Disabled {
        /// One sentence.
        why: String,
    },
    /// The kernel has what it needs and refused it all the same.
    Failed {
        /// One sentence.
        why: String,
    },
}

impl fmt::Display for ProbeState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => formatter.write_str("active"),
            Self::Paused { why } => write!(formatter, "paused: {why}"),
            Self::Disabled { why } => write!(formatter, "disabled: {why}"),
            Self::Failed { why } => write!(formatter, "failed: {why}"),
        }
    }
}

/// A hook that attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HookStatus {
    /// The hook's name.
    pub hook: &'static str,
    /// Kind of the attempt that won.
    pub kind: &'static str,
    /// Its program.
    pub program: &'static str,
}

/// One line of `/probes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProbeStatus {
    /// The probe.
    pub name: &'static str,
    /// Whether it works.
    #[serde(flatten)]
    pub state: ProbeState,
    /// What it is attached to.
    pub hooks: Vec<HookStatus>,
    /// Optional hooks that did not attach, each with its reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// A probe in the kernel. Dropping it takes it out.
pub(crate) struct Loaded {
    pub(crate) probe: &'static Probe,
    pub(crate) status: ProbeStatus,
    /// Whether it failed for a cause that may pass.
    may_pass: bool,
    pub(crate) attached: Option<attached::Shared>,
    pub(crate) hierarchy: Hierarchy,
    pub(crate) upkeep: Option<Box<dyn Upkeep>>,
    collector: Option<Box<dyn Collector>>,
}

/// The probes of one process.
pub struct ProbeSet {
    /// Before the probes, so that it ends before they do.
    statistics: Option<Statistics>,
    pub(crate) loaded: Vec<Loaded>,
    pub(crate) types: KernelTypes,
    pub(crate) paths: Paths,
    governor: Governor,
    pauses: Pauses,
}

impl ProbeSet {
    /// Loads and attaches every probe that offers what is wanted. A probe that cannot be is listed with its reason.
    pub fn load(probes: &[&'static Probe], options: &LoadOptions) -> Self {
        Loader::new(&Host::read(&options.paths)).load(probes, options)
    }

    /// Every probe that was wanted, and how it is.
    pub fn status(&self) -> Vec<ProbeStatus> {
        let mut status: Vec<_> = self.loaded.iter().map(|loaded| loaded.status.clone()).collect();
        self.pauses.apply(&mut status);
        status
    }

    /// Which probes are detached for a while; it stays true without the set.
    pub fn pauses(&self) -> Pauses {
        self.pauses.clone()
    }

    /// Names of the active probes that have metrics.
    pub fn collectors(&self) -> Vec<&'static str> {
        self.loaded
            .iter()
            .filter(|loaded| loaded.collector.is_some())
            .map(|loaded| loaded.probe.name)
            .collect()
    }

    /// Reads one probe's maps into `out`; nothing while it is not active.
    pub fn collect(
        &mut self,
        probe: &str,
        identities: &mut Identities,
        out: &mut Samples,
    ) -> Result<(), ProbeError> {
        let collector = self
            .loaded
            .iter_mut()
            .find(|loaded| loaded.probe.name == probe && !self.pauses.has(probe))
            .and_then(|loaded| loaded.collector.as_mut());
        collector.map_or(Ok(()), |collector| collector.collect(identities, out))
    }

    /// Probes that failed for a cause that may pass: loading them again later may succeed.
    pub fn to_retry(&self) -> Vec<&'static Probe> {
        self.loaded.iter().filter(|loaded| loaded.may_pass).map(|loaded| loaded.probe).collect()
    }

    /// Puts the probes of a later attempt in the place of those that failed. One that is active stays as it is, with
    /// all that it has counted.
    pub fn adopt(&mut self, later: Self) {
        for loaded in later.loaded {
            let place = self.loaded.iter_mut().find(|known| known.probe.name == loaded.probe.name);
            let Some(place) = place.filter(|known| known.may_pass) else { continue };
            if let Some(statistics) = &self.statistics
                && let Err(error) = statistics.add(std::slice::from_ref(&loaded))
            {
                tracing::warn!(probe = loaded.probe.name, %error, "what the probe costs is not told");
            }
            *place = loaded;
        }
    }

    /// What the running kernel calls the numbers that probes meet.
    pub fn types(&self) -> &KernelTypes {
        &self.types
    }

    /// Starts to tell what the probes cost, and to detach some for a while when it is more than the budget. `begin` runs
    /// on the thread that counts, for example to give up capabilities: it needs CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH.
    pub fn watch_cost(&mut self, begin: impl FnOnce() + Send + 'static) {
        match Statistics::start(&self.loaded, &self.governor, self.pauses(), begin) {
            Ok(statistics) => self.statistics = Some(statistics),
            Err(error) => tracing::warn!(%error, "what the probes cost is not told"),
        }
    }

    /// How every probe is; after [`ProbeSet::watch_cost`] also what the probes cost.
    pub fn self_metrics(&self, out: &mut Samples) {
        tell_status(&self.status(), out);
        if let Some(statistics) = &self.statistics {
            statistics.tell(out);
        }
    }
}

/// `kpulse_probe_up`, `kpulse_probe_info` and `kpulse_probe_degraded` of probes.
pub fn tell_status<'s>(probes: impl IntoIterator<Item = &'s ProbeStatus>, out: &mut Samples) {
    for probe in probes {
        let is_up = probe.state == ProbeState::Active;
        out.number(&PROBE_UP, &[probe.name], f64::from(u8::from(is_up)));
        for hook in &probe.hooks {
            out.number(&PROBE_INFO, &[probe.name, hook.hook, hook.kind], 1.0);
        }
        if matches!(probe.state, ProbeState::Paused { .. }) {
            out.number(&PROBE_DEGRADED, &[probe.name, Excess::REASON], 1.0);
        } else if is_up && !probe.missing.is_empty() {
            out.number(&PROBE_DEGRADED, &[probe.name, "missing_hook"], 1.0);
        }
    }
}

/// What is read once for all probes. It takes tens of MiB, so that a process lets it go when its probes are loaded.
pub struct Host {
    btf: Result<Btf, Lack>,
    types: KernelTypes,
    hierarchies: Hierarchies,
}

impl Host {
    /// That of these mount points.
    pub fn read(paths: &Paths) -> Self {
        let path = paths.sysfs.join("kernel/btf/vmlinux");
        let btf = Feature::Btf.check(paths).and_then(|()| {
            Btf::parse_file(&path, aya::Endianness::default()).map_err(|error| Lack {
                why: format!("cannot use the kernel's types: {error}"),
                may_pass: may_pass(&error),
            })
        });
        let types = KernelTypes::read(paths, &ENUMERATIONS).unwrap_or_default();
        Self { btf, types, hierarchies: Hierarchies::detect(paths) }
    }
}

/// Loads one set of probes after the other.
pub struct Loader<'h> {
    host: &'h Host,
    /// Made for the first probe that gets so far.
    objects: Option<ObjectLoader<'h>>,
}

impl<'h> Loader<'h> {
    /// Into this kernel.
    pub fn new(host: &'h Host) -> Self {
        Self { host, objects: None }
    }

    /// As [`ProbeSet::load`]. The mount points of `options` are those that the host was read from.
    pub fn load(&mut self, probes: &[&'static Probe], options: &LoadOptions) -> ProbeSet {
        let offered = probes.iter().filter(|probe| probe.offers(options.want));
        let loaded = offered.map(|probe| load(probe, options, self.host, &mut self.objects)).collect();
        ProbeSet {
            statistics: None,
            loaded,
            types: self.host.types.clone(),
            paths: options.paths.clone(),
            governor: options.governor.clone(),
            pauses: Pauses::default(),
        }
    }
}

fn load<'h>(
    probe: &'static Probe,
    options: &LoadOptions,
    host: &'h Host,
    objects: &mut Option<ObjectLoader<'h>>,
) -> Loaded {
    let hierarchy = host.hierarchies.of(probe.controller);
    let mut loaded = Loaded {
        probe,
        status: ProbeStatus {
            name: probe.name,
            state: ProbeState::Active,
            hooks: Vec::new(),
            missing: Vec::new(),
        },
        may_pass: false,
        attached: None,
        hierarchy,
        upkeep: None,
        collector: None,
    };
    if options.disabled.contains(probe.name) {
        loaded.status.state = ProbeState::Disabled { why: "turned off by the configuration".into() };
        return loaded;
    }
    let outcome = needs(probe, options, host).and_then(|btf| {
        let objects = objects.get_or_insert_with(|| ObjectLoader::new(btf));
        attach_all(&mut loaded, options, host, btf, objects)
    });
    if let Err(error) = outcome {
        tracing::warn!(probe = probe.name, %error, "probe is not active");
        loaded.status.hooks.clear();
        loaded.may_pass = error.may_pass();
        let why = error.to_string();
        loaded.status.state = match error {
            ProbeError::MissingFeature(_) => ProbeState::Disabled { why },
            _ => ProbeState::Failed { why },
        };
    }
    loaded
}

fn needs<'h>(probe: &Probe, options: &LoadOptions, host: &'h Host) -> Result<&'h Btf, ProbeError> {
    let btf = host.btf.as_ref().map_err(|lack| ProbeError::from(lack.clone()))?;
    let missing = probe.needs.iter().find_map(|feature| feature.check(&options.paths).err());
    missing.map_or(Ok(btf), |lack| Err(lack.into()))
}

fn attach_all(
    loaded: &mut Loaded,
    options: &LoadOptions,
    host: &Host,
    btf: &Btf,
    objects: &mut ObjectLoader<'_>,
) -> Result<(), ProbeError> {
    let probe = loaded.probe;
    let kernel =
        Kernel { types: &host.types, paths: &options.paths, hierarchy: loaded.hierarchy, hooks: &[] };
    let mut ebpf = objects.load(probe, options, loaded.hierarchy)?;
    (probe.prepare)(&Maps(&ebpf), &kernel)?;
    if !probe.events.is_empty() {
        policy::prepare(probe, &Maps(&ebpf), &options.thresholds)?;
    }
    for &(map, index, program) in probe.tail_calls {
        if let Err(why) = connect(&mut ebpf, map, index, program) {
            loaded.status.missing.push(format!("{program}: {why}"));
        }
    }
    let mut attached = Attached::new(ebpf, options.sample_hz);
    for hook in probe.hooks.iter().filter(|hook| hook.serves(options.want)) {
        match attach_first(&mut attached, hook, options, btf) {
            Ok(status) => loaded.status.hooks.push(status),
            Err(error) if hook.is_optional => loaded.status.missing.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let maps = Maps(&attached.ebpf);
    if options.want == Want::Metrics {
        let kernel = Kernel { hooks: &loaded.status.hooks, ..kernel };
        loaded.collector = probe.collector.map(|make| make(&maps, &kernel)).transpose()?;
    }
    if options.want == Want::Events {
        loaded.upkeep = probe.upkeep.map(|make| make(&maps)).transpose()?;
    }
    loaded.attached = Some(Arc::new(Mutex::new(attached)));
    Ok(())
}

/// Loads a program and puts it where a tail call finds it.
fn connect(ebpf: &mut Ebpf, map: &str, index: u32, program: &str) -> Result<(), String> {
    let Some(Program::PerfEvent(next)) = ebpf.program_mut(program) else {
        return Err("not in the object".into());
    };
    let fd = next.load().and_then(|()| Ok(next.fd()?.try_clone()?)).map_err(|error| program_error(&error))?;
    let map = ebpf.map_mut(map).ok_or_else(|| format!("the object has no map {map}"))?;
    let set = ProgramArray::try_from(map).and_then(|mut programs| programs.set(index, &fd, 0));
    set.map_err(|error: MapError| error.to_string())
}

fn attach_first(
    attached: &mut Attached,
    hook: &Hook,
    options: &LoadOptions,
    btf: &Btf,
) -> Result<HookStatus, ProbeError> {
    let (mut refusals, mut may_pass) = (Vec::new(), false);
    for attempt in hook.attempts {
        let kind = attempt.attach.kind();
        if options.avoid.contains(kind) {
            refusals.push(format!("{kind}: avoided"));
            continue;
        }
        match attached.attempt(*attempt, btf) {
            Ok(()) => return Ok(HookStatus { hook: hook.name, kind, program: attempt.program }),
            Err(refusal) => {
                may_pass |= refusal.may_pass;
                refusals.push(format!("{kind} {}: {}", attempt.program, refusal.why));
            }
        }
    }
    let error = ProbeError::Attach { hook: hook.name, why: refusals.join("; ") };
    Err(if may_pass { ProbeError::Passing(error.to_string()) } else { error })
}
