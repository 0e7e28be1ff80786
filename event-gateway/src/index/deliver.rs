//! One request until the fate of each of its events is known, however long Elasticsearch takes.

use super::counts::Counts;
use super::dead_letter::DeadLetters;
use crate::dataset::Dataset;
use crate::sink::elasticsearch::{Client, Outcome, Place, Request, judge};
use crate::sink::kafka::Refusal;
use crate::tally::observe;
use anyhow::anyhow;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime};

/// First and longest wait before events are sent again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A lasting error is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What helps who is not let in.
const WHO: &str = "elasticsearch.api_key_file, or username and password_file, must be what it knows";
const MAY: &str = "who logs in needs the privileges create_doc and auto_configure for the data stream";
const WHERE: &str = "elasticsearch.url must lead to Elasticsearch itself";

/// What the reading thread is told.
#[derive(Debug)]
pub enum Report {
    /// These events are documents or dead letters.
    Done(Vec<Place>),
    /// Elasticsearch took a whole request.
    Relief,
    /// Elasticsearch has too much to do, or does not answer.
    Pressure,
    /// A request of this many bytes is over.
    Finished(usize),
}

/// What all deliveries share.
#[derive(Debug)]
pub struct Delivery {
    pub client: Client,
    /// The data stream of each dataset.
    pub data_streams: [String; Dataset::ALL.len()],
    pub dead_letters: DeadLetters,
    pub counts: Arc<Counts>,
    pub reports: Sender<Report>,
}

/// What one request came to.
enum Attempt {
    /// The status of each event.
    Judged(Vec<Outcome>),
    /// It is larger than Elasticsearch takes.
    TooLarge,
    /// Nothing is known of any event.
    Failed(&'static str, anyhow::Error),
}

impl Delivery {
    /// Returns when every event is a document or a dead letter.
    pub async fn deliver(&self, request: Request) {
        let bytes = request.body().len();
        let mut parts = vec![request];
        let (mut wait, mut logged_at) = (RETRY.0, None);
        while let Some(part) = parts.pop() {
            match self.attempt(&part).await {
                Attempt::Judged(outcomes) => {
                    let (again, cause, has_progress) = self.settle(&part, outcomes).await;
                    if again.is_empty() {
                        self.report(Report::Relief);
                        self.recovered();
                        wait = RETRY.0;
                        continue;
                    }
                    self.report(Report::Pressure);
                    if has_progress {
                        wait = RETRY.0;
                    } else {
                        let why = anyhow!("Elasticsearch takes none of {} events ({cause})", again.len());
                        self.failed(&why, &mut logged_at);
                    }
                    parts.push(part.part(again));
                }
                Attempt::TooLarge if part.len() > 1 => {
                    self.counts.retry("too_large", part.len() as u64);
                    let half = part.len() / 2;
                    parts.push(part.part(half..part.len()));
                    parts.push(part.part(0..half));
                    continue;
                }
                Attempt::TooLarge => {
                    let reason = "it is larger than Elasticsearch takes".to_owned();
                    self.refuse(&part, 0, Refusal { status: Some(413), reason, cause: "too_large" }).await;
                    continue;
                }
                Attempt::Failed(cause, error) => {
                    self.counts.retry(cause, part.len() as u64);
                    self.report(Report::Pressure);
                    self.failed(&error, &mut logged_at);
                    parts.push(part);
                }
            }
            tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64())).await;
            wait = (2 * wait).min(RETRY.1);
        }
        self.report(Report::Finished(bytes));
    }

    async fn attempt(&self, part: &Request) -> Attempt {
        let start = Instant::now();
        let data_stream = &self.data_streams[part.dataset() as usize];
        let answer = match self.client.bulk(data_stream, part.body()).await {
            Ok(answer) => answer,
            Err(error) => return Attempt::Failed("unreachable", error),
        };
        self.counts.update(|counts| {
            counts.bulks += 1;
            counts.bulk_bytes += part.body().len() as u64;
            observe(&mut counts.bulk_time, u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        });
        let said =
            |what: &str| anyhow!("Elasticsearch {what} (status {}): {}", answer.status, answer.shown());
        match answer.status {
            200 => match judge(&answer.body, part.len()) {
                Ok(outcomes) => Attempt::Judged(outcomes),
                Err(error) => Attempt::Failed(
                    "wrong_answer",
                    anyhow!("{}: {error:#}; {WHERE}", said("cannot be understood")),
                ),
            },
            413 => Attempt::TooLarge,
            429 => Attempt::Failed("too_many_requests", said("has too much to do")),
            401 => Attempt::Failed("forbidden", anyhow!("{}; {WHO}", said("does not know us"))),
            403 => Attempt::Failed("forbidden", anyhow!("{}; {MAY}", said("does not let us in"))),
            500.. => Attempt::Failed("server_error", said("cannot")),
            // Of the whole request: the address or a proxy is wrong, not an event.
            _ => {
                Attempt::Failed("wrong_answer", anyhow!("{}; {WHERE}", said("does not know a bulk request")))
            }
        }
    }

    /// Acts on the outcome of each event: which are to be sent again and why, and whether any was not.
    async fn settle(&self, part: &Request, outcomes: Vec<Outcome>) -> (Vec<usize>, &'static str, bool) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now_ns = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        let (mut again, mut refused, mut done) = (Vec::new(), Vec::new(), Vec::with_capacity(part.len()));
        let mut last_cause = "";
        self.counts.update(|counts| {
            for (index, outcome) in outcomes.into_iter().enumerate() {
                let (place, time_ns, _) = part.event(index);
                match outcome {
                    Outcome::Stored => {
                        counts.indexed += 1;
                        // The clock of another machine may be ahead of ours.
                        observe(&mut counts.end_to_end, u64::try_from(now_ns - time_ns).unwrap_or(0));
                    }
                    Outcome::Duplicate => counts.duplicates += 1,
                    Outcome::Again(cause) => {
                        *counts.retries.entry(cause).or_default() += 1;
                        again.push(index);
                        last_cause = cause;
                        continue;
                    }
                    Outcome::Refused(refusal) => {
                        refused.push((index, refusal));
                        continue;
                    }
                }
                done.push(place);
            }
        });
        let has_progress = !done.is_empty() || !refused.is_empty();
        if !done.is_empty() {
            self.report(Report::Done(done));
        }
        for (index, refusal) in refused {
            self.refuse(part, index, refusal).await;
        }
        (again, last_cause, has_progress)
    }

    async fn refuse(&self, part: &Request, index: usize, refusal: Refusal) {
        let (place, _, json) = part.event(index);
        self.dead_letters.send_document(place, json, &refusal).await;
        self.report(Report::Done(vec![place]));
    }

    /// The reading thread is gone only when the process ends.
    fn report(&self, report: Report) {
        let _ = self.reports.send(report);
    }

    fn failed(&self, error: &anyhow::Error, logged_at: &mut Option<Instant>) {
        let sentence = format!("{error:#}");
        let is_new = self.counts.update(|counts| counts.error.replace(sentence.clone()).is_none());
        if is_new || logged_at.is_some_and(|at: Instant| at.elapsed() >= LOG_INTERVAL) {
            tracing::error!("{sentence}; events wait in Kafka and it is tried again");
            *logged_at = Some(Instant::now());
        }
    }

    fn recovered(&self) {
        if self.counts.update(|counts| counts.error.take()).is_some() {
            tracing::info!("Elasticsearch takes events again");
        }
    }
}
