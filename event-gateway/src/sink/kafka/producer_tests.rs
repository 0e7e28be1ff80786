use super::*;
use crate::spool::disk::{Bounds, FILE, Rank};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers as _, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use std::collections::BTreeSet;

const LONG: Duration = Duration::from_secs(60);

fn record(number: usize) -> Record<'static> {
    Record {
        key: "h/c".into(),
        probe: "p".into(),
        id: number.to_string().into(),
        json: number.to_string().into(),
        rank: Rank::Time,
    }
}

fn spool(directory: &tempfile::TempDir) -> DiskSpool {
    DiskSpool::open(&directory.path().join(FILE), Bounds::default()).unwrap()
}

/// Sends until the spool is empty.
fn send(brokers: &str, spool: &DiskSpool) -> ProducerCounts {
    let config = KafkaConfig { brokers: brokers.to_owned(), topic: "t".to_owned(), ..KafkaConfig::default() };
    let producer = Producer::new(&config, spool.clone()).unwrap();
    let (counts, stop) = (producer.counts(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| producer.run(&stop));
        let start = Instant::now();
        while spool.state().events > 0 {
            assert!(start.elapsed() < LONG, "{:?} {:?}", spool.state(), counts());
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Release);
    });
    counts()
}

/// The payloads and the last headers that are in the topic of events.
fn read(brokers: &str, wanted: usize) -> (Vec<String>, Vec<(String, String)>) {
    read_topic(brokers, "t", wanted)
}

fn read_topic(brokers: &str, topic: &str, wanted: usize) -> (Vec<String>, Vec<(String, String)>) {
    let mut client = ClientConfig::new();
    // A group for each: the mock keeps who has left one until the session is over.
    client.set("bootstrap.servers", brokers).set("group.id", topic).set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = client.create().unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let (mut payloads, mut headers, start) = (Vec::new(), Vec::new(), Instant::now());
    while payloads.iter().collect::<BTreeSet<_>>().len() < wanted {
        assert!(start.elapsed() < LONG, "{} of {wanted}", payloads.len());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.unwrap();
        assert_eq!(message.key(), Some(&b"h/c"[..]));
        payloads.push(String::from_utf8(message.payload().unwrap().to_vec()).unwrap());
        let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        let its = message.headers().unwrap();
        headers = its.iter().map(|header| (header.key.to_owned(), text(header.value))).collect();
    }
    (payloads, headers)
}

#[test]
fn what_the_spool_holds_reaches_kafka_in_order_with_its_headers() {
    let cluster = MockCluster::new(1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    for start in [0, 50] {
        spool.append(&(start..start + 50).map(record).collect::<Vec<_>>()).unwrap();
    }
    let counts = send(&cluster.bootstrap_servers(), &spool);
    assert_eq!((counts.sent, counts.error, counts.delay.count()), (100, None, 100));
    let (payloads, headers) = read(&cluster.bootstrap_servers(), 100);
    assert_eq!(payloads, (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
    let expected = [("schema", "1"), ("probe", "p"), ("host", "h"), ("id", "99")];
    assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn an_error_of_the_broker_costs_no_event() {
    let cluster = MockCluster::new(1).unwrap();
    let errors = [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
    ];
    cluster.request_errors(RDKafkaApiKey::Produce, &errors);
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    spool.append(&(0..20).map(record).collect::<Vec<_>>()).unwrap();
    let counts = send(&cluster.bootstrap_servers(), &spool);
    assert!(counts.retries.contains_key("TopicAuthorizationFailed"), "{:?}", counts.retries);
    let (payloads, _) = read(&cluster.bootstrap_servers(), 20);
    assert_eq!(payloads.iter().collect::<BTreeSet<_>>().len(), 20);
    assert!(spool.state().dropped.values().all(|&dropped| dropped == 0));
}

#[test]
fn an_event_that_is_too_large_is_lost_alone_and_counted() {
    let cluster = MockCluster::new(1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    let large = Record { json: "x".repeat(5 << 20).into(), ..record(0) };
    spool.append(&[record(1), large, record(2)]).unwrap();
    let counts = send(&cluster.bootstrap_servers(), &spool);
    assert_eq!((counts.sent, spool.state().dropped["kafka_refused"]), (2, 1));
    assert_eq!(read(&cluster.bootstrap_servers(), 2).0, ["1", "2"]);
}

#[test]
fn profiles_have_a_topic_of_their_own_which_no_event_waits_for() {
    let cluster = MockCluster::new(1).unwrap();
    let brokers = cluster.bootstrap_servers();
    cluster.create_topic("t", 1, 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    let profile = |number: usize| Record { rank: Rank::Profile, ..record(number) };
    // Before the events, and more chunks than may be on their way of either.
    for number in 0..40 {
        spool.append(&[profile(number)]).unwrap();
    }
    spool.append(&[record(100), record(101)]).unwrap();
    let config = KafkaConfig { brokers: brokers.clone(), topic: "t".to_owned(), ..KafkaConfig::default() };
    let producer = Producer::new(&config, spool.clone()).unwrap();
    let (counts, stop) = (producer.counts(), AtomicBool::new(false));
    cluster
        .topic_error("kpulse.profiles", RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
        .unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| producer.run(&stop));
        let wait = |what: &str, is_there: &dyn Fn() -> bool| {
            let start = Instant::now();
            while !is_there() {
                assert!(start.elapsed() < LONG, "{what}: {:?} {:?}", spool.state(), counts());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        wait("the events", &|| counts().sent == 2 && spool.state().events <= 40);
        // A failure ends the sending, or the scope would wait for it.
        let waiting = (counts().sent_profiles, spool.state().events);
        stop.store(waiting != (0, 40), Ordering::Release);
        assert_eq!(waiting, (0, 40));
        cluster.topic_error("kpulse.profiles", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
        wait("the profiles", &|| spool.state().events == 0);
        stop.store(true, Ordering::Release);
    });
    assert_eq!((counts().sent, counts().sent_profiles), (2, 40));
    assert_eq!(read(&brokers, 2).0, ["100", "101"]);
    assert_eq!(read_topic(&brokers, "kpulse.profiles", 40).0.len(), 40);
}
