//! Are stacks whole where code has no frame pointers? C++ programs as users build them, each with the same known chain.

use crate::{built, needs_root};
use kpulse_tests::profile::record_samples;
use kpulse_tests::until;
use kpulse_tests::workload::{Quality, Running, cpp};
use std::io::Write;

fn judge(program: &Running) {
    Quality::recorded(program.pid(), cpp::judge).assert_true(cpp::TARGET);
}

#[test]
fn a_program_without_frame_pointers_and_its_library_are_walked_whole() {
    const TEST: &str = "a_program_without_frame_pointers_and_its_library_are_walked_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let program = built!(TEST, cpp::build(folder.path(), &[]));
    judge(&cpp::start(&program, &[]));
}

#[test]
fn a_program_with_frame_pointers_is_walked_whole() {
    const TEST: &str = "a_program_with_frame_pointers_is_walked_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let flags = ["-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer"];
    let program = built!(TEST, cpp::build(folder.path(), &flags));
    judge(&cpp::start(&program, &[]));
}

#[test]
fn a_stripped_program_is_walked_whole() {
    const TEST: &str = "a_stripped_program_is_walked_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    // Its dynamic symbols stay, and with them the names of the chain.
    let program = built!(TEST, cpp::build(folder.path(), &["-s", "-rdynamic", "-no-pie"]));
    judge(&cpp::start(&program, &[]));
}

/// It has neither a dynamic linker nor `.eh_frame_hdr`.
#[test]
fn a_static_program_is_walked_whole() {
    const TEST: &str = "a_static_program_is_walked_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let program = built!(TEST, cpp::build_whole(folder.path(), &["-static"]));
    judge(&cpp::start(&program, &[]));
}

#[test]
fn a_library_that_is_opened_late_is_walked() {
    const TEST: &str = "a_library_that_is_opened_late_is_walked";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let program = built!(TEST, cpp::build(folder.path(), &["-DLATE"]));
    // Another file than the one that the program is linked with.
    let late = folder.path().join("late.so");
    built!(TEST, cpp::compile("burn_library.cc", &["-fPIC", "-shared", "-g0"], &late));
    let mut program = cpp::start(&program, &[]);
    let before = record_samples(program.pid(), 200);
    assert!(!before.contains("hot_c"), "it is not open yet");
    let line = format!("{}\n", late.display());
    program.0.stdin.as_mut().expect("a pipe").write_all(line.as_bytes()).expect("it reads");
    let maps = format!("/proc/{}/maps", program.pid());
    until("the library", || std::fs::read_to_string(&maps).ok()?.contains("late.so").then_some(()));
    judge(&program);
}
