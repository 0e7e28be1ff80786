//! How Elasticsearch is reached: the `elasticsearch` block of the configuration.

use crate::dataset::Dataset;
use anyhow::{Result, anyhow};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::Uri;
use hyper::header::HeaderValue;
use kpulse_common::cli::Usage;
use kpulse_common::http::client::{self, Identity};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How closely `index` looks at a record before it sends it on as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decode {
    /// Every field must have the type that the schema gives it.
    #[default]
    Typed,
    /// Its headers must tell its id and a known version; without them it must be JSON that does.
    Verbatim,
}

/// Where Elasticsearch or OpenSearch is and what it gets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ElasticsearchConfig {
    /// `https://host:9200`.
    pub url: String,
    /// Data stream of the events, `logs-kpulse.events-NAMESPACE`; that of profiles has the same namespace.
    pub data_stream: String,
    /// API key, as Elasticsearch shows it encoded.
    pub api_key: String,
    /// File that holds it.
    pub api_key_file: PathBuf,
    /// User, where there is no API key.
    pub username: String,
    /// The user's password.
    pub password: String,
    /// File that holds it.
    pub password_file: PathBuf,
    /// Certificates (PEM) that are trusted instead of those of this machine.
    pub ca_file: PathBuf,
    /// Certificate (PEM) that this client shows.
    pub certificate_file: PathBuf,
    /// Its key (PEM).
    pub key_file: PathBuf,
    /// How long one request may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Bytes of one bulk request.
    pub max_bulk_bytes: usize,
    /// Bulk requests at once; fewer while Elasticsearch has too much to do.
    pub max_in_flight: usize,
    /// How closely records are looked at.
    pub decode: Decode,
    /// Index lifecycle policy that `setup` names in the templates, and makes where there is none of the name; empty for
    /// none, as a cluster without lifecycles refuses one.
    pub lifecycle_policy: String,
    /// How long a policy that `setup` makes keeps documents.
    #[serde(with = "humantime_serde")]
    pub lifecycle_retention: Duration,
}

impl Default for ElasticsearchConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            data_stream: "logs-kpulse.events-default".to_owned(),
            api_key: String::new(),
            api_key_file: PathBuf::new(),
            username: String::new(),
            password: String::new(),
            password_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            certificate_file: PathBuf::new(),
            key_file: PathBuf::new(),
            timeout: Duration::from_secs(60),
            max_bulk_bytes: 1 << 20,
            max_in_flight: 4,
            decode: Decode::default(),
            lifecycle_policy: String::new(),
            lifecycle_retention: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// Without secrets.
impl fmt::Debug for ElasticsearchConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, data_stream, .. } = self;
        formatter
            .debug_struct("ElasticsearchConfig")
            .field("url", url)
            .field("data_stream", data_stream)
            .finish_non_exhaustive()
    }
}

