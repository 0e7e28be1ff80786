//! kpulse-exporter: a Prometheus exporter of kernel latencies and state.
//!
//! It names no probe: flags, configuration and scrape follow the registry of the probe library.

mod check;
mod collectors;
mod config;
mod doctor;
#[cfg(test)]
mod example;
mod filter;
mod flags;
mod privileges;
mod scrape;
mod serve;
mod table;
mod turn;

use kpulse_common::{cli, logging, memory};
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::report(run())
}

fn run() -> anyhow::Result<()> {
    memory::bound_arenas();
    let flags = flags::Flags::parse()?;
    let config = config::load(&flags)?;
    // The other commands print all that a log would say.
    let level = if flags.command == flags::Command::Serve { config.log.level } else { logging::Level::Error };
    logging::init(level, config.log.format)?;
    match flags.command {
        flags::Command::Serve => serve::run(flags, config),
        flags::Command::Check => check::run(&config),
        flags::Command::Doctor => doctor::run(&config.path),
        flags::Command::Reference => collectors::write_reference(std::io::stdout().lock()),
    }
}
