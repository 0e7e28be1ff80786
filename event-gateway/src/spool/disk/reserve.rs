//! Room on the disk that only the spool can use: on a full disk not even a removal can be written without it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What the write-ahead log may hold that the table has no room for yet.
const BYTES: libc::off_t = 8 << 20;

/// A file that holds the room.
#[derive(Debug)]
pub(super) struct Reserve(PathBuf);

impl Reserve {
    /// Beside this file.
    pub(super) fn beside(path: &Path) -> Self {
        Self(path.with_extension("reserve"))
    }

    /// Takes the room, unless it has it; without success where there is none.
    pub(super) fn hold(&self) -> io::Result<()> {
        let file: File = OpenOptions::new().create(true).append(true).open(&self.0)?;
        // SAFETY: the descriptor is open, and the call touches no memory.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, BYTES) } {
            0 => Ok(()),
            code => {
                self.release();
                Err(io::Error::from_raw_os_error(code))
            }
        }
    }

    /// Gives the room to whoever is faster; whether there was some.
    pub(super) fn release(&self) -> bool {
        std::fs::remove_file(&self.0).is_ok()
    }
}
