//! By what does a store know us, and by what do we know the store?

use crate::config::Upload;
use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use kpulse_common::http::client::{self, Identity, secret};
use rustls::ClientConfig;

/// The store is verified always.
pub fn tls(config: &Upload) -> anyhow::Result<ClientConfig> {
    let Upload { ca_file, certificate_file, key_file, .. } = config;
    if certificate_file.as_os_str().is_empty() != key_file.as_os_str().is_empty() {
        bail!("upload.certificate_file and upload.key_file belong together");
    }
    client::tls(Identity { ca_file, certificate_file, key_file }).context("upload.url is https")
}

/// The headers that are configured, and who we are.
pub fn headers(config: &Upload) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in &config.headers {
        let bad = || format!("{name:?} in upload.headers is no header with a plain value");
        let name: HeaderName = name.parse().with_context(bad)?;
        headers.insert(name, sensitive(value).with_context(bad)?);
    }
    let authorization = if !config.bearer_token_file.as_os_str().is_empty() {
        format!("Bearer {}", secret(&config.bearer_token_file)?)
    } else if !config.username.is_empty() {
        let password = match config.password_file.as_os_str() {
            none if none.is_empty() => String::new(),
            _ => secret(&config.password_file)?,
        };
        format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{password}", config.username)))
    } else {
        return Ok(headers);
    };
    headers
        .insert(AUTHORIZATION, sensitive(&authorization).context("the secret of upload is not plain text")?);
    Ok(headers)
}

fn sensitive(text: &str) -> anyhow::Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_before_a_user_and_is_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "s3cret\n").unwrap();
        let mut config = Upload { username: "me".into(), password_file: file.clone(), ..Upload::default() };
        config.headers.insert("X-Scope-OrgID".into(), "team".into());
        let text = |config: &Upload, name: &str| headers(config).unwrap()[name].to_str().unwrap().to_owned();
        assert_eq!(text(&config, "authorization"), "Basic bWU6czNjcmV0");
        assert_eq!(text(&config, "x-scope-orgid"), "team");
        config.bearer_token_file = file.clone();
        assert_eq!(text(&config, "authorization"), "Bearer s3cret");
        std::fs::write(&file, "other").unwrap();
        assert_eq!(text(&config, "authorization"), "Bearer other");
        std::fs::remove_file(&file).unwrap();
        assert!(format!("{:#}", headers(&config).unwrap_err()).contains("secret"));
        assert!(
            !format!(
                "{config:?} {:?}",
                headers(&Upload { bearer_token_file: "".into(), password_file: "".into(), ..config.clone() })
                    .unwrap()
            )
            .contains("team")
        );
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let with = |name: &str, value: &str| {
            let headers = [(name.to_owned(), value.to_owned())].into();
            super::headers(&Upload { headers, ..Upload::default() })
        };
        assert!(with("a b", "c").is_err() && with("a", "c\nd").is_err() && with("a", "c").is_ok());
        let half = Upload { key_file: "key".into(), ..Upload::default() };
        assert!(tls(&half).unwrap_err().to_string().contains("belong together"));
    }
}
