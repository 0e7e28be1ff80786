//! Events through the real Kafka into the real Elasticsearch and OpenSearch, while each of them fails in each way.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod bad_input;
mod consumers;
mod faults;
mod pair;
mod profiles;
mod secured;
mod security;

use kpulse_tests::process::{Service, run};
use kpulse_tests::services::{Kind, Server};
use kpulse_tests::{is_root, skip, until, within};
use pair::{LONG, Way, event, folder, metric, pair};
use serde_json::json;

/// Events of each test; `make soak` sends many more.
const EVENTS: usize = 3_000;

#[test]
fn every_event_becomes_one_document_or_a_dead_letter_that_says_why() {
    let pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("every_event_becomes_one_document_or_a_dead_letter", &why),
    };
    let way = Way::new("all", &pair.kafka, &pair.elasticsearch);
    let again = run(&mut way.command("setup"));
    assert_eq!(again.stdout.matches(" is there already").count(), 10, "{}", again.stdout);
    let mut conflict = event(EVENTS);
    conflict["kpulse"]["packet_drop"]["source"]["ip"] = json!("nowhere");
    let mut newer = event(EVENTS + 1);
    newer["kpulse"]["schema"] = json!(2);
    for payload in [Some("no JSON"), Some(&newer.to_string()), Some(&conflict.to_string()), None] {
        way.put(payload);
    }
    let sent = way.send(&way.events(EVENTS));
    assert_eq!(
        sent.stdout,
        format!("{EVENTS} events sent, 0 wait in the spool, 0 dropped\n"),
        "{}",
        sent.stderr
    );

    let mut index = way.index();
    way.holds_each_once(EVENTS);
    let dead =
        |count| until("dead letters", || Some(way.dead_letters()).filter(|letters| letters.len() >= count));
    let letters = dead(4);
    let of = |payload: &str| letters.iter().find(|letter| letter["payload"].contains(payload)).unwrap();
    assert_eq!(of("no JSON")["dead-letter.cause"], "undecodable");
    assert!(of("\"schema\":2")["dead-letter.reason"].contains("its schema is 2"));
    let refused = of("nowhere");
    assert_eq!((&*refused["dead-letter.status"], &*refused["schema"], &*refused["host"]), ("400", "1", "h1"));
    assert!(refused["dead-letter.reason"].contains("'nowhere'"), "{refused:?}");
    assert_eq!(refused["dead-letter.topic"], "all");
    assert_eq!(metric(&index, "kpulse_index_documents_total"), EVENTS as u64);
    assert_eq!(metric(&index, "kpulse_index_dead_letters_total{cause=\"undecodable\"}"), 2);

    // What still can be no document is a dead letter once more, without what the first time left on it.
    let replayed = run(&mut way.command("replay-dead-letters"));
    assert_eq!(replayed.stdout, "4 dead letters went back to all\n", "{}", replayed.stderr);
    let letters = dead(8);
    assert_eq!(letters.len(), 8);
    assert!(letters.iter().all(|letter| letter["dead-letter.topic"] == "all"));
    assert_eq!(run(&mut way.command("replay-dead-letters")).stdout, "4 dead letters went back to all\n");
    assert_eq!(index.stop(), Some(0), "{}", index.stderr());
    way.holds_each_once(EVENTS);
}

#[test]
fn what_elasticsearch_cannot_take_now_is_stored_later() {
    let mut pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("what_elasticsearch_cannot_take_now", &why),
    };
    pair.elasticsearch.restart(&["thread_pool.write.queue_size=1", "http.max_content_length=100kb"]);
    let way = Way::new("later", &pair.kafka, &pair.elasticsearch);
    let mut large = event(EVENTS);
    large["labels"] = json!({"large": "x".repeat(150_000)});
    way.put(Some(&large.to_string()));
    way.send(&way.events(EVENTS));
    let start = || {
        let mut command = way.command("index");
        command.env("KPULSE_GATEWAY__ELASTICSEARCH__MAX_IN_FLIGHT", "32");
        Service::start(command.env("KPULSE_GATEWAY__ELASTICSEARCH__MAX_BULK_BYTES", "200000"))
    };
    let index = start();
    way.holds_each_once(EVENTS);
    assert!(metric(&index, "kpulse_index_retries_total{cause=\"too_large\"}") > 0);
    let letters = until("the dead letter", || Some(way.dead_letters()).filter(|letters| !letters.is_empty()));
    assert_eq!((letters.len(), &*letters[0]["dead-letter.status"]), (1, "413"));

    // A write block is lifted, and what waited is stored.
    let backing = way.ask("GET", &format!("_resolve/index/{}", way.data_stream()), None);
    let backing = backing["data_streams"][0]["backing_indices"][0].as_str().unwrap().to_owned();
    let block = |is_on: bool| {
        let settings = json!({"index.blocks.write": is_on});
        assert_eq!(way.ask("PUT", &format!("{backing}/_settings"), Some(&settings))["acknowledged"], true);
    };
    block(true);
    way.put(Some(&event(EVENTS).to_string()));
    until("a refusal", || {
        (metric(&index, "kpulse_index_retries_total{cause=\"forbidden\"}") > 0).then_some(())
    });
    index.line("takes none of 1 events (forbidden)");
    assert_eq!((way.count(), metric(&index, "kpulse_sink_up{sink=\"elasticsearch\"}")), (EVENTS as u64, 0));
    block(false);
    way.holds_each_once(EVENTS + 1);
    drop(index);
    pair.elasticsearch.restart(&[]);
}

