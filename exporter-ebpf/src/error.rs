//! Why a probe does not work, in one sentence: what, why, and what would help.

use aya::EbpfError;
use aya::programs::ProgramError;
use std::error::Error;
use std::io;
use std::path::Path;
use thiserror::Error;

/// What can go wrong between a probe's object and its first sample.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The kernel lacks something that the probe needs.
    #[error("{0}")]
    MissingFeature(String),
    /// Something was refused for a cause that may pass: memory or descriptors were short, or something was busy.
    #[error("{0}")]
    Passing(String),
    /// The object or one of its maps was refused.
    #[error("cannot load the object: {0}")]
    Load(String),
    /// None of a hook's attempts attached.
    #[error("cannot attach to {hook}: {why}")]
    Attach {
        /// The hook's name.
        hook: &'static str,
        /// What the kernel said to each attempt.
        why: String,
    },
    /// A map could not be read or written.
    #[error("cannot use the map {map}: {source}{}", hint(.source))]
    Map {
        /// The map's name.
        map: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A record or a map entry does not have the size that was agreed on.
    #[error("{0}")]
    Layout(String),
}

impl ProbeError {
    /// Whether a later attempt may succeed.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Passing(_) => true,
            Self::Map { source, .. } => may_pass(source),
            _ => false,
        }
    }
}

/// Whether the cause of an error may be gone later, though nobody changed the kernel or our rights.
pub(crate) fn may_pass(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if let Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::EBUSY | libc::EINTR) =
            errno
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// The whole chain of an object's load error, on one line.
pub(crate) fn load_error(error: &EbpfError) -> ProbeError {
    let error = (one_line(error), may_pass(error));
    match error {
        (why, true) => ProbeError::Passing(format!("cannot load the object: {why}")),
        (why, false) => ProbeError::Load(why),
    }
}

/// What the kernel said to a program: its errno, and the verifier's last word when it refused the code.
pub(crate) fn program_error(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let is_statistic = |line: &&str| {
                ["processed ", "verification time", "stack depth "].iter().any(|it| line.starts_with(it))
            };
            let last = log.lines().map(str::trim).rfind(|line| !line.is_empty() && !is_statistic(line));
            let verdict = last.map(|line| format!(" (verifier: {line})")).unwrap_or_default();
            format!("{io_error}{verdict}{}", hint(io_error))
        }
        other => {
            let text = one_line(other);
            // The words of aya, which has no error of its own for it. The folder is there without it as well.
            let needs_mount = text.contains("tracefs not found")
                || text.contains("/sys/kernel/tracing/events/")
                    && !Path::new("/sys/kernel/tracing/events").exists();
            text + if needs_mount { "; mount it: mount -t tracefs tracefs /sys/kernel/tracing" } else { "" }
        }
    }
}

fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut last = error;
    while let Some(source) = last.source() {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        last = source;
    }
    let hint = last.downcast_ref::<io::Error>().map(hint).unwrap_or_default();
    text.replace('\n', " ") + hint
}

/// What would help against an errno that has one usual cause.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if !may_use_bpf() => {
            "; run as root, or grant CAP_BPF and CAP_PERFMON (before Linux 5.11 also CAP_SYS_RESOURCE)"
        }
        Some(libc::ENOMEM) => "; free memory, or lower container_max",
        _ => "",
    }
}

/// Whether the process holds CAP_BPF or CAP_SYS_ADMIN: then a refusal has another cause than privileges.
fn may_use_bpf() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_BPF: u32 = 39;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    bits & (1 << CAP_BPF | 1 << CAP_SYS_ADMIN) != 0
}
