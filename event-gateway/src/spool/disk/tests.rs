use super::*;
use std::borrow::Cow;
use std::io::{Seek, SeekFrom, Write};

fn record(number: usize, is_fact: bool) -> Record<'static> {
    Record {
        key: format!("host/{number}").into(),
        probe: "p".into(),
        id: number.to_string().into(),
        json: format!("{{\"number\":{number}}}").into(),
        rank: if is_fact { Rank::Fact } else { Rank::Time },
    }
}

fn owned(it: Record<'_>) -> Record<'static> {
    let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
    Record { key: own(it.key), probe: own(it.probe), id: own(it.id), json: own(it.json), rank: it.rank }
}

fn all(spool: &DiskSpool) -> Vec<Record<'static>> {
    all_of(spool, Dataset::Events)
}

fn all_of(spool: &DiskSpool, dataset: Dataset) -> Vec<Record<'static>> {
    let (mut seq, mut records) = (0, Vec::new());
    while let Some(chunk) = spool.after(dataset, seq).unwrap() {
        seq = chunk.seq;
        records.extend(chunk.records().unwrap().into_iter().map(owned));
    }
    records
}

fn open(directory: &tempfile::TempDir, max_bytes: u64) -> DiskSpool {
    let bounds = Bounds { max_bytes, ..Bounds::default() };
    DiskSpool::open(&directory.path().join("state").join(FILE), bounds).unwrap()
}

#[test]
fn what_was_taken_is_there_after_a_start_in_order_until_it_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let records: Vec<_> = (0..10).map(|number| record(number, false)).collect();
    let spool = open(&directory, 1 << 20);
    spool.append(&records[..4]).unwrap();
    spool.append(&records[4..]).unwrap();
    drop(spool);
    let spool = open(&directory, 1 << 20);
    assert_eq!(all(&spool), records);
    assert_eq!((spool.state().events, spool.state().dropped), (10, BTreeMap::new()));
    let first = spool.after(Dataset::Events, 0).unwrap().unwrap();
    assert_eq!(first.events, 4);
    spool.remove(&[first.seq], None).unwrap();
    assert_eq!(all(&spool), records[4..]);
    let second = spool.after(Dataset::Events, first.seq).unwrap().unwrap();
    spool.remove(&[second.seq], None).unwrap();
    assert_eq!(spool.state(), State::default());
    spool.append(&records[..1]).unwrap();
    assert!(spool.after(Dataset::Events, second.seq).unwrap().is_some(), "a place is used once");
}

#[test]
fn room_that_is_free_goes_back_to_the_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(&directory, 1 << 30);
    let large = Record { json: "x".repeat(8 << 20).into(), ..record(0, false) };
    spool.append(&[large]).unwrap();
    spool.remove(&[spool.after(Dataset::Events, 0).unwrap().unwrap().seq], None).unwrap();
    let pages =
        || -> u64 { spool.connection().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap() };
    let before = pages();
    spool.shrink().unwrap();
    // SQLite's own map of pages has some of them.
    let given = before - pages();
    assert!((u64::from(SHRINK_PAGES)..u64::from(SHRINK_PAGES) + 4).contains(&given), "{given}");
    spool.vacuum().unwrap();
    assert!(pages() < 20, "{}", pages());
    spool.append(&[record(1, false)]).unwrap();
    assert!(spool.after(Dataset::Events, 1).unwrap().is_some(), "a place is used once");
}

#[test]
fn over_the_bound_the_oldest_of_the_lowest_priority_goes_and_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(&directory, 200);
    let bytes = encode([record(0, true)].iter(), 1)[0].0.len();
    for number in 0..10 {
        spool.append(&[record(number, number % 5 == 0)]).unwrap();
    }
    let kept = 200 / bytes;
    let numbers: Vec<_> = all(&spool).iter().map(|record| record.json.clone()).collect();
    assert_eq!(numbers.len(), kept);
    assert!(
        numbers.contains(&record(0, true).json) && numbers.contains(&record(5, true).json),
        "{numbers:?}"
    );
    assert!(numbers.contains(&record(9, false).json), "{numbers:?}");
    assert_eq!(spool.state().dropped["spool_size"], 10 - kept as u64);
    assert!(spool.state().bytes <= 200);
}

#[test]
fn profiles_give_way_to_events_and_are_counted_apart() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = encode([record(0, true)].iter(), 1)[0].0.len() as u64;
    let spool = open(&directory, 4 * bytes);
    let profile = |number: usize| Record { rank: Rank::Profile, ..record(number, false) };
    spool.append(&[record(0, false), profile(1), profile(2)]).unwrap();
    spool.append(&[profile(3)]).unwrap();
    assert_eq!(all_of(&spool, Dataset::Profiles), [profile(1), profile(2), profile(3)]);
    spool.append(&[record(4, false)]).unwrap();
    assert_eq!(all(&spool), [record(0, false), record(4, false)], "the older event stays");
    assert_eq!(all_of(&spool, Dataset::Profiles), [profile(3)]);
    let state = spool.state();
    assert_eq!((state.dropped.len(), state.dropped_profiles), (0, [("spool_size", 2)].into()));
    let chunk = spool.after(Dataset::Profiles, 0).unwrap().unwrap();
    spool.remove(&[chunk.seq], Some("spool_corrupt")).unwrap();
    assert_eq!(spool.state().dropped_profiles["spool_corrupt"], 1);
    assert_eq!((spool.state().events, spool.state().dropped.len()), (2, 0));
}

#[test]
fn what_is_too_old_is_dropped_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let bounds = Bounds { max_age: Duration::from_millis(1), ..Bounds::default() };
    let mut spool = DiskSpool::open(&directory.path().join(FILE), bounds).unwrap();
    spool.append(&[record(1, true)]).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    spool.maintain().unwrap();
    assert_eq!((spool.state().events, spool.state().dropped["spool_age"]), (0, 1));
}

#[test]
fn bytes_that_changed_on_the_disk_are_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state").join(FILE);
    let spool = open(&directory, 1 << 20);
    spool.append(&[record(77_777, false)]).unwrap();
    drop(spool);
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(9).rposition(|window| window == b"r\":77777}").unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(at as u64 + 4)).unwrap();
    file.write_all(b"8").unwrap();
    let spool = open(&directory, 1 << 20);
    let chunk = spool.after(Dataset::Events, 0).unwrap().unwrap();
    assert!(chunk.records().unwrap_err().to_string().contains("checksum"));
    spool.remove(&[chunk.seq], Some("corrupt")).unwrap();
    assert_eq!(spool.state().dropped["corrupt"], 1);
}

#[test]
fn one_spool_has_one_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let _first = open(&directory, 1 << 20);
    let second = DiskSpool::open(&directory.path().join("state").join(FILE), Bounds::default());
    assert!(format!("{:#}", second.unwrap_err()).contains("locked"));
}
