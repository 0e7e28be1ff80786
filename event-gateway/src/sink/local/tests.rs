use super::*;
use std::time::SystemTime;

const SECOND: i64 = 1_000_000_000;

fn document(number: i64) -> Document {
    Document {
        id: format!("id-{number}"),
        time_ns: number * SECOND,
        boot_ns: 0,
        probe: "packet_drop",
        kind: if number % 2 == 0 { "packet_drop" } else { "block_io_slow" },
        pid: u32::try_from(number).ok(),
        container: (number % 3 == 0).then(|| format!("abc{number}")),
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
    assert_eq!(numbers(&reader, &Query { kind: Some("packet_drop".to_owned()), ..all() }), [10, 8, 6, 4, 2]);
    assert_eq!(numbers(&reader, &Query { container: Some("abc".to_owned()), ..all() }), [9, 6, 3]);
    assert_eq!(numbers(&reader, &Query { container: Some("bc".to_owned()), ..all() }), [] as [i64; 0]);
    assert_eq!(numbers(&reader, &Query { pid: Some(7), ..all() }), [7]);
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
    assert_eq!(numbers(&reader, &Query { since: Some(since), ..all() }), [10, 9]);
    assert_eq!(numbers(&reader, &Query { kind: Some("' OR 1=1 --".to_owned()), ..all() }), [] as [i64; 0]);
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
    Connection::open(&path).unwrap().pragma_update(None, "user_version", VERSION + 1).unwrap();
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
