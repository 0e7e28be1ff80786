//! `tls_server_config`: the words of Go's crypto/tls as a configuration of rustls, with ring.

use super::clients::{AnyCertificate, NamedClients, signed_by};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::{ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The section of the file, with the names that it has there.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TlsServerConfig {
    cert: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    client_ca_file: Option<PathBuf>,
    client_auth_type: Option<String>,
    client_allowed_sans: Option<Vec<String>>,
    min_version: Option<String>,
    max_version: Option<String>,
    cipher_suites: Vec<String>,
    prefer_server_cipher_suites: Option<bool>,
    curve_preferences: Vec<String>,
}

/// Words of the format that mean something old, which rustls does not have.
const OLD_SUITES: [&str; 4] = [
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
];

impl TlsServerConfig {
    /// Whether anything says that connections are to be encrypted.
    pub fn is_enabled(&self) -> bool {
        let texts = [&self.cert, &self.key, &self.client_auth_type];
        let files = [&self.cert_file, &self.key_file, &self.client_ca_file];
        let has_text = texts.iter().any(|text| text.as_ref().is_some_and(|text| !text.is_empty()));
        let has_file = files.iter().any(|file| given(file.as_ref()).is_some());
        has_text || has_file || self.client_ca.as_ref().is_some_and(|text| !text.is_empty())
    }

    /// The files that it names.
    pub fn files(&self, folder: &Path) -> Vec<PathBuf> {
        let files = [&self.cert_file, &self.key_file, &self.client_ca_file];
        files.into_iter().filter_map(|file| given(file.as_ref())).map(|file| folder.join(file)).collect()
    }

    /// As rustls wants it; relative files are below `folder`.
    pub fn build(&self, folder: &Path) -> Result<Arc<ServerConfig>, String> {
        let certificates = pem(&self.cert, self.cert_file.as_ref(), folder, "cert")?
            .ok_or("tls_server_config needs cert_file or cert")?;
        let key = pem(&self.key, self.key_file.as_ref(), folder, "key")?
            .ok_or("tls_server_config needs key_file or key")?;
        let chain = certificates_of(&certificates)
            .map_err(|why| format!("the certificate of cert_file or cert {why}"))?;
        let key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|error| format!("the key of key_file or key cannot be read: {error}"))?;
        let versions = self.versions()?;
        let provider = Arc::new(self.provider(&versions)?);
        let verifier = self.verifier(folder, &provider)?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|error| format!("tls_server_config allows no connection at all: {error}"))?;
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| format!("the certificate and the key cannot be used together: {error}"))?;
        config.ignore_client_order = self.prefer_server_cipher_suites.unwrap_or(true);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// From TLS 1.2 on; a lower minimum is met by that too.
    fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>, String> {
        let number = |key: &str, word: Option<&str>, default: u8| match word {
            None | Some("") => Ok(default),
            Some("TLS13") => Ok(13),
            Some("TLS12") => Ok(12),
            Some("TLS11") => Ok(11),
            Some("TLS10") => Ok(10),
            Some(word) => Err(format!("{key} is {word:?}, which is none of TLS10, TLS11, TLS12, TLS13")),
        };
        let min = number("min_version", self.min_version.as_deref(), 12)?;
        let max = number("max_version", self.max_version.as_deref(), 13)?;
        if max < 12 {
            return Err(
                "max_version is older than TLS 1.2, which is the oldest that is served here".to_owned()
            );
        }
        let all = [(12, &rustls::version::TLS12), (13, &rustls::version::TLS13)];
        let versions = all.into_iter().filter(|(number, _)| (min..=max).contains(number));
        Ok(versions.map(|(_, version)| version).collect())
    }

    fn provider(&self, versions: &[&'static SupportedProtocolVersion]) -> Result<CryptoProvider, String> {
        let mut provider = ring::default_provider();
        if !self.cipher_suites.is_empty() {
            // The format's list is about TLS 1.2; the suites of 1.3 are all good and always there.
            let mut suites: Vec<SupportedCipherSuite> = ring::ALL_CIPHER_SUITES
                .iter()
                .copied()
                .filter(|suite| suite.version() == &rustls::version::TLS13)
                .collect();
            for word in &self.cipher_suites {
                match suite(word) {
                    Some(suite) if !suites.contains(&suite) => suites.push(suite),
                    Some(_) => {}
                    None if OLD_SUITES.contains(&word.as_str()) => {
                        tracing::warn!(
                            cipher_suite = word,
                            "cipher suites without forward-secure integrity are not served"
                        );
                    }
                    None => return Err(format!("cipher_suites holds {word:?}, which is not known")),
                }
            }
            provider.cipher_suites = suites;
        }
        if !versions.contains(&&rustls::version::TLS13) {
            provider.cipher_suites.retain(|suite| suite.version() == &rustls::version::TLS12);
        }
        if !self.curve_preferences.is_empty() {
            let mut groups: Vec<&'static dyn SupportedKxGroup> = Vec::new();
            for word in &self.curve_preferences {
                match word.as_str() {
                    "X25519" => groups.push(ring::kx_group::X25519),
                    "CurveP256" => groups.push(ring::kx_group::SECP256R1),
                    "CurveP384" => groups.push(ring::kx_group::SECP384R1),
                    "CurveP521" => tracing::warn!("CurveP521 is not served; the other curves are"),
                    _ => return Err(format!("curve_preferences holds {word:?}, which is not known")),
                }
            }
            if groups.is_empty() {
                return Err("curve_preferences holds no curve that is served here; X25519 is one".to_owned());
            }
            provider.kx_groups = groups;
        }
        Ok(provider)
    }

    fn verifier(
        &self,
        folder: &Path,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
        let authorities = pem(&self.client_ca, self.client_ca_file.as_ref(), folder, "client_ca")?;
        let verify = |optional: bool| {
            let authorities = authorities.as_ref().ok_or(
                "client_auth_type wants clients' certificates verified, which needs client_ca_file or client_ca",
            )?;
            signed_by(authorities, provider, optional)
        };
        let any = |required| Arc::new(AnyCertificate { required, provider: Arc::clone(provider) });
        let verifier: Arc<dyn ClientCertVerifier> = match self.client_auth_type.as_deref() {
            None | Some("" | "NoClientCert") if authorities.is_none() => return Ok(None),
            None | Some("" | "NoClientCert") => {
                return Err(
                    "client_ca or client_ca_file is given without a client_auth_type that uses it; RequireAndVerifyClientCert does"
                        .to_owned(),
                );
            }
            Some("RequestClientCert") => any(false),
            Some("RequireAnyClientCert" | "RequireClientCert") => any(true),
            Some("VerifyClientCertIfGiven") => verify(true)?,
            Some("RequireAndVerifyClientCert") => verify(false)?,
            Some(word) => return Err(format!("client_auth_type is {word:?}, which is not known")),
        };
        Ok(Some(match &self.client_allowed_sans {
            Some(allowed) => Arc::new(NamedClients { inner: verifier, allowed: allowed.clone() }),
            None => verifier,
        }))
    }
}

