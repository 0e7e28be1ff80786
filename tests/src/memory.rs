//! Memory that runs short: under a cgroup's limit, or in blocks too small.

use crate::cgroup::Cgroup;
use crate::load;
use std::fs;
use std::io;

const HUGE: usize = 2 << 20;

/// A container with a memory limit; `None` where the memory controller is not to be had.
pub fn limited(number: u32, bytes: usize) -> Option<Cgroup> {
    let container = Cgroup::container("memory", number).ok()?;
    let file = if container.is_v1() { "memory.limit_in_bytes" } else { "memory.max" };
    container.set(file, &bytes.to_string()).ok()?;
    Some(container)
}

/// The same without swap, with which the limit on memory alone kills nobody.
pub fn limited_for_good(number: u32, bytes: usize) -> Option<Cgroup> {
    let container = limited(number, bytes)?;
    let swap =
        if container.is_v1() { ("memory.memsw.limit_in_bytes", bytes) } else { ("memory.swap.max", 0) };
    // On a machine that has none there is no such file.
    let _ = container.set(swap.0, &swap.1.to_string());
    Some(container)
}

/// Takes memory until `bytes` are used, or the kernel objects: whether it did.
pub fn exhaust(container: &Cgroup, bytes: usize) -> bool {
    let (_, went_well) = load::in_child(Some(container), || {
        // The kernel's first choice, whatever else runs.
        fs::write("/proc/self/oom_score_adj", "1000")?;
        for _ in 0..bytes >> 20 {
            std::mem::forget(std::hint::black_box(vec![1u8; 1 << 20]));
        }
        Ok(())
    });
    !went_well
}

/// Touches memory of which each huge page may come from direct compaction; whether there was enough.
pub fn touch_huge_pages(container: &Cgroup, count: usize) -> bool {
    let (_, went_well) = load::in_child(Some(container), || {
        // SAFETY: a new private mapping at an address of the kernel's choice; the child's exit unmaps it.
        unsafe {
            let (access, kind) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let memory = libc::mmap(std::ptr::null_mut(), (count + 1) * HUGE, access, kind, -1, 0);
            if memory == libc::MAP_FAILED
                || libc::madvise(memory, (count + 1) * HUGE, libc::MADV_HUGEPAGE) != 0
            {
                return Err(io::Error::last_os_error());
            }
            for page in 0..count {
                memory.cast::<u8>().add(page * HUGE + HUGE).write_volatile(1);
            }
        }
        Ok(())
    });
    went_well
}
