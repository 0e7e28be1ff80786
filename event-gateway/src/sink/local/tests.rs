use super::*;
use crate::query::{Process, Query};
use std::time::SystemTime;

const SECOND: i64 = 1_000_000_000;

fn document(number: i64) -> Document {
    Document {
        id: format!("id-{number}"),
        time_ns: number * SECOND,
        boot_ns: 0,
        probe: "packet_drop",
        kind: if number % 2 == 0 { "packet_drop" } else { "block_io_slow" },
        keys: Keys {
            pid: u32::try_from(number).ok(),
            process: Some(format!("p{}", number % 4)),
            container: (number % 3 == 0).then(|| format!("abc{number}")),
            container_name: (number == 9).then(|| "web".to_owned()),
            pod: (number == 6).then(|| "shop-0".to_owned()),
            pod_uid: (number == 6).then(|| "8dbc5577".to_owned()),
            ..Keys::default()
        },
        json: format!("{{\"number\":{number}}}"),
    }
}

fn now_s() -> i64 {
    i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

fn numbers(reader: &Reader, query: &Query) -> Vec<i64> {
    let found = reader.newest(query).unwrap();
    let number =
        |json: &String| serde_json::from_str::<serde_json::Value>(json).unwrap()["number"].as_i64().unwrap();
    found.iter().map(number).collect()
}

fn all() -> Query {
    Query { limit: usize::MAX, ..Query::default() }
}

#[test]
fn a_reader_sees_what_is_stored_while_the_writer_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state").join(FILE);
    let mut sink = LocalSink::open(&path, Retention::default()).unwrap();
    let reader = Reader::open(&path).unwrap();
    sink.store(&(1..=9).map(document).collect::<Vec<_>>()).unwrap();
    assert_eq!(numbers(&reader, &all()), [9, 8, 7, 6, 5, 4, 3, 2, 1]);
    sink.store(&[document(10)]).unwrap();
    assert_eq!(numbers(&reader, &Query { limit: 1, ..all() }), [10]);
}

#[test]
fn every_condition_finds_its_events_by_an_index() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let mut sink = LocalSink::open(&path, Retention::default()).unwrap();
    let stack = |number: i64| {
        format!("{{\"number\":{number},\"kpulse\":{{\"stack\":{{\"kernel\":[\"f{number} \\\"q\\\"\"]}}}}}}")
    };
    let with_stack = |number| Document { json: stack(number), ..document(number) };
    sink.store(&(1..=10).map(with_stack).collect::<Vec<_>>()).unwrap();
    let reader = Reader::open(&path).unwrap();
    let time = |second| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
    let text = |text: &str| Some(text.to_owned());
    let name = |name: &str| Some(Process::Name(name.to_owned()));
    let none: &[i64] = &[];
    for (query, expected, index) in [
        (all(), &[10, 9, 8, 7, 6, 5, 4, 3, 2, 1][..], "events_by_time"),
        (Query { since: time(9), ..all() }, &[10, 9], "events_by_time"),
        (Query { until: time(3), ..all() }, &[2, 1], "events_by_time"),
        (Query { kind: text("packet_drop"), ..all() }, &[10, 8, 6, 4, 2], "events_by_kind"),
        (Query { kind: text("' OR 1=1 --"), ..all() }, none, "events_by_kind"),
        (Query { container: text("abc"), ..all() }, &[9, 6, 3], "events_by_container"),
        (Query { container: text("abc6"), ..all() }, &[6], "events_by_container"),
        (Query { container: text("web"), ..all() }, &[9], "events_by_container_name"),
        (Query { container: text("bc"), ..all() }, none, "events_by_container"),
        (Query { pod: text("shop-0"), ..all() }, &[6], "events_by_pod"),
        (Query { pod: text("8dbc5577"), ..all() }, &[6], "events_by_pod_uid"),
        (Query { process: Some(Process::Pid(7)), ..all() }, &[7], "events_by_pid"),
        (Query { process: name("p1"), ..all() }, &[9, 5, 1], "events_by_process"),
        (Query { stack: text("f1"), since: time(2), ..all() }, &[10], "events_by_time"),
        (Query { stack: text("f3 \"q\""), ..all() }, &[3], "events_by_time"),
        (Query { stack: text("number"), ..all() }, none, "events_by_time"),
        (Query { kind: text("packet_drop"), process: name("p2"), limit: 1, ..all() }, &[10], "events_by_"),
    ] {
        assert_eq!(numbers(&reader, &query), expected, "{query:?}");
        let plan = reader.plan(&query);
        assert!(plan.contains(index) && !plan.contains("SCAN events;"), "{query:?}: {plan}");
    }
}

#[test]
fn what_came_later_is_told_once_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let mut sink = LocalSink::open(&path, Retention::default()).unwrap();
    sink.store(&[document(5), document(6)]).unwrap();
    let reader = Reader::open(&path).unwrap();
    let last = reader.last().unwrap();
    // Later to come and earlier in time.
    sink.store(&[document(2), document(7), document(4)]).unwrap();
    let even = Query { kind: Some("packet_drop".to_owned()), ..all() };
    let came = reader.after(last, &even).unwrap();
    assert_eq!(
        came.iter().map(|(_, json)| json.as_str()).collect::<Vec<_>>(),
        ["{\"number\":2}", "{\"number\":4}"]
    );
    assert_eq!(reader.after(came[1].0, &even).unwrap(), []);
    let found: Vec<_> =
        reader.find(&even).unwrap().into_iter().filter_map(|seq| reader.document(seq).unwrap()).collect();
    assert_eq!(found, ["{\"number\":2}", "{\"number\":4}", "{\"number\":6}"]);
}

