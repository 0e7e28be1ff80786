//! The same programs under `perf record` and `perf script`.

use kpulse_tests::profile::{HZ, Line, MAX_SECONDS};
use kpulse_tests::workload::{Quality, SAMPLES, Verdict};
use std::path::Path;
use std::process::{Command, Stdio};

/// One way of perf to walk stacks.
pub struct Perf {
    flags: &'static [&'static str],
}

/// Whether perf runs here; or why not.
pub fn find() -> Result<(), String> {
    let output = Command::new("perf").arg("--version").output();
    let output =
        output.map_err(|error| format!("perf does not run: {error}; Debian has it in linux-perf"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("perf does not run: {}", last_line(&said))) }
}

impl Perf {
    pub const ALONG_FRAME_POINTERS: Self = Self { flags: &["-g"] };
    pub const BY_DWARF: Self = Self { flags: &["--call-graph", "dwarf,16384"] };

    pub fn title(&self) -> String {
        format!("perf {}", self.flags.join(" ").trim_start_matches("--call-graph "))
    }

    /// What a process runs, by enough samples, unless that takes too long; or why there is none.
    pub fn recorded(&self, pid: u32, folder: &Path, judge: fn(&Line) -> Verdict) -> Result<Quality, String> {
        let mut seconds = 4;
        loop {
            let file = folder.join("perf.data");
            // The clock that kpulse-profiler samples by: virtual machines often have no counter of cycles.
            let mut record = Command::new("perf");
            record.args(["record", "-e", "cpu-clock", "-F", HZ]).args(self.flags);
            record.args(["-p", &pid.to_string(), "-o"]).arg(&file);
            run(record.args(["--", "sleep", &seconds.to_string()]))?;
            let mut script = Command::new("perf");
            let text = run(script.args(["script", "-F", "comm,ip,sym,dso", "-i"]).arg(&file))?;
            let samples = parse(&text);
            // Where perf finds no names, none of them has a leaf that can be judged.
            if samples.len() as u64 >= SAMPLES + SAMPLES / 4 || seconds >= MAX_SECONDS {
                return Ok(Quality::of(&samples, judge));
            }
            seconds *= 2;
        }
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(last_line(&String::from_utf8_lossy(&output.stderr)).to_owned())
    }
}

fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it does not say why")
}

/// A sample is the thread's name on a line, its frames from the leaf to the root on one each, and an empty line.
fn parse(script: &str) -> Vec<Line> {
    let sample = |part: &str| {
        let (thread, frames) = part.split_once('\n')?;
        let frames = frames.lines().rev().filter_map(frame);
        Some(Line { frames: std::iter::once(thread.trim().to_owned()).chain(frames).collect(), count: 1 })
    };
    script.split("\n\n").map(str::trim_start).filter_map(sample).collect()
}

/// A frame as kpulse-profiler writes it: what differs in spelling alone is no broken stack.
fn frame(line: &str) -> Option<String> {
    let (_, place) = line.trim().split_once(' ')?;
    let (name, file) = place.rsplit_once(" (")?;
    let file = file.trim_end_matches(')');
    Some(match name {
        "[unknown]" if file.starts_with('/') => format!("[{}]", file.rsplit('/').next().unwrap_or(file)),
        _ => without_types(name.strip_suffix(".abi0").unwrap_or(name)),
    })
}

/// Go's own tools leave out the arguments of types.
fn without_types(name: &str) -> String {
    match (name.find('['), name.rfind(']')) {
        (Some(start), Some(end)) if start > 0 && start < end => {
            format!("{}[...]{}", &name[..start], &name[end + 1..])
        }
        _ => name.to_owned(),
    }
}
