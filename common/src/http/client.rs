//! Whom does a client trust, and by what is it known itself?

use anyhow::{Context, Result, anyhow};
use hyper_rustls::ConfigBuilderExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;

/// Files in PEM; an empty path stands for none.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// Certificates that are trusted instead of those of this machine.
    pub ca_file: &'a Path,
    /// Certificate that the client shows.
    pub certificate_file: &'a Path,
    /// Its key.
    pub key_file: &'a Path,
}

/// Servers are verified always: by the given certificates, or by those of this machine.
pub fn tls(config: Identity<'_>) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = if config.ca_file.as_os_str().is_empty() {
        builder
            .with_native_roots()
            .context("this machine has no certificates to trust; name some by ca_file")?
    } else {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(config.ca_file)? {
            roots.add(certificate).with_context(|| cannot_use(config.ca_file))?;
        }
        builder.with_root_certificates(roots)
    };
    if config.certificate_file.as_os_str().is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let key = PrivateKeyDer::from_pem_file(config.key_file).with_context(|| cannot_use(config.key_file))?;
    builder
        .with_client_auth_cert(certificates(config.certificate_file)?, key)
        .with_context(|| cannot_use(config.certificate_file))
}

/// A secret without the end of its line.
pub fn secret(path: &Path) -> Result<String> {
    let read = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the secret in {}", path.display()))?;
    Ok(read.trim_end_matches(['\n', '\r']).to_owned())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).with_context(|| cannot_use(path))?.collect();
    let found = found.with_context(|| cannot_use(path))?;
    if found.is_empty() {
        Err(anyhow!("it holds no certificate").context(cannot_use(path)))
    } else {
        Ok(found)
    }
}

fn cannot_use(path: &Path) -> String {
    format!("cannot use the certificate or key in {}", path.display())
}
