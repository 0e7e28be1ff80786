use super::*;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const SECOND: Duration = Duration::from_secs(1);

fn shared(max_bytes: usize) -> Shared {
    in_memory(max_bytes, 60 * SECOND)
}

fn in_memory(max_bytes: usize, max_age: Duration) -> Shared {
    let window = 10 * SECOND;
    Shared::new(Bounds { window, window_entries: 100, max_age, max_bytes })
}

/// When the windows of a test begin, behind its history's own begin.
fn start() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}

/// Counts ten samples that ended so many seconds after the start.
fn drain(shared: &Shared, (instant, wall): (Instant, SystemTime), second: u32, leaf: &str) {
    {
        let mut state = shared.lock();
        let stack = state.history.stack(&[Arc::from("main"), Arc::from(leaf)]);
        let key = Key { pid: 7, process: "p".into(), thread: "t".into(), container: None, stack };
        let named =
            Named { entries: vec![(key, 10)], taken: 12, lost: vec![("map_full", 2)], ..Named::default() };
        state.history.absorb(named, instant + second * SECOND, wall + second * SECOND);
    }
    shared.pack();
}

fn select(shared: &Shared, scope: &Scope, last: u32, ago: u32, now: SystemTime) -> Option<Selection> {
    shared.select(scope, Detail::Stacks, Stretch::of(last * SECOND, ago * SECOND, now)).unwrap()
}

fn leaves(selection: Option<Selection>) -> Option<Vec<(String, u64)>> {
    let mut leaves: Vec<_> =
        selection?.entries.into_iter().map(|(key, count)| (key.stack[1].to_string(), count)).collect();
    leaves.sort();
    Some(leaves)
}

fn open(path: &Path, max_age: Duration, max_bytes: u64) -> anyhow::Result<Store> {
    Store::open(path, Retention { max_age, max_bytes }, SystemTime::now())
}

/// A history that is written to this file.
fn kept(path: &Path) -> (Shared, Keeper) {
    let shared = in_memory(1 << 20, 3600 * SECOND);
    let store = Arc::new(open(path, 3600 * SECOND, 1 << 30).unwrap());
    let keeper = Keeper::start(&shared, store).unwrap();
    (shared, keeper)
}

fn finish(shared: &Shared, keeper: Keeper) {
    shared.close();
    keeper.finish();
}

#[test]
fn a_window_closes_after_its_length_and_goes_at_its_age() {
    let (shared, start) = (shared(1 << 20), start());
    (1..=100).for_each(|second| drain(&shared, start, second, "hot"));
    let windows = shared.lock().history.windows();
    assert!((6..=8).contains(&windows), "{windows} windows");
    assert_eq!(shared.lock().history.evicted().windows, 0, "age is no loss");
    let now = start.1 + 100 * SECOND;
    let last = select(&shared, &Scope::Process(7), 30, 0, now).unwrap();
    assert!((300..=400).contains(&last.samples), "{}", last.samples);
    assert_eq!(last.lost["map_full"] * 5, last.samples);
    assert_eq!(select(&shared, &Scope::Process(8), 30, 0, now).unwrap().samples, 0);
}

#[test]
fn a_past_stretch_is_selected_by_how_long_ago_it_ended() {
    let (shared, start) = (shared(1 << 20), start());
    (1..=55).for_each(|second| drain(&shared, start, second, if second <= 20 { "before" } else { "after" }));
    let found = |last, ago| leaves(select(&shared, &Scope::Host, last, ago, start.1 + 55 * SECOND));
    assert_eq!(found(10, 36), Some(vec![("before".into(), 200)]));
    assert_eq!(found(5, 0), Some(vec![("after".into(), 50)]), "the open window");
    assert_eq!(found(10, 15), Some(vec![("after".into(), 100)]));
    assert_eq!(found(5, 3600), None, "older than all that is kept");
}

#[test]
fn memory_bounds_what_is_not_written_and_the_loss_is_counted() {
    let bound = 2000;
    let (shared, start) = (shared(bound), start());
    for second in 1..=400 {
        drain(&shared, start, second, &format!("leaf{second}"));
        assert!(shared.lock().history.waiting_bytes <= bound);
    }
    let evicted = shared.lock().history.evicted();
    assert!(evicted.windows > 0 && evicted.samples % 10 == 0, "{evicted:?}");
}

