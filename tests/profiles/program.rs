//! The C program with two leaves, and what a profile says about it.

use kpulse_tests::profile::{Line, parse};
use kpulse_tests::workload::{Running, is_share, percent};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Compiles the program with known shares.
pub fn compile(directory: &Path) -> PathBuf {
    compile_with(&[], directory)
}

/// Compiles it with more flags.
pub fn compile_with(flags: &[&str], directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/chain.c");
    let program = directory.join("chain");
    let compiled = Command::new("gcc")
        .args(["-O1", "-fno-omit-frame-pointer"])
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(source)
        .status()
        .expect("gcc runs; it comes with build-essential");
    assert!(compiled.success());
    program
}

/// Starts it for some seconds.
pub fn start(program: &Path, seconds: u32) -> Running {
    Running(Command::new(program).arg(seconds.to_string()).stdout(Stdio::null()).spawn().expect("starts"))
}

/// What a folded profile says about the known program.
#[derive(Debug, PartialEq)]
pub struct Shares {
    /// Samples of the program's two leaves.
    pub samples: u64,
    /// Those of `hot`.
    pub hot: u64,
    /// Share of the samples of `hot` that have the whole chain, percent.
    pub whole: f64,
}

impl Shares {
    pub fn of(folded: &str) -> Self {
        let (mut hot, mut other, mut whole) = (0, 0, 0);
        for Line { frames, count } in parse(folded) {
            if frames[0] != "chain" {
                continue;
            }
            let frames: Vec<&str> = frames.iter().map(String::as_str).collect();
            // An interrupt's kernel frames may stand behind the leaf.
            if frames.contains(&"hot") {
                hot += count;
                whole += if frames.windows(4).any(|part| part == ["main", "outer", "middle", "hot"]) {
                    count
                } else {
                    0
                };
            } else if frames.contains(&"other") {
                other += count;
            }
        }
        Self { samples: hot + other, hot, whole: percent(whole, hot) }
    }

    /// The leaves' shares, by enough samples, and whole chains.
    pub fn assert_true(&self) {
        assert!(self.samples >= 1000, "too few samples: {self:?}");
        assert!(is_share(self.hot, self.samples, 70.0), "{self:?}");
        assert!(self.whole >= 98.0, "{self:?}");
    }
}
