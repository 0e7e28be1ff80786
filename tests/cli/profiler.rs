//! What kpulse-profiler says when it cannot do what it is told.

use kpulse_tests::disk::SmallDisk;
use kpulse_tests::process::{Ended, Service, command, run};
use kpulse_tests::{binary, http, is_root, skip, until};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn profiler(arguments: &[&str]) -> Command {
    let mut command = command(binary("kpulse-profiler"));
    command.args(arguments);
    command
}

const SERVE: [&str; 3] = ["serve", "--web.listen-address=127.0.0.1:0", "--api.listen-address=127.0.0.1:0"];

/// With its history in this folder.
fn serve(state: &Path) -> Command {
    let mut command = profiler(&SERVE);
    command.env("KPULSE_STATE_DIR", state);
    command
}

/// Asserts that the program ended with `code` and one sentence, which holds every part.
fn refused(ended: &Ended, code: i32, parts: &[&str]) {
    let Ended { code: found, stdout, stderr } = ended;
    assert_eq!(*found, Some(code), "{stderr}");
    assert!(stdout.is_empty(), "{stdout}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("kpulse-profiler: ") && !stderr.contains("panicked"), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
}

/// Runs as nobody, who may not enter the folder of the build.
fn as_nobody(arguments: &[&str]) -> (tempfile::TempDir, Command) {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let copy = folder.path().join("kpulse-profiler");
    fs::copy(binary("kpulse-profiler"), &copy).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut nobody = command(&copy);
    nobody.uid(65534).gid(65534).current_dir("/").args(arguments);
    (folder, nobody)
}

fn names(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_wrong_flag_is_one_sentence_and_code_2() {
    let record = |more: &[&'static str]| [&["record", "--seconds", "1", "-o", "-"], more].concat();
    let cases: &[(Vec<&str>, &[&str])] = &[
        (vec![], &["--help"]),
        (vec!["recrd"], &["recrd", "record"]),
        (vec!["record", "-o", "-"], &["--seconds"]),
        (vec!["record", "--seconds", "5"], &["--output"]),
        (vec!["record", "--seconds", "0", "-o", "-"], &["--seconds", "0"]),
        (vec!["record", "--seconds", "ten", "-o", "-"], &["--seconds", "ten"]),
        (record(&["--host", "--pid", "1"]), &["--host", "--pid"]),
        (record(&["--pid", "-4"]), &["-4"]),
        (record(&["--format", "pdf"]), &["--format", "pdf", "folded"]),
        (record(&["--sample.hz", "0"]), &["sample.hz is 0"]),
        (record(&["--sample.interval", "soon"]), &["`sample.interval`", "\"soon\""]),
        (record(&["--sample.interval", "1ms"]), &["sample.interval is 1ms"]),
        (vec!["serve", "--history.window", "2days"], &["history.window is 2days"]),
        (vec!["serve", "--history.max-bytes", "9"], &["history.max_bytes is 9", "16 MiB"]),
        (
            vec!["serve", "--files.directory", "/nowhere", "--files.period", "25s"],
            &["files.period is 25s", "history.window (10s)"],
        ),
        (vec!["serve", "--files.max-names", "many"], &["--files.max-names", "many"]),
        (vec!["serve", "--history.max-bytes", "much"], &["--history.max-bytes", "much"]),
        (
            vec!["serve", "--api.listen-address", "0.0.0.0:0"],
            &["0.0.0.0:0", "--api.listen-address", "loopback"],
        ),
        (vec!["serve", "--api.listen-address", ":0"], &["\":0\"", "loopback"]),
        (vec!["serve", "--web.listen-address", "nonsense"], &["nonsense", "--web.listen-address"]),
    ];
    for (arguments, parts) in cases {
        refused(&run(&mut profiler(arguments)), 2, parts);
    }
}

#[test]
fn a_wrong_variable_or_file_is_one_sentence_and_code_2() {
    let variable = "KPULSE_PROFILER__HISTORY__MAX_AG";
    let state = tempfile::tempdir().unwrap();
    refused(&run(serve(state.path()).env(variable, "1h")), 2, &[variable, "`history.max_age`"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "sample: {hz: fast}\n").unwrap();
    let path = file.path().display().to_string();
    refused(&run(serve(state.path()).args(["--config.file", &path])), 2, &["`sample.hz`", "\"fast\"", &path]);
}

#[test]
fn an_output_that_cannot_be_written_is_known_before_recording() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("missing/out.folded").display().to_string();
    // An hour would not end within the test.
    refused(&run(&mut profiler(&["record", "--seconds", "3600", "-o", &file])), 1, &[&file, "No such file"]);
    let directory = folder.path().display().to_string();
    refused(
        &run(&mut profiler(&["record", "--seconds", "3600", "-o", &directory])),
        1,
        &[&directory, "directory"],
    );
}

#[test]
fn a_process_that_does_not_exist_is_one_sentence_and_code_1() {
    let arguments = ["record", "--seconds", "3600", "--pid", "4194305", "-o", "-"];
    refused(&run(&mut profiler(&arguments)), 1, &["there is no process 4194305"]);
}

#[test]
fn a_full_disk_is_one_sentence_and_code_1() {
    if !is_root() {
        return skip("a_full_disk", "sampling the CPUs needs root");
    }
    let ended = run(&mut profiler(&["record", "--seconds", "1", "-o", "/dev/full"]));
    refused(&ended, 1, &["cannot write /dev/full", "No space left"]);
}

#[test]
fn a_taken_port_is_one_sentence_and_code_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--web.listen-address", "--api.listen-address"] {
        let other = if flag.starts_with("--web") { "--api.listen-address" } else { "--web.listen-address" };
        let ended = run(&mut profiler(&["serve", "--log.level=error", flag, &address, other, "127.0.0.1:0"]));
        refused(&ended, 1, &[&address, "another process has this port", flag]);
    }
}

#[test]
fn without_privileges_record_says_why_and_leaves_no_file() {
    if !is_root() {
        return skip("without_privileges_record", "only root can become nobody");
    }
    let (folder, mut nobody) = as_nobody(&["record", "--seconds", "1", "-o"]);
    let before = names(folder.path());
    let ended = run(nobody.arg(folder.path().join("out.folded")));
    refused(&ended, 1, &["cannot sample the CPUs", "CAP_"]);
    assert_eq!(names(folder.path()), before, "nothing is left behind");
}

#[test]
fn without_privileges_serve_stays_and_says_why_it_has_nothing() {
    if !is_root() {
        return skip("without_privileges_serve", "only root can become nobody");
    }
    let (folder, mut nobody) = as_nobody(&SERVE);
    let mut service = Service::start(nobody.env("KPULSE_STATE_DIR", folder.path().join("state")));
    let web = service.logged("message=listening", "web");
    let ready = http::get(&web, "/-/ready", "");
    assert_eq!(ready.status, 503);
    assert!(
        ready.body.contains("the CPUs are not sampled: ") && ready.body.contains("CAP_"),
        "{}",
        ready.body
    );
    let metrics = http::get(&web, "/metrics", "").body;
    assert!(metrics.contains("kpulse_probe_up{probe=\"cpu_sample\"} 0\n"), "{metrics}");
    assert!(!metrics.contains("\nkpulse_profiler_samples_total"), "absent, not zero: {metrics}");
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
    assert!(!service.stderr().contains("panicked"), "{}", service.stderr());
}

/// Asserts that `serve` goes on with a history in memory, and says in one line why.
fn stays_in_memory(state: &Path, parts: &[&str]) {
    let mut service = Service::start(&mut serve(state));
    let line = service.line("the history is kept in memory");
    for part in ["level=error", "profiles.db", "KPULSE_STATE_DIR"].iter().chain(parts) {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    let web = service.logged("message=listening", "web");
    let metrics =
        until("metrics", || Some(http::get(&web, "/metrics", "").body).filter(|body| !body.is_empty()));
    assert!(metrics.contains("kpulse_profiler_history_windows{place=\"memory\"}"), "{metrics}");
    assert!(!metrics.contains("{place=\"disk\"}"), "absent, not zero: {metrics}");
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
}

#[test]
fn a_history_that_cannot_be_opened_is_one_sentence_and_serve_goes_on() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("profiles.db");
    fs::write(&file, "this is something else, and longer than a header of SQLite would be, by a little.")
        .unwrap();
    stays_in_memory(state.path(), &["not a database"]);
    stays_in_memory(&file, &["profiles.db/profiles.db"]);
    match SmallDisk::new() {
        Some(disk) => {
            disk.fill();
            stays_in_memory(disk.path(), &["full"]);
            disk.make_readonly();
            stays_in_memory(disk.path(), &["ead-only"]);
        }
        None => skip("a_history_on_a_full_disk", "a file system cannot be mounted here (needs root)"),
    }
}

#[test]
fn sigterm_during_the_start_ends_serve_with_code_0() {
    let state = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut service = Service::start(&mut serve(state.path()));
        service.until_it_catches(libc::SIGTERM);
        assert_eq!(service.stop(), Some(0), "{}", service.stderr());
        assert!(!service.stderr().contains("panicked"), "{}", service.stderr());
    }
}

#[test]
fn sigterm_ends_record_early_with_a_whole_file_or_none() {
    if !is_root() {
        return skip("sigterm_ends_record_early", "sampling the CPUs needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.svg");
    let mut command = profiler(&["record", "--seconds", "3600", "--format", "svg", "-o"]);
    let mut recording = Service::start(command.arg(&file));
    recording.until_it_catches(libc::SIGTERM);
    assert_eq!(recording.stop(), Some(0), "{}", recording.stderr());
    assert_eq!(names(folder.path()), std::slice::from_ref(&file), "no other file is left");
    assert!(fs::read_to_string(&file).unwrap().trim_end().ends_with("</svg>"));
}
