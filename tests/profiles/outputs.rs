//! Are profiles read by the programs that they are for?

use crate::needs_root;
use crate::program::{compile, compile_with, start};
use kpulse_tests::profile::{Line, parse, profiler, record};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `go tool pprof` finds at a file or an address; `None` where there is no Go, which is told.
pub fn go_pprof(test: &str, source: &str) -> Option<String> {
    go_pprof_with(test, &["-top", source])
}

fn go_pprof_with(test: &str, arguments: &[&str]) -> Option<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("go");
    command
        .args(["tool", "pprof"])
        .args(arguments)
        .env("PPROF_TMPDIR", folder.path())
        .env("GOTOOLCHAIN", "local");
    match command.output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8(output.stdout).expect("text"))
        }
        Err(error) => {
            kpulse_tests::skip(test, &format!("go does not run: {error}; it comes from go.dev/dl"));
            None
        }
    }
}

#[test]
fn go_tool_pprof_reads_shares_period_program_and_build() {
    const TEST: &str = "go_tool_pprof_reads_shares_period_program_and_build";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let path = compile(folder.path());
    let program = start(&path, 120);
    let file = folder.path().join("out.pb.gz");
    record(&["--pid", &program.pid().to_string()], 6, "pprof", &file);
    let Some(top) = go_pprof(TEST, &file.display().to_string()) else { return };
    let notes =
        Command::new("readelf").arg("-n").arg(&path).output().expect("readelf runs; it comes with binutils");
    let notes = String::from_utf8(notes.stdout).expect("text");
    let build = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).expect("a build id");
    for line in ["File: chain\n", &format!("Build ID: {build}\n"), "Type: cpu\n"] {
        assert!(top.contains(line), "no {line:?} in {top}");
    }
    let is_near =
        |function, truth: f64| share_in(&top, function, 1).is_some_and(|it| (it - truth).abs() < 5.0);
    assert!(is_near("hot", 70.0) && is_near("other", 30.0), "{top}");
}

/// Share of a function in a column of `-top`, percent: 1 is of what it ran itself, 4 with what it called.
fn share_in(top: &str, function: &str, column: usize) -> Option<f64> {
    let line = top.lines().find(|line| line.split_whitespace().nth(5) == Some(function))?;
    line.split_whitespace().nth(column)?.trim_end_matches('%').parse().ok()
}

/// The program without its symbols, beside it.
fn strip(whole: &Path) -> PathBuf {
    let stripped = whole.with_file_name("stripped");
    let mut strip = Command::new("strip");
    strip.arg("--strip-all").arg("-o").arg(&stripped).arg(whole);
    assert!(strip.status().expect("strip runs; it comes with binutils").success());
    stripped
}

#[test]
fn go_tool_pprof_names_a_stripped_program_by_its_debug_information() {
    const TEST: &str = "go_tool_pprof_names_a_stripped_program_by_its_debug_information";
    needs_root!(TEST);
    for flag in ["-pie", "-no-pie"] {
        println!("{flag}");
        let folder = tempfile::tempdir().expect("a folder");
        let whole = compile_with(&["-g", flag, "-x", "c++"], folder.path());
        let program = start(&strip(&whole), 120);
        let file = folder.path().join("out.pb.gz");
        record(&["--pid", &program.pid().to_string()], 6, "pprof", &file);
        let (file, whole) = (file.display().to_string(), whole.display().to_string());
        let Some(nameless) = go_pprof_with(TEST, &["-top", &file]) else { return };
        assert!(share_in(&nameless, "[stripped]", 4).is_some_and(|share| share >= 98.0), "{nameless}");
        let named = go_pprof_with(TEST, &["-top", &whole, &file]).expect("it is there");
        let is_near = |function, column, truth: f64| {
            share_in(&named, function, column).is_some_and(|share| (share - truth).abs() <= 5.0)
        };
        assert!(is_near("hot", 1, 70.0) && is_near("other", 1, 30.0), "{named}");
        assert!(is_near("outer", 4, 70.0) && is_near("main", 4, 100.0), "{named}");
    }
}

/// Each frame without a name tells which function it is.
#[cfg(target_arch = "x86_64")]
#[test]
fn addr2line_names_a_stripped_program_whole() {
    use kpulse_tests::profile::record_samples;
    use kpulse_tests::workload::{Quality, SAMPLES, cpp};
    const TEST: &str = "addr2line_names_a_stripped_program_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let whole = crate::built!(TEST, cpp::build_whole(folder.path(), &["-g"]));
    let program = cpp::start(&strip(&whole), &[]);
    let mut lines = parse(&record_samples(program.pid(), SAMPLES + SAMPLES / 4));
    let frames = || lines.iter().flat_map(|line| line.frames.iter().cloned());
    let mut nameless: Vec<String> = frames().filter(|frame| frame.starts_with("[stripped+0x")).collect();
    nameless.sort();
    nameless.dedup();
    let addresses = nameless.iter().map(|frame| frame["[stripped+".len()..].trim_end_matches(']'));
    let mut ask = Command::new("addr2line");
    let answer = ask.args(["-f", "-C", "-e"]).arg(&whole).args(addresses).output();
    let answer = answer.expect("addr2line runs; it comes with binutils");
    let answer = String::from_utf8(answer.stdout).expect("text");
    let names: HashMap<String, &str> = nameless.into_iter().zip(answer.lines().step_by(2)).collect();
    for frame in lines.iter_mut().flat_map(|line| &mut line.frames) {
        if let Some(name) = names.get(frame) {
            *frame = (*name).to_owned();
        }
    }
    Quality::of(&lines, cpp::judge).assert_true(cpp::TARGET);
}

#[test]
fn a_recording_is_compared_with_an_earlier_one() {
    needs_root!("a_recording_is_compared_with_an_earlier_one");
    let folder = tempfile::tempdir().expect("a folder");
    let program = start(&compile(folder.path()), 120);
    let [before, lines, picture] = ["before", "lines", "picture"].map(|name| folder.path().join(name));
    let pid = program.pid().to_string();
    record(&["--pid", &pid], 2, "folded", &before);
    let folded = fs::read_to_string(&before).expect("the profile is there");
    fs::write(&before, folded + "chain;main;gone 1000\n").expect("can be written");
    let earlier = before.display().to_string();
    record(&["--pid", &pid, "--baseline", &earlier], 2, "folded", &lines);
    let compared = parse(&fs::read_to_string(&lines).expect("the comparison is there"));
    let then =
        |frames: &[String]| frames.last().and_then(|frame| frame.rsplit_once(' ')?.1.parse::<u64>().ok());
    assert!(compared.iter().all(|line| then(&line.frames).is_some()), "two counts each");
    let gone = |line: &&Line| line.frames.iter().any(|frame| frame.starts_with("gone "));
    assert!(compared.iter().find(gone).is_some_and(|line| line.count == 0));
    record(&["--pid", &pid, "--baseline", &earlier], 2, "svg", &picture);
    let svg = fs::read_to_string(&picture).expect("the picture is there");
    assert!(svg.contains("hot (") && svg.contains("%; +") && svg.contains("compared"), "{svg}");
    let mut wrong = profiler();
    wrong.args(["record", "--seconds", "1", "--format", "pprof", "-o", "-", "--baseline", &earlier]);
    assert!(!wrong.output().expect("runs").status.success(), "only folded and svg compare");
}
