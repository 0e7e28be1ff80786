//! `kpulse-event-gateway check`: would `run` work here? Attaches every event probe and opens the store.

use crate::config::{Config, event_probes};
use crate::sink::local::{FILE, LocalSink};
use crate::watch;
use anyhow::{Result, bail};
use kpulse_common::cli::state_dir;
use kpulse_exporter_ebpf::{ProbeSet, ProbeState, ProbeStatus};
use std::io::{self, Write};

/// Prints one line a probe; an error when an enabled one is not active, or when there is nowhere to keep events.
pub fn run(config: &Config) -> Result<()> {
    let path = state_dir().join(FILE);
    drop(LocalSink::open(&path, config.output.local.clone())?);
    let probes: Vec<_> = event_probes().collect();
    let mut status = ProbeSet::load(&probes, &config.load_options()).status();
    status.extend(watch::check(config));
    // A closed stdout does not change the verdict.
    let _ = print(&status, &mut io::stdout().lock());
    let enabled: Vec<_> = status.iter().filter(|it| config.probes.get(it.name) == Some(&true)).collect();
    let inactive = enabled.iter().filter(|it| it.state != ProbeState::Active).count();
    if inactive > 0 {
        bail!("{inactive} of {} enabled probes are not active; the table says why", enabled.len());
    }
    Ok(())
}

fn print(status: &[ProbeStatus], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:20} {:9} HOOKS OR REASON", "PROBE", "STATE")?;
    for probe in status {
        let hooks =
            || probe.hooks.iter().map(|hook| format!("{} ({})", hook.hook, hook.kind)).collect::<Vec<_>>();
        let (state, why) = match &probe.state {
            ProbeState::Active => ("active", hooks().join(", ")),
            ProbeState::Disabled { why } => ("disabled", why.clone()),
            ProbeState::Paused { why } => ("paused", why.clone()),
            ProbeState::Failed { why } => ("failed", why.clone()),
        };
        writeln!(out, "{:20} {state:9} {why}", probe.name)?;
    }
    Ok(())
}
