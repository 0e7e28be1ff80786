//! Where a program attaches, and what to try when the best place is not there.

use crate::probe::Want;

/// A kernel attach point of one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// BTF tracepoint: typed arguments, checked by the verifier.
    TpBtf(&'static str),
    /// Raw tracepoint: the same arguments, unchecked.
    RawTp(&'static str),
    /// Tracepoint by category and name, as tracefs lists it: also those of modules, whose types no BTF of ours has.
    Tracepoint(&'static str, &'static str),
    /// The return of a kernel function, with its arguments and its result.
    Fexit(&'static str),
    /// The software event `cpu_clock` on every CPU that is online, so many times a second; `None` = as often as
    /// the process samples.
    CpuClock(Option<u64>),
    /// Iterator over the kernel's objects of a kind; it runs when a [`crate::scan::Scan`] is.
    Iter(&'static str),
}

impl Attach {
    /// The kernel's name for this kind of attach point.
    pub fn kind(self) -> &'static str {
        match self {
            Self::TpBtf(_) => "tp_btf",
            Self::RawTp(_) => "raw_tp",
            Self::Tracepoint(..) => "tracepoint",
            Self::Fexit(_) => "fexit",
            Self::CpuClock(_) => "perf_event",
            Self::Iter(_) => "iter",
        }
    }
}

/// One program and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Function name in the object.
    pub program: &'static str,
    /// Where it attaches.
    pub attach: Attach,
}

/// `program` as a BTF tracepoint on `tracepoint`.
pub const fn tp_btf(program: &'static str, tracepoint: &'static str) -> Attempt {
    Attempt { program, attach: Attach::TpBtf(tracepoint) }
}

/// `program` as a raw tracepoint on `tracepoint`.
pub const fn raw_tp(program: &'static str, tracepoint: &'static str) -> Attempt {
    Attempt { program, attach: Attach::RawTp(tracepoint) }
}

/// `program` as a tracepoint.
pub const fn tracepoint(program: &'static str, category: &'static str, name: &'static str) -> Attempt {
    Attempt { program, attach: Attach::Tracepoint(category, name) }
}

/// `program` on the return of a kernel function.
pub const fn fexit(program: &'static str, function: &'static str) -> Attempt {
    Attempt { program, attach: Attach::Fexit(function) }
}

/// `program` on the CPU clock of every CPU, as often as the process samples.
pub const fn cpu_clock(program: &'static str) -> Attempt {
    Attempt { program, attach: Attach::CpuClock(None) }
}

/// `program` on the CPU clock of every CPU, `hz` times a second.
pub const fn cpu_clock_at(program: &'static str, hz: u64) -> Attempt {
    Attempt { program, attach: Attach::CpuClock(Some(hz)) }
}

/// `program` as an iterator over objects such as `task`.
pub const fn iter(program: &'static str, objects: &'static str) -> Attempt {
    Attempt { program, attach: Attach::Iter(objects) }
}

/// One fact that the probe must learn of: the first attempt that loads and attaches wins.
///
/// Attempts with more arguments come first. The verifier refuses an argument that the running kernel does not
/// give, while a program that reads fewer would load everywhere and misread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Name of the fact, the tracepoint's.
    pub name: &'static str,
    /// In order of preference.
    pub attempts: &'static [Attempt],
    /// The probe works without it, and its status says what is missing.
    pub is_optional: bool,
    /// The only half of the probe that needs it; `None` = all do.
    pub only: Option<Want>,
}

impl Hook {
    /// A hook that needs the first of these that attaches.
    pub const fn any(name: &'static str, attempts: &'static [Attempt]) -> Self {
        Self { name, attempts, is_optional: false, only: None }
    }

    /// A hook that not every kernel has, and without which the rest of the probe still tells something.
    pub const fn optional(name: &'static str, attempts: &'static [Attempt]) -> Self {
        Self { name, attempts, is_optional: true, only: None }
    }

    /// The same for one half of the probe: processes that want another one do not pay for it.
    pub const fn only(self, want: Want) -> Self {
        Self { only: Some(want), ..self }
    }

    /// Whether a process that wants this half attaches it.
    pub fn serves(&self, want: Want) -> bool {
        self.only.is_none_or(|only| only == want)
    }
}
