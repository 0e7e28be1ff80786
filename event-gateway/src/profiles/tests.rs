use super::*;
use crate::spool::disk::{Bounds, FILE};
use http_body_util::BodyExt;
use kpulse_common::event::{Container, Host};
use kpulse_common::profile::{Sampled, Stacks};
use serde_json::Value;
use std::time::{Duration, SystemTime};

fn profile(number: u64, folded: &str) -> Profile {
    let stacks = Stacks {
        period_ns: 10_101_010,
        samples: number,
        samples_left_out: 0,
        lost: BTreeMap::new(),
        top: Vec::new(),
        folded: folded.to_owned(),
    };
    let host = Host { id: Some("h1".to_owned()), ..Host::default() };
    let container = Container { id: "c0ffee".to_owned(), name: None, runtime: None, image: None };
    let from = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + number);
    let window = (from, from + Duration::from_secs(10));
    Profile::new(window, host, "web", Some(container), Sampled::new("cpu_sample", stacks))
}

fn line(number: u64) -> String {
    serde_json::to_string(&profile(number, "t;main;hot 7\n")).unwrap()
}

struct Gateway {
    _directory: tempfile::TempDir,
    spool: DiskSpool,
    taken: Arc<Taken>,
    handler: Handler,
}

impl Gateway {
    fn new(max_bytes: u64, labels: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bounds = Bounds { max_bytes, ..Bounds::default() };
        let spool = DiskSpool::open(&directory.path().join(FILE), bounds).unwrap();
        let taken = Arc::new(Taken::default());
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let handler = handler(spool.clone(), labels, taken.clone());
        Self { _directory: directory, spool, taken, handler }
    }

    fn post(&self, body: impl Into<Vec<u8>>) -> (u16, String) {
        self.ask("POST", PATH, "localhost:10851", body.into())
    }

    fn ask(&self, method: &str, path: &str, host: &str, body: Vec<u8>) -> (u16, String) {
        let mut request = Request {
            method: method.parse().unwrap(),
            path: path.to_owned(),
            query: Vec::new(),
            headers: Default::default(),
            body: body.into(),
            received: std::time::Instant::now(),
        };
        request.headers.insert("host", host.parse().unwrap());
        let response = (self.handler)(&request);
        let status = response.status().as_u16();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(response.into_body().collect()).unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    fn held(&self) -> Vec<(String, Value)> {
        let (mut seq, mut held) = (0, Vec::new());
        while let Some(chunk) = self.spool.after(Dataset::Profiles, seq).unwrap() {
            seq = chunk.seq;
            let records = chunk.records().unwrap();
            held.extend(
                records.iter().map(|it| (it.key.to_string(), serde_json::from_str(&it.json).unwrap())),
            );
        }
        held
    }
}

#[test]
fn what_is_taken_is_on_the_disk_as_it_came_and_with_our_labels() {
    for labels in [&[][..], &[("cluster", "a")]] {
        let gateway = Gateway::new(1 << 20, labels);
        let body = format!("{}\n\n{}\n", line(1), line(2));
        assert_eq!(gateway.post(body), (200, "2 profiles are taken.\n".to_owned()));
        let held = gateway.held();
        assert_eq!(held.len(), 2);
        for (number, (key, json)) in (1..).zip(held) {
            let mut wanted: Value = serde_json::from_str(&line(number)).unwrap();
            if let Some((name, value)) = labels.first() {
                wanted["labels"] = serde_json::json!({ *name: value });
            }
            assert_eq!((key.as_str(), json), ("h1/c0ffee", wanted));
        }
        assert_eq!(gateway.taken.counts(), (2, BTreeMap::new()));
    }
}

#[test]
fn a_line_that_is_no_profile_is_named_and_nothing_is_taken() {
    let gateway = Gateway::new(1 << 20, &[]);
    let changed = |pointer: &str, value: Value| {
        let mut json: Value = serde_json::from_str(&line(2)).unwrap();
        *json.pointer_mut(pointer).unwrap() = value;
        json.to_string()
    };
    let large = serde_json::to_string(&profile(2, &"x".repeat(DOCUMENT_BYTES_MAX))).unwrap();
    for (bad, word) in [
        ("no JSON".to_owned(), "no profile"),
        (changed("/service", Value::Null), "no profile"),
        (changed("/kpulse/schema", 2.into()), "schema is 2"),
        (changed("/kpulse/profile/samples", "many".into()), "many"),
        (changed("/kpulse/profile/folded", 1.into()), "expected a string"),
        (changed("/@timestamp", "yesterday".into()), "yesterday"),
        (changed("/event/dataset", "kpulse.events".into()), "kpulse.profiles"),
        (large, "is the most"),
    ] {
        let (status, said) = gateway.post(format!("{}\n{bad}\n", line(1)));
        assert!(status == 400 && said.starts_with("Line 2 cannot be taken"), "{said}");
        assert!(said.contains(word) && said.ends_with(".\n"), "{said}");
    }
    assert_eq!(gateway.post([line(1).into_bytes(), b"\n\xff".to_vec()].concat()).0, 400);
    assert_eq!((gateway.held().len(), gateway.spool.state().events), (0, 0));
    assert_eq!(gateway.taken.counts(), (0, [("undecodable", 9)].into()));
}

#[test]
fn without_room_the_profiler_keeps_what_it_has_and_what_waits_stays() {
    let gateway = Gateway::new(1 << 20, &[]);
    let large = serde_json::to_string(&profile(1, &"x".repeat(300 << 10))).unwrap();
    assert_eq!(gateway.post(large.clone()).0, 200);
    let (status, said) = gateway.post(large);
    assert!(status == 503 && said.contains("output.spool.max_bytes"), "{said}");
    assert_eq!(gateway.post(line(2)).0, 200, "what is smaller has room");
    assert_eq!(gateway.held().len(), 2);
    assert_eq!(gateway.taken.counts(), (2, [("spool_full", 1)].into()));
    assert!(gateway.spool.state().dropped_profiles.is_empty());
}

#[test]
fn only_this_machine_posts_profiles_and_nothing_else_is_here() {
    let gateway = Gateway::new(1 << 20, &[]);
    assert_eq!(gateway.ask("POST", PATH, "evil.example", line(1).into_bytes()).0, 403);
    assert_eq!(gateway.ask("GET", PATH, "localhost", Vec::new()).0, 405);
    assert_eq!(gateway.ask("GET", "/", "127.0.0.1:1", Vec::new()).0, 404);
    assert_eq!(gateway.spool.state().events, 0);
    assert_eq!(gateway.post(""), (200, "0 profiles are taken.\n".to_owned()));
}
