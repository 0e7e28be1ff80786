//! Folded files of `serve`: what ran, period by period, within their bounds, whatever becomes of the directory.

use crate::needs_root;
use crate::program::{Shares, compile, start};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::disk::SmallDisk;
use kpulse_tests::process::Service;
use kpulse_tests::profile::{parse, profiler};
use kpulse_tests::{http, skip, until};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Makes the id of a container of these tests.
const CONTAINER: u32 = 0xf11e5;

/// Two windows a period, and its files in `directory`.
fn serve(state: &Path, directory: &Path) -> Command {
    let mut command = profiler();
    command.args(["serve", "--web.listen-address=127.0.0.1:0", "--api.listen-address=127.0.0.1:0"]);
    command.args(["--history.window=2s", "--files.period=4s"]).arg("--files.directory").arg(directory);
    command.env("KPULSE_STATE_DIR", state);
    command
}

/// Finished files of a scope, as pairs of folder and start.
fn files(directory: &Path, scope: &str) -> Vec<(String, String)> {
    let below = |path: PathBuf| fs::read_dir(path).into_iter().flatten().map_while(Result::ok);
    let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("text");
    let mut found = Vec::new();
    for folder in below(directory.join(scope)) {
        let folder = name(folder);
        let starts = below(directory.join(scope).join(&folder)).map(name);
        let starts = starts.filter_map(|file| Some(file.strip_suffix(".folded")?.to_owned()));
        found.extend(starts.map(|start| (folder.clone(), start)));
    }
    found.sort_by(|one, other| one.1.cmp(&other.1).then(one.0.cmp(&other.0)));
    found
}

fn path(directory: &Path, scope: &str, (folder, start): &(String, String)) -> PathBuf {
    directory.join(scope).join(folder).join(format!("{start}.folded"))
}

fn read(directory: &Path, scope: &str, file: &(String, String)) -> String {
    fs::read_to_string(path(directory, scope, file)).expect("the file is there")
}

fn samples(folded: &str) -> u64 {
    parse(folded).iter().map(|line| line.count).sum()
}

/// The families of the files, with their labels.
fn counts(service: &Service) -> BTreeMap<String, u64> {
    let metrics = http::get(&service.logged("message=listening", "web"), "/metrics", "").body;
    let lines =
        metrics.lines().filter_map(|line| line.strip_prefix("kpulse_profiler_files_")?.rsplit_once(' '));
    lines.filter_map(|(name, value)| Some((name.to_owned(), value.parse::<f64>().ok()? as u64))).collect()
}

fn count(counts: &BTreeMap<String, u64>, family: &str) -> u64 {
    let of_family = counts.iter().filter(|(name, _)| name.split('{').next() == Some(family));
    of_family.map(|(_, value)| value).sum()
}

/// A file's start as the API takes it.
fn rfc3339(start: &str) -> String {
    let part = |range: std::ops::Range<usize>| &start[range];
    format!("{}-{}-{}T{}:{}:{}Z", part(0..4), part(4..6), part(6..8), part(9..11), part(11..13), part(13..15))
}

/// What the API has of all windows that began before this start of a file. Periods begin with whole seconds, so a window
/// of the one before began before this second too.
fn answered_before(service: &Service, start: &str) -> u64 {
    let path = format!("/api/v1/profile?from={}&until={}&format=json", hour_ago(), rfc3339(start));
    let answer = http::get(&service.logged("message=listening", "api"), &path, "").body;
    let json: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let window = &json["window"];
    assert!(window["lost"].get("answer_full").is_none(), "{window}");
    window["samples"].as_u64().expect("a number")
}

fn hour_ago() -> u64 {
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    hour_ago.duration_since(SystemTime::UNIX_EPOCH).expect("it is later").as_secs()
}

