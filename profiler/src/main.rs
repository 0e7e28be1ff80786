//! Where did the CPU time go? Profiles of the host, a container or a process, recorded once or kept all the time.

mod aggregate;
mod config;
mod deadline;
mod export;
mod files;
mod history;
mod names;
mod pipeline;
mod record;
mod sample;
mod serve;
mod symbolize;
mod unwind;
mod upload;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use kpulse_common::cli::{self, CommonFlags};
use kpulse_common::logging::{self, Level};
use std::process::ExitCode;

/// CPU profiles of host, containers and processes, always on.
#[derive(Parser)]
#[command(name = "kpulse-profiler", version, arg_required_else_help = false)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: CommonFlags,
    #[command(flatten)]
    sample: config::SampleFlags,
}

#[derive(Subcommand)]
enum Command {
    Record(record::Arguments),
    /// Profile all the time, keep a history, serve it
    Serve(config::ServeFlags),
}

/// A recording says one line at its end or one line about what failed, unless more is asked for.
fn level(line: &CommandLine, config: &config::Config) -> Level {
    let is_asked = line.common.log_level.is_some() || config.log.level != Level::default();
    match &line.command {
        Command::Record(_) if !is_asked => Level::Error,
        _ => config.log.level,
    }
}

fn main() -> ExitCode {
    // Names are read on one thread, written on another and answered on a third: an arena for each keeps what it once
    // held, and none of them allocates so often that it would wait for the others.
    kpulse_common::memory::bound_arenas();
    cli::report(run())
}

fn run() -> anyhow::Result<()> {
    let matches = cli::parse(CommandLine::command())?;
    let line = CommandLine::from_arg_matches(&matches)?;
    let serve_flags = match &line.command {
        Command::Serve(flags) => flags.clone(),
        Command::Record(_) => config::ServeFlags::default(),
    };
    let config = config::load(&line.common, &line.sample, &serve_flags)?;
    logging::init(level(&line, &config), config.log.format)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = match &line.command {
        Command::Record(arguments) => runtime.block_on(record::run(arguments, &config)),
        Command::Serve(_) => runtime.block_on(serve::run(&config)),
    };
    // A thread that still names symbols after a second interrupt must not keep the process.
    runtime.shutdown_background();
    result
}
