//! How do profiles get from the profiler of this machine into the spool? By POST, a JSON document a line, to an address of
//! this machine.
//!
//! The answer comes when the disk has them. The history of the profiler is where they wait as long as there is no room: what
//! waits for Kafka here is never pushed out by profiles.

use crate::dataset::Dataset;
use crate::index::parse;
use crate::sink::elasticsearch::Decode;
use crate::spool::disk::{DiskSpool, Record};
use anyhow::Result;
use kpulse_common::http::{Handler, Posts, Request, Response, is_local, text};
use kpulse_common::profile::{self, BODY_BYTES_MAX, CONTENT_TYPE, DOCUMENT_BYTES_MAX, PATH, Profile};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is taken by POST.
pub const POSTS: Posts = Posts { path: PATH, content_type: CONTENT_TYPE, bytes_max: BODY_BYTES_MAX };
/// Why profiles were not taken.
pub const REFUSALS: [&str; 3] = ["undecodable", "spool_full", "spool_error"];
/// Profiles are taken while less than this part of the spool is full, so that events find room without pushing them out.
const ROOM: u64 = 2;

/// What came of profiles that were posted.
#[derive(Debug, Default)]
pub struct Taken(Mutex<(u64, BTreeMap<&'static str, u64>)>);

impl Taken {
    /// Profiles that the spool took, and requests that were refused, by reason.
    pub fn counts(&self) -> (u64, BTreeMap<&'static str, u64>) {
        self.lock().clone()
    }

    /// Counts are whole at any time, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<&'static str, u64>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a request was not taken.
struct Refusal {
    status: u16,
    reason: &'static str,
    sentence: String,
}

/// The handler of the address that takes profiles; `labels` go into each.
pub fn handler(spool: DiskSpool, labels: BTreeMap<String, String>, taken: Arc<Taken>) -> Handler {
    Arc::new(move |request| {
        if !is_local(request) {
            return text(403, "This address is only for clients that call it localhost.\n");
        }
        if request.path != PATH {
            return text(404, format!("Only {PATH} is here, for the profiles of kpulse-profiler.\n"));
        }
        if request.method != "POST" {
            return text(405, "Profiles are only taken here, by POST; they are shown by kpulse-profiler.\n");
        }
        answer(take(&spool, &labels, request), &taken)
    })
}

fn answer(outcome: Result<u64, Refusal>, taken: &Taken) -> Response {
    match outcome {
        Ok(profiles) => {
            taken.lock().0 += profiles;
            text(200, format!("{profiles} profiles are taken.\n"))
        }
        Err(Refusal { status, reason, sentence }) => {
            *taken.lock().1.entry(reason).or_default() += 1;
            text(status, sentence + "\n")
        }
    }
}

/// Takes all or none; how many.
fn take(spool: &DiskSpool, labels: &BTreeMap<String, String>, request: &Request) -> Result<u64, Refusal> {
    let mut records = Vec::new();
    for (number, line) in request.body.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let record = record(line, labels).map_err(|why| {
            let sentence = format!("Line {} cannot be taken, so none is: {why}.", number + 1);
            Refusal { status: 400, reason: "undecodable", sentence }
        })?;
        records.push(record);
    }
    let bytes: u64 = records.iter().map(|record| record.json.len() as u64).sum();
    let limit = spool.bounds().max_bytes / ROOM;
    if spool.state().bytes + bytes > limit {
        let sentence = format!(
            "The spool has no room for profiles: they are taken up to {limit} bytes, half of output.spool.max_bytes, \
             and wait for Kafka; try again later."
        );
        return Err(Refusal { status: 503, reason: "spool_full", sentence });
    }
    match spool.append(&records) {
        Ok(()) => Ok(records.len() as u64),
        Err(error) => {
            tracing::error!("profiles cannot be kept: {error:#}");
            Err(Refusal {
                status: 503,
                reason: "spool_error",
                sentence: format!("{error:#}; try again later."),
            })
        }
    }
}

/// The record of a profile, if each of its fields is what it should be.
fn record(line: &[u8], labels: &BTreeMap<String, String>) -> Result<Record<'static>, String> {
    if line.len() > DOCUMENT_BYTES_MAX {
        return Err(format!("it has {} bytes, and {DOCUMENT_BYTES_MAX} is the most", line.len()));
    }
    parse(Some(line), None, Decode::Typed, Dataset::Profiles).map_err(|refusal| refusal.reason)?;
    let mut profile: Profile = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if profile.event.dataset != profile::DATASET {
        return Err(format!("its event.dataset is {:?}, not {:?}", profile.event.dataset, profile::DATASET));
    }
    let json = if labels.is_empty() {
        String::from_utf8_lossy(line).into_owned()
    } else {
        profile.labels.extend(labels.clone());
        serde_json::to_string(&profile).map_err(|error| error.to_string())?
    };
    Ok(Record::of_profile(&profile, json))
}

#[cfg(test)]
mod tests;
