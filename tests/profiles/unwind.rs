//! Are stacks whole where code has no frame pointers? C++ programs as users build them, each with the same known chain.

use crate::needs_root;
use crate::program::{Line, Running, parse};
use crate::record::record_samples;
use kpulse_tests::until;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const WITHOUT_FRAME_POINTERS: &[&str] = &["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls"];
/// Functions between `run` and the leaves.
const CHAIN: usize = 21;

/// Compiles `source` with more flags; `false` where g++ is missing, which is told.
fn compile(test: &str, source: &str, flags: &[&str], to: &Path) -> bool {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles").join(source);
    let mut command = Command::new("g++");
    command.args(WITHOUT_FRAME_POINTERS).arg("-o").arg(to).arg(source).args(flags).arg("-pthread");
    match command.status() {
        Ok(status) => assert!(status.success(), "{command:?}"),
        Err(error) => {
            kpulse_tests::skip(test, &format!("g++ does not run: {error}; it comes with build-essential"));
            return false;
        }
    }
    true
}

/// The program with its library, in a folder.
fn build(test: &str, folder: &Path, flags: &[&str]) -> Option<PathBuf> {
    let (program, library) = (folder.join("burn"), folder.join("libburn.so"));
    if !compile(test, "burn_library.cc", &["-fPIC", "-shared"], &library) {
        return None;
    }
    let search = format!("-L{}", folder.display());
    let flags: Vec<&str> = [flags, &[&search, "-lburn", "-Wl,-rpath,$ORIGIN"]].concat();
    compile(test, "burn.cc", &flags, &program).then_some(program)
}

/// The program and its library in one file.
fn build_whole(test: &str, folder: &Path, flags: &[&str]) -> Option<PathBuf> {
    let (program, library) = (folder.join("burn"), folder.join("hot.o"));
    let object = library.display().to_string();
    let is_built = compile(test, "burn_library.cc", &["-c"], &library)
        && compile(test, "burn.cc", &[flags, &[object.as_str()]].concat(), &program);
    is_built.then_some(program)
}

fn start(program: &Path, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    Running(command.arg("120").args(arguments).stdin(Stdio::piped()).spawn().expect("starts"))
}

/// Shares of the leaves in the samples that reach one, and how many of all samples are whole, percent.
#[derive(Debug)]
struct Quality {
    samples: u64,
    leaves: [f64; 3],
    whole: f64,
}

impl Quality {
    fn of(folded: &str, root: &[&str]) -> Self {
        let (mut samples, mut whole, mut leaves) = (0, 0, [0; 3]);
        for Line { frames, count } in parse(folded) {
            let has = |name: &str| frames.iter().any(|frame| frame == name);
            let Some(leaf) = ["hot_a", "hot_b", "hot_c"].iter().position(|name| has(name)) else { continue };
            let chain = frames.iter().filter(|frame| frame.contains("deep<")).count();
            let is_rooted = frames.get(1).is_some_and(|frame| root.contains(&frame.as_str()));
            let is_whole = is_rooted
                && frames.iter().any(|frame| frame.starts_with("run("))
                && chain == CHAIN
                && has("choose");
            samples += count;
            leaves[leaf] += count;
            whole += if is_whole { count } else { 0 };
        }
        let percent = |part: u64| part as f64 * 100.0 / samples.max(1) as f64;
        Self { samples, leaves: leaves.map(percent), whole: percent(whole) }
    }

    fn assert_true(&self) {
        assert!(self.samples >= 1000, "too few samples: {self:?}");
        assert!(self.whole >= 99.5, "{self:?}");
        for (share, truth) in self.leaves.iter().zip([70.0, 20.0, 10.0]) {
            assert!((share - truth).abs() <= 3.0, "{self:?}");
        }
    }
}

fn judge(program: &Running, root: &[&str]) {
    Quality::of(&record_samples(program.pid(), 2000), root).assert_true();
}

/// Root of a thread, as the distribution's libraries are named.
pub const THREAD: &[&str] = &["clone3", "__clone3", "clone", "__clone"];

#[test]
fn a_program_without_frame_pointers_and_its_library_are_walked_whole() {
    const TEST: &str = "a_program_without_frame_pointers_and_its_library_are_walked_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let Some(program) = build(TEST, folder.path(), &[]) else { return };
    judge(&start(&program, &[]), THREAD);
}

#[test]
fn a_program_with_frame_pointers_is_walked_whole() {
    const TEST: &str = "a_program_with_frame_pointers_is_walked_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let flags = ["-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer"];
    let Some(program) = build(TEST, folder.path(), &flags) else { return };
    judge(&start(&program, &[]), THREAD);
}

#[test]
fn a_stripped_program_is_walked_whole() {
    const TEST: &str = "a_stripped_program_is_walked_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    // Its dynamic symbols stay, and with them the names of the chain.
    let Some(program) = build(TEST, folder.path(), &["-s", "-rdynamic", "-no-pie"]) else { return };
    judge(&start(&program, &[]), THREAD);
}

/// It has neither a dynamic linker nor `.eh_frame_hdr`.
#[test]
fn a_static_program_is_walked_whole() {
    const TEST: &str = "a_static_program_is_walked_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let Some(program) = build_whole(TEST, folder.path(), &["-static"]) else { return };
    judge(&start(&program, &[]), THREAD);
}

#[test]
fn a_walk_goes_through_a_signal_handler() {
    const TEST: &str = "a_walk_goes_through_a_signal_handler";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let Some(program) = build(TEST, folder.path(), &[]) else { return };
    let program = start(&program, &["signal"]);
    let folded = record_samples(program.pid(), 2000);
    Quality::of(&folded, THREAD).assert_true();
    let hot = |line: &&Line| line.frames.iter().any(|frame| frame == "hot_a");
    let in_order = |line: Line| {
        let place = |name: &str| line.frames.iter().position(|frame| frame.contains(name));
        place("deep<0>") < place("raise")
            && place("raise") < place("__restore_rt")
            && place("__restore_rt") < place("handler")
    };
    assert!(parse(&folded).into_iter().filter(|line| hot(&line)).all(in_order), "{folded}");
}

#[test]
fn a_library_that_is_opened_late_is_walked() {
    const TEST: &str = "a_library_that_is_opened_late_is_walked";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let Some(program) = build(TEST, folder.path(), &["-DLATE"]) else { return };
    // Another file than the one that the program is linked with.
    let late = folder.path().join("late.so");
    if !compile(TEST, "burn_library.cc", &["-fPIC", "-shared", "-g0"], &late) {
        return;
    }
    let mut program = start(&program, &[]);
    let before = record_samples(program.pid(), 200);
    assert!(!before.contains("hot_c"), "it is not open yet");
    let line = format!("{}\n", late.display());
    program.0.stdin.as_mut().expect("a pipe").write_all(line.as_bytes()).expect("it reads");
    let maps = format!("/proc/{}/maps", program.pid());
    until("the library", || std::fs::read_to_string(&maps).ok()?.contains("late.so").then_some(()));
    judge(&program, THREAD);
}
