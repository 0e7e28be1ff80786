//! The gateway's configuration: one YAML file, `KPULSE_GATEWAY__…` variables, and flags.

use crate::policies::Override;
use crate::sink::elasticsearch::ElasticsearchConfig;
use crate::sink::kafka::KafkaConfig;
use crate::sink::local::Retention;
use crate::spool::Capacity;
use crate::spool::disk::Bounds;
use crate::watch;
use anyhow::Result;
use kpulse_common::cli::{CommonFlags, Usage};
use kpulse_common::config::{self, Layers, Value};
use kpulse_common::governor::Governor;
use kpulse_common::logging::Log;
use kpulse_common::paths::Paths;
use kpulse_common::thresholds::Thresholds;
use kpulse_exporter_ebpf::{LoadOptions, Probe, Want, probes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::Duration;

/// Where the API of `run` is unless it is told another place.
const API_ADDRESS: &str = "127.0.0.1:10851";
/// Least size of the store: below it SQLite's own pages dominate.
const STORE_BYTES_MIN: u64 = 1 << 20;
/// Least size of the spool: room for one chunk.
const SPOOL_BYTES_MIN: u64 = 1 << 20;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How it logs.
    pub log: Log,
    /// Where the host's file systems are mounted.
    pub path: Paths,
    /// Metrics and health.
    pub web: Web,
    /// Events and the page of `run`; profiles for `forward`.
    pub api: Api,
    /// Which probes run; by default all but those that cost more than most want to pay.
    pub probes: BTreeMap<String, bool>,
    /// From which values events are told.
    pub thresholds: Thresholds,
    /// Other thresholds for single containers and cgroups, by any name; of two that fit, the first by name counts.
    pub overrides: BTreeMap<String, Override>,
    /// What the probes may cost.
    pub governor: Governor,
    /// Where events go.
    pub output: Output,
    /// Where Kafka is, for `forward`, `index`, `setup` and `replay-dead-letters`.
    pub kafka: KafkaConfig,
    /// Where Elasticsearch or OpenSearch is, for `index` and `setup`.
    pub elasticsearch: ElasticsearchConfig,
    /// Labels that go into every event.
    pub labels: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log: Log::default(),
            path: Paths::default(),
            web: Web::default(),
            api: Api::default(),
            probes: probe_names().map(|name| (name.to_owned(), is_default(name))).collect(),
            thresholds: Thresholds::default(),
            overrides: BTreeMap::new(),
            governor: Governor::default(),
            output: Output::default(),
            kafka: KafkaConfig::default(),
            elasticsearch: ElasticsearchConfig::default(),
            labels: BTreeMap::new(),
        }
    }
}

/// Metrics and health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Web {
    /// Address of `/metrics`, `/probes` and health.
    pub listen_address: String,
    /// TLS, users, headers and a rate limit of that address, in exporter-toolkit's format; empty for none.
    pub config_file: PathBuf,
}

impl Default for Web {
    fn default() -> Self {
        Self { listen_address: ":10841".to_owned(), config_file: PathBuf::new() }
    }
}

/// Events and the page of `run`; profiles for `forward`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Address of the API, a loopback address; empty for 127.0.0.1:10851 of `run` and none of `forward`.
    pub listen_address: String,
}

impl Api {
    /// The address of `run`, which always has one.
    pub fn address(&self) -> &str {
        if self.listen_address.is_empty() { API_ADDRESS } else { &self.listen_address }
    }
}

/// Where events go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Output {
    /// What waits in memory when the store is slow or full.
    pub queue: Queue,
    /// The embedded store of `run`.
    pub local: Retention,
    /// What waits on disk for Kafka in `forward`.
    pub spool: Bounds,
}

/// What waits in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// Most events: a minute at the default rate limit of a busy cgroup.
    pub max_events: usize,
    /// Most bytes of JSON.
    pub max_bytes: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self { max_events: 8_192, max_bytes: 16 << 20 }
    }
}

