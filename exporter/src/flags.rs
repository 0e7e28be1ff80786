//! The command line, in node_exporter's style.

use crate::{collectors, config};
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, value_parser};
use kpulse_common::cli::{self, CommonFlags, Usage};
use kpulse_common::config::{Layers, Value};
use kpulse_common::self_metrics;

const ABOUT: &str = "Prometheus exporter of kernel latencies and state, per host and container.";
const AFTER: &str = "Every flag is also a configuration key and an environment variable: --web.max-requests is \
                     web.max_requests in the file and KPULSE_EXPORTER__WEB__MAX_REQUESTS.";

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Serve,
    Check,
    Doctor,
    /// Prints METRICS.md.
    Reference,
}

/// The parsed command line.
#[derive(Debug)]
pub struct Flags {
    pub command: Command,
    /// The layers of the configuration; kept, since a SIGHUP reads them again.
    pub layers: Layers,
}

impl Flags {
    /// Parses the process' arguments.
    pub fn parse() -> Result<Self, Usage> {
        let matches = cli::parse(command())?;
        Self::from_matches(&matches)
    }

    fn from_matches(matches: &ArgMatches) -> Result<Self, Usage> {
        let common = CommonFlags::from_arg_matches(matches).map_err(|error| Usage(error.to_string()))?;
        let command = match matches.subcommand_name() {
            Some("check") => Command::Check,
            Some("doctor") => Command::Doctor,
            Some("reference") => Command::Reference,
            _ => Command::Serve,
        };
        let mut overrides = common.overrides();
        let mut set = |key: &str, value: Option<Value>| {
            overrides.extend(value.map(|value| (key.to_owned(), value)));
        };
        let addresses = matches.get_many::<String>("web.listen-address");
        set("web.listen_address", addresses.map(|all| all.cloned().collect::<Vec<_>>().into()));
        set("web.telemetry_path", matches.get_one::<String>("web.telemetry-path").cloned().map(Value::from));
        set("web.max_requests", matches.get_one::<u64>("web.max-requests").copied().map(Value::from));
        let file = matches.get_one::<String>("web.config.file");
        set("web.config_file", file.cloned().map(Value::from));
        let switch = |flag: &str| matches.get_flag(flag).then(|| Value::from(true));
        set("web.systemd_socket", switch("web.systemd-socket"));
        set("web.disable_exporter_metrics", switch("web.disable-exporter-metrics"));
        set("disable_defaults", matches.get_flag("collector.disable-defaults").then(|| true.into()));
        for (block, name, _) in switchable() {
            let is_set = |prefix: &str| matches.get_flag(&format!("{prefix}{name}"));
            let switch = (is_set("collector."), is_set("no-collector."));
            let value = match switch {
                (true, _) => Some(true.into()),
                (_, true) => Some(false.into()),
                (false, false) => None,
            };
            set(&format!("{block}.{name}"), value);
        }
        let layers =
            Layers { file: common.config_file, environment_prefix: config::ENVIRONMENT_PREFIX, overrides };
        Ok(Self { command, layers })
    }
}

/// Everything that has a `--collector.NAME`, with the block of the configuration that holds it and whether it is on.
fn switchable() -> impl Iterator<Item = (&'static str, &'static str, bool)> {
    let probes = collectors::probes().map(|probe| ("probes", probe.name, probe.is_default));
    let host = collectors::ALL.iter().map(|collector| ("collectors", collector.name, collector.is_default));
    probes.chain(host)
}

