//! Many events in one request, and what became of each of them.

use super::super::kafka::Refusal;
use crate::dataset::Dataset;
use anyhow::{Context, Result, anyhow};
use hyper::body::Bytes;
use serde::Deserialize;
use std::time::Instant;

/// A partition of the topic of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition {
    /// Whose topic it is of.
    pub dataset: Dataset,
    /// Its number there.
    pub number: i32,
}

/// Where a record was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Partition of its topic.
    pub partition: Partition,
    /// Which of the times that this member had the partition.
    pub epoch: u64,
    /// Offset in the partition.
    pub offset: i64,
}

/// One event of a batch.
#[derive(Debug, Clone, Copy)]
struct Item {
    place: Place,
    time_ns: i64,
    start: usize,
    source: usize,
    end: usize,
}

/// Documents of one dataset that are gathered for a request.
#[derive(Debug)]
pub struct Batch {
    dataset: Dataset,
    body: Vec<u8>,
    items: Vec<Item>,
    opened_at: Instant,
    room: usize,
}

impl Batch {
    /// An empty one that will get about this many bytes.
    pub fn new(dataset: Dataset, bytes: usize) -> Self {
        let (body, items) = (Vec::new(), Vec::new());
        Self { dataset, body, items, opened_at: Instant::now(), room: bytes + bytes / 8 }
    }

    /// Adds an event that happened at `time_ns`. Its JSON has no line break.
    pub fn push(&mut self, place: Place, id: &str, time_ns: i64, json: &[u8]) {
        if self.items.is_empty() {
            self.opened_at = Instant::now();
            self.body.reserve_exact(self.room);
        }
        let start = self.body.len();
        self.body.extend_from_slice(b"{\"create\":{\"_id\":");
        serde_json::to_writer(&mut self.body, id).expect("a string becomes JSON in memory");
        self.body.extend_from_slice(b"}}\n");
        let source = self.body.len();
        self.body.extend_from_slice(json);
        self.body.push(b'\n');
        self.items.push(Item { place, time_ns, start, source, end: self.body.len() });
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes of the request.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// When its first event came.
    pub fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// What is sent.
    pub fn into_request(self) -> Request {
        Request { dataset: self.dataset, body: self.body.into(), items: self.items }
    }
}

/// Documents as one body of newline-delimited JSON.
#[derive(Debug)]
pub struct Request {
    dataset: Dataset,
    body: Bytes,
    items: Vec<Item>,
}

impl Request {
    /// What its documents are.
    pub fn dataset(&self) -> Dataset {
        self.dataset
    }

    /// Documents in it.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Its body, of which there is one however often it is sent.
    pub fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// Place, time and document of an event.
    pub fn event(&self, index: usize) -> (Place, i64, &[u8]) {
        let item = &self.items[index];
        (item.place, item.time_ns, &self.body[item.source..item.end - 1])
    }

