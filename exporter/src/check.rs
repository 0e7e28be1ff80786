//! `check`: does every enabled probe attach here?

use crate::config::Config;
use crate::{scrape, table};
use anyhow::bail;
use kpulse_exporter_ebpf::{ProbeSet, ProbeState, ProbeStatus, probes};
use std::collections::BTreeMap;

/// Attaches everything, prints a table, and fails when an enabled probe failed or none is active.
///
/// A probe that lacks what this machine does not have, such as a file system, is disabled, which is no failure.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let status = ProbeSet::load(probes::ALL, &scrape::load_options(config)).status();
    table::print(&["PROBE", "STATE", "HOOKS", "WHY"], &status.iter().map(row).collect::<Vec<_>>());
    let is_enabled = |probe: &&ProbeStatus| config.probes.get(probe.name).copied().unwrap_or(false);
    let enabled: Vec<_> = status.iter().filter(is_enabled).collect();
    let active = enabled.iter().filter(|probe| probe.state == ProbeState::Active).count();
    let failed = enabled.iter().filter(|probe| matches!(probe.state, ProbeState::Failed { .. })).count();
    if failed > 0 || (active == 0 && !enabled.is_empty()) {
        bail!(
            "{} of {} enabled probes are not active; the table says why, and `doctor` what would help",
            enabled.len() - active,
            enabled.len()
        );
    }
    Ok(())
}

fn row(probe: &ProbeStatus) -> Vec<String> {
    let (state, why) = match &probe.state {
        ProbeState::Active => ("active", String::new()),
        ProbeState::Disabled { why } => ("disabled", why.clone()),
        ProbeState::Paused { why } => ("paused", why.clone()),
        ProbeState::Failed { why } => ("failed", why.clone()),
    };
    vec![probe.name.to_owned(), state.to_owned(), hooks(probe), why]
}

/// `tp_btf: sched_wakeup sched_switch`, by kind of program.
fn hooks(probe: &ProbeStatus) -> String {
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for hook in &probe.hooks {
        kinds.entry(hook.kind).or_default().push(hook.hook);
    }
    let kinds = kinds.iter().map(|(kind, hooks)| format!("{kind}: {}", hooks.join(" ")));
    kinds.collect::<Vec<_>>().join(", ")
}
