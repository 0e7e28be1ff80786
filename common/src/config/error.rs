//! What is wrong with a configuration, each as one sentence.

use std::fmt;
use std::path::PathBuf;

/// The layer that a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file given by `--config.file`.
    File(PathBuf),
    /// One environment variable.
    Environment(String),
    /// One command-line flag.
    Flag(String),
    /// The program's own default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(out, "the file {}", path.display()),
            Self::Environment(name) => write!(out, "the environment variable {name}"),
            Self::Flag(name) => write!(out, "the flag {name}"),
            Self::Default => out.write_str("the defaults"),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("the configuration file {} is not valid YAML: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        why: String,
    },
    /// No such key.
    #[error("unknown configuration key `{key}` in {origin}; the nearest known key is `{nearest}`")]
    UnknownKey {
        /// The key as it was written, with dots between levels.
        key: String,
        /// Where it was written.
        origin: Origin,
        /// The known key that is most like it.
        nearest: String,
    },
    /// The key is known, its value is not acceptable.
    #[error("configuration key `{key}` in {origin} is {value}, but {why}")]
    Value {
        /// The key, with dots between levels.
        key: String,
        /// Where the value was written.
        origin: Origin,
        /// The value as it was written.
        value: String,
        /// What would be acceptable.
        why: String,
    },
    /// Refused by the program that uses the configuration.
    #[error("configuration key `{key}`: {why}")]
    Refused {
        /// The key, with dots between levels.
        key: String,
        /// What is wrong and what helps.
        why: String,
    },
    /// Anything else, as the `config` crate says it.
    #[error("the configuration cannot be read: {0}")]
    Other(String),
}
