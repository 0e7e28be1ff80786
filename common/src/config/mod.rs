//! Which configuration does this process run with?
//!
//! Four layers, later ones win: the type's own defaults, a YAML file, environment variables, flags. The defaults
//! are also the list of known keys: a key that they do not show is refused, with the nearest one that they do.

mod check;
mod error;
mod layer;

pub use ::config::Value;
pub use error::{ConfigError, Origin};

use layer::Layer;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Where the layers come from; later ones win: `T::default()` < file < environment < overrides (flags).
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The file of `--config.file`; it must exist.
    pub file: Option<PathBuf>,
    /// `KPULSE_EXPORTER` reads `KPULSE_EXPORTER__WEB__MAX_REQUESTS` into `web.max_requests`.
    pub environment_prefix: &'static str,
    /// Values of flags by dotted key, as `("web.max_requests", 40.into())`.
    pub overrides: Vec<(String, Value)>,
}

/// Reads all layers into one configuration.
///
/// `T` has `#[serde(default, deny_unknown_fields)]` on every level. A map that is empty by default takes any key;
/// a map with entries takes those keys only.
///
/// # Errors
/// The first thing that is wrong, as one sentence that names the key and its layer.
pub fn load<T>(layers: &Layers) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned + Default,
{
    load_over(&T::default(), layers)
}

/// As [`load`], over defaults that are not the type's own.
///
/// # Errors
/// As [`load`].
pub fn load_over<T>(defaults: &T, layers: &Layers) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned,
{
    let variables = std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value)));
    load_from(defaults, layers, variables)
}

fn load_from<T>(
    defaults: &T,
    layers: &Layers,
    environment: impl Iterator<Item = (String, OsString)>,
) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned,
{
    let known = serde_json::to_value(defaults).map_err(|error| ConfigError::Other(error.to_string()))?;
    let mut read = Vec::new();
    if let Some(path) = &layers.file {
        read.push(Layer::file(path)?);
    }
    read.extend(Layer::environment(layers.environment_prefix, environment)?);
    read.extend(layers.overrides.iter().map(|(key, value)| Layer::flag(key, value)));
    for layer in &mut read {
        check::table(&mut layer.values, &known, &layer.origin)?;
    }
    let mut builder = ::config::Config::builder().add_source(Layer::defaults(&known));
    for layer in &read {
        builder = builder.add_source(layer.clone());
    }
    builder.build().and_then(::config::Config::try_deserialize).map_err(|error| explain(&error, &read))
}

/// The keys whose values differ between two configurations. Values are left out: one may be a secret.
pub fn changed_keys<T: Serialize>(old: &T, new: &T) -> Vec<String> {
    let leaves = |config: &T| -> BTreeMap<String, String> {
        let value = serde_json::to_value(config).unwrap_or_default();
        check::leaves(&value).into_iter().map(|(key, value)| (key, value.to_string())).collect()
    };
    let (old, new) = (leaves(old), leaves(new));
    let mut keys: Vec<_> =
        old.keys().chain(new.keys()).filter(|key| old.get(*key) != new.get(*key)).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter().cloned().collect()
}

/// Turns an error of the `config` crate, which knows the key but not the layer, into ours.
fn explain(error: &::config::ConfigError, layers: &[Layer]) -> ConfigError {
    use ::config::ConfigError as E;
    let (key, why) = match error {
        E::At { error, key: Some(key), .. } => (key.clone(), format!("it is not valid: {error}")),
        E::Type { key: Some(key), expected, .. } => (key.clone(), format!("{expected} is expected")),
        other => return ConfigError::Other(one_line(&other.to_string())),
    };
    let written = layers.iter().rev().find_map(|layer| Some((&layer.origin, layer.get(&key)?)));
    let (origin, value) = match written {
        Some((origin, value)) => (origin.clone(), check::show(value)),
        None => (Origin::Default, "not valid".to_owned()),
    };
    let why = if value.starts_with("\"-") { "it must not be negative".to_owned() } else { one_line(&why) };
    ConfigError::Value { key, origin, value, why }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