#[test]
fn a_store_of_version_1_becomes_one_of_today() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let old = Connection::open(&path).unwrap();
    old.execute_batch(
        "CREATE TABLE events (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, time_ns INTEGER NOT NULL,
            kind TEXT NOT NULL, pid INTEGER, container TEXT, document TEXT NOT NULL);
         INSERT INTO events (id, time_ns, kind, document) VALUES ('a', 1, 'x',
            '{\"number\":1,\"process\":{\"thread\":{\"name\":\"job\"}},\"kubernetes\":{\"pod\":{\"uid\":\"u1\"}}}');
         PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(old);
    let refused = format!("{:#}", Reader::open(&path).unwrap_err());
    assert!(refused.contains("kpulse-event-gateway run"), "{refused}");
    drop(LocalSink::open(&path, Retention::default()).unwrap());
    let mut sink = LocalSink::open(&path, Retention::default()).unwrap();
    sink.store(&[document(2)]).unwrap();
    let reader = Reader::open(&path).unwrap();
    assert_eq!(numbers(&reader, &Query { process: Some(Process::Name("job".to_owned())), ..all() }), [1]);
    assert_eq!(numbers(&reader, &Query { pod: Some("u1".to_owned()), ..all() }), [1]);
    assert_eq!(numbers(&reader, &all()), [2, 1]);
}

#[test]
fn a_document_stored_twice_is_there_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let mut sink = LocalSink::open(&path, Retention::default()).unwrap();
    sink.store(&[document(1), document(2)]).unwrap();
    drop(sink);
    let mut sink = LocalSink::open(&path, Retention::default()).unwrap();
    sink.store(&[document(2), document(3)]).unwrap();
    assert_eq!(numbers(&Reader::open(&path).unwrap(), &all()), [3, 2, 1]);
}

#[test]
fn events_expire_by_age() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let keep = Retention { max_age: Duration::from_secs(3600), ..Retention::default() };
    let mut sink = LocalSink::open(&path, keep).unwrap();
    let now = now_s();
    sink.store(&(0..2_500).map(|age| document(now - 2 - 2 * age)).collect::<Vec<_>>()).unwrap();
    let expired = sink.maintain().unwrap();
    assert_eq!(expired.by_size, 0);
    assert!((699..=702).contains(&expired.by_age), "{expired:?}");
    assert_eq!(numbers(&Reader::open(&path).unwrap(), &all()).len() as u64, 2_500 - expired.by_age);
    assert_eq!(sink.maintain().unwrap().by_age, 0);
}

#[test]
fn the_oldest_expire_when_the_file_is_too_large_and_the_file_shrinks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let max_bytes = 1 << 20;
    let mut sink = LocalSink::open(&path, Retention { max_bytes, ..Retention::default() }).unwrap();
    let now = now_s();
    let large = |number| Document {
        json: format!("{{\"number\":{number},\"x\":\"{}\"}}", "x".repeat(4000)),
        ..document(number)
    };
    for batch in 0..4 {
        let documents: Vec<_> = (0..250).map(|number| large(now - 2000 + batch * 250 + number)).collect();
        sink.store(&documents).unwrap();
    }
    let mut by_size = 0;
    for _ in 0..10 {
        by_size += sink.maintain().unwrap().by_size;
    }
    let left = numbers(&Reader::open(&path).unwrap(), &all());
    assert_eq!(left.len() as u64 + by_size, 1000);
    assert_eq!(left[0], now - 2000 + 999, "the newest must stay");
    assert!(left.len() > 100, "only {} of about 200 are left", left.len());
    drop(sink);
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size <= max_bytes + (64 << 10), "the file has {size} bytes");
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    std::fs::write(&path, "not a database, but something else that is longer than its header would be")
        .unwrap();
    let error = format!("{:#}", LocalSink::open(&path, Retention::default()).unwrap_err());
    assert!(error.contains("events.db") && error.contains("not a database"), "{error}");
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("not a database"));
    assert!(Reader::open(&path).is_err());
}

#[test]
fn a_newer_store_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", tables::VERSION + 1).unwrap();
    let error = format!("{:#}", LocalSink::open(&path, Retention::default()).unwrap_err());
    assert!(error.contains("newer version"), "{error}");
}

#[test]
fn a_missing_store_is_said_so() {
    let error = format!("{:#}", Reader::open(Path::new("/nonexistent/events.db")).unwrap_err());
    assert!(
        error.contains("/nonexistent/events.db") && error.contains("kpulse-event-gateway run"),
        "{error}"
    );
}

#[test]
fn the_store_is_not_for_others_to_read() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state").join(FILE);
    let mut sink = LocalSink::open(&path, Retention::default()).unwrap();
    sink.store(&[document(1)]).unwrap();
    for file in files(&path) {
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{} has mode {mode:o}", file.display());
    }
}
