use super::*;
use crate::query::Query;
use crate::sink::local::{FILE, LocalSink, Reader, Retention};
use crate::sink::{Expired, SinkError};
use crate::spool::{Capacity, Document};
use kpulse_common::clock::boot_ns;
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::{Fact, Loss};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// A ring that holds a number of records and has lost some.
struct Scripted {
    records: u64,
    delivered: Arc<AtomicU64>,
    lost: u64,
}

impl Ring for Scripted {
    fn wait(&self, _: Duration) -> io::Result<bool> {
        Ok(true)
    }

    fn drain(&mut self, each: &mut dyn FnMut(Fact)) {
        for _ in 0..7 {
            if self.delivered.load(Ordering::Acquire) < self.records {
                each(fact());
                self.delivered.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    fn losses(&mut self) -> Vec<Loss> {
        vec![Loss { probe: "packet_drop", reason: "ring_full", count: self.lost }]
    }

    fn produced(&mut self) -> Vec<(&'static str, u64)> {
        vec![("packet_drop", self.records + self.lost)]
    }
}

fn fact() -> Fact {
    Fact {
        probe: "packet_drop",
        kind: "packet_drop",
        boot_ns: boot_ns(),
        value_ns: None,
        threshold_ns: None,
        cpu: Some(0),
        pid: 0,
        tid: 0,
        comm: String::new(),
        cgroup: None,
        suppressed: 0,
        kernel_stack: Vec::new(),
        user_stack: None,
        body: serde_json::json!({}),
    }
}

/// A store that fails as often as it is told to, then works.
struct Failing {
    failures_left: u64,
    refuses_every: Option<usize>,
    seen: usize,
    store: LocalSink,
}

impl Sink for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn store(&mut self, batch: &[Document]) -> Result<(), SinkError> {
        if self.failures_left > 0 {
            self.failures_left -= 1;
            return Err(SinkError::Unavailable(anyhow::anyhow!("the disk is full")));
        }
        self.seen += 1;
        if self.refuses_every.is_some_and(|every| self.seen.is_multiple_of(every)) {
            return Err(SinkError::Refused(anyhow::anyhow!("too large")));
        }
        self.store.store(batch)
    }

    fn maintain(&mut self) -> Result<Expired, SinkError> {
        self.store.maintain()
    }

    fn bytes(&self) -> Option<u64> {
        self.store.bytes()
    }
}

fn start(sink: Box<dyn Sink>, ring: Scripted, capacity: Capacity) -> (Pipeline, Arc<Tally>) {
    let (spool, tally) = (Arc::new(Spool::new(capacity)), Arc::new(Tally::default()));
    let enrich = Enrich::new(&Paths::default(), BTreeMap::new());
    (Pipeline::start(Some(Box::new(ring)), enrich, &spool, sink, &tally).unwrap(), tally)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn produced_is_stored_and_every_loss(
        records in 0u64..300,
        lost in 0u64..5,
        events in 1usize..200,
        failures_left in 0u64..3,
        refuses_every in prop::option::of(1usize..4),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let store = LocalSink::open(&path, Retention::default()).unwrap();
        let sink = Box::new(Failing { failures_left, refuses_every, seen: 0, store });
        let ring = Scripted { records, delivered: Arc::default(), lost };
        let (pipeline, tally) = start(sink, ring, Capacity { events, bytes: 1 << 20 });
        pipeline.stop();
        let counts = tally.counts();
        let its = &counts.probes["packet_drop"];
        let losses: u64 = its.lost_in_kernel.values().chain(its.lost_here.values()).sum();
        prop_assert_eq!(its.produced, Some(records + lost));
        prop_assert_eq!(its.produced, Some(its.stored + losses), "{:?}", its);
        let all = Query { limit: usize::MAX, ..Query::default() };
        prop_assert_eq!(Reader::open(&path).unwrap().newest(&all).unwrap().len() as u64, its.stored);
    }
}

#[test]
fn an_event_reaches_the_reader_while_the_gateway_runs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let store = LocalSink::open(&path, Retention::default()).unwrap();
    let ring = Scripted { records: 1, delivered: Arc::default(), lost: 0 };
    let delivered = ring.delivered.clone();
    let (pipeline, tally) = start(Box::new(store), ring, Capacity { events: 10, bytes: 1 << 20 });
    let reader = Reader::open(&path).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while reader.newest(&Query { limit: 1, ..Query::default() }).unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the event never came");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(delivered.load(Ordering::Acquire), 1);
    pipeline.stop();
    assert_eq!(tally.counts().delay.count(), 1);
}

#[test]
fn a_sink_that_is_away_does_not_stop_the_rings() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalSink::open(&directory.path().join(FILE), Retention::default()).unwrap();
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    struct Gated(LocalSink, Arc<Mutex<()>>);
    impl Sink for Gated {
        fn name(&self) -> &'static str {
            "gated"
        }
        fn store(&mut self, batch: &[Document]) -> Result<(), SinkError> {
            let _open = self.1.lock().unwrap();
            self.0.store(batch)
        }
        fn maintain(&mut self) -> Result<Expired, SinkError> {
            Ok(Expired::default())
        }
        fn bytes(&self) -> Option<u64> {
            None
        }
    }
    let ring = Scripted { records: 5_000, delivered: Arc::default(), lost: 0 };
    let delivered = ring.delivered.clone();
    let (pipeline, tally) =
        start(Box::new(Gated(store, gate.clone())), ring, Capacity { events: 100, bytes: 1 << 20 });
    let deadline = Instant::now() + Duration::from_secs(30);
    while delivered.load(Ordering::Acquire) < 5_000 {
        assert!(Instant::now() < deadline, "the ring thread waits for the sink");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(closed);
    pipeline.stop();
    let its = tally.counts().probes["packet_drop"].clone();
    assert!(its.stored >= 100 && its.lost_here["queue_full"] > 0, "{its:?}");
    assert_eq!(its.produced, Some(its.stored + its.lost_here["queue_full"]));
}