fn command() -> clap::Command {
    let version = format!("{} (revision {})", env!("CARGO_PKG_VERSION"), self_metrics::revision());
    let command = clap::Command::new("kpulse-exporter")
        .after_help(AFTER)
        // Leaked once for the life of the process, as clap wants names that live as long.
        .version(&*version.leak())
        .subcommand(clap::Command::new("serve").about("Serve metrics (the default)"))
        .subcommand(
            clap::Command::new("check").about("Attach every enabled probe, print the outcome, and exit"),
        )
        .subcommand(clap::Command::new("doctor").about("Say what this kernel allows and what would help"))
        .subcommand(clap::Command::new("reference").about("Print the list of all metrics").hide(true))
        .next_help_heading("Web")
        .args(web())
        .next_help_heading("Collectors")
        .arg(
            Arg::new("collector.disable-defaults")
                .long("collector.disable-defaults")
                .action(ArgAction::SetTrue)
                .global(true)
                .help("Disable every collector that is not enabled by name"),
        )
        .args(switchable().flat_map(|(_, name, is_default)| switch(name, is_default)));
    // The common flags bring a description of themselves, so ours comes after.
    CommonFlags::augment_args(command).about(ABOUT).long_about(None)
}

fn web() -> [Arg; 6] {
    [
        Arg::new("web.listen-address")
            .long("web.listen-address")
            .value_name("ADDRESS")
            .action(ArgAction::Append)
            .global(true)
            .help("Address to serve on; may be repeated [default: :10840]"),
        Arg::new("web.telemetry-path")
            .long("web.telemetry-path")
            .value_name("PATH")
            .global(true)
            .help("Path of the metrics [default: /metrics]"),
        Arg::new("web.max-requests")
            .long("web.max-requests")
            .value_name("N")
            .value_parser(value_parser!(u64))
            .global(true)
            .help("Requests answered at once, 0 for no bound [default: 40]"),
        Arg::new("web.config.file")
            .long("web.config.file")
            .value_name("FILE")
            .global(true)
            .help("File with TLS, users, headers and a rate limit, in exporter-toolkit's format"),
        Arg::new("web.systemd-socket")
            .long("web.systemd-socket")
            .action(ArgAction::SetTrue)
            .global(true)
            .help("Serve the sockets that systemd passes instead of an address"),
        Arg::new("web.disable-exporter-metrics")
            .long("web.disable-exporter-metrics")
            .action(ArgAction::SetTrue)
            .global(true)
            .help("Leave out the process_* families"),
    ]
}

fn switch(name: &'static str, is_default: bool) -> [Arg; 2] {
    let default = if is_default { "enabled" } else { "disabled" };
    let on: &'static str = format!("collector.{name}").leak();
    let off: &'static str = format!("no-collector.{name}").leak();
    let arg = |id: &'static str, other: &'static str, help: String| {
        Arg::new(id).long(id).action(ArgAction::SetTrue).overrides_with(other).global(true).help(help)
    };
    [
        arg(on, off, format!("Enable the {name} collector (default: {default})")),
        arg(off, on, format!("Disable the {name} collector")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(arguments: &[&str]) -> Layers {
        let arguments = std::iter::once("kpulse-exporter").chain(arguments.iter().copied());
        Flags::from_matches(&command().try_get_matches_from(arguments).unwrap()).unwrap().layers
    }

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_last_of_two_opposite_switches_wins() {
        let (_, name, _) = switchable().next().unwrap();
        let (on, off) = (format!("--collector.{name}"), format!("--no-collector.{name}"));
        assert_eq!(layers(&[&on, &off]).overrides[0].1, Value::from(false));
        assert_eq!(layers(&[&off, &on]).overrides[0].1, Value::from(true));
        assert!(layers(&[]).overrides.is_empty());
    }

    #[test]
    fn flags_may_stand_before_and_after_the_command() {
        for arguments in [["--web.max-requests=7", "check"], ["check", "--web.max-requests=7"]] {
            let flags = layers(&arguments);
            assert_eq!(flags.overrides, [("web.max_requests".to_owned(), Value::from(7u64))]);
        }
    }

    #[test]
    fn every_probe_with_metrics_has_its_switch() {
        let command = command();
        for probe in kpulse_exporter_ebpf::probes::ALL.iter().filter(|probe| !probe.metrics.is_empty()) {
            let flag = format!("collector.{}", probe.name);
            assert!(command.get_arguments().any(|arg| arg.get_long() == Some(&flag)), "{flag}");
        }
    }
}
