//! Which configuration does the profiler run with? Defaults, file, environment, flags.

use kpulse_common::cli::{CommonFlags, Usage};
use kpulse_common::config::{self, Layers, Value};
use kpulse_common::logging::Log;
use kpulse_common::paths::Paths;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

/// Less is used up by what the file has beside windows.
const HISTORY_BYTES_MIN: u64 = 16 << 20;

/// Two periods of a few files.
const FILES_BYTES_MIN: u64 = 256 << 10;
/// Each is a file that is synced to the disk.
const FILES_NAMES_MAX: usize = 1000;

/// Everything that can be set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How samples are taken.
    pub sample: Sampling,
    /// What `serve` keeps.
    pub history: Kept,
    /// Metrics and health.
    pub web: Web,
    /// Profiles and the page.
    pub api: Api,
    /// Where the windows of the history go as they close.
    pub upload: Upload,
    /// Where they are written as folded files.
    pub files: Files,
    /// Log lines.
    pub log: Log,
    /// Where the kernel's file systems are mounted.
    pub path: Paths,
}

/// The `sample:` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Samples a second on each CPU; 99 does not run in step with timers at 100 Hz.
    pub hz: u64,
    /// How often samples leave the kernel: a process that lives shorter than this may end before it is named.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Sampling {
    /// CPU time that a sample stands for.
    pub fn period(&self) -> Duration {
        Duration::from_secs(1) / u32::try_from(self.hz).unwrap_or(u32::MAX).max(1)
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { hz: 99, interval: Duration::from_secs(1) }
    }
}

/// The `history:` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kept {
    /// Length of one window, the finest grain of a past profile.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// Age at which a window goes: a day covers last night's incident.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// Bytes on disk above which the oldest windows go.
    pub max_bytes: u64,
}

impl Default for Kept {
    fn default() -> Self {
        let max_age = Duration::from_secs(24 * 3600);
        Self { window: Duration::from_secs(10), max_age, max_bytes: 1 << 30 }
    }
}

/// The `web:` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Web {
    /// Address of metrics and health.
    pub listen_address: String,
    /// TLS, users, headers and a rate limit of that address, in exporter-toolkit's format; empty for none.
    pub config_file: PathBuf,
}

impl Default for Web {
    fn default() -> Self {
        Self { listen_address: ":10842".into(), config_file: PathBuf::new() }
    }
}

/// The `api:` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Address of profiles and the page; a loopback address, since whoever may ask sees every program's names.
    pub listen_address: String,
}

impl Default for Api {
    fn default() -> Self {
        Self { listen_address: "127.0.0.1:10852".into() }
    }
}

/// The `upload:` block.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upload {
    /// Address of a store of profiles, `http://` or `https://`; empty for none.
    pub url: String,
    /// What the store understands.
    pub form: UploadForm,
    /// How long the store may take for an answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Headers of every request, such as a tenant's `X-Scope-OrgID`.
    pub headers: BTreeMap<String, String>,
    /// User, where there is no token.
    pub username: String,
    /// File with the user's password.
    pub password_file: PathBuf,
    /// File with a bearer token; read anew for each request, since tokens are replaced.
    pub bearer_token_file: PathBuf,
    /// Certificates (PEM) that are trusted instead of those of this machine.
    pub ca_file: PathBuf,
    /// Certificate (PEM) that this client shows.
    pub certificate_file: PathBuf,
    /// Its key (PEM).
    pub key_file: PathBuf,
}

impl Default for Upload {
    fn default() -> Self {
        Self {
            url: String::new(),
            form: UploadForm::PyroscopePush,
            timeout: Duration::from_secs(10),
            headers: BTreeMap::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            bearer_token_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            certificate_file: PathBuf::new(),
            key_file: PathBuf::new(),
        }
    }
}

/// Without headers, which may hold secrets.
impl fmt::Debug for Upload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, form, timeout, .. } = self;
        let mut debug = formatter.debug_struct("Upload");
        debug.field("url", url).field("form", form).field("timeout", timeout).finish_non_exhaustive()
    }
}

/// What a store of profiles understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UploadForm {
    /// Pyroscope's `/ingest`, folded.
    Pyroscope,
    /// Pyroscope's `push.v1`, pprof.
    PyroscopePush,
    /// OTLP profiles over HTTP, `v1development`.
    Otlp,
    /// Parca's `WriteRaw` over HTTP, pprof.
    Parca,
    /// `kpulse-event-gateway forward` on this machine, documents with folded stacks for Kafka and Elasticsearch.
    Gateway,
}

/// The `files:` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Files {
    /// Directory of the files; empty for none.
    pub directory: PathBuf,
    /// What one file covers.
    #[serde(with = "humantime_serde")]
    pub period: Duration,
    /// Age at which a file goes.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// Bytes on disk above which the oldest files go.
    pub max_bytes: u64,
    /// Containers, and processes, that have a file of their own in one period: those that ran most.
    pub max_names: usize,
}

