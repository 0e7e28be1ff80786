//! Are the stacks of Go programs whole, and named where nothing but Go's own table has names? Built as users build them.

use crate::needs_root;
use crate::program::{Line, parse, start};
use crate::record::record_samples;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Calls between `run` and the leaves.
const CHAIN: usize = 21;
/// How the work of `hotC` is reached.
const INLINED: &[&str] = &["main.hotC", "main.work"];
const IN_C: &[&str] = &["main.hotC", "main._Cfunc_hot_c", "runtime.cgocall", "runtime.asmcgocall"];

/// Builds the program; `None` where that cannot be done, which is told.
pub fn build(test: &str, folder: &Path, has_c: bool, flags: &[&str]) -> Option<PathBuf> {
    let program = folder.join("burn");
    let mut command = Command::new("go");
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/go"));
    command.envs([("CGO_ENABLED", if has_c { "1" } else { "0" }), ("GOTOOLCHAIN", "local"), ("GOFLAGS", "")]);
    command.env("GOCACHE", folder.join("cache"));
    match command.args(["build", "-buildvcs=false", "-o"]).arg(&program).args(flags).arg(".").output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(program)
        }
        Err(error) => {
            kpulse_tests::skip(test, &format!("go does not run: {error}; it comes from go.dev/dl"));
            None
        }
    }
}

/// Shares of the leaves in the samples that reach one, and how many of these are whole, percent.
#[derive(Debug)]
struct Quality {
    samples: u64,
    leaves: [f64; 3],
    whole: [f64; 3],
}

impl Quality {
    fn of(folded: &str, last: &[&str]) -> Self {
        let paths = [&["main.hotA"][..], &["main.(*kind[...]).run"], last];
        let (mut whole, mut leaves) = ([0; 3], [0; 3]);
        for Line { frames, count } in parse(folded) {
            let frames: Vec<&str> = frames.iter().map(String::as_str).collect();
            let Some(leaf) =
                paths.iter().position(|path| frames.iter().any(|frame| frame == &path[path.len() - 1]))
            else {
                continue;
            };
            let mut path = vec!["runtime.goexit", "main.run"];
            path.extend(["main.deep"; CHAIN]);
            path.push("main.choose");
            path.extend(paths[leaf]);
            leaves[leaf] += count;
            // An interrupt's kernel frames may stand behind the leaf, and C's behind Go's.
            if frames[1..].starts_with(&path) {
                whole[leaf] += count;
            }
        }
        let samples: u64 = leaves.iter().sum();
        let percent = |part: u64, of: u64| part as f64 * 100.0 / of.max(1) as f64;
        let mut shares = [0.0; 3];
        for (leaf, share) in shares.iter_mut().enumerate() {
            *share = percent(whole[leaf], leaves[leaf]);
        }
        Self { samples, leaves: leaves.map(|leaf| percent(leaf, samples)), whole: shares }
    }

    fn assert_true(&self) {
        println!("{self:?}");
        assert!(self.samples >= 2000, "too few samples: {self:?}");
        for (whole, (share, truth)) in self.whole.iter().zip(self.leaves.iter().zip([70.0, 20.0, 10.0])) {
            assert!(*whole >= 99.5 && (share - truth).abs() <= 3.0, "{self:?}");
        }
    }
}

/// Starts the program and judges its leaves by 2,000 samples; on a busy machine these take more than one recording.
fn judge_program(program: &Path, last: &[&str]) {
    let program = start(program, 300);
    let mut folded = String::new();
    for _ in 0..3 {
        folded += &record_samples(program.pid(), 2500);
        if Quality::of(&folded, last).samples >= 2000 {
            break;
        }
    }
    Quality::of(&folded, last).assert_true();
}

fn judge(test: &str, flags: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(program) = build(test, folder.path(), false, flags) else { return };
    judge_program(&program, INLINED);
}

#[test]
fn a_go_program_is_whole_with_inlined_calls_and_without_a_frame_in_the_leaf() {
    const TEST: &str = "a_go_program_is_whole_with_inlined_calls_and_without_a_frame_in_the_leaf";
    needs_root!(TEST);
    judge(TEST, &[]);
}

#[test]
fn a_stripped_go_program_is_whole() {
    needs_root!("a_stripped_go_program_is_whole");
    judge("a_stripped_go_program_is_whole", &["-ldflags=-s -w"]);
}

#[test]
fn a_position_independent_go_program_is_whole() {
    needs_root!("a_position_independent_go_program_is_whole");
    judge("a_position_independent_go_program_is_whole", &["-buildmode=pie"]);
}

/// What packers make: the table is found by its header alone.
#[test]
fn a_go_program_without_section_headers_is_whole() {
    const TEST: &str = "a_go_program_without_section_headers_is_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let Some(program) = build(TEST, folder.path(), false, &["-ldflags=-s -w"]) else { return };
    let mut file = fs::read(&program).expect("is there");
    // The offset of the headers in the file, their size, their number and the one with names.
    file[40..48].fill(0);
    file[58..64].fill(0);
    fs::write(&program, file).expect("can be written");
    judge_program(&program, INLINED);
}

fn judge_with_c(test: &str, flags: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(program) = build(test, folder.path(), true, flags) else { return };
    judge_program(&program, IN_C);
}

#[test]
fn a_go_program_with_c_is_whole_from_c_to_the_goroutine() {
    needs_root!("a_go_program_with_c_is_whole_from_c_to_the_goroutine");
    judge_with_c("a_go_program_with_c_is_whole_from_c_to_the_goroutine", &[]);
}

#[test]
fn a_stripped_position_independent_go_program_with_c_is_whole() {
    const TEST: &str = "a_stripped_position_independent_go_program_with_c_is_whole";
    needs_root!(TEST);
    judge_with_c(TEST, &["-ldflags=-s -w", "-buildmode=pie"]);
}
