//! `kpulse-event-gateway check`: would `run` work here? Attaches every event probe and opens the store.

use crate::config::{Config, event_probes};
use crate::sink::local::{FILE, LocalSink};
use anyhow::{Result, bail};
use kpulse_common::cli::state_dir;
use kpulse_exporter_ebpf::{ProbeSet, ProbeState, ProbeStatus};
use std::io::{self, Write};

/// Prints one line a probe; an error when `run` would have nothing to tell or nowhere to keep it.
pub fn run(config: &Config) -> Result<()> {
    let path = state_dir().join(FILE);
    drop(LocalSink::open(&path, config.output.local.clone())?);
    let probes: Vec<_> = event_probes().collect();
    let status = ProbeSet::load(&probes, &config.load_options()).status();
    // A closed stdout does not change the verdict.
    let _ = print(&status, &mut io::stdout().lock());
    let failed: Vec<_> =
        status.iter().filter(|it| matches!(it.state, ProbeState::Failed { .. })).map(|it| it.name).collect();
    if !failed.is_empty() {
        bail!("{} of {} probes cannot attach: {}", failed.len(), status.len(), failed.join(", "));
    }
    if !status.iter().any(|it| it.state == ProbeState::Active) {
        bail!("no probe is active; the table says why");
    }
    Ok(())
}

fn print(status: &[ProbeStatus], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:18} {:9} HOOKS OR REASON", "PROBE", "STATE")?;
    for probe in status {
        let hooks =
            || probe.hooks.iter().map(|hook| format!("{} ({})", hook.hook, hook.kind)).collect::<Vec<_>>();
        let (state, why) = match &probe.state {
            ProbeState::Active => ("active", hooks().join(", ")),
            ProbeState::Disabled { why } => ("disabled", why.clone()),
            ProbeState::Failed { why } => ("failed", why.clone()),
        };
        writeln!(out, "{:18} {state:9} {why}", probe.name)?;
    }
    Ok(())
}