fn given(file: Option<&PathBuf>) -> Option<&PathBuf> {
    file.filter(|file| !file.as_os_str().is_empty())
}

/// What a file holds, or else what is written in the configuration itself.
fn pem(
    inline: &Option<String>,
    file: Option<&PathBuf>,
    folder: &Path,
    key: &str,
) -> Result<Option<Vec<u8>>, String> {
    if let Some(file) = given(file) {
        let path = folder.join(file);
        let read = super::file::read_bounded(&path);
        return read.map(Some).map_err(|why| format!("cannot read the {key}_file {}: {why}", path.display()));
    }
    Ok(inline.as_ref().filter(|text| !text.is_empty()).map(|text| text.as_bytes().to_vec()))
}

pub(super) fn certificates_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("holds no certificate in PEM".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// The suites of TLS 1.2 and 1.3 by Go's names.
fn suite(word: &str) -> Option<SupportedCipherSuite> {
    use rustls::crypto::ring::cipher_suite as suites;
    Some(match word {
        "TLS_AES_128_GCM_SHA256" => suites::TLS13_AES_128_GCM_SHA256,
        "TLS_AES_256_GCM_SHA384" => suites::TLS13_AES_256_GCM_SHA384,
        "TLS_CHACHA20_POLY1305_SHA256" => suites::TLS13_CHACHA20_POLY1305_SHA256,
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => {
            suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        _ => return None,
    })
}
