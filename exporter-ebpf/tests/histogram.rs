//! The slot rule of `include/histogram.h` against the bounds that Rust reports.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use kpulse_common::metric::{HISTOGRAM_SLOTS, histogram_bound};
use std::io::Write;
use std::process::{Command, Stdio};

/// Compiles the C header for this machine, as a program that reads nanoseconds and prints slots.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <linux/types.h>
#define __bpf__
#include "histogram.h"
int main(void)
{
	unsigned long long ns;
	while (scanf("%llu", &ns) == 1)
		printf("%u\n", histogram_slot(ns));
	return 0;
}
"#;

fn slots(values: &[u64]) -> Vec<usize> {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("slots.c"), folder.path().join("slots"));
    std::fs::write(&source, PROGRAM).unwrap();
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/include");
    let status =
        Command::new("cc").args(["-O1", "-I", include, "-o"]).arg(&program).arg(&source).status().unwrap();
    assert!(status.success());
    let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let text: String = values.iter().map(|value| format!("{value}\n")).collect();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect()
}

/// The slot by Rust's bounds; values within the C rule's 3e-9 of a bound may go either way.
fn expected(ns: u64) -> usize {
    let seconds = ns as f64 / 1e9;
    (0..HISTOGRAM_SLOTS).find(|&slot| histogram_bound(slot).is_none_or(|bound| seconds <= bound)).unwrap()
}

#[test]
fn c_and_rust_agree_on_the_slot_of_every_duration() {
    let mut values = vec![0, 1, 953, 954, u64::MAX, 1 << 36, (1 << 36) + 1];
    for exponent in -20..=5 {
        let bound = (2f64.powi(exponent) * 1e9).floor() as u64;
        values.extend([bound - 1, bound, bound + bound / 100_000_000 + 1]);
    }
    // A spread over eleven decades, by a fixed multiplier.
    values.extend((0..4000u32).map(|step| 1.0065f64.powi(step.cast_signed()) as u64));
    let expected: Vec<usize> = values.iter().map(|&value| expected(value)).collect();
    for ((value, found), wanted) in values.iter().zip(slots(&values)).zip(expected) {
        assert_eq!(found, wanted, "{value} ns");
    }
}