#[test]
fn files_say_what_the_api_says_and_the_oldest_go() {
    const TEST: &str = "files_say_what_the_api_says_and_the_oldest_go";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let (state, directory) = (folder.path().join("state"), folder.path().join("files"));
    let _program = start(&compile(folder.path()), 120);
    let mut service = Service::start(serve(&state, &directory).arg("--files.max-names=1"));
    let periods = |service: &Service| {
        // Until it is the same before and after, a period is being written.
        let before = counts(service);
        let hosts = files(&directory, "host");
        let processes = files(&directory, "process");
        let is_counted = before.get("written_total{scope=\"host\"}") == Some(&(hosts.len() as u64));
        let is_still = hosts.len() >= 4 && is_counted && before == counts(service);
        is_still.then_some((before, hosts, processes))
    };
    let (found, hosts, processes) =
        kpulse_tests::within(2 * kpulse_tests::DEADLINE, "periods", || periods(&service));
    assert_eq!(count(&found, "errors_total"), 0, "{found:?}");
    let written: u64 = hosts.iter().map(|file| samples(&read(&directory, "host", file))).sum();
    assert_eq!(written, found["samples_total{scope=\"host\"}"], "{found:?}");
    let mut before = 0;
    for file in &hosts {
        // Of nothing there is no answer.
        if before > 0 {
            assert_eq!(before, answered_before(&service, &file.1), "{file:?}");
        }
        before += samples(&read(&directory, "host", file));
    }
    let own: u64 = processes.iter().map(|file| samples(&read(&directory, "process", file))).sum();
    let left_out = "samples_left_out_total{scope=\"process\",reason=\"names_full\"}";
    assert_eq!(own + found.get(left_out).copied().unwrap_or(0), written, "{found:?}");
    assert_eq!(processes.len(), hosts.len(), "one process each");
    // As flame graph programs read it.
    let earlier = path(&directory, "host", &hosts[0]);
    let mut compare = profiler();
    compare.args(["record", "--seconds=1", "--format=svg", "-o", "-", "--baseline"]).arg(&earlier);
    let svg = compare.output().expect("runs");
    assert!(svg.status.success() && String::from_utf8_lossy(&svg.stdout).contains("compared"), "{svg:?}");
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
    let after = files(&directory, "host");
    assert!(after.len() > hosts.len(), "what was under way at the end is a file too");

    // What the first wrote counts for the second, which has less room.
    fs::write(directory.join("host/README"), "theirs").expect("can be written");
    let small = ["--files.max-bytes=262144", "--files.max-age=8s"];
    let mut again = Service::start(serve(&state, &directory).args(small));
    until("the oldest to go", || (!files(&directory, "host").contains(&hosts[0])).then_some(()));
    let found = until("a file within the bounds", || {
        let found = counts(&again);
        (count(&found, "written_total") > 0 && count(&found, "removed_total") > 0).then_some(found)
    });
    assert!(count(&found, "bytes") <= 262_144, "{found:?}");
    assert!(directory.join("host/README").exists());
    assert_eq!(again.stop(), Some(0), "{}", again.stderr());
    let bytes: u64 = ["host", "container", "process"]
        .iter()
        .flat_map(|scope| files(&directory, scope).into_iter().map(|file| path(&directory, scope, &file)))
        .map(|file| fs::metadata(file).expect("is there").len())
        .sum();
    assert!(bytes > 0 && bytes <= 262_144, "{bytes}");
}

#[test]
fn a_full_disk_is_counted_and_its_files_come_when_there_is_room() {
    const TEST: &str = "a_full_disk_is_counted_and_its_files_come_when_there_is_room";
    needs_root!(TEST);
    let Some(disk) = SmallDisk::with_size(c"size=8m") else {
        return skip(TEST, "a file system cannot be mounted here");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let container = Cgroup::container("cpu", CONTAINER).expect("a cgroup");
    let program = start(&compile(folder.path()), 120);
    container.set("cgroup.procs", &program.pid().to_string()).expect("the program moves");
    let directory = disk.path().join("files");
    let mut service = Service::start(&mut serve(&folder.path().join("state"), &directory));
    until("a file", || files(&directory, "host").first().cloned());
    let filler = disk.fill();
    let before = until("errors", || {
        let found = counts(&service);
        (count(&found, "errors_total") >= 2).then_some(found)
    });
    let stored = || {
        let metrics = http::get(&service.logged("message=listening", "web"), "/metrics", "").body;
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("kpulse_profiler_samples_stored_total "));
        line.expect("it is there").parse::<f64>().expect("a number")
    };
    let taken = stored();
    until("more samples", || (stored() > taken).then_some(()));
    let said = service.stderr();
    let lines = said.lines().filter(|line| line.contains("folded files wait in the history"));
    let lines: Vec<&str> = lines.collect();
    assert!(lines.len() == 1 && lines[0].contains("No space left"), "{said}");
    fs::remove_file(filler).expect("is there");
    let after = kpulse_tests::within(3 * kpulse_tests::DEADLINE, "the files that waited", || {
        let found = counts(&service);
        let outcome = "windows_total{outcome=\"written\"}";
        (found.get(outcome) > before.get(outcome)).then_some(found)
    });
    assert_eq!(after.get("windows_total{outcome=\"lost\"}"), None, "{after:?}");
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
    let own = files(&directory, "process");
    let own: Vec<_> =
        own.iter().filter(|(folder, _)| *folder == format!("chain-{}", program.pid())).collect();
    assert!(own.len() >= 2, "{own:?}");
    let folded: String = own.iter().map(|file| read(&directory, "process", file)).collect();
    let shares = Shares::of(&folded);
    assert!(shares.samples >= 50 && shares.whole > 90.0, "{shares:?}");
    // All that the container ran is that program; before it moved the profiler did not run.
    let of_container = files(&directory, "container");
    let of_container = of_container.iter().filter(|(folder, _)| *folder == Cgroup::id(CONTAINER));
    let of_container: String = of_container.map(|file| read(&directory, "container", file)).collect();
    assert_eq!(of_container, folded);
    let hidden: Vec<_> = fs::read_dir(directory.join("process").join(&own[0].0))
        .expect("is there")
        .filter(|entry| entry.as_ref().expect("is read").file_name().to_string_lossy().starts_with('.'))
        .collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}

#[test]
fn a_directory_that_cannot_be_written_to_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("can be written");
    let ended = kpulse_tests::process::run(&mut serve(&folder.path().join("state"), &file));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let said = ended.stderr.lines().filter(|line| line.starts_with("kpulse-profiler: "));
    let said: Vec<&str> = said.collect();
    let sentence =
        format!("kpulse-profiler: cannot write folded files to {}; --files.directory", file.display());
    assert!(said.len() == 1 && said[0].starts_with(&sentence), "{}", ended.stderr);
}
