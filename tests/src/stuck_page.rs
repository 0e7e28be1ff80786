//! A page of memory that nobody fills: who touches it waits there, with the locks that it holds.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const PAGE: usize = 4096;

/// The page, for as long as the process lives; filled when the value is dropped.
pub struct StuckPage {
    userfaultfd: OwnedFd,
    page: usize,
}

impl StuckPage {
    /// Needs the right to handle the page faults of the kernel, as root has.
    pub fn make() -> io::Result<Self> {
        const API: libc::c_ulong = 0xc018_aa3f;
        const REGISTER: libc::c_ulong = 0xc020_aa00;
        // SAFETY: each call gets what its manual page asks for, and the results are checked before they are used.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0);
            check(page as i64)?;
            let fd = check(libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK))?;
            let userfaultfd = OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?);
            let mut version = [0xaau64, 0, 0];
            check(libc::ioctl(userfaultfd.as_raw_fd(), API, version.as_mut_ptr()).into())?;
            let missing = 1;
            let mut range = [page as u64, PAGE as u64, missing, 0];
            check(libc::ioctl(userfaultfd.as_raw_fd(), REGISTER, range.as_mut_ptr()).into())?;
            Ok(Self { userfaultfd, page: page as usize })
        }
    }

    /// Where it is.
    pub fn address(&self) -> usize {
        self.page
    }

    /// Waits until somebody waits for the page.
    pub fn wait_for_touch(&self) -> io::Result<()> {
        let events = libc::POLLIN;
        let mut poll = libc::pollfd { fd: self.userfaultfd.as_raw_fd(), events, revents: 0 };
        let milliseconds = i32::try_from(crate::DEADLINE.as_millis()).map_err(io::Error::other)?;
        // SAFETY: the one entry lives through the call.
        let ready = check(unsafe { libc::poll(&raw mut poll, 1, milliseconds) }.into())?;
        if ready == 1 { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

impl Drop for StuckPage {
    /// Lets everyone go on: no signal reaches who waits for a lock.
    fn drop(&mut self) {
        const UNREGISTER: libc::c_ulong = 0x8010_aa01;
        let range = [self.page as u64, PAGE as u64];
        // SAFETY: the range is the registered one, and lives through the call.
        unsafe { libc::ioctl(self.userfaultfd.as_raw_fd(), UNREGISTER, range.as_ptr()) };
    }
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
