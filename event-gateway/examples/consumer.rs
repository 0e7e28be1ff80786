//! A consumer of events in a data pipeline: it chooses by the headers, holds each document against the JSON Schema, and
//! commits what it is through with.
//!
//!     cargo run -p kpulse-event-gateway --example consumer -- BROKERS TOPIC GROUP [RECORDS]
//!
//! Prints `host probe id` of each event; what it cannot use goes to stderr with the reason. Ends after RECORDS records.

use anyhow::{Context, Result, anyhow};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use serde_json::Value;
use std::time::Duration;

const SCHEMA: &str = include_str!("../schema/event.schema.json");
/// Within it fields are only added, so that this program reads what later gateways write.
const SCHEMA_VERSION: &str = "1";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [brokers, topic, group, rest @ ..] = arguments.as_slice() else {
        return Err(anyhow!("usage: consumer BROKERS TOPIC GROUP [RECORDS]"));
    };
    let records = rest.first().map_or(Ok(u64::MAX), |text| text.parse()).context("RECORDS is no number")?;
    let validator = jsonschema::validator_for(&serde_json::from_str(SCHEMA)?)?;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        .create()?;
    consumer.subscribe(&[topic])?;
    let mut seen = 0;
    while seen < records {
        let Some(message) = consumer.poll(Duration::from_secs(1)) else { continue };
        let message = message?;
        match event(&message, &validator) {
            // The same event may come again: whoever stores it takes its id as the key.
            Ok(event) => println!(
                "{} {} {}",
                header(&message, "host")?,
                header(&message, "probe")?,
                event["event"]["id"].as_str().unwrap_or_default()
            ),
            Err(why) => eprintln!("{}/{}: {why:#}", message.partition(), message.offset()),
        }
        // It is committed in the background, and not before this.
        consumer.store_offset_from_message(&message)?;
        seen += 1;
    }
    consumer.commit_consumer_state(CommitMode::Sync)?;
    Ok(())
}

/// The document, unless this program cannot use it.
fn event(message: &BorrowedMessage<'_>, validator: &jsonschema::Validator) -> Result<Value> {
    let schema = header(message, "schema")?;
    if schema != SCHEMA_VERSION {
        return Err(anyhow!("its schema is {schema}, this program reads {SCHEMA_VERSION}"));
    }
    let payload = message.payload().context("it is empty")?;
    let event = serde_json::from_slice(payload).context("it is no JSON")?;
    validator.validate(&event).map_err(|error| anyhow!("{error} at {}", error.instance_path()))?;
    Ok(event)
}

/// The value of a header.
fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Result<&'m str> {
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    let value = headers.into_iter().find(|header| header.key == name).and_then(|header| header.value);
    Ok(std::str::from_utf8(value.with_context(|| format!("it has no header {name}"))?)?)
}
