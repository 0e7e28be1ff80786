//! The walk through a JVM's code, over frames and descriptions that are written down here: no JVM is needed.

use super::cpu_sample_walk::{sample_while, walking};
use super::*;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::{
    CpuSamples, Drained, Heap, Hotspot, MAPPING_HOTSPOT, Mapping, Process, Sample, UnwindTables, frame,
};
use std::sync::atomic::AtomicU32;

/// More than one program of the walk takes, and fewer than a stack holds.
const DEPTH: usize = 100;
const COMPILATION: u32 = 0x12345;
const METHOD: u64 = 0x7766_5544_3320;

// A heap of code: a header of 16 bytes, what the blob tells of itself, its code that calls itself until it runs until the
// flag is set; then an interpreter, whose frame has the caller's stack pointer, nothing, and the method below rbp.
std::arch::global_asm!(
    ".globl java_heap, java_compiled, java_loop, java_compiled_end, java_interpreter, java_interpreter_end, java_heap_end",
    ".p2align 12",
    "java_heap:",
    ".zero 16",
    "1: .long 4, 0x12345, java_compiled - 1b, 0",
    "java_compiled:",
    "sub rsp, 24",
    "mov [rsp + 16], rbp",
    "dec rdi",
    "jz java_loop",
    "call java_compiled",
    "jmp 3f",
    ".zero 256",
    "java_loop:",
    "pause",
    "cmp dword ptr [rsi], 0",
    "je java_loop",
    "3: mov rbp, [rsp + 16]",
    "add rsp, 24",
    "ret",
    "java_compiled_end:",
    ".p2align 10",
    "java_interpreter:",
    "push rbp",
    "mov rbp, rsp",
    "lea rax, [rbp + 16]",
    "push rax",
    "push 0",
    "push rdx",
    "lea rax, [rip + java_compiled]",
    "call rax",
    "leave",
    "ret",
    "java_interpreter_end:",
    ".p2align 12",
    "java_heap_end:",
);

unsafe extern "C" {
    fn java_interpreter(depth: usize, flag: *const AtomicU32, method: u64);
    fn java_heap();
    fn java_compiled();
    fn java_loop();
    fn java_compiled_end();
    fn java_interpreter_end();
    fn java_heap_end();
}

fn at(label: unsafe extern "C" fn()) -> u64 {
    label as *const () as u64
}

/// How far back a block begins, for segments of 128 bytes.
static SEGMENTS: [u8; 32] = {
    let mut segments = [0xff; 32];
    let mut segment = 0;
    while segment < 8 {
        segments[segment] = segment as u8;
        segment += 1;
    }
    segments
};

fn hotspot() -> Hotspot {
    let mut hotspot = Hotspot {
        code_low: at(java_heap),
        code_high: at(java_heap_end),
        interpreter_low: java_interpreter as *const () as u64,
        interpreter_high: at(java_interpreter_end),
        block_header: 16,
        frame_size: 0,
        compile_id: 4,
        code_begin: 8,
        frame_complete: 12,
        is_code_relative: 1,
        ..Hotspot::default()
    };
    let (low, high) = (at(java_heap), at(java_heap_end));
    // A program of the kernel reads only what is in memory, as it is where a JVM has written it.
    // SAFETY: it is a whole static.
    unsafe { std::ptr::read_volatile(&raw const SEGMENTS) };
    hotspot.heaps[2] = Heap { low, high, segment_map: SEGMENTS.as_ptr() as u64, segment_shift: 7, _pad: 0 };
    hotspot
}

/// Enters this process with the heap above; the rest of it is code that is not mapped.
fn enter(tables: &UnwindTables) {
    let AddressSpace { code: start_code, stack: start_stack } = own_space();
    let process = Process { start_code, start_stack, used_ns: 0, first: 3, count: 1 };
    let (start, end) = (at(java_heap), at(java_heap_end));
    let mapping = Mapping { start, end, bias: start, first_page: MAPPING_HOTSPOT, page_count: 0 };
    tables.set_hotspot(std::process::id(), &hotspot()).expect("a JVM can be written");
    tables.set_process(std::process::id(), &process, &[mapping]).expect("a process can be written");
}

/// Samples in the loop, at least so many.
fn sample(samples: &mut CpuSamples, at_least: u64) -> Vec<Sample> {
    let in_loop = |sample: &Sample| {
        let leaf = sample.user.first().map_or(0, |word| word & frame::ADDRESS);
        sample.pid == std::process::id() && (at(java_loop)..at(java_compiled_end)).contains(&leaf)
    };
    let keep = |drained: Drained| drained.samples.into_iter().filter(in_loop).collect();
    // SAFETY: the code above keeps to the calling convention and reads what lives until it returns.
    sample_while(|flag| unsafe { java_interpreter(DEPTH, flag, METHOD) }, samples, at_least, keep)
}

#[test]
fn a_walk_goes_through_compiled_and_interpreted_java() {
    needs_root!();
    let (_set, mut samples, tables) = walking();
    enter(&tables);
    let found = sample(&mut samples, 50);
    assert!(!found.is_empty());
    for sample in found {
        let (interpreted, compiled) = sample.user.split_last().expect("there is a leaf");
        assert_eq!(compiled.len(), DEPTH, "{:x?}", sample.user);
        for word in compiled {
            assert_eq!(word & (frame::COMPILED | frame::INTERPRETED), frame::COMPILED, "{word:x}");
            assert_eq!(frame::compilation(*word), COMPILATION & frame::COMPILATION, "{word:x}");
            assert!(
                (at(java_compiled)..at(java_compiled_end)).contains(&(word & frame::ADDRESS)),
                "{word:x}"
            );
        }
        // Who reads a stack looks one byte before every address but the leaf's.
        assert_eq!(*interpreted - 1, frame::INTERPRETED | METHOD, "{interpreted:x}");
    }
}
