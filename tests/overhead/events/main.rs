//! What does each program of each probe take: for what is below the threshold, for what the rate limit keeps back, and for
//! an event? `tests/overhead/run.sh events` runs it.
//!
//! Each probe is loaded alone, as its own product loads it, and its load runs for each question once. The kernel counts the
//! runs and their time, without a pause; the probe's counters tell what was kept back and what went out. A run that tells
//! is not told apart from the others by its time, but by arithmetic: see [`Costs`].

mod costs;
mod loads;
mod network;

use costs::{Costs, Pass};
use kpulse_common::thresholds::{RateLimit, Thresholds};
use kpulse_exporter_ebpf::life::LifeStream;
use kpulse_exporter_ebpf::{
    EventStream, Host, LoadOptions, Loader, Probe, ProbeSet, ProbeState, ProgramCost, Want, count_runs,
    probes,
};
use loads::{Clock, LOADS, Load};
use std::collections::HashMap;
use std::thread;
use std::time::Duration;

/// The rings have room for what comes in this time.
const DRAIN_EVERY: Duration = Duration::from_millis(2);
const KEEP_BACK: RateLimit = RateLimit { events_per_second: 1, burst: 1 };
const LET_THROUGH: RateLimit = RateLimit { events_per_second: 1_000_000, burst: 1_000_000 };

fn main() {
    if !kpulse_tests::is_root() {
        println!("  only root can load probes");
        return;
    }
    let _tracefs = kpulse_tests::disk::tracefs();
    let _counting = match count_runs() {
        Ok(counting) => counting,
        Err(error) => return println!("  the kernel does not count the runs of BPF programs here: {error}"),
    };
    let only: Vec<String> = std::env::args().skip(1).collect();
    let host = Host::read(&LoadOptions::default().paths);
    let mut loader = Loader::new(&host);
    costs::print_head();
    for probe in probes::ALL.iter().filter(|probe| only.is_empty() || only.iter().any(|it| it == probe.name))
    {
        let mut measured = Vec::new();
        let mut loads = LOADS.iter().filter(|load| load.probe == probe.name).peekable();
        if loads.peek().is_none() {
            println!("  {:<17} not reached: there is no load for it", probe.name);
        }
        for load in loads {
            eprintln!("bench: {}, {}", probe.name, load.what);
            match measure(&mut loader, probe, load) {
                Ok(costs) => measured.push(costs),
                Err(error) => println!("  {:<17} not reached by {}: {error:#}", probe.name, load.what),
            }
        }
        costs::print(probe.name, &measured);
    }
}

fn measure(loader: &mut Loader<'_>, probe: &'static Probe, load: &Load) -> anyhow::Result<Costs> {
    let want = [Want::Events, Want::Samples, Want::Metrics].into_iter().find(|want| probe.offers(*want));
    let options = LoadOptions {
        want: want.unwrap_or(Want::Metrics),
        thresholds: loads::out_of_reach(),
        ..LoadOptions::default()
    };
    let mut set = loader.load(&[probe], &options);
    let status = set.status().remove(0);
    if status.state != ProbeState::Active {
        anyhow::bail!("{}", status.state);
    }
    if status.hooks.is_empty() {
        anyhow::bail!("this kernel has none of its hooks: {}", status.missing.join("; "));
    }
    let mut rings = Rings { events: set.take_events()?, lives: set.take_lives()? };
    let tellers = status.hooks.iter().filter(|hook| load.tellers.contains(&hook.hook));
    let mut costs = Costs { tellers: tellers.map(|hook| hook.program).collect(), ..Costs::default() };
    // What has neither a threshold nor a filter is told always.
    if probe.events.is_empty() || probe.rule.is_some() || !(probe.thresholds)(&options.thresholds).is_empty()
    {
        costs.below = run(&set, &mut rings, load)?;
    }
    if !probe.events.is_empty() {
        let mut policies = set.policies()?;
        for (pass, limit) in [(&mut costs.kept_back, KEEP_BACK), (&mut costs.let_through, LET_THROUGH)] {
            let mut thresholds = Thresholds { rate_limit: limit, ..options.thresholds.clone() };
            (load.arm)(&mut thresholds);
            policies.apply(&thresholds, &HashMap::new())?;
            *pass = run(&set, &mut rings, load)?;
        }
    }
    Ok(costs)
}

/// What one run of the load brings about, while the rings are read as the products read them.
fn run(set: &ProbeSet, rings: &mut Rings, load: &Load) -> anyhow::Result<Pass> {
    let (costs, told) = (set.program_costs()?, rings.told());
    thread::scope(|scope| {
        let work = scope.spawn(|| (load.run)(&mut Clock::default()));
        while !work.is_finished() {
            rings.drain();
            thread::sleep(DRAIN_EVERY);
        }
        work.join().unwrap_or_else(|_| Err(anyhow::anyhow!("its load panicked")))
    })?;
    rings.drain();
    let after = set.program_costs()?;
    let more = |(after, before): (ProgramCost, &ProgramCost)| ProgramCost {
        runs: after.runs - before.runs,
        ns: after.ns - before.ns,
        ..after
    };
    let costs = after.into_iter().zip(&costs).map(more).collect();
    let [kept, events] = rings.told();
    Ok(Pass { costs, kept: kept - told[0], events: events - told[1] })
}

/// What the probe sends.
struct Rings {
    events: EventStream,
    lives: Option<LifeStream>,
}

impl Rings {
    fn drain(&mut self) {
        self.events.drain(&mut |_| ());
        if let Some(lives) = &mut self.lives {
            lives.drain(&mut |_| ());
        }
    }

    /// Hits that were kept back, and those that became events.
    fn told(&mut self) -> [u64; 2] {
        let produced: u64 = self.events.produced().iter().map(|(_, count)| count).sum();
        let losses = self.events.losses().into_iter().filter(|loss| loss.reason != "decode_error");
        let kept: u64 = losses.map(|loss| loss.count).sum();
        [kept, produced - kept]
    }
}