impl ElasticsearchConfig {
    /// What is wrong with it, by key.
    pub fn check(&self) -> Result<(), (String, String)> {
        let refuse = |key: &str, why: &str| Err((key.to_owned(), why.to_owned()));
        if !self.url.is_empty() {
            let url = self.url.parse::<Uri>().ok().filter(|url| url.host().is_some());
            let Some(url) = url.filter(|url| matches!(url.scheme_str(), Some("http" | "https"))) else {
                return refuse("url", "must be like https://host:9200");
            };
            if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
                return refuse(
                    "url",
                    "must not hold a password; there are username and password_file for it",
                );
            }
        }
        let parts: Vec<_> = self.data_stream.splitn(3, '-').collect();
        let is_plain = self
            .data_stream
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "._-".contains(letter));
        if !is_plain
            || !matches!(parts.as_slice(), ["logs", "kpulse.events", namespace] if !namespace.is_empty())
        {
            return refuse("data_stream", "must be logs-kpulse.events-NAMESPACE, in small letters");
        }
        if !(1 << 10..=64 << 20).contains(&self.max_bulk_bytes) {
            return refuse("max_bulk_bytes", "must be from 1024 to 67108864");
        }
        if !(1..=64).contains(&self.max_in_flight) {
            return refuse("max_in_flight", "must be from 1 to 64");
        }
        if self.timeout < Duration::from_secs(1) {
            return refuse("timeout", "must be at least 1s");
        }
        if self.certificate_file.as_os_str().is_empty() != self.key_file.as_os_str().is_empty() {
            return refuse("key_file", "and certificate_file belong together");
        }
        Ok(())
    }

    /// The data stream of a dataset.
    pub fn data_stream_of(&self, dataset: Dataset) -> String {
        match dataset {
            Dataset::Events => self.data_stream.clone(),
            Dataset::Profiles => self.data_stream.replacen("kpulse.events", "kpulse.profiles", 1),
        }
    }

    /// The address, without a slash at its end.
    pub fn base(&self) -> Result<&str> {
        if self.url.is_empty() {
            return Err(Usage(
                "no Elasticsearch is configured: set elasticsearch.url, for example \
                 KPULSE_GATEWAY__ELASTICSEARCH__URL=https://elasticsearch:9200"
                    .to_owned(),
            )
            .into());
        }
        Ok(self.url.trim_end_matches('/'))
    }

    /// Whom to trust, and what to show.
    pub fn identity(&self) -> Identity<'_> {
        let Self { ca_file, certificate_file, key_file, .. } = self;
        Identity { ca_file, certificate_file, key_file }
    }

    /// The header that says who asks.
    pub fn authorization(&self) -> Result<Option<HeaderValue>> {
        let api_key = secret(&self.api_key, &self.api_key_file)?;
        let text = if !api_key.is_empty() {
            format!("ApiKey {api_key}")
        } else if !self.username.is_empty() {
            let password = secret(&self.password, &self.password_file)?;
            format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{password}", self.username)))
        } else {
            return Ok(None);
        };
        let mut header = HeaderValue::from_str(&text)
            .map_err(|_| anyhow!("the API key of Elasticsearch is not plain text"))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

/// A secret from its key, or else from its file.
fn secret(text: &str, file: &Path) -> Result<String> {
    if !text.is_empty() || file.as_os_str().is_empty() {
        return Ok(text.to_owned());
    }
    client::secret(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named() {
        let refused = |change: fn(&mut ElasticsearchConfig)| {
            let mut config = ElasticsearchConfig::default();
            change(&mut config);
            config.check().unwrap_err().0
        };
        assert_eq!(ElasticsearchConfig::default().check(), Ok(()));
        let profiles = ElasticsearchConfig::default().data_stream_of(Dataset::Profiles);
        assert_eq!(profiles, "logs-kpulse.profiles-default");
        assert_eq!(refused(|config| config.url = "localhost:9200".to_owned()), "url");
        assert_eq!(refused(|config| config.url = "http://me:secret@host".to_owned()), "url");
        assert_eq!(refused(|config| config.data_stream = "logs-Other-default".to_owned()), "data_stream");
        assert_eq!(refused(|config| config.max_in_flight = 0), "max_in_flight");
        assert_eq!(refused(|config| config.key_file = "key".into()), "key_file");
    }

    #[test]
    fn a_key_goes_before_a_user_and_a_file_may_hold_either() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        std::fs::write(&file, "s3cret\n").unwrap();
        let mut config = ElasticsearchConfig { username: "me".to_owned(), ..ElasticsearchConfig::default() };
        let text = |config: &ElasticsearchConfig| {
            config.authorization().unwrap().unwrap().to_str().unwrap().to_owned()
        };
        config.password_file = file.clone();
        assert_eq!(text(&config), "Basic bWU6czNjcmV0");
        config.api_key_file = file;
        assert_eq!(text(&config), "ApiKey s3cret");
        config.api_key_file = "/nonexistent".into();
        assert!(format!("{:#}", config.authorization().unwrap_err()).contains("/nonexistent"));
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
