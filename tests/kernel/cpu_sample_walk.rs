//! The walk by tables, over frames whose layout is written down here: no compiler's choice is in it.

use super::*;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::{
    CpuSamples, Drained, Mapping, Page, Process, Row, Sample, UnwindTables, cfa, rbp,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

/// More than one program of the walk takes, and fewer than a stack holds.
const DEPTH: u64 = 100;

// outer(depth, flag) saves rbp and spoils it; deep calls itself; leaf runs until the flag is set.
std::arch::global_asm!(
    ".globl walk_outer, walk_outer_body, walk_outer_end, walk_deep, walk_deep_body, walk_deep_end, walk_leaf, walk_end",
    ".p2align 12",
    "walk_outer:",
    "push rbp",
    "mov rbp, 3",
    "walk_outer_body:",
    "call walk_deep",
    "pop rbp",
    "walk_outer_end:",
    "ret",
    ".p2align 4",
    "walk_deep:",
    "sub rsp, 40",
    "walk_deep_body:",
    "dec rdi",
    "jz 2f",
    "call walk_deep",
    "jmp 3f",
    "2: call walk_leaf",
    "3: add rsp, 40",
    "walk_deep_end:",
    "ret",
    ".p2align 4",
    "walk_leaf:",
    "pause",
    "cmp dword ptr [rsi], 0",
    "je walk_leaf",
    "ret",
    ".p2align 12",
    "walk_end:",
);

unsafe extern "C" {
    fn walk_outer(depth: u64, flag: *const AtomicU32);
    fn walk_outer_body();
    fn walk_outer_end();
    fn walk_deep();
    fn walk_deep_body();
    fn walk_deep_end();
    fn walk_leaf();
    fn walk_end();
}

type Label = unsafe extern "C" fn();

fn at(label: Label) -> u64 {
    label as *const () as u64
}

fn start() -> u64 {
    walk_outer as *const () as u64
}

fn row(label: Label, cfa: u8, words: u16, rbp: u8, saved_words: i16) -> Row {
    let address = (at(label) - start()) as u16;
    Row { address, cfa, rbp, cfa_words: words, rbp_words: saved_words }
}

fn rows() -> [Row; 7] {
    let by_stack = |label, words| row(label, cfa::RSP, words, rbp::KEPT, 0);
    [
        Row { address: 0, ..by_stack(walk_outer_body, 1) },
        row(walk_outer_body, cfa::RSP, 2, rbp::AT_CFA, -2),
        by_stack(walk_outer_end, 1),
        by_stack(walk_deep, 1),
        by_stack(walk_deep_body, 6),
        by_stack(walk_deep_end, 1),
        by_stack(walk_leaf, 1),
    ]
}

/// Enters this process with the code above; the rest of it is code without a table.
fn enter(tables: &UnwindTables) {
    tables.set_file(10, &rows(), 5, &[Page { first: 10, count: 7 }]).expect("rows can be written");
    let AddressSpace { code: start_code, stack: start_stack } = own_space();
    let process = Process { start_code, start_stack, used_ns: 0, first: 3, count: 1 };
    let mapping = Mapping { start: start(), end: at(walk_end), bias: start(), first_page: 5, page_count: 1 };
    tables.set_process(std::process::id(), &process, &[mapping]).expect("a process can be written");
}

/// Samples of a thread that runs the code to a depth, at least so many.
fn sample_at_depth(
    depth: u64,
    samples: &mut CpuSamples,
    at_least: u64,
) -> (Vec<Sample>, HashMap<&'static str, u64>) {
    let mut cut = HashMap::new();
    let keep = |drained: Drained| {
        drained.cut.into_iter().for_each(|(reason, count)| *cut.entry(reason).or_default() += count);
        in_leaf(drained.samples).collect()
    };
    // SAFETY: the code above keeps to the calling convention and reads what lives until it returns.
    let found = sample_while(|flag| unsafe { walk_outer(depth, flag) }, samples, at_least, keep);
    (found, cut)
}

/// Samples that are kept of each drain while the code runs, which ends when its flag is set; at least so many.
pub(super) fn sample_while(
    run: impl FnOnce(&AtomicU32) + Send,
    samples: &mut CpuSamples,
    at_least: u64,
    mut keep: impl FnMut(Drained) -> Vec<Sample>,
) -> Vec<Sample> {
    let flag = AtomicU32::new(0);
    let mut found = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    thread::scope(|scope| {
        scope.spawn(|| run(&flag));
        while found.iter().map(|sample: &Sample| sample.count).sum::<u64>() < at_least
            && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(100));
            found.extend(keep(samples.drain().expect("the maps can be read")));
        }
        flag.store(1, Ordering::Relaxed);
    });
    found
}

/// The probe with its samples and the tables of its walk.
pub(super) fn walking() -> (ProbeSet, CpuSamples, UnwindTables) {
    let set = load("cpu_sample", &LoadOptions { sample_hz: 499, ..wanting(Want::Samples) });
    let samples = CpuSamples::open(&set).expect("the maps open");
    let tables = UnwindTables::open(&set).expect("the maps open").expect("the walk runs on this kernel");
    (set, samples, tables)
}

fn in_leaf(samples: Vec<Sample>) -> impl Iterator<Item = Sample> {
    let leaf = at(walk_leaf)..at(walk_end);
    let ours = samples.into_iter().filter(|sample| sample.pid == std::process::id());
    ours.filter(move |sample| sample.user.first().is_some_and(|pc| leaf.contains(pc)))
}

#[test]
fn a_walk_by_tables_finds_every_caller() {
    needs_root!();
    let (_set, mut samples, tables) = walking();
    enter(&tables);
    let (found, cut) = sample_at_depth(DEPTH, &mut samples, 50);
    assert!(!found.is_empty());
    for sample in found {
        // The leaf, its callers, and outer; what called outer has no table here, and no mapping.
        assert_eq!(sample.user.len() as u64, DEPTH + 2, "{:x?}", sample.user);
        let (outer, deep) = sample.user[1..].split_last().expect("there are callers");
        assert!(deep.iter().all(|pc| (at(walk_deep_body)..at(walk_deep_end)).contains(pc)), "{deep:x?}");
        assert!((at(walk_outer_body)..at(walk_outer_end)).contains(outer), "{outer:x}");
    }
    assert!(cut["unmapped"] >= 50, "{cut:?}");
    assert!(
        tables.wanted().expect("a list").contains(&std::process::id()),
        "the unmapped caller is asked for"
    );
}

#[test]
fn a_process_of_other_code_is_not_walked_by_old_tables() {
    needs_root!();
    let (_set, mut samples, tables) = walking();
    enter(&tables);
    let (pid, mut process) = tables.processes().expect("a list").remove(0);
    process.start_stack += 8;
    tables.set_process(pid, &process, &[]).expect("a process can be written");
    let (found, _) = sample_at_depth(1, &mut samples, 50);
    assert!(!found.is_empty());
    // The frame pointer is spoiled, so that without tables nothing leads beyond the leaf.
    assert!(found.iter().all(|sample| sample.user.len() == 1), "{found:x?}");
}
