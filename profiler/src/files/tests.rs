use super::*;
use crate::history::{Bounds, FILE, Keeper, Named, Retention, Store};
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SECOND: Duration = Duration::from_secs(1);
const PERIOD: Duration = Duration::from_secs(30);

/// Windows of 10 s, three to a period, behind an empty one.
struct Source {
    shared: Shared,
    instant: Instant,
    /// When the first period begins.
    begin: SystemTime,
    closed: u32,
}

impl Source {
    fn new() -> Self {
        let bounds = Bounds {
            window: 10 * SECOND,
            window_entries: 10_000,
            max_age: 3600 * SECOND,
            max_bytes: 1 << 20,
        };
        Self::of(Shared::new(bounds))
    }

    fn of(shared: Shared) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let begin = SystemTime::UNIX_EPOCH + SECOND * u32::try_from(now - now % 30 + 30).unwrap();
        let mut source = Self { shared, instant: Instant::now(), begin, closed: 0 };
        source.close(&[]);
        source
    }

    /// Closes a window with samples of these: pid, process, container, leaf, count.
    fn close(&mut self, samples: &[(u32, &str, Option<&str>, &str, u64)]) {
        let mut state = self.shared.lock();
        let mut entry = |&(pid, process, container, leaf, count): &(u32, &str, Option<&str>, &str, u64)| {
            let stack = state.history.stack(&[Arc::from("main"), Arc::from(leaf)]);
            let (process, container) = (process.into(), container.map(Arc::from));
            (Key { pid, process, thread: "t".into(), container, stack }, count)
        };
        let entries = samples.iter().map(&mut entry).collect();
        let (instant, wall) =
            (self.instant + self.closed * 11 * SECOND, self.begin + self.closed * 10 * SECOND);
        state.history.absorb(Named { entries, ..Named::default() }, instant + 11 * SECOND, wall);
        drop(state);
        self.closed += 1;
        self.shared.pack();
    }

    fn close_period(&mut self, samples: &[(u32, &str, Option<&str>, &str, u64)]) {
        (0..3).for_each(|_| self.close(samples));
    }

    /// The file of the period of this number.
    fn file(&self, period: u32) -> String {
        names::file(self.begin + period * PERIOD)
    }

    fn counts(&self) -> Counts {
        self.shared.lock().totals.files.clone().unwrap()
    }
}

fn config(directory: &Path) -> config::Files {
    let (directory, max_age) = (directory.to_owned(), 3600 * SECOND);
    config::Files { directory, period: PERIOD, max_age, ..config::Files::default() }
}

fn writer(config: &config::Files, shared: &Shared) -> Writer {
    let mut writer = Writer::new(config, &Paths::default(), shared).unwrap();
    writer.host = "box".into();
    writer
}

