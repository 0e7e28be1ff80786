//! Are the stacks of Go programs whole, and named where nothing but Go's own table has names? Built as users build them.

use crate::{built, needs_root};
use kpulse_tests::profile::Line;
use kpulse_tests::workload::{Quality, Verdict, go};
use std::fs;
use std::path::Path;

fn judge_program(program: &Path, judge: fn(&Line) -> Verdict) {
    let program = go::start(program, &[]);
    Quality::recorded(program.pid(), judge).assert_true_by_leaf(go::TARGET);
}

fn judge(test: &str, flags: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    judge_program(&built!(test, go::build(folder.path(), false, flags)), go::judge);
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
    let program = built!(TEST, go::build(folder.path(), false, &["-ldflags=-s -w"]));
    let mut file = fs::read(&program).expect("is there");
    // The offset of the headers in the file, their size, their number and the one with names.
    file[40..48].fill(0);
    file[58..64].fill(0);
    fs::write(&program, file).expect("can be written");
    judge_program(&program, go::judge);
}

fn judge_with_c(test: &str, flags: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    judge_program(&built!(test, go::build(folder.path(), true, flags)), go::judge_with_c);
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
