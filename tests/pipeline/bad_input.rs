//! Events and answers that are not what they should be: an error or a dead letter says so, and the rest goes on.

use crate::pair::{Access, LONG, Way, event, id, metric, pair};
use kpulse_tests::process::{Service, run};
use kpulse_tests::{skip, until, within};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const EVENTS: usize = 50;
const LARGE: usize = 5 << 20;

/// An event with a field that is set anew.
fn with(number: usize, field: &str, value: Value) -> Value {
    let mut event = event(number);
    *event.pointer_mut(field).unwrap() = value;
    event
}

#[test]
fn what_is_too_large_or_out_of_range_says_so_and_the_rest_goes_on() {
    let mut pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("what_is_too_large_or_out_of_range", &why),
    };
    pair.kafka.restart(&["message.max.bytes=8388608"]);
    let way = Way::new("large", &pair.kafka, &pair.elasticsearch);
    let large = |number, bytes: usize| {
        let mut event = event(number);
        event["labels"] = json!({"large": "x".repeat(bytes)});
        event
    };
    // A clock that is wrong by years in either direction is no reason to refuse what it stamped.
    let mixed = |number| match number {
        10 => large(number, (1 << 20) - 1_000),
        20 => with(number, "/kpulse/packet_drop/length", json!(1_u64 << 63)),
        30 => with(number, "/@timestamp", json!("2300-01-01T00:00:00Z")),
        40 => with(number, "/@timestamp", json!("2030-01-01T00:00:00Z")),
        41 => with(number, "/@timestamp", json!("1970-01-02T00:00:00Z")),
        EVENTS => large(number, LARGE),
        _ => event(number),
    };
    let sent = way.send(&way.file(0..EVENTS + 1, mixed));
    assert_eq!(sent.code, Some(1));
    assert_eq!(sent.stdout, format!("{} events sent, 0 wait in the spool, 1 dropped\n", EVENTS - 1));
    for words in [&["line 51", "1048576"][..], &["a record that Kafka refuses is lost", "message.max.bytes"]]
    {
        assert!(words.iter().all(|word| sent.stderr.contains(word)), "{words:?}: {}", sent.stderr);
    }

    way.put(Some(&large(EVENTS, LARGE).to_string()));
    way.put(Some(&"no JSON".repeat(LARGE / 7)));
    let index = way.index();
    let (dead, documents) = ([20, 30], EVENTS - 2);
    within(LONG, "documents", || (way.count() >= documents as u64).then_some(()));
    let letters =
        until("dead letters", || Some(way.dead_letters()).filter(|letters| letters.len() >= dead.len()));
    let reason = |number: usize| {
        let of = letters.iter().find(|letter| letter["payload"].contains(&id(number))).unwrap();
        assert_eq!((&*of["dead-letter.status"], &*of["dead-letter.cause"]), ("400", "refused"));
        of["dead-letter.reason"].clone()
    };
    assert!(reason(20).contains("9223372036854775808) out of range of long"), "{}", reason(20));
    assert!(reason(30).contains("2300-01-01") && reason(30).contains("nanosecond"), "{}", reason(30));
    until("the loss", || (metric(&index, "kpulse_index_dropped_total") == 1).then_some(()));
    index.line("not even a dead letter");
    let wanted: Vec<_> =
        (0..=EVENTS).filter(|number| *number != 10 && !dead.contains(number)).map(id).collect();
    assert_eq!(way.ids(), wanted);
    assert_eq!(letters.len(), dead.len());
    pair.kafka.restart(&[]);
}

