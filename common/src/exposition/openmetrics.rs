//! OpenMetrics 1.0, through `prometheus-client`.

use super::registry::{Help, registry};
use crate::metric::Samples;
use prometheus_client::encoding::text;
use std::fmt;

/// Writes all families, with `# EOF` at the end.
///
/// # Errors
/// When a value cannot be written; the formatter gives no reason.
pub fn encode(samples: &Samples) -> Result<String, fmt::Error> {
    encode_owned(samples.clone())
}

/// As [`encode`], without the copy that a registry needs.
///
/// # Errors
/// As [`encode`].
pub fn encode_owned(samples: Samples) -> Result<String, fmt::Error> {
    let mut out = String::new();
    text::encode(&mut out, &registry(samples, Help::Escaped))?;
    Ok(out)
}
