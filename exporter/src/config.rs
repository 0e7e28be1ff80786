//! The configuration of the exporter: what the file, the environment and the flags can set.

use crate::collectors;
use crate::flags::Flags;
use kpulse_common::config::{self, ConfigError, Layers};
use kpulse_common::governor::Governor;
use kpulse_common::logging::Log;
use kpulse_common::paths::Paths;
use kpulse_common::thresholds::Thresholds;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// `KPULSE_EXPORTER__WEB__MAX_REQUESTS` sets `web.max_requests`.
pub const ENVIRONMENT_PREFIX: &str = "KPULSE_EXPORTER";

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is logged and how.
    pub log: Log,
    /// Where the kernel's file systems are mounted.
    pub path: Paths,
    /// Where and how metrics are served.
    pub web: Web,
    /// Which probes are loaded, by name.
    pub probes: BTreeMap<String, bool>,
    /// Which collectors without BPF run, by name.
    pub collectors: BTreeMap<String, bool>,
    /// Probes and collectors are off unless they are enabled by name.
    pub disable_defaults: bool,
    /// Thresholds of events; they do not change any metric.
    pub thresholds: Thresholds,
    /// Containers with series of their own; the rest share one.
    pub container_max: u32,
    /// What the probes may cost.
    pub governor: Governor,
}

/// The `web:` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Web {
    /// Addresses to serve on.
    pub listen_address: Vec<String>,
    /// Path of the metrics.
    pub telemetry_path: String,
    /// Requests answered at once; 0 is no bound.
    pub max_requests: usize,
    /// TLS, users, headers and a rate limit, in exporter-toolkit's format; empty for none.
    pub config_file: PathBuf,
    /// Serve the sockets that systemd passes, and none of our own.
    pub systemd_socket: bool,
    /// Leave out what tells of the exporter's process.
    pub disable_exporter_metrics: bool,
}

impl Default for Web {
    fn default() -> Self {
        Self {
            listen_address: vec![":10840".into()],
            telemetry_path: "/metrics".into(),
            max_requests: 40,
            config_file: PathBuf::new(),
            systemd_socket: false,
            disable_exporter_metrics: false,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::with_all(true)
    }
}

impl Config {
    fn with_all(is_enabled: bool) -> Self {
        Self {
            log: Log::default(),
            path: Paths::default(),
            web: Web::default(),
            probes: collectors::probes()
                .map(|probe| (probe.name.to_owned(), is_enabled && probe.is_default))
                .collect(),
            collectors: collectors::ALL
                .iter()
                .map(|collector| (collector.name.to_owned(), is_enabled && collector.is_default))
                .collect(),
            disable_defaults: !is_enabled,
            thresholds: Thresholds::default(),
            container_max: 512,
            governor: Governor::default(),
        }
    }

    /// Names of the probes that are switched off.
    pub fn disabled_probes(&self) -> BTreeSet<String> {
        self.probes.iter().filter(|(_, is_enabled)| !**is_enabled).map(|(name, _)| name.clone()).collect()
    }

    fn validate(self) -> Result<Self, ConfigError> {
        let refused = |key: &str, why: String| Err(ConfigError::Refused { key: key.to_owned(), why });
        let path = &self.web.telemetry_path;
        if !path.starts_with('/') || path.contains(['?', '#']) {
            return refused("web.telemetry_path", format!("{path:?} is not a path such as \"/metrics\""));
        }
        if path.starts_with("/-/") || path == "/probes" {
            return refused("web.telemetry_path", format!("{path:?} is taken by another endpoint"));
        }
        if self.web.listen_address.is_empty() && !self.web.systemd_socket {
            return refused(
                "web.listen_address",
                "at least one address is needed, such as \":10840\"".into(),
            );
        }
        if self.container_max == 0 {
            return refused("container_max", "at least 1 is needed".into());
        }
        if let Err((key, why)) = self.governor.check() {
            return refused(key, why.into());
        }
        Ok(self)
    }
}

/// The configuration of this command line.
pub fn load(flags: &Flags) -> Result<Config, ConfigError> {
    read(&flags.layers)
}

/// Reads all layers; a SIGHUP does so again.
pub fn read(layers: &Layers) -> Result<Config, ConfigError> {
    let config: Config = config::load(layers)?;
    let config =
        if config.disable_defaults { config::load_over(&Config::with_all(false), layers)? } else { config };
    config.validate()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_with(overrides: &[(&str, config::Value)]) -> Result<Config, ConfigError> {
        let overrides = overrides.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        read(&Layers { file: None, environment_prefix: "KPULSE_UNSET", overrides })
    }

    #[test]
    fn disable_defaults_keeps_what_is_enabled_by_name() {
        let config =
            read_with(&[("disable_defaults", true.into()), ("collectors.pressure", true.into())]).unwrap();
        assert!(config.probes.values().all(|is_enabled| !is_enabled));
        let enabled: Vec<_> = config.collectors.iter().filter(|(_, is_enabled)| **is_enabled).collect();
        assert_eq!(enabled, [(&"pressure".to_owned(), &true)]);
    }

    #[test]
    fn the_metrics_cannot_hide_another_endpoint() {
        for path in ["metrics", "/probes", "/-/ready", "/a?b", ""] {
            let error = read_with(&[("web.telemetry_path", path.into())]).unwrap_err();
            assert!(error.to_string().contains("web.telemetry_path"), "{error}");
        }
        assert!(read_with(&[("web.telemetry_path", "/".into())]).is_ok());
    }

    #[test]
    fn a_misspelt_probe_names_the_nearest_one() {
        let probe = collectors::probes().next().unwrap().name;
        let error = read_with(&[(&format!("probes.{probe}x"), false.into())]).unwrap_err();
        assert!(error.to_string().contains(&format!("`probes.{probe}`")), "{error}");
    }
}