    /// Some of its events as a request of their own.
    pub fn part(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let (mut body, mut items) = (Vec::new(), Vec::new());
        for item in indices.into_iter().map(|index| self.items[index]) {
            let start = body.len();
            body.extend_from_slice(&self.body[item.start..item.end]);
            let moved = |at: usize| at - item.start + start;
            items.push(Item { start, source: moved(item.source), end: moved(item.end), ..item });
        }
        Self { dataset: self.dataset, body: body.into(), items }
    }
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is a document.
    Stored,
    /// It was one already.
    Duplicate,
    /// It may become one later; the word is for the metric.
    Again(&'static str),
    /// It will never be one.
    Refused(Refusal),
}

#[derive(Deserialize)]
struct Response {
    items: Vec<ItemResponse>,
}

#[derive(Deserialize)]
struct ItemResponse {
    create: Status,
}

#[derive(Deserialize)]
struct Status {
    status: u16,
    error: Option<Box<Failure>>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    reason: String,
    caused_by: Option<Box<Failure>>,
}

/// What the answer to a batch of `expected` events says of each; an error when it does not say it of each, and then
/// nothing is known of any.
pub fn judge(answer: &[u8], expected: usize) -> Result<Vec<Outcome>> {
    let response: Response =
        serde_json::from_slice(answer).context("the answer to a bulk request is no such answer")?;
    if response.items.len() != expected {
        return Err(anyhow!(
            "the answer to a bulk request of {expected} events tells of {}",
            response.items.len()
        ));
    }
    Ok(response.items.into_iter().map(|item| outcome(&item.create)).collect())
}

fn outcome(item: &Status) -> Outcome {
    match item.status {
        200..=299 => Outcome::Stored,
        409 => Outcome::Duplicate,
        429 => Outcome::Again("too_many_requests"),
        // A write block or a missing right: somebody will have to lift it, and the event is good.
        401 | 403 => Outcome::Again("forbidden"),
        500.. => Outcome::Again("server_error"),
        status => Outcome::Refused(Refusal { status: Some(status), reason: reason(item), cause: "refused" }),
    }
}

fn reason(item: &Status) -> String {
    let Some(error) = &item.error else { return "Elasticsearch does not say why".to_owned() };
    let told = format!("{}: {}", error.kind, error.reason);
    match &error.caused_by {
        Some(cause) => format!("{told}: {}", cause.reason),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(offset: i64) -> Place {
        let partition = Partition { dataset: Dataset::Events, number: 0 };
        Place { partition, epoch: 1, offset }
    }

    #[test]
    fn each_event_is_judged_by_its_own_status() {
        let answer = br#"{"errors":false,"items":[{"create":{"status":201}},{"create":{"status":409,"error":{"type":"t","reason":"r"}}},
            {"create":{"status":429}},{"create":{"status":503}},{"create":{"status":403}},
            {"create":{"status":400,"error":{"type":"document_parsing_exception","reason":"bad","caused_by":{"reason":"field"}}}}]}"#;
        let refusal = Refusal {
            status: Some(400),
            reason: "document_parsing_exception: bad: field".to_owned(),
            cause: "refused",
        };
        assert_eq!(
            judge(answer, 6).unwrap(),
            [
                Outcome::Stored,
                Outcome::Duplicate,
                Outcome::Again("too_many_requests"),
                Outcome::Again("server_error"),
                Outcome::Again("forbidden"),
                Outcome::Refused(refusal),
            ]
        );
    }

    #[test]
    fn an_answer_that_does_not_tell_of_each_event_tells_nothing() {
        for answer in [
            &br#"{"items":[{"create":{"status":201}}]}"#[..],
            b"<html>proxy</html>",
            b"",
            b"{}",
            br#"{"items":[{"index":{"status":201}},{"index":{"status":201}}]}"#,
        ] {
            assert!(judge(answer, 2).is_err(), "{}", String::from_utf8_lossy(answer));
        }
    }

    proptest! {
        #[test]
        fn every_line_of_a_batch_is_json_and_a_part_holds_what_the_whole_did(
            ids in prop::collection::vec(".{0,20}", 1..20),
            chosen in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut batch = Batch::new(Dataset::Events, 100);
            for (offset, id) in (0..).zip(&ids) {
                batch.push(place(offset), id, offset, format!("{{\"n\":{offset}}}").as_bytes());
            }
            let batch = batch.into_request();
            let indices: Vec<_> = chosen.iter().map(|index| index.index(ids.len())).collect();
            let part = batch.part(indices.iter().copied());
            prop_assert_eq!(part.len(), indices.len());
            for (at, &index) in indices.iter().enumerate() {
                prop_assert_eq!(part.event(at), batch.event(index));
            }
            let mut lines = std::str::from_utf8(&batch.body).unwrap().lines();
            for (offset, id) in (0..).zip(&ids) {
                let action: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
                prop_assert_eq!(action["create"]["_id"].as_str(), Some(id.as_str()));
                prop_assert_eq!(lines.next().unwrap(), format!("{{\"n\":{offset}}}"));
                prop_assert_eq!(batch.event(usize::try_from(offset).unwrap()).0, place(offset));
            }
            prop_assert_eq!(lines.next(), None);
        }
    }
}
