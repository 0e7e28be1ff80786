//! What programs can do to the profiler: none of it may cost the others their stacks.

use crate::needs_root;
use crate::program::{Shares, compile, start};
use kpulse_tests::profile::{Line, parse, record, record_for};
use kpulse_tests::until;
use kpulse_tests::workload::Running;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn build(source: &str, flags: &[&str], to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles").join(source);
    let mut command = Command::new("gcc");
    command.args(["-O1", "-fno-omit-frame-pointer", "-o"]).arg(to).arg(source).args(flags);
    assert!(command.status().expect("gcc runs; it comes with build-essential").success(), "{command:?}");
}

/// The known program beside another one is whole; returns the profile of the host.
fn judge_beside(folder: &Path, seconds: u32) -> (String, String) {
    let _program = start(&compile(folder), 120);
    let file = folder.join("out.folded");
    let summary = record(&["--host"], seconds, "folded", &file);
    let folded = fs::read_to_string(&file).expect("the profile is there");
    let shares = Shares::of(&folded);
    assert!(shares.samples >= 300 && shares.whole >= 98.0, "{shares:?} {summary}");
    (folded, summary)
}

/// Code in a file whose file system answers nothing any more.
#[test]
fn a_file_that_never_comes_costs_one_batch() {
    const TEST: &str = "a_file_that_never_comes_costs_one_batch";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let (program, mounted) = (folder.path().join("stuck"), folder.path().join("mounted"));
    build("stuck_file.c", &["-pthread"], &program);
    fs::create_dir(&mounted).expect("a folder");
    // It ends by itself: until then nobody can end a thread that waits for it.
    let mut command = Command::new(&program);
    let mut program =
        Running(command.arg(&mounted).arg("25").stdout(Stdio::piped()).spawn().expect("starts"));
    let mut line = String::new();
    BufReader::new(program.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("it can be read");
    if line.is_empty() {
        return kpulse_tests::skip(TEST, "the kernel mounts no FUSE file system here");
    }
    let (_, summary) = judge_beside(folder.path(), 16);
    assert!(summary.contains("(stuck "), "{summary}");
}

/// A JVM, as it seems, whose memory never comes.
#[test]
fn memory_that_never_comes_delays_nobody() {
    const TEST: &str = "memory_that_never_comes_delays_nobody";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let (program, library) = (folder.path().join("jit"), folder.path().join("libjvm.so"));
    build("stuck_memory.c", &["-fPIC", "-shared"], &library);
    build("jit.c", &["-Wl,--no-as-needed", &library.display().to_string()], &program);
    let mut program = Running(Command::new(program).args(["120", "silent"]).spawn().expect("starts"));
    let (folded, _) = judge_beside(folder.path(), 6);
    if program.0.try_wait().expect("can be asked").is_some_and(|status| status.code() == Some(9)) {
        return kpulse_tests::skip(TEST, "the kernel has no userfaultfd");
    }
    assert!(folded.contains("jit;"), "{folded}");
}

#[test]
fn a_storm_of_short_processes_costs_nobody_else_its_stacks() {
    needs_root!("a_storm_of_short_processes_costs_nobody_else_its_stacks");
    let folder = tempfile::tempdir().expect("a folder");
    let storm = "i=0; while [ $i -lt 4000 ]; do /bin/true; i=$((i+1)); done; exec sleep 120";
    let mut storm = Running(Command::new("sh").args(["-c", storm]).spawn().expect("sh runs"));
    let (folded, _) = judge_beside(folder.path(), 6);
    storm.0.kill().expect("it still runs");
    assert!(
        parse(&folded).iter().any(|line| line.frames[0] == "true"),
        "no process of the storm was sampled"
    );
}

/// Two gigabytes, of which nearly all is a hole.
#[test]
fn a_huge_program_is_walked_and_named() {
    needs_root!("a_huge_program_is_walked_and_named");
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let path = compile(folder.path());
    let file = File::options().write(true).open(&path).expect("can be written");
    file.write_at(b"end", 2 << 30).expect("the file system knows holes");
    drop(file);
    let program = start(&path, 120);
    let shares = Shares::of(&record_for(program.pid(), 6));
    assert!(shares.samples >= 300 && shares.whole >= 98.0, "{shares:?}");
}

/// A program that makes code, with its own map of it.
fn start_with_map(folder: &Path, write: impl FnOnce(&mut BufWriter<File>, u64)) -> (Running, PathBuf) {
    let path = folder.join("jit");
    build("jit.c", &[], &path);
    let program = Running(Command::new(path).arg("120").spawn().expect("starts"));
    let map = PathBuf::from(format!("/tmp/perf-{}.map", program.pid()));
    let own = until("the program's map", || {
        let text = fs::read_to_string(&map).ok()?;
        text.lines().find_map(|line| line.strip_suffix(" made_while_running").map(str::to_owned))
    });
    let start = own.split(' ').next().expect("an address");
    let mut file = BufWriter::new(File::create(&map).expect("can be written"));
    write(&mut file, u64::from_str_radix(start, 16).expect("a number"));
    file.flush().expect("can be written");
    (program, map)
}

fn leaves(folded: &str) -> Vec<(String, u64)> {
    let is_named = |line: &Line| line.frames.iter().any(|frame| frame == "main");
    let leaf = |line: Line| (line.frames.last().cloned().unwrap_or_default(), line.count);
    parse(folded).into_iter().filter(is_named).map(leaf).collect()
}

#[test]
fn a_map_of_a_million_lines_names_its_code() {
    needs_root!("a_map_of_a_million_lines_names_its_code");
    let folder = tempfile::tempdir().expect("a folder");
    let (program, map) = start_with_map(folder.path(), |file, start| {
        for line in 0..1_000_000u64 {
            writeln!(file, "{:x} 10 function_{line}", 0x1000 + line * 16).expect("can be written");
        }
        writeln!(file, "{start:x} f the_last_one").expect("can be written");
    });
    let leaves = leaves(&record_for(program.pid(), 8));
    fs::remove_file(map).expect("is there");
    assert!(leaves.iter().any(|(leaf, count)| leaf == "the_last_one" && *count >= 100), "{leaves:?}");
}

#[test]
fn a_name_neither_ends_a_line_nor_steers_a_terminal() {
    needs_root!("a_name_neither_ends_a_line_nor_steers_a_terminal");
    let folder = tempfile::tempdir().expect("a folder");
    let (program, map) = start_with_map(folder.path(), |file, start| {
        writeln!(file, "{start:x} f evil;main 7\u{1b}[2J\u{202e}\rreturned\t1").expect("can be written");
    });
    let folded = record_for(program.pid(), 4);
    fs::remove_file(map).expect("is there");
    let leaves = leaves(&folded);
    let evil = leaves.iter().find(|(leaf, _)| leaf.starts_with("evil")).expect("it is named");
    assert!(evil.0.ends_with('1') && evil.1 > 0, "the name is one frame: {evil:?}");
    let is_bad = |letter: char| letter != '\n' && (letter.is_control() || letter == '\u{202e}');
    assert!(!folded.contains(is_bad), "{folded:?}");
}
