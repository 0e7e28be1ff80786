//! `record`: what ran during the next seconds, into one file.

use crate::aggregate::{Detail, Scope};
use crate::config::Config;
use crate::export::file::Output;
use crate::export::folded::Folded;
use crate::export::{Format, Profile};
use crate::history::{Bounds, Stretch};
use crate::pipeline::{Pipeline, Shared, Totals};
use crate::sample;
use anyhow::{Context, bail};
use kpulse_common::cli::Shutdown;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Different stacks that one recording holds.
const MAX_ENTRIES: usize = 262_144;

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
    /// Compare with an earlier recording, a folded file: as folded lines with two counts, or as an SVG
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
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
    let baseline =
        arguments.baseline.as_deref().map(|path| read_baseline(path, arguments.format)).transpose()?;
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

    let stretch = Stretch::of(whole, Duration::ZERO, SystemTime::now());
    let selection = shared.select(&scope, Detail::Stacks, stretch)?.context("nothing was recorded")?;
    let totals = shared.lock().totals.clone();
    if totals.drain_errors == totals.drains
        && let Some(error) = &totals.failing
    {
        bail!("cannot read the samples: {error}");
    }
    let profile = Profile { scope: &scope, selection: &selection, period: config.sample.period() };
    let content = match &baseline {
        Some(before) => profile.render_difference(before, arguments.format),
        None => profile.render(arguments.format),
    };
    output.finish(&content?)?;
    eprintln!("kpulse-profiler: {}", summary(&totals));
    Ok(())
}

fn read_baseline(path: &Path, format: Format) -> anyhow::Result<Folded> {
    if !matches!(format, Format::Folded | Format::Svg) {
        bail!("--baseline compares as folded or svg: choose one of them with --format");
    }
    let cannot = || format!("cannot compare with {}", path.display());
    let text = fs::read_to_string(path).with_context(cannot)?;
    Folded::read(&text).with_context(cannot)
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