impl Default for Files {
    fn default() -> Self {
        let (period, max_age) = (Duration::from_secs(300), Duration::from_secs(24 * 3600));
        Self { directory: PathBuf::new(), period, max_age, max_bytes: 1 << 30, max_names: 64 }
    }
}

/// Flags of both subcommands.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub struct SampleFlags {
    /// Samples a second on each CPU [default: 99]
    #[arg(long = "sample.hz", value_name = "HZ", global = true)]
    pub hz: Option<u64>,
    /// How often samples leave the kernel [default: 1s]
    #[arg(long = "sample.interval", value_name = "DURATION", global = true)]
    pub interval: Option<String>,
}

/// Flags of `serve`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ServeFlags {
    /// Length of one window of the history [default: 10s]
    #[arg(long = "history.window", value_name = "DURATION")]
    pub window: Option<String>,
    /// Age at which a window goes [default: 24h]
    #[arg(long = "history.max-age", value_name = "DURATION")]
    pub max_age: Option<String>,
    /// Bytes on disk above which the oldest windows go [default: 1 GiB]
    #[arg(long = "history.max-bytes", value_name = "BYTES")]
    pub max_bytes: Option<u64>,
    /// Address of metrics and health [default: :10842]
    #[arg(long = "web.listen-address", value_name = "ADDRESS")]
    pub web: Option<String>,
    /// File with TLS, users, headers and a rate limit of that address, in exporter-toolkit's format
    #[arg(long = "web.config.file", value_name = "FILE")]
    pub web_config_file: Option<String>,
    /// Address of profiles and the page, loopback only [default: 127.0.0.1:10852]
    #[arg(long = "api.listen-address", value_name = "ADDRESS")]
    pub api: Option<String>,
    /// Address of a store of profiles that gets every window
    #[arg(long = "upload.url", value_name = "URL")]
    pub upload_url: Option<String>,
    /// What the store understands: pyroscope, pyroscope-push, otlp, parca or gateway [default: pyroscope-push]
    #[arg(long = "upload.form", value_name = "FORM")]
    pub upload_form: Option<String>,
    /// Directory that gets folded files of every period, for the host and for containers and processes
    #[arg(long = "files.directory", value_name = "DIRECTORY")]
    pub files_directory: Option<String>,
    /// What one file covers, a whole multiple of --history.window [default: 5m]
    #[arg(long = "files.period", value_name = "DURATION")]
    pub files_period: Option<String>,
    /// Age at which a file goes [default: 24h]
    #[arg(long = "files.max-age", value_name = "DURATION")]
    pub files_max_age: Option<String>,
    /// Bytes on disk above which the oldest files go [default: 1 GiB]
    #[arg(long = "files.max-bytes", value_name = "BYTES")]
    pub files_max_bytes: Option<u64>,
    /// Containers, and processes, that have a file of their own in one period [default: 64]
    #[arg(long = "files.max-names", value_name = "N")]
    pub files_max_names: Option<u64>,
}

/// Reads all layers and refuses what cannot work.
pub fn load(common: &CommonFlags, sample: &SampleFlags, serve: &ServeFlags) -> anyhow::Result<Config> {
    let text = |value: &Option<String>| value.as_ref().map(|value| Value::new(None, value.as_str()));
    let number = |value: Option<u64>| value.map(|value| Value::new(None, value));
    let given = [
        ("sample.hz", number(sample.hz)),
        ("sample.interval", text(&sample.interval)),
        ("history.window", text(&serve.window)),
        ("history.max_age", text(&serve.max_age)),
        ("history.max_bytes", number(serve.max_bytes)),
        ("web.listen_address", text(&serve.web)),
        ("web.config_file", text(&serve.web_config_file)),
        ("api.listen_address", text(&serve.api)),
        ("upload.url", text(&serve.upload_url)),
        ("upload.form", text(&serve.upload_form)),
        ("files.directory", text(&serve.files_directory)),
        ("files.period", text(&serve.files_period)),
        ("files.max_age", text(&serve.files_max_age)),
        ("files.max_bytes", number(serve.files_max_bytes)),
        ("files.max_names", number(serve.files_max_names)),
    ];
    let mut overrides = common.overrides();
    overrides.extend(given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    let environment_prefix = "KPULSE_PROFILER";
    let config = config::load(&Layers { file: common.config_file.clone(), environment_prefix, overrides })?;
    check(&config)?;
    Ok(config)
}

fn check(config: &Config) -> Result<(), Usage> {
    let refuse = |sentence: String| Err(Usage(sentence));
    let Sampling { hz, interval } = config.sample;
    if !(1..=1000).contains(&hz) {
        return refuse(format!(
            "sample.hz is {hz}: a CPU is sampled 1 to 1000 times a second; 99 is a good choice"
        ));
    }
    if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&interval) {
        let given = humantime::format_duration(interval);
        return refuse(format!(
            "sample.interval is {given}: it must be between 100ms and 1m; 1s is a good choice"
        ));
    }
    let kept = &config.history;
    if kept.window < interval || kept.window > kept.max_age {
        let [window, age, interval] = [kept.window, kept.max_age, interval].map(humantime::format_duration);
        return refuse(format!(
            "history.window is {window}: it must lie between sample.interval ({interval}) and history.max_age ({age})"
        ));
    }
    if kept.max_bytes < HISTORY_BYTES_MIN {
        let least = HISTORY_BYTES_MIN >> 20;
        return refuse(format!("history.max_bytes is {}: it must be at least {least} MiB", kept.max_bytes));
    }
    if config.files.directory.as_os_str().is_empty() { Ok(()) } else { check_files(&config.files, kept) }
}