impl Config {
    /// Reads and checks all layers.
    pub fn load(common: &CommonFlags, overrides: Vec<(String, Value)>) -> Result<Self> {
        let layers = Layers {
            file: common.config_file.clone(),
            environment_prefix: "KPULSE_GATEWAY",
            overrides: [common.overrides(), overrides].concat(),
        };
        let config: Self = config::load(&layers)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Usage> {
        let refuse = |key: &str, why: &str| Err(Usage(format!("the configuration's {key} {why}")));
        if self.output.queue.max_events == 0 {
            return refuse("output.queue.max_events", "must be at least 1");
        }
        if self.output.queue.max_bytes < 64 << 10 {
            return refuse("output.queue.max_bytes", "must be at least 65536, room for one large event");
        }
        if self.output.local.max_bytes < STORE_BYTES_MIN {
            return refuse("output.local.max_bytes", "must be at least 1048576");
        }
        if self.output.local.max_age < Duration::from_secs(60) {
            return refuse("output.local.max_age", "must be at least 1m");
        }
        if self.output.spool.max_bytes < SPOOL_BYTES_MIN {
            return refuse("output.spool.max_bytes", "must be at least 1048576");
        }
        if self.output.spool.max_age < Duration::from_secs(60) {
            return refuse("output.spool.max_age", "must be at least 1m");
        }
        for (block, checked) in [("kafka", self.kafka.check()), ("elasticsearch", self.elasticsearch.check())]
        {
            if let Err((key, why)) = checked {
                return refuse(&format!("{block}.{key}"), &why);
            }
        }
        if let Err((key, why)) = self.thresholds.check() {
            return refuse(&format!("thresholds.{key}"), why);
        }
        if let Err((key, why)) = self.governor.check() {
            return refuse(key, why);
        }
        for (name, own) in &self.overrides {
            if let Err(why) = own.resolve(&self.thresholds) {
                return refuse(&format!("overrides.{name}"), &why);
            }
        }
        check_loopback(&self.api.listen_address)
    }

    /// What the spool may hold.
    pub fn capacity(&self) -> Capacity {
        Capacity { events: self.output.queue.max_events, bytes: self.output.queue.max_bytes }
    }

    /// How the probes are loaded.
    pub fn load_options(&self) -> LoadOptions {
        let off = self.probes.iter().filter(|(_, is_on)| !**is_on);
        LoadOptions {
            thresholds: self.thresholds.clone(),
            want: Want::Events,
            disabled: off.map(|(name, _)| name.clone()).collect(),
            governor: self.governor.clone(),
            paths: self.path.clone(),
            ..LoadOptions::default()
        }
    }
}

/// The probes of BPF that tell events, or what names the processes in them.
pub fn event_probes() -> impl Iterator<Item = &'static Probe> {
    probes::ALL.iter().copied().filter(|probe| probe.offers(Want::Events))
}

/// Every probe that tells events, with BPF and without.
pub fn probe_names() -> impl Iterator<Item = &'static str> {
    event_probes().map(|probe| probe.name).chain(watch::ALL.iter().map(|watch| watch.kind.name))
}

/// Whether a probe runs unless the configuration says otherwise.
pub fn is_default(name: &str) -> bool {
    event_probes().find(|probe| probe.name == name).is_none_or(|probe| probe.is_default)
}

/// The API shows command lines and addresses and asks for no password, so it stays on this machine.
fn check_loopback(address: &str) -> Result<(), Usage> {
    let is_outside = match address.to_socket_addrs() {
        Ok(mut resolved) => resolved.any(|address| !address.ip().is_loopback()),
        // ":PORT" is every address; what does not parse at all is for bind to say.
        Err(_) => address.starts_with(':'),
    };
    if !is_outside {
        return Ok(());
    }
    Err(Usage(format!(
        "the address {address:?} of --api.listen-address is not a loopback address: the API has no authentication, \
         so it is not offered to other machines; use 127.0.0.1:10851 and an SSH tunnel"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_stays_on_this_machine() {
        for address in [
            "",
            API_ADDRESS,
            "127.0.0.1:0",
            "127.8.9.10:1",
            "[::1]:10851",
            "localhost:10851",
            "not an address",
        ] {
            assert!(check_loopback(address).is_ok(), "{address}");
        }
        for address in [":10851", "0.0.0.0:10851", "[::]:10851", "192.0.2.1:10851", "[::ffff:127.0.0.1]:1"] {
            assert!(check_loopback(address).is_err(), "{address}");
        }
    }

    #[test]
    fn the_defaults_are_allowed_and_every_event_probe_has_a_switch() {
        let config = Config::default();
        assert!(config.check().is_ok());
        assert_eq!(config.probes.len(), probe_names().count(), "no name twice");
        let off = event_probes().filter(|probe| !probe.is_default).map(|probe| probe.name);
        assert!(config.load_options().disabled.iter().eq(off), "{:?}", config.load_options().disabled);
    }

    #[test]
    fn bounds_of_zero_are_refused() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(refused(|config| config.output.queue.max_events = 0).contains("output.queue.max_events"));
        assert!(refused(|config| config.output.queue.max_bytes = 0).contains("output.queue.max_bytes"));
        assert!(refused(|config| config.output.local.max_bytes = 0).contains("output.local.max_bytes"));
        assert!(
            refused(|config| config.output.local.max_age = Duration::ZERO).contains("output.local.max_age")
        );
        let share = |config: &mut Config| config.thresholds.cpu_throttled.min_share = f64::NAN;
        assert!(refused(share).contains("thresholds.cpu_throttled.min_share"));
        let window = |config: &mut Config| config.thresholds.cpu_throttled.window = Duration::ZERO;
        assert!(refused(window).contains("thresholds.cpu_throttled.window"));
    }
}