#[test]
fn a_history_goes_on_after_an_end_of_any_kind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state").join(FILE);
    let begin;
    {
        let (shared, keeper) = kept(&path);
        begin = start();
        let start = begin;
        (1..=35).for_each(|second| drain(&shared, start, second, "first"));
        finish(&shared, keeper);
        assert_eq!(shared.lock().history.windows(), 1, "nothing but a new window is in memory");
        let held = shared.lock().history.store().unwrap().held();
        assert_eq!((held.windows, held.first, held.next, held.entries), (4, 0, 4, 4), "the open one too");
    }
    let (start, now) = (begin, begin.1 + 100 * SECOND);
    let (shared, keeper) = kept(&path);
    assert_eq!(shared.lock().history.began(), 4);
    assert_eq!(leaves(select(&shared, &Scope::Process(7), 100, 0, now)), Some(vec![("first".into(), 350)]));
    assert_eq!(leaves(select(&shared, &Scope::Host, 30, 60, now)), Some(vec![("first".into(), 250)]));
    (61..=80).for_each(|second| drain(&shared, start, second, "second"));
    // As an end without warning leaves it: the store has what was closed.
    while !shared.lock().history.waiting.is_empty() {
        std::thread::yield_now();
    }
    let copy = directory.path().join("copy.db");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::copy(path.with_extension("db-wal"), copy.with_extension("db-wal")).unwrap();
    let (again, last) = kept(&copy);
    let both = Some(vec![("first".into(), 350), ("second".into(), 110)]);
    assert_eq!(leaves(select(&again, &Scope::Host, 100, 0, now)), both);
    finish(&shared, keeper);
    finish(&again, last);
}

#[test]
fn windows_are_told_one_by_one_from_any_number_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let (shared, keeper) = kept(&path);
    let start = start();
    (1..=35).for_each(|second| drain(&shared, start, second, "hot"));
    finish(&shared, keeper);
    let store = shared.lock().history.store().unwrap();
    shared.set_place("upload", "http://one", 2).unwrap();
    assert_eq!(store.place("upload", "http://two").unwrap(), None, "another one has had nothing");
    assert_eq!(store.place("files", "http://one").unwrap(), None, "nor has another reader");
    drop((shared, store));
    let (shared, keeper) = kept(&path);
    assert_eq!(shared.place("upload", "http://one").unwrap(), 2);
    assert_eq!(shared.place("upload", "http://two").unwrap(), 4, "what is closed since the start");
    let samples = |number| shared.closed(number).unwrap().map(|it| (it.first, it.selection.samples));
    assert_eq!([samples(0), samples(3), samples(4)], [Some((0, 100)), Some((3, 50)), None]);
    assert!(shared.lock().history.has(3) && !shared.lock().history.has(4));
    finish(&shared, keeper);
}

#[test]
fn windows_go_at_their_age_and_numbers_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let now = SystemTime::now();
    let store = open(&path, 60 * SECOND, 1 << 30).unwrap();
    for number in 0..100u32 {
        let from = now + number * SECOND;
        let packed = Packed::of(number.into(), &Sum::of(&packed::tests::window(from, "hot"))).unwrap();
        assert_eq!(store.append(&packed, packed.to).unwrap(), Evicted::default(), "age is no loss");
    }
    assert_eq!((store.held().windows, store.held().first, store.held().next), (61, 39, 100));
    drop(store);
    let later = Store::open(&path, Retention { max_age: SECOND, max_bytes: 1 << 30 }, now + 9999 * SECOND);
    let held = later.unwrap().held();
    assert_eq!((held.windows, held.bytes, held.first, held.next), (0, 0, 100, 100));
}

/// A window that no compression makes smaller than this.
fn large(number: u64, from: SystemTime, bytes: usize) -> Packed {
    let body = std::iter::repeat_with(|| 0x5a).take(bytes).collect();
    Packed { number, from, to: from + SECOND, samples: 10, entries: 1, body }
}

#[test]
fn the_oldest_give_way_when_the_file_is_too_large_and_the_loss_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let (now, max_bytes) = (SystemTime::now(), 16 << 20);
    let store = open(&path, 3600 * SECOND, max_bytes).unwrap();
    let mut evicted = Evicted::default();
    for number in 0..400 {
        evicted += store.append(&large(number, now, 100_000), now).unwrap();
        let on_disk: u64 = ["db", "db-wal"]
            .iter()
            .filter_map(|end| std::fs::metadata(path.with_extension(end)).ok())
            .map(|file| file.len())
            .sum();
        assert!(on_disk <= max_bytes + (1 << 20), "{on_disk} bytes");
    }
    let held = store.held();
    assert_eq!((held.windows + evicted.windows, evicted.samples), (400, 10 * evicted.windows));
    assert!(held.windows > 100 && held.first == evicted.windows && held.next == 400, "{held:?}");
    // A smaller bound, windows of a few at a time.
    drop(store);
    let store = open(&path, 3600 * SECOND, 8 << 20).unwrap();
    for number in 400..404 {
        store.append(&large(number, now, 100_000), now).unwrap();
    }
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(store.held().windows < 45 && size < 10 << 20, "{:?}, {size} bytes", store.held());
}

#[test]
fn sums_are_made_as_their_windows_come() {
    let directory = tempfile::tempdir().unwrap();
    let (shared, keeper) = kept(&directory.path().join(FILE));
    let start = start();
    (1..=61).for_each(|window| drain(&shared, start, window * 10, "hot"));
    let store = shared.lock().history.store().unwrap();
    while store.sums().unwrap().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(store.sums().unwrap()[&sums::Block::of(60, 0)], 60);
    let (found, now) = (store.sum(sums::Block::of(60, 0)).unwrap().unwrap(), start.1 + 620 * SECOND);
    assert_eq!((found.samples, found.entries), (600, 1));
    assert_eq!(select(&shared, &Scope::Host, 700, 0, now).unwrap().samples, 610);
    finish(&shared, keeper);
}

