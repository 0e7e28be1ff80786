//! Delimited `io.prometheus.client.MetricFamily` messages, through `prometheus-client`.
//!
//! The only format that carries native histograms; each histogram also has its classic buckets, since the server
//! decides which of the two it stores.

use super::registry::{Help, registry};
use crate::metric::Samples;
use prometheus_client::encoding::prometheus_protobuf::{self, EncodeError};

/// Writes all families, each behind its length.
///
/// # Errors
/// When a value cannot be written.
pub fn encode_owned(samples: Samples) -> Result<Vec<u8>, EncodeError> {
    prometheus_protobuf::encode_to_vec(&registry(samples, Help::Verbatim))
}

#[cfg(test)]
mod tests;
