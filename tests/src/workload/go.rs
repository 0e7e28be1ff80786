//! Go: the program in `profiles/go`, whose first leaf has no frame, as users build it.

use super::{CHAIN, Running, Verdict, source};
use crate::profile::Line;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Share of whole stacks to reach, percent, by each leaf.
pub const TARGET: f64 = 99.5;

/// How the work of `hotC` is reached.
const INLINED: &[&str] = &["main.hotC", "main.work"];
const IN_C: &[&str] = &["main.hotC", "main._Cfunc_hot_c", "runtime.cgocall", "runtime.asmcgocall"];

/// Builds the program; why that cannot be done here.
pub fn build(folder: &Path, has_c: bool, flags: &[&str]) -> Result<PathBuf, String> {
    let program = folder.join("burn");
    let mut command = Command::new("go");
    command.current_dir(source("go"));
    command.envs([("CGO_ENABLED", if has_c { "1" } else { "0" }), ("GOTOOLCHAIN", "local"), ("GOFLAGS", "")]);
    command.env("GOCACHE", folder.join("cache"));
    let output = command.args(["build", "-buildvcs=false", "-o"]).arg(&program).args(flags).arg(".").output();
    let output = output.map_err(|error| format!("go does not run: {error}; it comes from go.dev/dl"))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(program)
}

pub fn start(program: &Path, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    Running(command.arg("300").args(arguments).stdout(Stdio::null()).spawn().expect("starts"))
}

/// The chain of a program without C, from the goroutine's start.
pub fn judge(line: &Line) -> Verdict {
    judge_with(line, INLINED)
}

/// The chain of a program with C.
pub fn judge_with_c(line: &Line) -> Verdict {
    judge_with(line, IN_C)
}

fn judge_with(line: &Line, last: &[&str]) -> Verdict {
    let paths = [&["main.hotA"][..], &["main.(*kind[...]).run"], last];
    let frames = &line.frames[1..];
    let ends_with = |path: &&[&str]| frames.iter().any(|frame| path.last() == Some(&frame.as_str()));
    let leaf = paths.iter().position(ends_with)?;
    let whole = [&chain()[..], &["main.choose"], paths[leaf]].concat();
    // An interrupt's kernel frames may stand behind the leaf, and C's behind Go's.
    Some((leaf, begins_with(frames, &whole)))
}

/// What every stack begins with.
pub fn chain() -> Vec<&'static str> {
    [&["runtime.goexit", "main.run"][..], &["main.deep"; CHAIN]].concat()
}

/// Whether a stack begins with these frames.
pub fn begins_with(frames: &[String], names: &[&str]) -> bool {
    frames.len() >= names.len() && frames.iter().zip(names).all(|(frame, name)| frame == name)
}
