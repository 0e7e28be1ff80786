use super::*;
use crate::keys::Keys;
use crate::sink::Sink;
use crate::sink::local::{FILE, LocalSink, Retention};
use crate::spool::Document;
use http_body_util::BodyExt;

fn request(target: &str, host: Option<&'static str>) -> Request {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut request = Request {
        method: Default::default(),
        path: path.to_owned(),
        query: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        headers: Default::default(),
        body: Default::default(),
        received: std::time::Instant::now(),
    };
    if let Some(host) = host {
        request.headers.insert("host", host.parse().unwrap());
    }
    request
}

fn body(response: Response) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let bytes = runtime.block_on(response.into_body().collect()).unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn store_with(directory: &std::path::Path, count: u64) -> Handler {
    let path = directory.join(FILE);
    let mut sink = LocalSink::open(&path, Retention::default()).unwrap();
    let document = |number: u64| Document {
        id: number.to_string(),
        time_ns: i64::try_from(number).unwrap(),
        boot_ns: 0,
        probe: "packet_drop",
        kind: "packet_drop",
        keys: Keys::default(),
        json: format!("{{\"number\":{number},\"event\":{{\"action\":\"<script>{number}\"}}}}"),
    };
    sink.store(&(0..count).map(document).collect::<Vec<_>>()).unwrap();
    handler(path)
}

#[test]
fn answers_the_newest_events_in_the_order_of_time() {
    let directory = tempfile::tempdir().unwrap();
    let handler = store_with(directory.path(), 5);
    let response = handler(&request("/api/v1/events?limit=3", Some("127.0.0.1:10851")));
    assert_eq!(response.status(), 200);
    let events: Vec<serde_json::Value> = serde_json::from_str(&body(response)).unwrap();
    let numbers: Vec<_> = events.iter().filter_map(|event| event["number"].as_u64()).collect();
    assert_eq!(numbers, [2, 3, 4]);
    assert_eq!(body(handler(&request("/api/v1/events?kind=other", None))), "[]\n");
}

#[test]
fn the_page_shows_events_and_executes_none() {
    let directory = tempfile::tempdir().unwrap();
    let page = body(store_with(directory.path(), 3)(&request("/", None)));
    assert!(page.contains("&lt;script&gt;2"), "{page}");
    assert!(!page.contains("<script>"), "{page}");
}

#[test]
fn a_wrong_question_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let handler = store_with(directory.path(), 0);
    for (target, word) in [
        ("/api/v1/events?limit=0", "limit"),
        ("/api/v1/events?limit=1001", "limit"),
        ("/api/v1/events?since=yesterday", "since"),
        ("/api/v1/events?process=-1", "process"),
        ("/api/v1/events?process=4294967296", "process"),
        ("/api/v1/events?until=soon", "until"),
        ("/api/v1/events?since=1m&until=2m", "until"),
        ("/api/v1/events?kind=", "kind"),
        ("/api/v1/events?knd=packet_drop", "knd"),
    ] {
        let response = handler(&request(target, None));
        assert_eq!(response.status(), 400, "{target}");
        assert!(body(response).contains(word), "{target}");
    }
    assert_eq!(handler(&request("/api/v1/nothing", None)).status(), 404);
    let profiles = handler(&request(kpulse_common::profile::PATH, None));
    assert_eq!(profiles.status(), 404);
    assert!(body(profiles).contains("http://localhost:10852/"));
}

#[test]
fn only_clients_that_call_it_localhost_are_answered() {
    let directory = tempfile::tempdir().unwrap();
    let handler = store_with(directory.path(), 0);
    for host in ["localhost:10851", "LOCALHOST", "127.0.0.1", "[::1]:10851", "[::1]"] {
        assert_eq!(handler(&request("/", Some(host))).status(), 200, "{host}");
    }
    for host in ["evil.example:10851", "localhost.evil.example", "192.0.2.1", "", "[::2]:1"] {
        assert_eq!(handler(&request("/", Some(host))).status(), 403, "{host}");
    }
}

#[test]
fn a_store_that_cannot_be_read_is_said_so() {
    let response = handler("/nonexistent/events.db".into())(&request("/api/v1/events", None));
    assert_eq!(response.status(), 503);
    assert!(body(response).contains("/nonexistent/events.db"));
}
