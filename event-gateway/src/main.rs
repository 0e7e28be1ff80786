//! kpulse-event-gateway: threshold events from the kernel, enriched, stored and queried.

mod api;
mod check;
mod config;
mod dataset;
mod enrich;
mod events;
mod forward;
mod import;
mod index;
mod keys;
mod lines;
mod mapping;
mod metrics;
mod naming;
mod netlink;
mod page;
mod pipeline;
mod policies;
mod profiles;
mod query;
mod reference;
mod replay;
mod ring;
mod route;
mod row;
mod run;
mod schema;
mod setup;
mod sink;
mod spool;
mod tally;
mod watch;

use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches};
use config::Config;
use dataset::Dataset;
use kpulse_common::cli::{self, CommonFlags};
use kpulse_common::config::Value;
use kpulse_common::{logging, memory};
use std::io::Write;
use std::process::ExitCode;

/// Tells what in the kernel took too long or went wrong, with who, where and why.
#[derive(clap::Parser, Debug)]
#[command(name = "kpulse-event-gateway", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(flatten)]
    common: CommonFlags,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Attach the probes and keep their events in one SQLite file, with API and page.
    Run(RunFlags),
    /// Attach the probes and send their events to Kafka, and the profiles that the profiler posts.
    Forward(forward::ForwardFlags),
    /// Store the events and profiles of Kafka in Elasticsearch or OpenSearch.
    Index(WebFlags),
    /// Make the topics and index templates that are missing.
    Setup(setup::SetupFlags),
    /// Give the records that Elasticsearch refused another chance.
    ReplayDeadLetters,
    /// Print events that are kept.
    Events(events::EventsFlags),
    /// Take over events that `events -o json` printed, here or on another machine.
    Import(import::ImportFlags),
    /// Attach the probes once and say which of them work here.
    Check,
    /// Print the JSON Schema of an event, or of a profile.
    Schema(SchemaFlags),
    /// Print the index template of events for Elasticsearch and OpenSearch.
    Mapping(MappingFlags),
    /// Print every kind of event and every field as EVENTS.md has them.
    Reference,
}

/// Flags of `schema`.
#[derive(clap::Args, Debug)]
struct SchemaFlags {
    /// Which documents.
    #[arg(value_enum, default_value_t = Dataset::Events)]
    dataset: Dataset,
}

/// Flags of `mapping`.
#[derive(clap::Args, Debug)]
struct MappingFlags {
    /// Only the part of this kind of event.
    kind: Option<String>,
}

/// Flags of every command that answers HTTP.
#[derive(clap::Args, Debug)]
struct WebFlags {
    /// Address of metrics and health [default: :10841].
    #[arg(long = "web.listen-address", value_name = "ADDRESS")]
    web_listen_address: Option<String>,
    /// File with TLS, users, headers and a rate limit of that address, in exporter-toolkit's format.
    #[arg(long = "web.config.file", value_name = "FILE")]
    web_config_file: Option<String>,
}

/// Flags of `run`.
#[derive(clap::Args, Debug)]
struct RunFlags {
    #[command(flatten)]
    web: WebFlags,
    /// Address of the API and the page, on this machine only [default: 127.0.0.1:10851].
    #[arg(long = "api.listen-address", value_name = "ADDRESS")]
    api_listen_address: Option<String>,
}

/// The value of `--api.listen-address` as one of the configuration.
fn api_override(address: &Option<String>) -> Option<(String, Value)> {
    Some(("api.listen_address".to_owned(), Value::new(None, address.clone()?)))
}

impl WebFlags {
    fn overrides(&self) -> Vec<(String, Value)> {
        let given =
            [("web.listen_address", &self.web_listen_address), ("web.config_file", &self.web_config_file)];
        let value = |value: &Option<String>| Some(Value::new(None, value.clone()?));
        given.into_iter().filter_map(|(key, its)| Some((key.to_owned(), value(its)?))).collect()
    }
}

impl RunFlags {
    fn overrides(self) -> Vec<(String, Value)> {
        let mut overrides = self.web.overrides();
        overrides.extend(api_override(&self.api_listen_address));
        overrides
    }
}

fn main() -> ExitCode {
    cli::report(start())
}

fn start() -> Result<()> {
    memory::bound_arenas();
    let matches = cli::parse(CommandLine::command())?;
    let line = CommandLine::from_arg_matches(&matches).map_err(|error| cli::Usage(error.to_string()))?;
    match line.command {
        Command::Run(flags) => run::run(&line.common, &flags.overrides()),
        Command::Forward(flags) => forward::run(&line.common, flags),
        Command::Index(flags) => index::run(&line.common, flags.overrides()),
        Command::Setup(flags) => setup::run(&line.common, &flags),
        Command::ReplayDeadLetters => replay::run(&line.common),
        Command::Events(flags) => events::run(&flags),
        Command::Import(flags) => import::run(&flags),
        Command::Check => {
            let config = Config::load(&line.common, Vec::new())?;
            logging::init(config.log.level, config.log.format)?;
            check::run(&config)
        }
        Command::Reference => reference::write(std::io::stdout().lock()),
        Command::Schema(flags) => print(&schema::of(flags.dataset)),
        Command::Mapping(MappingFlags { kind: None }) => print(&mapping::template()),
        Command::Mapping(MappingFlags { kind: Some(name) }) => {
            print(&mapping::fragment(&schema::kind(&name)?))
        }
    }
}

fn print(document: &serde_json::Value) -> Result<()> {
    let document = serde_json::to_string_pretty(document)?;
    writeln!(std::io::stdout(), "{document}").context("cannot write to stdout")
}

#[cfg(test)]
mod schema_tests;
