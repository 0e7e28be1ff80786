//! `record`: what ran during the next seconds, into one file.

use crate::aggregate::{Scope, Selection};
use crate::config::Config;
use crate::export::file::Output;
use crate::export::folded::Folded;
use crate::export::svg;
use crate::history::Bounds;
use crate::pipeline::{Pipeline, Shared, Totals};
use crate::sample;
use anyhow::{Context, bail};
use kpulse_common::cli::Shutdown;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Different stacks that one recording holds.
const MAX_ENTRIES: usize = 262_144;

/// The form of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One line a stack, for flame graph programs.
    Folded,
    /// A flame graph for a browser.
    Svg,
}

/// Record a profile into a file.
#[derive(clap::Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("scope").multiple(false))]
pub struct Arguments {
    /// How long to record; Ctrl-C ends it early and keeps what there is
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Everything that runs on this machine [default]
    #[arg(long, group = "scope")]
    pub host: bool,
    /// One process with all its threads
    #[arg(long, group = "scope", value_name = "P", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,
    /// One container, by its id or at least the first twelve characters of it
    #[arg(long, group = "scope", value_name = "ID")]
    pub container: Option<String>,
    /// The form of the file
    #[arg(long, value_enum, default_value = "folded")]
    pub format: Format,
    /// The file, complete or not there at all; - is standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

impl Arguments {
    fn scope(&self) -> Scope {
        match (self.pid, &self.container) {
            (Some(pid), _) => Scope::Process(pid),
            (None, Some(id)) => Scope::Container(id.clone()),
            (None, None) => Scope::Host,
        }
    }
}

/// Records, writes the file, and says what became of every sample.
pub async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<()> {
    let mut shutdown = Shutdown::catch().context("cannot catch signals")?;
    let scope = arguments.scope();
    if let Scope::Process(pid) = scope
        && !config.path.procfs.join(pid.to_string()).exists()
    {
        bail!("there is no process {pid}");
    }
    let output = Output::open(&arguments.output)?;
    let probes = sample::load(config);
    let mut samples = sample::open(&probes)?;

    let whole = Duration::from_secs(2 * arguments.seconds + 3600);
    let bounds = Bounds { window: whole, window_entries: MAX_ENTRIES, max_age: whole, max_bytes: usize::MAX };
    let shared = Shared::new(bounds);
    let unwinder = sample::unwind(&probes, scope.clone(), config, &shared)?;
    // What ran while the tables were made is no part of the recording.
    samples.drain().context("cannot read the samples")?;
    let drain = Box::new(move || Ok(samples.drain()?));
    let pipeline = Pipeline::start(drain, config.sample.interval, scope.clone(), &config.path, &shared)?;
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(arguments.seconds)) => {}
        () = shutdown.wait() => {}
    }
    tokio::select! {
        finished = tokio::task::spawn_blocking(|| pipeline.finish()) => finished.context("cannot finish the recording")?,
        () = shutdown.wait() => bail!("interrupted twice, nothing is written"),
    }
    drop((unwinder, probes));

    let (selection, totals) = {
        let state = shared.lock();
        (state.history.select(&scope, whole, Instant::now()), state.totals.clone())
    };
    if totals.drain_errors == totals.drains
        && let Some(error) = &totals.failing
    {
        bail!("cannot read the samples: {error}");
    }
    output.finish(&render(arguments.format, &scope, selection.as_ref())?)?;
    eprintln!("kpulse-profiler: {}", summary(&totals));
    Ok(())
}

fn render(format: Format, scope: &Scope, selection: Option<&Selection>) -> anyhow::Result<Vec<u8>> {
    let entries = selection.iter().flat_map(|selection| &selection.entries).map(|(key, count)| (key, *count));
    let folded = Folded::of(entries);
    match format {
        Format::Folded => Ok(folded.text().into_bytes()),
        Format::Svg => {
            let samples = selection.map_or(0, |selection| selection.samples);
            svg::draw(&folded, &format!("CPU time of {}", scope.title()), &format!("{samples} samples"))
        }
    }
}

/// What became of every sample, as one line whose sum closes.
fn summary(totals: &Totals) -> String {
    let lost: u64 = totals.lost.values().sum();
    let reasons: Vec<_> = totals
        .lost
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    let Totals { taken, stored, outside, .. } = totals;
    format!("samples taken {taken} = stored {stored} + outside the scope {outside} + lost {lost}{reasons}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_every_loss() {
        let mut totals = Totals { taken: 100, stored: 60, outside: 35, ..Totals::default() };
        assert_eq!(summary(&totals), "samples taken 100 = stored 60 + outside the scope 35 + lost 0");
        totals.lost.extend([("map_full", 4), ("window_full", 1), ("stack_collision", 0)]);
        assert!(summary(&totals).ends_with("+ lost 5 (map_full 4, window_full 1)"));
    }
}
