//! The YAML of the web configuration, with exporter-toolkit's keys; an unknown key is an error there and here.

use super::Settings;
use super::limit::Limiter;
use super::tls::TlsServerConfig;
use super::users::Users;
use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Configurations, certificates and keys are small; anything larger is a mistaken path.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// A longer wait between two requests is a mistake.
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WebFile {
    tls_server_config: TlsServerConfig,
    http_server_config: HttpServerConfig,
    rate_limit: RateLimit,
    basic_auth_users: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HttpServerConfig {
    /// Known so that shared files are read; the protocol is always HTTP/1.1, which every client speaks.
    #[serde(rename = "http2")]
    _http2: Option<bool>,
    headers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RateLimit {
    /// `0`, or a duration such as `1s`.
    interval: Option<Interval>,
    burst: u32,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Interval {
    Nanoseconds(u64),
    Text(String),
}

pub(super) fn read(path: &Path) -> Result<Settings, String> {
    let bytes = read_bounded(path).map_err(|why| format!("it cannot be read: {why}"))?;
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let is_empty = text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---"
    });
    let file: WebFile = if is_empty {
        WebFile::default()
    } else {
        serde_yaml_ng::from_str(&text).map_err(|error| format!("it is not valid: {error}"))?
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut files = vec![path.to_owned()];
    files.extend(file.tls_server_config.files(folder));
    let tls =
        file.tls_server_config.is_enabled().then(|| file.tls_server_config.build(folder)).transpose()?;
    Ok(Settings {
        tls,
        headers: headers(&file.http_server_config.headers)?,
        limiter: limiter(&file.rate_limit)?,
        users: Users::new(file.basic_auth_users)?,
        files,
    })
}

/// The whole of a small file.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, String> {
    // A pipe must not block the server until somebody writes to it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| error.to_string())?;
    if !file.metadata().is_ok_and(|found| found.is_file()) {
        return Err("it is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

/// The five headers that the format allows; an empty value sets none.
fn headers(given: &BTreeMap<String, String>) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut headers = Vec::new();
    for (name, value) in given {
        let allowed: &[&str] = match name.as_str() {
            "Strict-Transport-Security" | "X-XSS-Protection" | "Content-Security-Policy" => &[],
            "X-Content-Type-Options" => &["nosniff"],
            "X-Frame-Options" => &["deny", "sameorigin"],
            _ => return Err(format!("the header {name:?} cannot be configured")),
        };
        if value.is_empty() {
            continue;
        }
        if !allowed.is_empty() && !allowed.contains(&value.as_str()) {
            return Err(format!("the header {name} is {value:?}, which is none of {allowed:?}"));
        }
        let wrong = || format!("the header {name} has the value {value:?}, which no header can have");
        let value = HeaderValue::from_str(value).map_err(|_| wrong())?;
        headers.push((HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?, value));
    }
    Ok(headers)
}

fn limiter(given: &RateLimit) -> Result<Option<Limiter>, String> {
    let interval = match &given.interval {
        None => return Ok(None),
        Some(Interval::Nanoseconds(number)) => Duration::from_nanos(*number),
        Some(Interval::Text(text)) => humantime::parse_duration(text)
            .map_err(|_| format!("rate_limit.interval is {text:?}, which is no duration such as \"1s\""))?,
    };
    if interval.is_zero() {
        return Ok(None);
    }
    if interval > INTERVAL_MAX {
        return Err("rate_limit.interval is more than a day".to_owned());
    }
    if given.burst == 0 {
        return Err(
            "rate_limit.burst is 0, with which no request would ever be answered; 1 is the least".to_owned()
        );
    }
    Ok(Some(Limiter::new(interval, given.burst)))
}
