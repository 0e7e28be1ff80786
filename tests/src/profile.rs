//! Profiles of known programs, recorded by the real profiler, and how they are read.

use crate::binary;
use crate::process::command;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Samples a second: enough for a share within three points in a few seconds.
pub const HZ: &str = "997";
/// Longest recording: on a busy machine the program gets its share late.
pub const MAX_SECONDS: u32 = 32;

/// The profiler, without any variable that would configure it.
pub fn profiler() -> Command {
    command(binary("kpulse-profiler"))
}

/// Records into a file; returns what it says on stderr.
pub fn record(scope: &[&str], seconds: u32, format: &str, file: &Path) -> String {
    let mut command = profiler();
    command.arg("record").args(scope).args(["--sample.hz", HZ, "--format", format, "-o"]).arg(file);
    let output = command.args(["--seconds", &seconds.to_string()]).output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).expect("text")
}

/// What a process runs: at least so many samples of it, unless that takes too long.
pub fn record_samples(pid: u32, samples: u64) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut seconds = 4;
    loop {
        let stored = assert_closed(&record(&["--pid", &pid.to_string()], seconds, "folded", file.path()));
        if stored >= samples || seconds >= MAX_SECONDS {
            return fs::read_to_string(file.path()).expect("the profile is there");
        }
        seconds *= 2;
    }
}

/// What a process runs in so many seconds, with every sample accounted for.
pub fn record_for(pid: u32, seconds: u32) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    assert_closed(&record(&["--pid", &pid.to_string()], seconds, "folded", file.path()));
    fs::read_to_string(file.path()).expect("the profile is there")
}

/// The number behind a word of the summary.
fn number(summary: &str, word: &str) -> u64 {
    let (_, rest) =
        summary.split_once(&format!("{word} ")).unwrap_or_else(|| panic!("no {word} in {summary}"));
    rest.split(|letter: char| !letter.is_ascii_digit())
        .next()
        .expect("a first part")
        .parse()
        .expect("a number")
}

/// The summary is one line, whose sum closes; the samples that were stored.
pub fn assert_closed(summary: &str) -> u64 {
    assert_eq!(summary.lines().count(), 1, "{summary}");
    let [taken, stored, outside, lost] =
        ["taken", "stored", "outside the scope", "lost"].map(|word| number(summary, word));
    assert_eq!(taken, stored + outside + lost, "{summary}");
    assert!(taken > 0, "{summary}");
    stored
}

/// One stack: frames from the thread's name to the leaf, and how often.
pub struct Line {
    pub frames: Vec<String>,
    pub count: u64,
}

/// Reads folded stacks; a line that is not one fails the test.
pub fn parse(folded: &str) -> Vec<Line> {
    let line = |line: &str| {
        let (stack, count) = line.rsplit_once(' ').expect("a count after a blank");
        Line {
            frames: stack.split(';').map(str::to_owned).collect(),
            count: count.parse().expect("a number"),
        }
    };
    folded.lines().map(line).collect()
}
