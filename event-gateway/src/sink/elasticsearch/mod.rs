//! Elasticsearch and OpenSearch: how they are reached, and how many events at once become documents there.

mod bulk;
mod client;
mod config;

pub use bulk::{Batch, Outcome, Partition, Place, Request, judge};
pub use client::Client;
pub use config::{Decode, ElasticsearchConfig};