/// Files below a directory, hidden ones too, sorted.
fn tree(directory: &Path) -> Vec<String> {
    fn walk(directory: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                walk(&path, root, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    walk(directory, directory, &mut found);
    found.sort();
    found
}

fn samples(path: impl AsRef<Path>) -> u64 {
    Folded::read(&fs::read_to_string(path).unwrap()).unwrap().samples()
}

#[test]
fn a_period_has_a_file_for_the_host_and_each_container_and_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made/here");
    let mut source = Source::new();
    let mut writer = writer(&config(&path), &source.shared);
    let ran = [
        (7, "nginx", Some("4f5e6d7c8b9a"), "hot", 5),
        (8, "cron d", None, "hot", 2),
        (8, "cron d", None, "x;y", 1),
    ];
    source.close(&ran);
    source.close(&ran);
    writer.write_all(false).unwrap();
    assert!(tree(&path).is_empty(), "the period goes on");
    source.close(&ran);
    source.close(&[(9, "later", None, "hot", 4)]);
    writer.write_all(false).unwrap();
    let file = source.file(0);
    let expected = [
        ("container/4f5e6d7c8b9a", "t;main;hot 15\n"),
        ("host/box", "t;main;hot 21\nt;main;x_y 3\n"),
        ("process/cron%20d-8", "t;main;hot 6\nt;main;x_y 3\n"),
        ("process/nginx-7", "t;main;hot 15\n"),
    ];
    assert_eq!(tree(&path), expected.map(|(folder, _)| format!("{folder}/{file}")));
    for (folder, text) in expected {
        let file = path.join(folder).join(&file);
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        // What the tests' umask takes away may be missing.
        assert_eq!((mode(&file) & !0o640, mode(file.parent().unwrap()) & !0o750), (0, 0));
        let mut svg = Vec::new();
        let mut options = inferno::flamegraph::Options::default();
        inferno::flamegraph::from_lines(&mut options, text.lines(), &mut svg).unwrap();
        assert!(String::from_utf8(svg).unwrap().contains("hot ("), "as flame graph programs read it");
    }
    writer.write_all(true).unwrap();
    assert_eq!(samples(path.join("process/later-9").join(source.file(1))), 4, "the end is no loss");
    let counts = source.counts();
    assert_eq!(counts.windows, Losses::from([(WRITTEN, 5)]));
    assert_eq!(counts.files, Losses::from([("container", 1), ("host", 2), ("process", 3)]));
    assert_eq!(counts.samples, Losses::from([("container", 15), ("host", 28), ("process", 28)]));
    assert!(counts.left_out.is_empty() && counts.errors == 0 && counts.bytes > 0, "{counts:?}");
}

#[test]
fn after_a_restart_or_a_kill_it_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let (path, state) = (directory.path().join("files"), directory.path().join(FILE));
    let open = || {
        let (window, age) = (10 * SECOND, 3600 * SECOND);
        let shared = Shared::new(Bounds { window, window_entries: 99, max_age: age, max_bytes: 1 << 20 });
        let retention = Retention { max_age: age, max_bytes: 1 << 30 };
        let store = Arc::new(Store::open(&state, retention, SystemTime::now()).unwrap());
        let keeper = Keeper::start(&shared, store).unwrap();
        (shared, keeper)
    };
    let (shared, keeper) = open();
    let mut source = Source::of(shared.clone());
    let mut first = writer(&config(&path), &shared);
    source.close_period(&[(7, "p", None, "hot", 5)]);
    source.close(&[(7, "p", None, "hot", 1)]);
    first.write_all(false).unwrap();
    let host = path.join("host/box");
    assert_eq!(samples(host.join(source.file(0))), 15);
    // Ends without warning: the second period has begun.
    keeper.finish();
    fs::remove_file(host.join(source.file(0))).unwrap();
    drop((first, source.shared, shared));

    let (shared, keeper) = open();
    let mut second = writer(&config(&path), &shared);
    second.write_all(false).unwrap();
    let counts = || shared.lock().totals.files.clone().unwrap();
    assert_eq!(counts().windows, Losses::from([(WRITTEN, 1)]), "of another period than now");
    let written = tree(&host);
    assert_eq!((written.len(), samples(host.join(&written[0]))), (1, 1), "what was taken away stays away");
    drop(second);
    // As if killed before the place was noted.
    shared.set_place(READER, &path.display().to_string(), 0).unwrap();
    writer(&config(&path), &shared).write_all(true).unwrap();
    let written = tree(&host);
    assert_eq!([0, 1].map(|number| samples(host.join(&written[number]))), [15, 1], "{written:?}");
    keeper.finish();
}

#[test]
fn windows_that_left_the_history_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let bounds = Bounds { window: 10 * SECOND, window_entries: 99, max_age: 35 * SECOND, max_bytes: 1 << 20 };
    let mut source = Source::of(Shared::new(bounds));
    let mut writer = writer(&config(directory.path()), &source.shared);
    (0..4).for_each(|_| source.close_period(&[(7, "p", None, "hot", 1)]));
    writer.write_all(true).unwrap();
    let counts = source.counts();
    assert_eq!(counts.windows.values().sum::<u64>(), 13);
    assert_eq!(counts.windows[LOST], 13 - counts.samples["host"]);
}

#[test]
fn those_that_ran_most_have_files_and_the_others_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let mut source = Source::new();
    let config = config::Files { max_names: 2, ..config(directory.path()) };
    let mut writer = writer(&config, &source.shared);
    let id = |letter: &'static str| Some(letter);
    source.close_period(&[
        (1, "a", id("c1"), "x", 5),
        (2, "b", id("c2"), "x", 4),
        (3, "c", id("c3"), "x", 3),
        (4, "d", None, "x", 2),
    ]);
    writer.write_all(true).unwrap();
    let file = source.file(0);
    let folders = ["container/c1", "container/c2", "host/box", "process/a-1", "process/b-2"];
    assert_eq!(tree(directory.path()), folders.map(|folder| format!("{folder}/{file}")));
    let counts = source.counts();
    let left_out = [(("container", NAMES_FULL), 9), (("process", NAMES_FULL), 15)];
    assert_eq!(counts.left_out, BTreeMap::from(left_out));
    assert_eq!(counts.samples, Losses::from([("container", 27), ("host", 42), ("process", 27)]));
}

