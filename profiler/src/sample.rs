//! What ran? Samples as the kernel counted them, drained by the `cpu_sample` probe.

use crate::aggregate::Scope;
use crate::config::Config;
use crate::pipeline::Shared;
use crate::unwind::Unwinder;
use anyhow::Context;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::{CpuSamples, PROBE, UnwindTables};
use kpulse_exporter_ebpf::{LoadOptions, ProbeSet, ProbeState, Want};

/// Loads the probe. It never fails: the set says what is wrong.
pub fn load(config: &Config) -> ProbeSet {
    let options = LoadOptions {
        want: Want::Samples,
        sample_hz: config.sample.hz,
        paths: config.path.clone(),
        ..LoadOptions::default()
    };
    ProbeSet::load(&[&PROBE], &options)
}

/// Opens the samples of a loaded set, or says in one sentence why there are none.
pub fn open(probes: &ProbeSet) -> anyhow::Result<CpuSamples> {
    why_inactive(probes).map_or(Ok(()), |why| Err(anyhow::anyhow!("cannot sample the CPUs: {why}")))?;
    CpuSamples::open(probes).context("cannot sample the CPUs")
}

/// Starts to keep what the walk of stacks reads; `None` where stacks are walked by frame pointers alone.
pub fn unwind(
    probes: &ProbeSet,
    scope: Scope,
    config: &Config,
    shared: &Shared,
) -> anyhow::Result<Option<Unwinder>> {
    let tables = UnwindTables::open(probes).context("cannot open the tables of the stack walk")?;
    tables.map(|tables| Unwinder::start(tables, scope, &config.path, shared)).transpose()
}

/// Why the probe does not run; `None` when it does.
pub fn why_inactive(probes: &ProbeSet) -> Option<String> {
    probes.status().into_iter().find_map(|status| match status.state {
        ProbeState::Active => None,
        ProbeState::Disabled { why } | ProbeState::Failed { why } | ProbeState::Paused { why } => Some(why),
    })
}
