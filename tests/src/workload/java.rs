//! Java: `Burn.java`, which HotSpot compiles and inlines as it likes.

use super::{CHAIN, Running, Verdict, is_native_root, source};
use crate::profile::Line;
use std::path::Path;
use std::process::{Command, Stdio};

/// Share of whole stacks to reach, percent.
pub const TARGET: f64 = 99.8;

/// What the JVM itself runs when it collects garbage or compiles is no part of the known program.
const THREADS: [&str; 2] = ["java", "ForkJoinPool-1-"];

/// Compiles a program for every JVM since 11; why that cannot be done here.
pub fn compile(program: &str, folder: &Path) -> Result<(), String> {
    let mut command = Command::new("javac");
    command.args(["--release", "11", "-d"]).arg(folder).arg(source(&format!("java/{program}.java")));
    let status = command.status();
    let status = status.map_err(|error| format!("javac does not run: {error}; it comes with a JDK"))?;
    assert!(status.success(), "{command:?}");
    Ok(())
}

pub fn start(java: &Path, flags: &[&str], folder: &Path, program: &[&str]) -> Running {
    let mut command = Command::new(java);
    command.args(flags).arg("-cp").arg(folder).args(program);
    Running(command.stdout(Stdio::null()).spawn().expect("java runs where javac does"))
}

/// The known chain of `Burn`, from the thread's start.
pub fn judge(line: &Line) -> Verdict {
    if !THREADS.contains(&line.frames[0].as_str()) {
        return None;
    }
    let at = |name: &str| line.frames.iter().position(|frame| frame == name);
    let hot = ["Burn.hotA", "Burn.hotB", "Burn.hotC"].map(at);
    let leaf = hot.iter().position(Option::is_some)?;
    let chain = line.frames.iter().filter(|frame| *frame == "Burn.deep").count();
    let in_order = at("Burn.main") < at("Burn.run")
        && at("Burn.run") < at("Burn.deep")
        && at("Burn.deep").map(|first| first + CHAIN) == hot[leaf];
    let has_leaf = leaf != 2 || at("Burn.leafC") == hot[2].map(|place| place + 1);
    let has_main = at("Burn.main").is_some();
    Some((leaf, is_native_root(line) && has_main && chain == CHAIN && in_order && has_leaf))
}
