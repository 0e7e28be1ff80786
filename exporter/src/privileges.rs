//! Which capabilities does the exporter run with? All while the probes attach, and then those that a scrape needs.
//!
//! Capabilities belong to threads, and a new thread has those of the one that made it. The main thread gives its up as
//! soon as the loading thread is there, before it makes any other; the loading thread ends when all is attached that may
//! ever be: one that waits to try again keeps them. A thread that reads for scrapes may be made by either, and gives them
//! up first. So no thread that answers requests ever has more than [`SCRAPE`].

use std::io;

/// A capability by its number in `linux/capability.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability(u32);

/// Opens a cgroup by its id, and reads procfs and certificates that are not ours.
const DAC_READ_SEARCH: Capability = Capability(2);
/// Switches the counting of BPF run times, and attaches programs.
const SYS_ADMIN: Capability = Capability(21);
/// Reads kernel addresses, where a drop is told by its function.
const SYSLOG: Capability = Capability(34);
/// Reads maps: before 5.19 every use of bpf(2) wants it where unprivileged BPF is off.
const BPF: Capability = Capability(39);

/// What a scrape needs.
pub const SCRAPE: &[Capability] = &[DAC_READ_SEARCH, SYSLOG, BPF];

/// What it takes to count what the probes cost, and to attach again those that were detached over it.
pub const WATCH_COST: &[Capability] = &[SYS_ADMIN, DAC_READ_SEARCH];

/// `_LINUX_CAPABILITY_VERSION_3`: two words of each set.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// This process and its children never gain privileges by running a program. To be called before any thread exists.
pub fn gain_none() {
    // SAFETY: prctl with these arguments only sets a flag of this thread.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        tracing::warn!(error = %io::Error::last_os_error(), "programs that this process runs may gain privileges");
    }
}

/// Gives up every capability of the calling thread but these, for good.
pub fn keep_only(kept: &[Capability]) -> io::Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: the kernel reads the header and writes two sets for version 3.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let wanted = kept.iter().fold(0u64, |wanted, capability| wanted | 1 << capability.0);
    drop_from_bounding_set(wanted);
    for (word, set) in sets.iter_mut().enumerate() {
        let wanted = (wanted >> (32 * word)) as u32;
        let left = set.permitted & wanted;
        *set = Sets { effective: left, permitted: left, inheritable: 0 };
    }
    // SAFETY: as above; the kernel only reads the sets. Ambient capabilities go with the inheritable ones.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What the bounding set does not have, no program gets either. Without CAP_SETPCAP it stays, and
/// [`gain_none`] says the same.
fn drop_from_bounding_set(wanted: u64) {
    for capability in (0..64).filter(|capability| wanted & 1 << capability == 0) {
        // SAFETY: prctl with these arguments only changes a set of this thread.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            // The first number that this kernel does not know, or no right to: the rest is alike.
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(field: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn a_thread_keeps_no_more_than_it_asked_for_and_others_keep_theirs() {
        let before = status("CapEff:");
        let wanted = 1 << DAC_READ_SEARCH.0 | 1 << BPF.0;
        let thread = std::thread::spawn(move || {
            keep_only(&[DAC_READ_SEARCH, BPF]).unwrap();
            for set in ["CapEff:", "CapPrm:"] {
                assert_eq!(status(set), before & wanted, "{set}");
            }
            assert_eq!((status("CapInh:"), status("CapAmb:")), (0, 0));
            let child = std::thread::spawn(|| status("CapPrm:"));
            assert_eq!(child.join().unwrap(), before & wanted, "a thread has what its maker had");
        });
        thread.join().unwrap();
        assert_eq!(status("CapEff:"), before);
    }
}
