//! Which sink gets an event, and what happens when it does not take it?
//!
//! There is one sink. A batch that it cannot take now is tried again for ever, while the spool bounds what waits
//! behind it; one that it will never take is tried document by document, so that a bad one costs only itself.

use crate::sink::{Sink, SinkError};
use crate::spool::{Document, Spool};
use crate::tally::{SHUTDOWN, SINK_REFUSED, Tally, observe};
use kpulse_common::clock::boot_ns;
use std::time::{Duration, Instant};

/// Most events of one batch.
const BATCH_MAX: usize = 1_000;
/// How long a batch waits for more events: a crash loses at most what arrived in this time.
pub const LINGER: Duration = Duration::from_millis(100);
/// Longest wait for an event before maintenance gets its turn.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two rounds of retention.
const MAINTAIN_INTERVAL: Duration = Duration::from_secs(10);
/// First and longest wait before a batch is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A lasting error is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// How long a sink may take to recover once the process must end.
const GRACE: Duration = Duration::from_secs(5);

/// Moves events from the spool to the sink until the spool is closed and empty.
pub struct Route<'a> {
    spool: &'a Spool,
    sink: &'a mut dyn Sink,
    tally: &'a Tally,
    grace: Duration,
    logged_at: Option<Instant>,
}

impl<'a> Route<'a> {
    /// A route from `spool` to `sink`.
    pub fn new(spool: &'a Spool, sink: &'a mut dyn Sink, tally: &'a Tally) -> Self {
        Self { spool, sink, tally, grace: GRACE, logged_at: None }
    }

    /// Runs until the spool is closed and empty.
    pub fn run(mut self) {
        let mut maintained_at: Option<Instant> = None;
        loop {
            if maintained_at.is_none_or(|at| at.elapsed() >= MAINTAIN_INTERVAL)
                && self.spool.closed_at().is_none()
            {
                maintained_at = Some(Instant::now());
                self.maintain();
            }
            let batch = self.spool.take(BATCH_MAX, PATIENCE, LINGER);
            if batch.is_empty() {
                if self.spool.closed_at().is_some() {
                    return;
                }
                continue;
            }
            self.tally.update(|counts| counts.in_flight = batch.len() as u64);
            self.deliver(&batch);
            self.tally.update(|counts| {
                counts.in_flight = 0;
                counts.sink_bytes = self.sink.bytes();
            });
        }
    }

    fn deliver(&mut self, batch: &[Document]) {
        let mut wait = RETRY.0;
        loop {
            match self.sink.store(batch) {
                Ok(()) => {
                    self.recovered();
                    return self.stored(batch);
                }
                Err(SinkError::Refused(error)) => match batch {
                    [one] => {
                        tracing::error!(id = one.id, "the event is given up: {error:#}");
                        return self.tally.lost(SINK_REFUSED, batch);
                    }
                    many => {
                        return many.iter().for_each(|document| self.deliver(std::slice::from_ref(document)));
                    }
                },
                Err(SinkError::Unavailable(error)) => self.failed(&error),
            }
            if let Some(closed_at) = self.spool.closed_at() {
                if closed_at.elapsed() >= self.grace {
                    tracing::error!(
                        events = batch.len(),
                        "events are lost: the sink did not recover before the end"
                    );
                    return self.tally.lost(SHUTDOWN, batch);
                }
                std::thread::sleep(RETRY.0.min(self.grace));
            } else {
                self.spool.wait_closed(wait);
            }
            self.tally.update(|counts| counts.retries += 1);
            wait = (2 * wait).min(RETRY.1);
        }
    }

    fn stored(&self, batch: &[Document]) {
        let now = boot_ns();
        self.tally.update(|counts| {
            for document in batch {
                counts.probes.entry(document.probe).or_default().stored += 1;
                observe(&mut counts.delay, now.saturating_sub(document.boot_ns));
            }
        });
    }

    fn maintain(&mut self) {
        match self.sink.maintain() {
            Ok(expired) => self.tally.update(|counts| {
                for (reason, count) in [("age", expired.by_age), ("size", expired.by_size)] {
                    *counts.expired.entry(reason).or_default() += count;
                }
                counts.sink_bytes = self.sink.bytes();
            }),
            Err(SinkError::Unavailable(error) | SinkError::Refused(error)) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &anyhow::Error) {
        let sentence = format!("{error:#}");
        if self.logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged_at = Some(Instant::now());
            let waiting = self.spool.depth().events;
            tracing::error!(
                sink = self.sink.name(),
                waiting,
                "{sentence}; events wait in memory and it is tried again"
            );
        }
        self.tally.update(|counts| counts.sink_error = Some(sentence));
    }

    fn recovered(&mut self) {
        if self.tally.update(|counts| counts.sink_error.take()).is_some() {
            self.logged_at = None;
            tracing::info!(sink = self.sink.name(), "the sink takes events again");
        }
    }
}

#[cfg(test)]
mod tests;