/// Puts a file there as an earlier process would have.
fn put(directory: &Path, folder: &str, begin: SystemTime, bytes: usize) -> PathBuf {
    let path = directory.join(folder).join(names::file(begin));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "x".repeat(bytes)).unwrap();
    path
}

#[test]
fn bounds_hold_for_what_an_earlier_process_wrote_and_nothing_else_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let now = SystemTime::now();
    let ago = |seconds: u32| now - seconds * SECOND;
    let old = put(path, "process/old-1", ago(7200), 10);
    let earlier: Vec<_> =
        (1..=8).map(|age| put(path, &format!("process/p-{age}"), ago(60 * age), 100_000)).collect();
    let half = path.join("host/box").join(names::unfinished(&names::file(ago(99))));
    fs::create_dir_all(half.parent().unwrap()).unwrap();
    fs::write(&half, "half").unwrap();
    let target = put(path, "elsewhere/of-somebody", ago(7200), 10);
    let foreign = [
        "notes.txt",
        "host/box/notes.txt",
        "process/old-1/core.folded",
        "process/.hidden/20200101T000000Z.folded",
        "process/a b/20200101T000000Z.folded",
    ];
    for name in foreign {
        let file = path.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "theirs").unwrap();
    }
    let link = path.join("process/p-1").join(names::file(ago(9000)));
    symlink(&target, &link).unwrap();
    symlink(path.join("elsewhere"), path.join("container")).unwrap();
    symlink(path.join("elsewhere/of-somebody"), path.join("process/linked-2")).unwrap();
    let source = Source::new();
    let config = config::Files { max_bytes: 512 << 10, ..config(path) };
    let mut writer = writer(&config, &source.shared);
    writer.room(None).unwrap();
    let kept: Vec<bool> = earlier.iter().map(|file| file.exists()).collect();
    assert_eq!(kept, [true, true, true, true, true, false, false, false], "the oldest went");
    assert!(!old.exists() && !half.exists() && !path.join("process/p-8").exists());
    assert!(foreign.iter().all(|name| path.join(name).exists()) && target.exists() && link.is_symlink());
    let counts = source.counts();
    assert_eq!(counts.removed, Losses::from([(AGE, 1), (BYTES, 3)]));
    assert!((500_000..=512 << 10).contains(&counts.bytes), "{counts:?}");
}

#[test]
fn a_lasting_load_stays_within_its_bound() {
    let directory = tempfile::tempdir().unwrap();
    let mut source = Source::new();
    let max_bytes = 256 << 10;
    let config = config::Files { max_bytes, max_names: 20, ..config(directory.path()) };
    let mut writer = writer(&config, &source.shared);
    let names: Vec<String> = (0..200).map(|number| format!("{number}-{}", "f".repeat(900))).collect();
    let ran: Vec<_> = (0..).zip(&names).map(|(pid, leaf)| (pid % 50, "p", None, leaf.as_str(), 1)).collect();
    for _ in 0..12 {
        source.close_period(&ran);
        writer.write_all(false).unwrap();
        let paths = tree(directory.path());
        let bytes: u64 =
            paths.iter().map(|file| fs::metadata(directory.path().join(file)).unwrap().len()).sum();
        assert!(bytes <= max_bytes, "{bytes} bytes in {} files", paths.len());
    }
    writer.write_all(true).unwrap();
    let counts = source.counts();
    assert!(counts.removed[BYTES] > 0 && counts.bytes <= max_bytes, "{counts:?}");
    for scope in ["host", "process"] {
        let left_out = counts.left_out.iter().filter(|((of, _), _)| *of == scope);
        let left_out: u64 = left_out.map(|(_, samples)| samples).sum();
        assert_eq!(counts.samples[scope] + left_out, 12 * 3 * 200, "{scope}: {counts:?}");
        assert!(left_out > 0, "{scope}");
    }
}

