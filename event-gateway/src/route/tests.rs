use super::*;
use crate::keys::Keys;
use crate::sink::Expired;
use crate::spool::Capacity;
use anyhow::anyhow;
use std::sync::{Arc, Mutex};

/// Takes nothing for a while, and never a document named "bad".
#[derive(Default)]
struct Stubborn {
    refusals_left: usize,
    stored: Arc<Mutex<Vec<String>>>,
}

impl Sink for Stubborn {
    fn name(&self) -> &'static str {
        "stubborn"
    }

    fn store(&mut self, batch: &[Document]) -> Result<(), SinkError> {
        if self.refusals_left > 0 {
            self.refusals_left -= 1;
            return Err(SinkError::Unavailable(anyhow!("the disk is full")));
        }
        if batch.iter().any(|document| document.id == "bad") {
            return Err(SinkError::Refused(anyhow!("it is bad")));
        }
        self.stored.lock().unwrap().extend(batch.iter().map(|document| document.id.clone()));
        Ok(())
    }

    fn maintain(&mut self) -> Result<Expired, SinkError> {
        Ok(Expired { by_age: 1, by_size: 2 })
    }

    fn bytes(&self) -> Option<u64> {
        Some(7)
    }
}

fn document(id: &str) -> Document {
    Document {
        id: id.to_owned(),
        time_ns: 0,
        boot_ns: boot_ns(),
        probe: "packet_drop",
        kind: "packet_drop",
        keys: Keys::default(),
        json: "{}".to_owned(),
    }
}

fn route(ids: &[&str], refusals_left: usize, grace: Duration) -> (Vec<String>, crate::tally::Counts) {
    let spool = Spool::new(Capacity { events: 100, bytes: 1000 });
    let tally = Tally::default();
    let mut sink = Stubborn { refusals_left, ..Stubborn::default() };
    for id in ids {
        spool.push(document(id));
    }
    spool.close();
    Route { grace, ..Route::new(&spool, &mut sink, &tally) }.run();
    let stored = sink.stored.lock().unwrap().clone();
    (stored, tally.counts())
}

#[test]
fn a_batch_is_tried_until_the_sink_recovers() {
    let (stored, counts) = route(&["a", "b"], 3, Duration::from_secs(60));
    assert_eq!(stored, ["a", "b"]);
    assert_eq!(counts.retries, 3);
    assert_eq!(counts.sink_error, None);
    assert_eq!(counts.probes["packet_drop"].stored, 2);
    assert_eq!(counts.delay.count(), 2);
    assert_eq!(counts.sink_bytes, Some(7));
}

#[test]
fn a_bad_document_costs_only_itself() {
    let (stored, counts) = route(&["a", "bad", "b"], 0, Duration::from_secs(60));
    assert_eq!(stored, ["a", "b"]);
    assert_eq!(counts.probes["packet_drop"].stored, 2);
    assert_eq!(counts.probes["packet_drop"].lost_here[SINK_REFUSED], 1);
}

#[test]
fn what_the_sink_does_not_take_before_the_end_is_counted() {
    let (stored, counts) = route(&["a", "b"], usize::MAX, Duration::ZERO);
    assert_eq!(stored, [] as [&str; 0]);
    assert_eq!(counts.probes["packet_drop"].lost_here[SHUTDOWN], 2);
    assert!(counts.sink_error.unwrap().contains("the disk is full"));
}

#[test]
fn retention_runs_beside_delivery_and_is_counted() {
    let spool = Spool::new(Capacity { events: 100, bytes: 1000 });
    let tally = Tally::default();
    let mut sink = Stubborn::default();
    let stored = sink.stored.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| Route::new(&spool, &mut sink, &tally).run());
        spool.push(document("a"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while stored.lock().unwrap().is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        spool.close();
    });
    assert_eq!(*stored.lock().unwrap(), ["a"]);
    assert_eq!(tally.counts().expired["age"], 1);
    assert_eq!(tally.counts().expired["size"], 2);
}
