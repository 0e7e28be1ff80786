//! C++: `burn.cc`, with a leaf in a library, as users build it.

use super::{CHAIN, Running, Verdict, is_native_root, source};
use crate::profile::Line;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Share of whole stacks to reach, percent.
pub const TARGET: f64 = 99.5;

const WITHOUT_FRAME_POINTERS: [&str; 3] = ["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls"];
const LEAVES: [&str; 3] = ["hot_a", "hot_b", "hot_c"];

/// Compiles a source with more flags; why that cannot be done here.
pub fn compile(name: &str, flags: &[&str], to: &Path) -> Result<(), String> {
    let mut command = Command::new("g++");
    command.args(WITHOUT_FRAME_POINTERS).arg("-o").arg(to).arg(source(name)).args(flags).arg("-pthread");
    let status = command.status();
    let status =
        status.map_err(|error| format!("g++ does not run: {error}; it comes with build-essential"))?;
    assert!(status.success(), "{command:?}");
    Ok(())
}

/// The program with its library, in a folder.
pub fn build(folder: &Path, flags: &[&str]) -> Result<PathBuf, String> {
    let (program, library) = (folder.join("burn"), folder.join("libburn.so"));
    compile("burn_library.cc", &["-fPIC", "-shared"], &library)?;
    let search = format!("-L{}", folder.display());
    let flags: Vec<&str> = [flags, &[&search, "-lburn", "-Wl,-rpath,$ORIGIN"]].concat();
    compile("burn.cc", &flags, &program)?;
    Ok(program)
}

/// The program and its library in one file.
pub fn build_whole(folder: &Path, flags: &[&str]) -> Result<PathBuf, String> {
    let (program, library) = (folder.join("burn"), folder.join("hot.o"));
    let object = library.display().to_string();
    compile("burn_library.cc", &["-c"], &library)?;
    compile("burn.cc", &[flags, &[object.as_str()]].concat(), &program)?;
    Ok(program)
}

pub fn start(program: &Path, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    Running(command.arg("300").args(arguments).stdin(Stdio::piped()).spawn().expect("starts"))
}

/// The known chain, from the thread's start.
pub fn judge(line: &Line) -> Verdict {
    let leaf = LEAVES.iter().position(|name| has(line, name))?;
    let chain = line.frames.iter().filter(|frame| frame.contains("deep<")).count();
    let is_whole = is_native_root(line) && has(line, "run") && chain == CHAIN && has(line, "choose");
    Some((leaf, is_whole))
}

/// Whether there is such a function, with or without its parameters.
pub fn has(line: &Line, name: &str) -> bool {
    line.frames.iter().any(|frame| is(frame, name))
}

fn is(frame: &str, name: &str) -> bool {
    frame.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('('))
}