#[test]
fn a_file_of_the_first_version_keeps_all_and_gets_sums() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    {
        let (shared, keeper) = kept(&path);
        let start = start();
        (1..=35).for_each(|second| drain(&shared, start, second, "hot"));
        finish(&shared, keeper);
        let store = shared.lock().history.store().unwrap();
        store.execute(
            "DROP TABLE sums;
             DROP TABLE places;
             CREATE TABLE uploads (id INTEGER PRIMARY KEY CHECK (id = 1), url TEXT NOT NULL, next INTEGER NOT NULL);
             INSERT INTO uploads VALUES (1, 'http://one', 2);
             PRAGMA user_version = 1",
        );
    }
    for _ in 0..2 {
        let store = open(&path, 3600 * SECOND, 1 << 30).unwrap();
        let Held { windows, first, next, .. } = store.held();
        let place = store.place("upload", "http://one").unwrap();
        assert_eq!((windows, first, next, place), (4, 0, 4, Some(2)));
        assert!(store.sums().unwrap().is_empty());
        let samples = |number| store.window(number).unwrap().unwrap().samples;
        assert_eq!((0..4).map(samples).sum::<u64>(), 350);
    }
}

/// As on a full disk: nothing is written, and what was is read.
#[test]
fn what_cannot_be_written_waits_in_memory_and_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let (shared, keeper) = kept(&path);
    let start = start();
    let store = shared.lock().history.store().unwrap();
    let refuse = "CREATE TRIGGER full BEFORE INSERT ON windows BEGIN SELECT RAISE(ABORT, 'full'); END";
    store.execute(refuse);
    (1..=35).for_each(|second| drain(&shared, start, second, "hot"));
    while shared.lock().history.write_errors() == 0 {
        std::thread::yield_now();
    }
    assert_eq!(store.held().windows, 0);
    let now = start.1 + 35 * SECOND;
    assert_eq!(select(&shared, &Scope::Host, 100, 0, now).unwrap().samples, 350);
    assert_eq!(shared.closed(1).unwrap().unwrap().selection.samples, 100);
    store.execute("DROP TRIGGER full");
    drain(&shared, start, 45, "hot");
    finish(&shared, keeper);
    assert_eq!((store.held().windows, shared.lock().history.windows()), (5, 1));
    assert_eq!(select(&shared, &Scope::Host, 100, 0, now).unwrap().samples, 360);
}

#[test]
fn a_damaged_window_is_a_loss_of_the_answer_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let (shared, keeper) = kept(&path);
    let start = start();
    (1..=30).for_each(|second| drain(&shared, start, second, "hot"));
    finish(&shared, keeper);
    let store = shared.lock().history.store().unwrap();
    store.execute(
        "UPDATE windows SET body = CAST(substr(body, 1, length(body) - 9) || x'01' AS BLOB) WHERE number = 1",
    );
    let found = select(&shared, &Scope::Host, 100, 0, start.1 + 30 * SECOND).unwrap();
    assert_eq!((found.samples, found.lost["window_damaged"]), (200, 100));
}

#[test]
fn a_file_that_is_no_history_or_of_another_time_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let refused = |path: &Path| format!("{:#}", open(path, 60 * SECOND, 1 << 30).unwrap_err());
    let text = "not a database, but something else that is longer than its header would be";
    std::fs::write(&path, text).unwrap();
    let error = refused(&path);
    assert!(error.contains("profiles.db") && error.contains("not a database"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

    let newer = directory.path().join("newer.db");
    rusqlite::Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(refused(&newer).contains("newer version (tables 99"), "{}", refused(&newer));

    let missing = Path::new("/proc/none/profiles.db");
    assert!(refused(missing).contains("/proc/none/profiles.db"), "{}", refused(missing));

    // Two profilers of one file would number their windows alike.
    let taken = directory.path().join("taken.db");
    let first = open(&taken, 60 * SECOND, 1 << 30).unwrap();
    assert!(refused(&taken).contains("locked"), "{}", refused(&taken));
    drop(first);
}

#[test]
fn a_file_that_was_cut_is_refused_or_told_while_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let now = SystemTime::now();
    {
        let store = open(&path, 3600 * SECOND, 1 << 30).unwrap();
        for number in 0..50 {
            store.append(&large(number, now, 50_000), now).unwrap();
        }
    }
    let size = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(size / 2).unwrap();
    let read = open(&path, 3600 * SECOND, 1 << 30)
        .and_then(|store| (0..50).try_for_each(|number| store.window(number).map(drop)));
    assert!(format!("{:#}", read.unwrap_err()).contains("malformed"));
}

#[test]
fn the_history_is_for_its_owner_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state").join(FILE);
    let (shared, keeper) = kept(&path);
    drain(&shared, start(), 20, "hot");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for file in [&path, &path.with_extension("db-wal")] {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    finish(&shared, keeper);
}