#[test]
fn what_happened_while_kafka_was_away_is_sent_after_a_kill_and_a_start() {
    if !is_root() {
        return skip("what_happened_while_kafka_was_away", "the kernel's events need root");
    }
    let mut pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("what_happened_while_kafka_was_away", &why),
    };
    let way = Way::new("node", &pair.kafka, &pair.elasticsearch);
    pair.kafka.kill();
    let start = || {
        let mut command = way.command("forward");
        let service = Service::start(command.env("KPULSE_GATEWAY__LABELS__TEST", "node"));
        service.line("message=ready");
        service
    };
    let mut forward = start();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let waiting = until("events in the spool", || {
        // The sandbox's kernel may miss a packet; an earlier answer from the port is an error of this send.
        let _ = socket.send_to(b"x", nobody);
        Some(metric(&forward, "kpulse_disk_spool_events")).filter(|events| *events > 0)
    });
    until("word of Kafka", || (metric(&forward, "kpulse_sink_up{sink=\"kafka\"}") == 0).then_some(()));
    forward.line("Kafka cannot be used");
    forward.signal(libc::SIGKILL);
    forward.wait();

    let mut forward = start();
    assert!(metric(&forward, "kpulse_disk_spool_events") >= waiting);
    pair.kafka.resume();
    within(LONG, "an empty spool", || {
        let sent = metric(&forward, "kpulse_events_forwarded_total");
        (sent >= waiting && metric(&forward, "kpulse_disk_spool_events") == 0).then_some(())
    });
    assert_eq!(forward.stop(), Some(0), "{}", forward.stderr());
    let index = way.index();
    within(LONG, "documents", || (way.count() >= waiting).then_some(()));
    let dead = metric(&index, "kpulse_index_dead_letters_total{cause=\"refused\"}");
    assert_eq!(dead, 0, "{:?}", way.dead_letters());
}

#[test]
fn what_the_spool_had_to_drop_is_told_by_an_event() {
    if !is_root() {
        return skip("what_the_spool_had_to_drop", "the kernel's events need root");
    }
    let mut pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("what_the_spool_had_to_drop", &why),
    };
    let way = Way::new("dropped", &pair.kafka, &pair.elasticsearch);
    pair.kafka.kill();
    let spool = |command: &mut std::process::Command, bytes: u64| {
        Service::start(command.env("KPULSE_GATEWAY__OUTPUT__SPOOL__MAX_BYTES", bytes.to_string()))
    };
    // A file fills half of what there is.
    let mut filling = spool(&mut way.forward(&way.events(20_000)), 6 << 20);
    let log = way.state.path().join("spool.db-wal");
    within(LONG, "a spool", || (std::fs::metadata(&log).ok()?.len() > 3 << 20).then_some(()));
    assert_eq!(filling.stop(), Some(0));
    let forward = spool(&mut way.command("forward"), 1 << 20);
    let told = "kpulse_events_stored_total{probe=\"events_lost\"}";
    within(LONG, "the event", || (metric(&forward, told) == 1).then_some(()));
    pair.kafka.resume();
    let _index = way.index();
    let query = json!({"query": {"term": {"event.action": "events_lost"}}});
    let found = within(LONG, "its document", || {
        way.count();
        let answer = way.ask("POST", &format!("{}/_search", way.data_stream()), Some(&query));
        answer["hits"]["hits"].get(0).cloned()
    });
    let body = &found["_source"]["kpulse"]["events_lost"];
    // What the kernel tells meanwhile may be lost as well.
    let lost = metric(&forward, "kpulse_disk_spool_lost_total{reason=\"spool_size\"}");
    assert!(
        body["reason"] == "spool_size" && (1_000..=lost).contains(&body["events"].as_u64().unwrap()),
        "{body}"
    );
}

#[test]
fn opensearch_takes_the_same_templates_and_events() {
    let pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("opensearch_takes_the_same", &why),
    };
    if let Err(why) = Kind::OpenSearch.install() {
        return skip("opensearch_takes_the_same", &why);
    }
    let search = Server::start(Kind::OpenSearch, &folder().join("opensearch"), &[]);
    let way = Way::new("open", &pair.kafka, &search);
    let again = run(&mut way.command("setup"));
    assert_eq!(again.stdout.matches(" is there already").count(), 10, "{}", again.stdout);
    way.send(&way.events(200));
    let mut index = way.index();
    way.holds_each_once(200);
    assert_eq!(index.stop(), Some(0));
    let range = json!({"query": {"range": {"kpulse.packet_drop.source.port": {"gte": 100}}}});
    let found = way.ask("POST", &format!("{}/_count", way.data_stream()), Some(&range));
    assert_eq!(found["count"], 100);
}