#[test]
fn what_goes_through_verbatim_is_a_document_or_a_dead_letter() {
    let pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("what_goes_through_verbatim", &why),
    };
    let mut access = Access::open(&pair.kafka, &pair.elasticsearch);
    access.elasticsearch.push(("DECODE", "verbatim".to_owned()));
    let way = Way::with("verbatim", access);
    way.send(&way.events(EVENTS));
    let broken = id(EVENTS + 1);
    // Without headers the document itself is looked at.
    way.put(Some(&event(EVENTS).to_string()));
    way.put(Some("no JSON"));
    for payload in ["{\"@timestamp\":}", "{} {}", "no JSON either", ""] {
        way.put_with(&[("schema", "1"), ("id", &broken)], Some(payload));
    }
    let _index = way.index();
    let letters = until("dead letters", || Some(way.dead_letters()).filter(|letters| letters.len() >= 5));
    let causes = letters.iter().map(|letter| (&*letter["payload"], &*letter["dead-letter.cause"]));
    let wanted = [
        ("", "undecodable"),
        ("no JSON", "undecodable"),
        ("no JSON either", "undecodable"),
        ("{\"@timestamp\":}", "refused"),
        ("{} {}", "refused"),
    ];
    assert_eq!(causes.collect::<BTreeSet<_>>(), wanted.into());
    way.holds_each_once(EVENTS + 1);
}

#[test]
fn a_topic_that_is_missing_is_one_error_that_says_who_makes_it() {
    let pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("a_topic_that_is_missing", &why),
    };
    let way = Way::new("missing", &pair.kafka, &pair.elasticsearch);
    let file = way.events(EVENTS);
    for mut command in [way.command("index"), way.forward(&file)] {
        command.env("KPULSE_GATEWAY__KAFKA__TOPIC", "nowhere");
        // How long librdkafka waits for a topic that was just made.
        command.env("KPULSE_GATEWAY__KAFKA__PROPERTIES__TOPIC_METADATA_PROPAGATION_MAX_MS", "1000");
        let mut service = Service::start(&mut command);
        let line = service.line("level=error");
        assert!(line.contains("nknown topic") && line.contains("kpulse-event-gateway setup"), "{line}");
        assert_eq!(service.stop(), Some(0));
        assert_eq!(service.stderr().matches("level=error").count(), 1, "{}", service.stderr());
    }
    assert_eq!(way.send(&file).code, Some(0));
    let _index = way.index();
    way.holds_each_once(EVENTS);
}

/// Says the same to whoever asks. No real server can be made to say it.
struct Liar {
    address: String,
    says: Arc<Mutex<&'static str>>,
}

impl Liar {
    fn start(says: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let says = Arc::new(Mutex::new(says));
        let its = says.clone();
        // It ends with the program.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = answer(stream.unwrap(), *its.lock().unwrap());
            }
        });
        Self { address, says }
    }
}

/// Reads a request to its end, or the client would not see the answer.
fn answer(mut stream: TcpStream, body: &str) -> std::io::Result<()> {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&request);
        if let Some((head, rest)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if rest.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                break;
            }
        }
        let read = stream.read(&mut buffer)?;
        request.extend_from_slice(&buffer[..read]);
    }
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn an_answer_that_does_not_tell_of_each_event_is_one_error_and_nothing_is_lost() {
    let pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("an_answer_that_does_not_tell", &why),
    };
    let way = Way::new("liar", &pair.kafka, &pair.elasticsearch);
    way.send(&way.events(EVENTS));
    let liar = Liar::start("<html><h1>Sign in</h1></html>");
    let access = Access { url: format!("http://{}", liar.address), ..way.access.clone() };
    let setup = run(&mut way.command_with(&access, "setup"));
    assert_eq!(setup.code, Some(1));
    assert!(setup.stderr.contains("Sign in") && setup.stderr.lines().count() == 1, "{}", setup.stderr);
    let mut index = Service::start(&mut way.command_with(&access, "index"));
    let tried = || metric(&index, "kpulse_index_retries_total{cause=\"wrong_answer\"}");
    let line = index.line("cannot be understood");
    assert!(line.contains("Sign in") && line.contains("elasticsearch.url"), "{line}");
    *liar.says.lock().unwrap() = r#"{"items":[{"create":{"status":201}}]}"#;
    let before = tried();
    within(LONG, "more tries", || (tried() >= before + 2 * EVENTS as u64).then_some(()));
    assert_eq!(metric(&index, "kpulse_sink_up{sink=\"elasticsearch\"}"), 0);
    assert_eq!(metric(&index, "kpulse_index_documents_total"), 0);
    assert_eq!(index.stderr().matches("level=error").count(), 1, "{}", index.stderr());
    assert_eq!(index.stop(), Some(0), "{}", index.stderr());
    let _index = way.index();
    way.holds_each_once(EVENTS);
}