fn check_files(files: &Files, kept: &Kept) -> Result<(), Usage> {
    let refuse = |sentence: String| Err(Usage(sentence));
    let Files { period, max_age, max_bytes, max_names, .. } = *files;
    let [length, window, age, history] =
        [period, kept.window, max_age, kept.max_age].map(humantime::format_duration);
    let is_multiple = period.as_nanos() % kept.window.as_nanos() == 0 && period.subsec_nanos() == 0;
    if period.is_zero() || !is_multiple {
        return refuse(format!(
            "files.period is {length}: it must be whole seconds and a whole multiple of history.window ({window})"
        ));
    }
    if period > kept.max_age {
        return refuse(format!(
            "files.period is {length}: its windows must be kept until it is over, and history.max_age is {history}"
        ));
    }
    if max_age < period {
        return refuse(format!("files.max_age is {age}: it must not be less than files.period ({length})"));
    }
    if max_bytes < FILES_BYTES_MIN {
        return refuse(format!("files.max_bytes is {max_bytes}: it must be at least {FILES_BYTES_MIN}"));
    }
    if max_names > FILES_NAMES_MAX {
        return refuse(format!("files.max_names is {max_names}: it must be at most {FILES_NAMES_MAX}"));
    }
    Ok(())
}

/// Refuses an address of the API that others than this machine can reach.
pub fn check_loopback(address: &str) -> anyhow::Result<()> {
    let refused = || {
        Usage(format!(
            "the address {address:?} of --api.listen-address can be reached from other machines, and profiles show \
             every program's names: choose a loopback address such as 127.0.0.1:10852"
        ))
    };
    if address.starts_with(':') {
        return Err(refused().into());
    }
    let resolved = address.to_socket_addrs().map_err(|error| {
        Usage(format!("the address {address:?} of --api.listen-address cannot be used: {error}; write for example \"127.0.0.1:10852\""))
    });
    let addresses: Vec<SocketAddr> = resolved?.collect();
    if addresses.iter().all(|address| address.ip().is_loopback()) { Ok(()) } else { Err(refused().into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_accepted_and_written_as_they_are_read() {
        check(&Config::default()).unwrap();
        let text = serde_json::to_value(Config::default()).unwrap();
        assert_eq!(text["history"]["max_age"], "1day");
        assert_eq!(serde_json::from_value::<Config>(text).unwrap(), Config::default());
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        let mut config = Config::default();
        config.sample.hz = 0;
        assert!(check(&config).unwrap_err().to_string().starts_with("sample.hz is 0"));
        config = Config::default();
        config.history.window = Duration::from_secs(7200);
        config.history.max_age = Duration::from_secs(3600);
        assert!(check(&config).unwrap_err().to_string().contains("history.window is 2h"));
        let second = Duration::from_secs(1);
        for (files, sentence) in [
            (Files { period: 25 * second, ..Files::default() }, "files.period is 25s"),
            (Files { period: 86_410 * second, ..Files::default() }, "history.max_age is 1day"),
            (Files { max_age: second, ..Files::default() }, "files.max_age is 1s"),
            (Files { max_bytes: 9, ..Files::default() }, "files.max_bytes is 9"),
            (Files { max_names: 1001, ..Files::default() }, "files.max_names is 1001"),
        ] {
            config = Config { files, ..Config::default() };
            check(&config).unwrap();
            config.files.directory = "/somewhere".into();
            let refused = check(&config).unwrap_err().to_string();
            assert!(refused.contains(sentence), "{refused}");
        }
    }

    #[test]
    fn only_loopback_serves_profiles() {
        for good in ["127.0.0.1:0", "[::1]:10852", "127.8.8.8:1"] {
            check_loopback(good).unwrap();
        }
        for bad in [":10852", "0.0.0.0:10852", "[::]:10852", "192.0.2.1:10852", "nonsense"] {
            let error = check_loopback(bad).unwrap_err();
            assert_eq!(kpulse_common::cli::exit_code(&error), 2, "{bad}");
        }
    }
}
