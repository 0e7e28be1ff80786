//! How many stacks are whole, of programs as users build them? By kpulse-profiler, and by perf where it is installed, judged
//! by one rule. `tests/overhead/run.sh stacks` runs it.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on ends here")]

mod perf;

use kpulse_tests::profile::Line;
use kpulse_tests::workload::{Quality, Running, Verdict, cpp, go, java};
use perf::Perf;
use std::path::Path;

/// A program with a known chain of calls.
struct Workload {
    what: &'static str,
    /// Share of whole stacks to reach, percent.
    target: f64,
    /// Builds it in a folder and starts it; or why that cannot be done here.
    start: fn(&Path) -> Result<Running, String>,
    judge: fn(&Line) -> Verdict,
}

const WORKLOADS: [Workload; 4] = [
    Workload {
        what: "C++ without frame pointers, with a library",
        target: cpp::TARGET,
        start: |folder| Ok(cpp::start(&cpp::build(folder, &[])?, &[])),
        judge: cpp::judge,
    },
    Workload {
        what: "Go, 70 % in a leaf without a frame",
        target: go::TARGET,
        start: |folder| Ok(go::start(&go::build(folder, false, &[])?, &[])),
        judge: go::judge,
    },
    Workload {
        what: "Go, stripped (-s -w)",
        target: go::TARGET,
        start: |folder| Ok(go::start(&go::build(folder, false, &["-ldflags=-s -w"])?, &[])),
        judge: go::judge,
    },
    Workload {
        what: "Java, default flags",
        target: java::TARGET,
        start: |folder| {
            java::compile("Burn", folder)?;
            Ok(java::start(Path::new("java"), &[], folder, &["Burn", "300"]))
        },
        judge: java::judge,
    },
];

fn main() {
    if !kpulse_tests::is_root() {
        return println!("  only root can sample the CPUs");
    }
    let mut notes = Vec::new();
    let perfs = match perf::find() {
        Ok(()) => vec![Perf::ALONG_FRAME_POINTERS, Perf::BY_DWARF],
        Err(why) => {
            notes.push(why);
            Vec::new()
        }
    };
    print!("  {:<43}{:>17}{:>16}", "", "kpulse-profiler", "target");
    println!("{}", perfs.iter().map(|perf| format!("{:>20}", perf.title())).collect::<String>());
    for workload in &WORKLOADS {
        eprintln!("bench: stacks of {}", workload.what);
        let folder = tempfile::tempdir().unwrap();
        let program = match (workload.start)(folder.path()) {
            Ok(program) => program,
            Err(why) => {
                println!("  {:<43}no figure: {why}", workload.what);
                continue;
            }
        };
        let quality = Quality::recorded(program.pid(), workload.judge);
        let verdict = if quality.whole() >= workload.target { "met" } else { "MISSED" };
        let target = format!("≥ {:.1} {verdict}", workload.target);
        print!("  {:<43}{:>17}{target:>16}", workload.what, cell(&quality));
        for perf in &perfs {
            let cell = match perf.recorded(program.pid(), folder.path(), workload.judge) {
                Ok(quality) => cell(&quality),
                Err(why) => {
                    notes.push(format!("{} of {}: {why}", perf.title(), workload.what));
                    "no figure".to_owned()
                }
            };
            print!("{cell:>20}");
        }
        println!();
    }
    for note in notes {
        println!("  {note}");
    }
}

/// Share of whole stacks, and of how many.
fn cell(quality: &Quality) -> String {
    match quality.samples() {
        0 => "0 (no names)".to_owned(),
        samples => format!("{:.2} of {samples}", quality.whole()),
    }
}
