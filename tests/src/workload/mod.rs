//! Programs whose stacks and shares are known, and how well a profile tells them. The programs lie in `tests/profiles`.
//!
//! A stack is whole when it goes from the thread's or goroutine's start over every call to the function that runs, each by
//! its right name.

pub mod cpp;
pub mod go;
pub mod java;

use crate::profile::{Line, parse, record_samples};
use std::path::{Path, PathBuf};
use std::process::Child;

/// Calls of the chain above the leaves, in each of the programs.
pub const CHAIN: usize = 21;
/// Samples by which a profile is judged.
pub const SAMPLES: u64 = 2000;
/// Percent of time that the leaves take.
const SHARES: [f64; 3] = [70.0, 20.0, 10.0];

/// Which leaf a stack has, and whether it is whole; `None` for one that has none of the leaves.
pub type Verdict = Option<(usize, bool)>;

/// A running program that is stopped when the test ends.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

/// Broken stacks that are kept, for whoever asks why.
const MAX_BROKEN: usize = 20;

/// Samples of each leaf, and how many of these have a whole stack.
#[derive(Debug, Default)]
pub struct Quality {
    by_leaf: [[u64; 2]; 3],
    /// Some of the stacks that are not whole.
    broken: Vec<String>,
}

impl Quality {
    pub fn of(lines: &[Line], judge: impl Fn(&Line) -> Verdict) -> Self {
        let mut quality = Self::default();
        for line in lines {
            if let Some((leaf, is_whole)) = judge(line) {
                let [samples, whole] = &mut quality.by_leaf[leaf];
                *samples += line.count;
                *whole += if is_whole { line.count } else { 0 };
                if !is_whole && quality.broken.len() < MAX_BROKEN {
                    quality.broken.push(format!("{} {}", line.frames.join(";"), line.count));
                }
            }
        }
        quality
    }

    /// What a process runs, by enough samples; on a busy machine these take more than one recording.
    pub fn recorded(pid: u32, judge: impl Fn(&Line) -> Verdict) -> Self {
        let mut lines = Vec::new();
        for _ in 0..3 {
            lines.extend(parse(&record_samples(pid, SAMPLES + SAMPLES / 4)));
            if Self::of(&lines, &judge).samples() >= SAMPLES {
                break;
            }
        }
        Self::of(&lines, judge)
    }

    /// Samples of all leaves.
    pub fn samples(&self) -> u64 {
        self.by_leaf.iter().map(|[samples, _]| samples).sum()
    }

    /// Samples of each leaf, and how many of these have a whole stack.
    pub fn by_leaf(&self) -> &[[u64; 2]; 3] {
        &self.by_leaf
    }

    /// Share of whole stacks, percent.
    pub fn whole(&self) -> f64 {
        percent(self.by_leaf.iter().map(|[_, whole]| whole).sum(), self.samples())
    }

    /// Enough samples, and whole stacks for the target.
    pub fn assert_whole(&self, target: f64) {
        println!("{} samples, {:.2} % whole, by leaf {:?}", self.samples(), self.whole(), self.by_leaf);
        assert!(self.samples() >= SAMPLES, "too few samples: {self:#?}");
        assert!(self.whole() >= target, "{self:#?}");
    }

    /// The same, and each leaf's share is the truth.
    pub fn assert_true(&self, target: f64) {
        self.assert_whole(target);
        for ([samples, _], truth) in self.by_leaf.iter().zip(SHARES) {
            assert!(is_share(*samples, self.samples(), truth), "{self:#?}");
        }
    }

    /// The same, and the stacks of each leaf reach the target by themselves.
    pub fn assert_true_by_leaf(&self, target: f64) {
        self.assert_true(target);
        assert!(self.by_leaf.iter().all(|[samples, whole]| percent(*whole, *samples) >= target), "{self:#?}");
    }
}

pub fn percent(part: u64, of: u64) -> f64 {
    part as f64 * 100.0 / of.max(1) as f64
}

/// Whether so many samples of a function say that it takes this percent of the time: within four standard deviations of
/// what chance takes from as many, 4.1 points of 70 at 2,000 samples.
pub fn is_share(part: u64, of: u64, truth: f64) -> bool {
    let deviation = (truth * (100.0 - truth) / of.max(1) as f64).sqrt();
    (percent(part, of) - truth).abs() <= 4.0 * deviation
}

/// Whether all of these frames are there, in this order; others may lie between them.
pub fn in_order(frames: &[String], names: &[&str]) -> bool {
    let mut rest = frames.iter();
    names.iter().all(|name| rest.any(|frame| frame == name))
}

/// The first function of a native thread as libraries name it; one without symbols has its own name instead.
pub fn is_native_root(line: &Line) -> bool {
    const ROOTS: [&str; 4] = ["clone3", "__clone3", "clone", "__clone"];
    let root = line.frames.get(1).map_or("", String::as_str);
    ROOTS.contains(&root) || root.starts_with("[libc.so.6")
}

/// A file of the programs' sources.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles").join(name)
}