#[test]
fn what_stands_in_the_way_is_not_followed_and_the_files_come_once_it_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (directory.path().join("files"), directory.path().join("elsewhere"));
    fs::create_dir(&elsewhere).unwrap();
    let mut source = Source::new();
    let mut writer = writer(&config(&path), &source.shared);
    let (stop, stopped) = mpsc::channel();
    source.close_period(&[(7, "p", None, "hot", 5)]);
    fs::create_dir(path.join("process")).unwrap();
    symlink(&elsewhere, path.join("process/p-7")).unwrap();
    let error = format!("{:#}", writer.write_all(true).unwrap_err());
    assert!(error.contains("process/p-7") && error.contains("something else than a directory"), "{error}");
    assert!(tree(&elsewhere).is_empty());
    // A link in place of the file is replaced, not written through.
    fs::remove_file(path.join("process/p-7")).unwrap();
    fs::create_dir(path.join("process/p-7")).unwrap();
    let victim = elsewhere.join("victim");
    fs::write(&victim, "theirs").unwrap();
    let (file, unfinished) = (source.file(0), names::unfinished(&source.file(0)));
    symlink(&victim, path.join("process/p-7").join(&file)).unwrap();
    symlink(&victim, path.join("process/p-7").join(&unfinished)).unwrap();
    writer.write_all(true).unwrap();
    assert_eq!((fs::read_to_string(&victim).unwrap().as_str(), tree(&path).len()), ("theirs", 2));
    assert_eq!(samples(path.join("process/p-7").join(&file)), 15);
    assert_eq!(source.counts().samples["host"], 15, "counted once");

    // The whole directory is gone, and something else is there; the thread tells it and goes on.
    fs::remove_dir_all(&path).unwrap();
    fs::write(&path, "no directory").unwrap();
    source.close_period(&[(8, "q", None, "hot", 2)]);
    source.close_period(&[]);
    let shared = source.shared.clone();
    let thread = thread::spawn(move || writer.run(&stopped));
    let wait = |what: &dyn Fn(&Counts) -> bool| {
        let deadline = Instant::now() + 60 * SECOND;
        while !what(shared.lock().totals.files.as_ref().unwrap()) {
            assert!(Instant::now() < deadline, "{:?}", shared.lock().totals.files);
            thread::sleep(Duration::from_millis(5));
        }
    };
    wait(&|counts| counts.errors >= 2);
    fs::remove_file(&path).unwrap();
    wait(&|counts| counts.samples["host"] == 21);
    assert_eq!(samples(path.join("host/box").join(source.file(1))), 6);
    drop(stop);
    thread.join().unwrap();
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let source = Source::new();
    let refused = |path: &Path| {
        let refused = Writer::new(&config(path), &Paths::default(), &source.shared);
        format!("{:#}", refused.err().expect("refused"))
    };
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [&file, Path::new("/proc/none"), Path::new("/sys/kernel")] {
        let error = refused(path);
        let sentence = format!("cannot write folded files to {}; --files.directory", path.display());
        assert!(error.starts_with(&sentence), "{error}");
    }
    let first = writer(&config(directory.path()), &source.shared);
    assert!(refused(directory.path()).contains("another process writes there"));
    drop(first);
    drop(writer(&config(directory.path()), &source.shared));
    let nothing = config::Files::default();
    assert!(Files::start(&nothing, &Paths::default(), &source.shared).unwrap().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_sample_is_in_a_file_or_counted(
        ran in prop::collection::vec(
            (1u32..6, any::<String>(), prop::option::of("[a-f0-9./]{1,12}"), "[a-z]{1,300}", 1u64..1000), 1..120),
        max_names in 0usize..6,
        max_bytes in 4096u64..200_000,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut source = Source::new();
        let config = config::Files { max_names, max_bytes, ..config(directory.path()) };
        let mut writer = writer(&config, &source.shared);
        let entries: Vec<_> = ran.iter().map(|(pid, process, container, leaf, count)| {
            (*pid, process.as_str(), container.as_deref(), leaf.as_str(), *count)
        }).collect();
        source.close(&entries);
        writer.write_all(true).unwrap();
        let counts = source.counts();
        let all: u64 = entries.iter().map(|entry| entry.4).sum();
        let contained: u64 = entries.iter().filter(|entry| entry.2.is_some()).map(|entry| entry.4).sum();
        let mut found = Losses::new();
        let mut bytes = 0;
        for file in tree(directory.path()) {
            let parts: Vec<&str> = file.split('/').collect();
            let scope = directory::SCOPES.into_iter().find(|scope| *scope == parts[0]).unwrap();
            prop_assert_eq!(parts.len(), 3);
            add(&mut found, scope, samples(directory.path().join(&file)));
            bytes += fs::metadata(directory.path().join(&file)).unwrap().len();
        }
        prop_assert_eq!(&found, &counts.samples);
        prop_assert!(bytes <= max_bytes);
        for (scope, of_scope) in [("host", all), ("container", contained), ("process", all)] {
            let left_out: u64 = counts.left_out.iter().filter(|((of, _), _)| *of == scope).map(|(_, samples)| samples).sum();
            prop_assert_eq!(found.get(scope).copied().unwrap_or(0) + left_out, of_scope, "{}", scope);
        }
    }
}
