//! What the profiler samples, through the gateway and Kafka, as documents that Elasticsearch finds.

use crate::pair::{LONG, Way, metric, pair};
use kpulse_tests::process::{Service, command, run};
use kpulse_tests::{binary, http, is_root, skip, within};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A program of which a known part is spent in one function; it ends with the test.
struct Busy(Child);

impl Busy {
    fn start(directory: &Path, name: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/chain.c");
        let program = directory.join(name);
        let compile = Command::new("gcc")
            .args(["-O1", "-fno-omit-frame-pointer", "-o"])
            .args([&program, &source])
            .status();
        assert!(compile.expect("gcc runs; it comes with build-essential").success());
        Self(Command::new(&program).arg("600").stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends windows of three seconds to this address.
fn profiler(api: &str) -> Service {
    let mut profiler = command(binary("kpulse-profiler"));
    profiler.args(["serve", "--web.listen-address=127.0.0.1:0", "--api.listen-address=127.0.0.1:0"]);
    profiler.args(["--history.window=3s", "--upload.form=gateway", &format!("--upload.url=http://{api}")]);
    Service::start(&mut profiler)
}

fn forward(way: &Way) -> (Service, String) {
    let forward = Service::start(way.command("forward").env("KPULSE_GATEWAY__LABELS__CLUSTER", "a"));
    let api = forward.logged("message=listening", "api");
    forward.line("message=ready");
    (forward, api)
}

/// A profile as another program than the profiler may make it.
fn profile(number: usize) -> Value {
    let folded: String = (0..4_000).map(|line| format!("t;main;function_{number}_{line} 1\n")).collect();
    json!({
        "@timestamp": format!("2026-11-21T10:00:00.{number:09}Z"),
        "ecs": {"version": "8.17"},
        "event": {"id": format!("profile-{number}"), "kind": "metric", "module": "kpulse", "dataset": "kpulse.profiles",
            "action": "cpu_profile", "duration": 10_000_000_000_u64},
        "host": {"name": "n1", "id": "h1"},
        "service": {"name": "made"},
        "kpulse": {"schema": 1, "probe": "cpu_sample", "profile": {"period_ns": 10_101_010, "samples": 4_000,
            "samples_left_out": 0, "lost": {"map_full": number},
            "top": [{"function": format!("function_{number}_0"), "samples": 1}], "folded": folded}},
    })
}

/// Posts lines; the answer.
fn post(api: &str, lines: &[String]) -> http::Answer {
    let body = lines.join("\n");
    let length = body.len();
    let headers = format!("Content-Type: application/x-ndjson\r\nContent-Length: {length}\r\n");
    http::post(api, "/api/v1/profiles", &headers, &body)
}

fn lines(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| profile(number).to_string()).collect()
}

/// The sources of the documents that a query finds.
fn found(way: &Way, query: &Value) -> Vec<Value> {
    let stream = format!("logs-kpulse.profiles-{}", way.name);
    way.ask("POST", &format!("{stream}/_refresh"), None);
    let answer = way.ask("POST", &format!("{stream}/_search"), Some(&json!({"size": 1_000, "query": query})));
    let hits = answer["hits"]["hits"].as_array().cloned().unwrap_or_default();
    hits.into_iter().map(|hit| hit["_source"].clone()).collect()
}

#[test]
fn what_a_program_did_is_found_by_its_name_and_its_hot_function() {
    if !is_root() {
        return skip("what_a_program_did_is_found", "sampling needs root");
    }
    let mut pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("what_a_program_did_is_found", &why),
    };
    let way = Way::new("profiled", &pair.kafka, &pair.elasticsearch);
    let _busy = Busy::start(way.state.path(), "busy-chain");
    let (mut forward, api) = forward(&way);
    let mut profiler = profiler(&api);
    let _index = way.index();
    let query = json!({"bool": {"filter": [
        {"term": {"service.name": "busy-chain"}},
        {"term": {"kpulse.profile.top.function": "hot"}},
        {"range": {"kpulse.profile.samples": {"gte": 20}}},
        {"term": {"labels.cluster": "a"}},
    ]}});
    let document = within(LONG, "a document of the program", || found(&way, &query).into_iter().next());
    let profile = &document["kpulse"]["profile"];
    let folded = profile["folded"].as_str().unwrap();
    let hot = folded.lines().find(|line| line.contains(";main;outer;middle;hot "));
    assert!(hot.is_some_and(|line| line.starts_with("busy-chain;")), "{folded}");
    let in_lines: u64 =
        folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
    assert_eq!(Some(in_lines), profile["samples"].as_u64(), "{profile}");
    assert_eq!((&profile["period_ns"], &profile["samples_left_out"]), (&json!(10_101_010), &json!(0)));
    let top = &profile["top"][0];
    assert!(
        top["function"] == "hot" && top["samples"].as_u64() > profile["top"][1]["samples"].as_u64(),
        "{top}"
    );
    assert!(
        document["host"]["os"]["kernel"].is_string() && document["event"]["duration"].is_u64(),
        "{document}"
    );

    // Kafka is away for some windows, and the gateway is killed meanwhile: what it took is there, each once.
    pair.kafka.kill();
    let taken = || metric(&forward, "kpulse_profiles_taken_total");
    let before = taken();
    within(LONG, "profiles of two windows", || (taken() >= before + 4).then_some(()));
    assert_eq!(profiler.stop(), Some(0), "{}", profiler.stderr());
    let all = taken();
    forward.signal(libc::SIGKILL);
    forward.wait();
    let (mut forward, _) = self::forward(&way);
    pair.kafka.resume();
    within(LONG, "an empty spool", || {
        let is_empty = metric(&forward, "kpulse_disk_spool_events") == 0;
        (is_empty && metric(&forward, "kpulse_profiles_forwarded_total") >= 4).then_some(())
    });
    assert_eq!(metric(&forward, "kpulse_profiles_lost_total{reason=\"kafka_refused\"}"), 0);
    let count = || {
        found(&way, &query);
        way.ask("GET", "logs-kpulse.profiles-profiled/_count", None)["count"].as_u64().unwrap()
    };
    within(LONG, "all documents", || (count() >= all).then_some(()));
    assert_eq!(count(), all, "a profile is there twice");
    assert_eq!(forward.stop(), Some(0), "{}", forward.stderr());
}

#[test]
fn what_was_posted_is_one_document_and_what_is_none_is_refused_or_a_dead_letter() {
    if !is_root() {
        return skip("what_was_posted_is_one_document", "the gateway's probes need root");
    }
    let mut pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("what_was_posted_is_one_document", &why),
    };
    let way = Way::new("posted", &pair.kafka, &pair.elasticsearch);
    let (mut forward, api) = forward(&way);
    pair.kafka.kill();
    // More than one chunk of the spool, and one of them twice.
    for start in [0, 5, 10, 5] {
        let answer = post(&api, &lines(start..start + 5));
        assert_eq!((answer.status, answer.body.as_str()), (200, "5 profiles are taken.\n"));
    }
    let answer = post(&api, &[profile(20).to_string(), "no JSON".to_owned()]);
    assert!(answer.status == 400 && answer.body.starts_with("Line 2 cannot be taken"), "{}", answer.body);
    pair.kafka.resume();
    let stream = "logs-kpulse.profiles-posted";
    // A value that no field of the type takes.
    let mapping = json!({"properties": {"kpulse": {"properties": {"profile": {"properties": {"lost": {"properties": {
        "conflict": {"type": "ip"}}}}}}}}});
    let mut conflict = profile(30);
    conflict["kpulse"]["profile"]["lost"] = json!({"conflict": 1_u64 << 40});
    let mut index = way.index();
    let made = json!({"term": {"service.name": "made"}});
    let documents = |count: usize| {
        within(LONG, "documents", || Some(found(&way, &made)).filter(|documents| documents.len() >= count))
    };
    let mut stored = documents(15);
    stored.sort_by_key(|document| document["@timestamp"].to_string());
    for (number, document) in stored.iter_mut().enumerate() {
        let mut wanted = profile(number);
        wanted["labels"] = json!({"cluster": "a"});
        assert_eq!(*document, wanted, "{number}");
    }
    assert_eq!(found(&way, &json!({"range": {"kpulse.profile.lost.map_full": {"gte": 10}}})).len(), 5);
    assert_eq!(found(&way, &json!({"term": {"kpulse.profile.top.function": "function_7_0"}})).len(), 1);
    assert_eq!(way.ask("PUT", &format!("{stream}/_mapping"), Some(&mapping))["acknowledged"], true);
    assert_eq!(post(&api, &[conflict.to_string()]).status, 200);
    let letters =
        within(LONG, "a dead letter", || Some(way.dead_letters()).filter(|letters| !letters.is_empty()));
    let letter = &letters[0];
    assert_eq!((&*letter["dead-letter.topic"], &*letter["host"]), ("posted-profiles", "h1"));
    assert!(letter["payload"].contains("profile-30") && letter["dead-letter.status"] == "400", "{letter:?}");
    // It goes back to where it was, and is refused there once more.
    let replayed = run(&mut way.command("replay-dead-letters")).stdout;
    assert_eq!(replayed, "0 dead letters went back to posted\n1 dead letters went back to posted-profiles\n");
    let letters = within(LONG, "it again", || Some(way.dead_letters()).filter(|letters| letters.len() >= 2));
    assert_eq!(letters[1]["dead-letter.topic"], "posted-profiles");
    assert_eq!(documents(15).len(), 15);
    assert_eq!(metric(&forward, "kpulse_profiles_taken_total"), 21);
    assert_eq!(metric(&forward, "kpulse_profiles_refused_total{reason=\"undecodable\"}"), 1);
    assert_eq!((index.stop(), forward.stop()), (Some(0), Some(0)), "{} {}", index.stderr(), forward.stderr());
}
