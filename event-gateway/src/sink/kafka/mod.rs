//! Kafka: how it is reached, and the records that events are there.

mod admin;
mod client;
mod config;
mod headers;
mod producer;

pub use admin::create_topics;
pub use client::Health;
pub use config::{KafkaConfig, Role, refused};
pub use headers::{Headers, Refusal, known_id, original, topic_of_dead_letter};
pub use producer::{Producer, ProducerCounts};
