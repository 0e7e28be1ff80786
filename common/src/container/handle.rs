//! Finds a cgroup directory by its id alone, without walking the tree.
//!
//! The id is the kernfs file handle of the directory, so one system call opens it; that also finds a container
//! that lives for less than a walk takes. It needs CAP_DAC_READ_SEARCH and Linux 5.5.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// `FILEID_KERNFS`, since 5.5 (include/linux/exportfs.h).
const FILEID_KERNFS: i32 = 0xfe;

/// `struct file_handle` with the eight bytes of a kernfs handle.
#[repr(C)]
struct KernfsHandle {
    handle_bytes: u32,
    handle_type: i32,
    id: [u8; 8],
}

/// Whether this kernel opens directories below `mount` by their id, and lets us: `mount` itself is the proof.
pub(super) fn works(mount: &Path) -> bool {
    std::fs::metadata(mount).is_ok_and(|root| path_of(mount, root.ino()).is_some())
}

/// The directory with this inode below `mount`, relative to it; `None` when it cannot be told.
pub(super) fn path_of(mount: &Path, id: u64) -> Option<String> {
    let directory = File::open(mount).ok()?;
    let mut handle = KernfsHandle { handle_bytes: 8, handle_type: FILEID_KERNFS, id: id.to_ne_bytes() };
    // SAFETY: `handle` is laid out as the kernel's `struct file_handle` with `handle_bytes` bytes behind it, and
    // lives until the call returns; the descriptor is open.
    let fd = unsafe {
        libc::open_by_handle_at(
            directory.as_raw_fd(),
            std::ptr::from_mut(&mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return None;
    }
    // SAFETY: the call returned a new descriptor that nothing else owns.
    let found = unsafe { OwnedFd::from_raw_fd(fd) };
    let path = std::fs::read_link(PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()))).ok()?;
    let relative = path.strip_prefix(mount).ok()?;
    // A removed directory reads as "NAME (deleted)": only what is there under this name is believed.
    let there = std::fs::metadata(&path).ok()?;
    (there.ino() == id).then(|| format!("/{}", relative.to_string_lossy()))
}
