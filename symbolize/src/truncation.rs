//! What if a program's file shrinks while its symbols are read? Zeros are read then, not the end of this process.
//!
//! Object files are mapped, and whoever may write one may also truncate it: a page behind the new end raises
//! SIGBUS in every reader, so one container could stop kpulse for all. The handler puts a page of zeros in
//! that place, and the parsers, which check every bound, find no symbol there.

use std::cell::Cell;
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Read once at installation: the handler may not ask for it.
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread reads such files: elsewhere, zeros could take the place of what a database keeps.
    static READS_OBJECTS: Cell<bool> = const { Cell::new(false) };
}

extern "C" fn on_bus_error(_signal: libc::c_int, about: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler installed with SA_SIGINFO, and `si_addr` is set for SIGBUS.
    let (code, address) = unsafe { ((*about).si_code, (*about).si_addr()) };
    let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
    let page = (address as usize & !(page_bytes.wrapping_sub(1))) as *mut libc::c_void;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // A plain word of the thread: it has neither an initializer nor a destructor that a handler could meet.
    let reads_objects = READS_OBJECTS.try_with(Cell::get).unwrap_or(false);
    let placed = reads_objects && code == libc::BUS_ADRERR && {
        // SAFETY: `mmap` is one system call and touches no lock. The page lies in a mapping whose file has shrunk:
        // no access to it can succeed, so nothing that is in use is replaced.
        unsafe { libc::mmap(page, page_bytes, libc::PROT_READ, flags, -1, 0) != libc::MAP_FAILED }
    };
    if !placed {
        // SAFETY: restoring the default action is allowed in a handler; the access is repeated and ends the process.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}

/// Installs the handler, for what the calling thread reads.
pub fn survive() -> io::Result<()> {
    // SAFETY: `sysconf` has no preconditions.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    PAGE_BYTES.store(usize::try_from(page_bytes).unwrap_or(4096), Ordering::Relaxed);
    READS_OBJECTS.set(true);
    // SAFETY: all-zero is a valid sigaction: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = on_bus_error as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let mut before = MaybeUninit::uninit();
    // SAFETY: both point to memory of the right type, and the handler only makes calls that a handler may make.
    match unsafe { libc::sigaction(libc::SIGBUS, ptr::from_ref(&action), before.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_file_that_shrinks_reads_as_zeros() {
        survive().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 3 * 4096]).unwrap();
        let (length, shared) = (3 * 4096, libc::MAP_PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice, of a file that is open.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ, shared, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED);
        file.set_len(4096).unwrap();
        // SAFETY: both offsets lie in the mapping above.
        let read = |offset: usize| unsafe { start.cast::<u8>().add(offset).read_volatile() };
        assert_eq!((read(0), read(2 * 4096)), (7, 0));
        // SAFETY: the mapping made above, not used after this.
        unsafe { libc::munmap(start, length) };
    }
}
