//! What stands beside an event in Kafka: by which a consumer chooses without reading the document, and why a record became
//! a dead letter.

use crate::spool::disk::Record;
use kpulse_common::event::SCHEMA_VERSION;
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message, OwnedHeaders};

/// Headers of a record.
#[derive(Debug)]
pub struct Headers;

/// Why a record became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status that Elasticsearch gave it; none when it was not even sent.
    pub status: Option<u16>,
    /// One sentence.
    pub reason: String,
    /// Word for the metric.
    pub cause: &'static str,
}

/// Longest reason in a header; Elasticsearch can be wordy.
const REASON_MAX: usize = 1_000;
const SCHEMA: &str = "schema";
const ID: &str = "id";
const PREFIX: &str = "dead-letter.";

impl Headers {
    /// Of an event.
    pub fn of(record: &Record<'_>) -> OwnedHeaders {
        let schema = SCHEMA_VERSION.to_string();
        OwnedHeaders::new_with_capacity(4)
            .insert(Header { key: SCHEMA, value: Some(&schema) })
            .insert(Header { key: "probe", value: Some(&*record.probe) })
            .insert(Header { key: "host", value: Some(record.host()) })
            .insert(Header { key: ID, value: Some(&*record.id) })
    }

    /// Of a dead letter: those that the record had, where it was, and what is wrong with it.
    pub fn of_dead_letter(
        headers: Option<OwnedHeaders>,
        place: (&str, i32, i64),
        refusal: &Refusal,
    ) -> OwnedHeaders {
        let (topic, partition, offset) = place;
        let cut = refusal.reason.char_indices().nth(REASON_MAX).map_or(refusal.reason.len(), |(at, _)| at);
        let status = refusal.status.map(|status| status.to_string()).unwrap_or_default();
        let (partition, offset) = (partition.to_string(), offset.to_string());
        let own = [
            ("reason", &refusal.reason[..cut]),
            ("cause", refusal.cause),
            ("status", &status),
            ("topic", topic),
            ("partition", &partition),
            ("offset", &offset),
        ];
        own.into_iter().fold(headers.unwrap_or_default(), |headers, (key, value)| {
            headers.insert(Header { key: &format!("{PREFIX}{key}"), value: Some(value) })
        })
    }
}

/// The id of a document of the version that is known, if its headers tell both.
pub fn known_id<'m>(message: &'m BorrowedMessage<'_>) -> Option<&'m str> {
    let (mut id, mut is_known) = (None, false);
    for header in message.headers()?.iter() {
        let value = std::str::from_utf8(header.value?);
        match header.key {
            SCHEMA => is_known = value.ok()?.parse() == Ok(SCHEMA_VERSION),
            ID => id = value.ok(),
            _ => {}
        }
    }
    id.filter(|_| is_known)
}

/// The topic that a dead letter was in, by its headers.
pub fn topic_of_dead_letter<'m>(message: &'m BorrowedMessage<'_>) -> Option<&'m str> {
    let headers = message.headers()?;
    // What an earlier replay left is not there any more, so there is one.
    let topic = headers.iter().find(|header| header.key.strip_prefix(PREFIX) == Some("topic"))?;
    std::str::from_utf8(topic.value?).ok()
}

/// The headers that a dead letter had before it was one, without what an earlier replay left.
pub fn original(message: &BorrowedMessage<'_>) -> OwnedHeaders {
    let headers = message.headers();
    headers
        .into_iter()
        .flat_map(|headers| headers.iter())
        .filter(|header| !header.key.starts_with(PREFIX))
        .fold(OwnedHeaders::new(), |headers, header| {
            headers.insert(Header { key: header.key, value: header.value })
        })
}
