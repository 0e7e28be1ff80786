//! What does the run-queue metric add to a context switch? `tests/overhead/run.sh switches` runs it.
//!
//!   switch_costs PINGPONG ROUNDS
//!
//! Prints a line for each round: nanoseconds of a switch without any program, how many more with the probe, and how many
//! more with a program that does nothing. The speed of a virtual machine changes within a second by more than is measured,
//! so rounds are short and many, and each measurement with a program stands between two without.

use anyhow::{Context, bail};
use kpulse_exporter_ebpf::{Host, LoadOptions, Loader, Probe, ProbeState, probes};
use kpulse_tests::burn;
use std::process::Command;

/// Some 100 ms: longer than a timer tick, shorter than most changes.
const ROUND_TRIPS: &str = "20000";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pingpong, rounds] = &arguments[..] else { bail!("usage: switch_costs PINGPONG ROUNDS") };
    let rounds: usize = rounds.parse().context("ROUNDS is a number")?;
    let metric = probes::ALL.iter().copied().find(|probe| probe.name == "runqueue_latency");
    let metric = metric.context("there is no run-queue metric")?;
    let host = Host::read(&LoadOptions::default().paths);
    let mut loader = Loader::new(&host);
    let mut before = switch_ns(pingpong)?;
    for _ in 0..rounds {
        print!("{before:.1}");
        for probe in [metric, &burn::NEVER] {
            let with = with(&mut loader, probe, pingpong)?;
            let after = switch_ns(pingpong)?;
            print!(" {:.1}", with - f64::midpoint(before, after));
            before = after;
        }
        println!();
    }
    Ok(())
}

/// The same while a probe is attached.
fn with(loader: &mut Loader<'_>, probe: &'static Probe, pingpong: &str) -> anyhow::Result<f64> {
    let set = loader.load(&[probe], &LoadOptions::default());
    let state = set.status().remove(0).state;
    if state != ProbeState::Active {
        bail!("{} is not active here: {state}", probe.name);
    }
    switch_ns(pingpong)
}

/// CPU time of a context switch on the last CPU.
fn switch_ns(pingpong: &str) -> anyhow::Result<f64> {
    let last = std::thread::available_parallelism()?.get() - 1;
    let output = Command::new(pingpong).args([ROUND_TRIPS, &last.to_string()]).output();
    let output = output.with_context(|| format!("cannot run {pingpong}"))?;
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .with_context(|| format!("{pingpong} tells no figure"))
}
