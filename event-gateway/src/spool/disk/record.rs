//! An event as Kafka gets it, and many of them in one piece of bytes.

use super::Document;
use anyhow::{Context, Result};
use kpulse_common::event::Event;
use std::borrow::Cow;

/// One event for Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'r> {
    /// `host/container`: what has the same key stays in order.
    pub key: Cow<'r, str>,
    /// The probe that told it.
    pub probe: Cow<'r, str>,
    /// The JSON document.
    pub json: Cow<'r, str>,
    /// Whether it tells a fact rather than a time that was too long: those are rarer, and dropped last.
    pub is_fact: bool,
}

impl<'d> From<&'d Document> for Record<'d> {
    fn from(it: &'d Document) -> Self {
        Self {
            key: key(&it.keys.host, it.keys.container.as_deref()).into(),
            probe: it.probe.into(),
            json: it.json.as_str().into(),
            is_fact: it.keys.is_fact,
        }
    }
}

impl Record<'static> {
    /// The record of an event that is text already.
    pub fn of(event: &Event, json: String) -> Self {
        let keys = crate::keys::Keys::of(event);
        Self {
            key: key(&keys.host, keys.container.as_deref()).into(),
            probe: event.kpulse.probe.clone().into(),
            json: json.into(),
            is_fact: keys.is_fact,
        }
    }
}

impl Record<'_> {
    /// The host in its key.
    pub fn host(&self) -> &str {
        self.key.split_once('/').map_or(&*self.key, |(host, _)| host)
    }

    fn texts(&self) -> [&str; 3] {
        [&self.key, &self.probe, &self.json]
    }
}

fn key(host: &str, container: Option<&str>) -> String {
    format!("{host}/{}", container.unwrap_or_default())
}

/// Chunks of about this many bytes, each with the number of its events.
pub(super) fn encode<'r>(
    records: impl Iterator<Item = &'r Record<'r>>,
    chunk_bytes: usize,
) -> Vec<(Vec<u8>, u64)> {
    let mut chunks: Vec<(Vec<u8>, u64)> = Vec::new();
    for record in records {
        if chunks.last().is_none_or(|(body, _)| body.len() >= chunk_bytes) {
            chunks.push((Vec::new(), 0));
        }
        let Some((body, events)) = chunks.last_mut() else { continue };
        *events += 1;
        body.push(u8::from(record.is_fact));
        for text in record.texts() {
            let length = u32::try_from(text.len()).expect("an event has some KiB");
            body.extend_from_slice(&length.to_le_bytes());
            body.extend_from_slice(text.as_bytes());
        }
    }
    chunks
}

/// The records of a chunk.
pub(super) fn decode(mut body: &[u8]) -> Result<Vec<Record<'_>>> {
    let mut records = Vec::new();
    while let Some((&is_fact, rest)) = body.split_first() {
        body = rest;
        let mut text = || {
            let (length, rest) = body.split_first_chunk::<4>().context("it is cut off")?;
            let length = u32::from_le_bytes(*length) as usize;
            let (text, rest) = rest.split_at_checked(length).context("it is cut off")?;
            body = rest;
            anyhow::Ok(Cow::Borrowed(std::str::from_utf8(text)?))
        };
        records.push(Record { key: text()?, probe: text()?, json: text()?, is_fact: is_fact != 0 });
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn any_record()(key: String, probe: String, json: String, is_fact: bool) -> Record<'static> {
            Record { key: key.into(), probe: probe.into(), json: json.into(), is_fact }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(records in prop::collection::vec(any_record(), 0..50), bytes in 1usize..200) {
            let chunks = encode(records.iter(), bytes);
            prop_assert_eq!(chunks.iter().map(|(_, events)| *events).sum::<u64>(), records.len() as u64);
            let back: Vec<_> = chunks.iter().flat_map(|(body, _)| decode(body).unwrap()).collect();
            prop_assert_eq!(back, records);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
