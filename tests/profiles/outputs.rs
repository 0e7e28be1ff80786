//! Are profiles read by the programs that they are for?

use crate::needs_root;
use crate::program::{compile, start};
use kpulse_tests::profile::{Line, parse, profiler, record};
use std::fs;
use std::process::Command;

/// What `go tool pprof` finds at a file or an address; `None` where there is no Go, which is told.
pub fn go_pprof(test: &str, source: &str) -> Option<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("go");
    command
        .args(["tool", "pprof", "-top", source])
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
    let percent = |function: &str| -> f64 {
        let line = top.lines().find(|line| line.split_whitespace().last() == Some(function));
        let share = line.and_then(|line| line.split_whitespace().nth(1)).expect("a line with a share");
        share.trim_end_matches('%').parse().expect("a number")
    };
    assert!((percent("hot") - 70.0).abs() < 5.0 && (percent("other") - 30.0).abs() < 5.0, "{top}");
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
