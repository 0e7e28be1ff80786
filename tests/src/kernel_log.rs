//! The kernel's log, as an oracle of what the kernel itself noticed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// What the kernel logs from the opening on.
pub struct KernelLog(File);

impl KernelLog {
    pub fn open() -> Self {
        let mut log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").unwrap();
        log.seek(SeekFrom::End(0)).unwrap();
        Self(log)
    }

    /// How many lines that came since the last call have `text` in them.
    pub fn lines_with(&mut self, text: &str) -> usize {
        let mut record = [0; 8192];
        let mut lines = 0;
        loop {
            match self.0.read(&mut record) {
                Ok(length) => lines += usize::from(String::from_utf8_lossy(&record[..length]).contains(text)),
                // Records were overwritten before they were read; reading goes on behind them.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(_) => return lines,
            }
        }
    }
}
