//! An event or a profile as Kafka gets it, and many of them in one piece of bytes.

use super::Document;
use crate::dataset::Dataset;
use anyhow::{Context, Result, bail};
use kpulse_common::event::Event;
use kpulse_common::profile::Profile;
use std::borrow::Cow;

/// How soon a record gives way when there is no room for all, soonest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// A profile: the profiler has others of the same program.
    Profile,
    /// An event that tells a time that was too long.
    Time,
    /// An event that tells a fact: those are rarer.
    Fact,
}

impl Rank {
    pub(super) const ALL: [Self; 3] = [Self::Profile, Self::Time, Self::Fact];

    /// As the table has it.
    pub(super) fn number(self) -> i8 {
        match self {
            Self::Profile => -1,
            Self::Time => 0,
            Self::Fact => 1,
        }
    }

    fn of(is_fact: bool) -> Self {
        if is_fact { Self::Fact } else { Self::Time }
    }
}

/// One event or profile for Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'r> {
    /// `host/container`: what has the same key stays in order.
    pub key: Cow<'r, str>,
    /// The probe that told it.
    pub probe: Cow<'r, str>,
    /// `event.id` of the document.
    pub id: Cow<'r, str>,
    /// The JSON document.
    pub json: Cow<'r, str>,
    /// How soon it gives way.
    pub rank: Rank,
}

impl<'d> From<&'d Document> for Record<'d> {
    fn from(it: &'d Document) -> Self {
        Self {
            key: key(&it.keys.host, it.keys.container.as_deref()).into(),
            probe: it.probe.into(),
            id: it.id.as_str().into(),
            json: it.json.as_str().into(),
            rank: Rank::of(it.keys.is_fact),
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
            id: event.event.id.clone().into(),
            json: json.into(),
            rank: Rank::of(keys.is_fact),
        }
    }

    /// The record of a profile that is text already.
    pub fn of_profile(profile: &Profile, json: String) -> Self {
        let host = profile.host.id.as_deref().or(profile.host.name.as_deref()).unwrap_or_default();
        let container = profile.container.as_ref().map(|container| container.id.as_str());
        Self {
            key: key(host, container).into(),
            probe: profile.kpulse.probe.clone().into(),
            id: profile.event.id.clone().into(),
            json: json.into(),
            rank: Rank::Profile,
        }
    }
}

impl Record<'_> {
    /// The host in its key.
    pub fn host(&self) -> &str {
        self.key.split_once('/').map_or(&*self.key, |(host, _)| host)
    }

    /// Which way it goes.
    pub fn dataset(&self) -> Dataset {
        match self.rank {
            Rank::Profile => Dataset::Profiles,
            Rank::Time | Rank::Fact => Dataset::Events,
        }
    }

    fn texts(&self) -> [&str; 4] {
        [&self.key, &self.probe, &self.id, &self.json]
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
        body.extend_from_slice(&record.rank.number().to_le_bytes());
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
    while let Some((&number, rest)) = body.split_first() {
        body = rest;
        let rank = Rank::ALL.into_iter().find(|rank| rank.number().to_le_bytes() == [number]);
        let Some(rank) = rank else { bail!("it holds a record of an unknown kind") };
        let mut text = || {
            let (length, rest) = body.split_first_chunk::<4>().context("it is cut off")?;
            let length = u32::from_le_bytes(*length) as usize;
            let (text, rest) = rest.split_at_checked(length).context("it is cut off")?;
            body = rest;
            anyhow::Ok(Cow::Borrowed(std::str::from_utf8(text)?))
        };
        records.push(Record { key: text()?, probe: text()?, id: text()?, json: text()?, rank });
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn any_record()(
            key: String,
            probe: String,
            id: String,
            json: String,
            rank in prop::sample::select(&Rank::ALL),
        ) -> Record<'static> {
            Record { key: key.into(), probe: probe.into(), id: id.into(), json: json.into(), rank }
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
