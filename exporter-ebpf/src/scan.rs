//! Runs an iterator program over the kernel's objects, each time from the first object on.

use crate::error::ProbeError;
use crate::maps::Maps;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const LINK_CREATE: i32 = 28;
const ITER_CREATE: i32 = 33;
/// Attach type of iterators.
const TRACE_ITER: u32 = 28;

/// An iterator program, ready to run. It keeps its own descriptor.
pub struct Scan {
    link: OwnedFd,
}

impl Scan {
    /// Of a program that a hook of kind [`crate::hook::Attach::Iter`] loaded.
    pub fn open(maps: &Maps<'_>, program: &'static str) -> Result<Self, ProbeError> {
        let failed = |why: String| ProbeError::Attach { hook: program, why };
        let loaded = maps.0.program(program).ok_or_else(|| failed("not in the object".into()))?;
        let loaded = loaded.fd().map_err(|error| failed(error.to_string()))?;
        // `struct { prog_fd, target_fd, attach_type, flags }` in `union bpf_attr`.
        let attributes = [number(loaded.as_fd()), 0, TRACE_ITER, 0];
        let link = bpf(LINK_CREATE, &attributes).map_err(|error| failed(error.to_string()))?;
        Ok(Self { link })
    }

    /// Calls the program for every object; gives what it wrote.
    ///
    /// Each run has a descriptor of its own, since an iterator's cannot be set back to its begin.
    pub fn run(&self) -> io::Result<Vec<u8>> {
        // `struct { link_fd, flags }` in `union bpf_attr`.
        let mut objects = File::from(bpf(ITER_CREATE, &[number(self.link.as_fd()), 0])?);
        let mut written = Vec::new();
        objects.read_to_end(&mut written)?;
        Ok(written)
    }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// A command that makes a descriptor.
fn bpf(command: i32, attributes: &[u32]) -> io::Result<OwnedFd> {
    // SAFETY: the attributes live through the call, and the kernel only reads them.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    match i32::try_from(fd) {
        // SAFETY: the descriptor was just made, and nothing else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
