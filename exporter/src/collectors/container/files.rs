//! Files that stay open from scrape to scrape, since opening a cgroup file costs three times its reading.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// First size of the buffer; `memory.stat`, the longest, has about 2 KiB.
const BUFFER_BYTES: usize = 8 << 10;
/// Largest size of the buffer; what a file has beyond is not read.
const BUFFER_MAX: usize = 1 << 20;
/// Most descriptors that all collectors may keep; each also holds a page of kernel memory.
const DESCRIPTORS_MAX: u64 = 8_192;
/// Sources that share the descriptors: v1 has one for each of cpu, cpuacct and memory, and pressure is on v2.
const SOURCES: u64 = 4;

/// The same files of many cgroups.
pub struct Files {
    /// How many files of each cgroup.
    width: usize,
    kept: HashMap<u64, Kept>,
    kept_max: usize,
    round: u64,
    buffer: Vec<u8>,
}

struct Kept {
    files: Vec<Option<File>>,
    round: u64,
}

impl Files {
    /// For `width` files of each cgroup.
    pub fn new(width: usize) -> Self {
        let kept_max = usize::try_from(descriptors() / SOURCES).unwrap_or(0) / width.max(1);
        Self { width, kept: HashMap::new(), kept_max, round: 0, buffer: vec![0; BUFFER_BYTES] }
    }

    /// Begins a scrape.
    pub fn begin(&mut self) {
        self.round += 1;
    }

    /// Ends a scrape: what was not read in it is closed.
    pub fn end(&mut self) {
        self.kept.retain(|_, kept| kept.round == self.round);
    }

    /// The text of a cgroup's file; `None` where it is not there, is gone, or is no text.
    pub fn read(
        &mut self,
        cgroup: u64,
        index: usize,
        is_kept: bool,
        path: impl Fn() -> PathBuf,
    ) -> Option<&str> {
        let has_room = is_kept && (self.kept.len() < self.kept_max || self.kept.contains_key(&cgroup));
        let length = if has_room {
            let empty = || Kept { files: (0..self.width).map(|_| None).collect(), round: 0 };
            let kept = self.kept.entry(cgroup).or_insert_with(empty);
            kept.round = self.round;
            let file = match &mut kept.files[index] {
                Some(file) => file,
                closed => closed.insert(File::open(path()).ok()?),
            };
            let length = fill(file, &mut self.buffer);
            if length.is_none() {
                kept.files[index] = None;
            }
            length
        } else {
            fill(&File::open(path()).ok()?, &mut self.buffer)
        };
        std::str::from_utf8(&self.buffer[..length?]).ok()
    }
}

/// Reads from the start, with one system call unless the buffer is too small.
fn fill(file: &File, buffer: &mut Vec<u8>) -> Option<usize> {
    loop {
        let length = file.read_at(buffer, 0).ok()?;
        if length < buffer.len() || buffer.len() >= BUFFER_MAX {
            return Some(length);
        }
        buffer.resize(buffer.len() * 2, 0);
    }
}

/// Descriptors to keep: half of what the process may have, after its soft limit was raised to the hard one.
fn descriptors() -> u64 {
    static DESCRIPTORS: OnceLock<u64> = OnceLock::new();
    *DESCRIPTORS.get_or_init(|| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` lives through the call.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
            return 0;
        }
        let wanted = limit.rlim_max.min(2 * DESCRIPTORS_MAX);
        if wanted > limit.rlim_cur {
            let raised = libc::rlimit { rlim_cur: wanted, ..limit };
            // SAFETY: `raised` lives through the call.
            if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
                limit = raised;
            }
        }
        (limit.rlim_cur / 2).min(DESCRIPTORS_MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn reads_what_a_file_holds_at_each_scrape_and_closes_what_is_not_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cpu.stat");
        let mut files = Files::new(1);
        for text in ["user_usec 1\n", "user_usec 100000\n", "u", "", "user_usec 2\n"] {
            fs::write(&path, text).unwrap();
            files.begin();
            assert_eq!(files.read(7, 0, true, || path.clone()), Some(text));
            files.end();
            assert_eq!(files.kept.len(), 1);
        }
        files.begin();
        files.end();
        assert!(files.kept.is_empty());
    }

    #[test]
    fn a_file_longer_than_the_buffer_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.stat");
        let text = "anon 1\n".repeat(5000);
        fs::write(&path, &text).unwrap();
        assert_eq!(Files::new(1).read(7, 0, false, || path.clone()).map(str::len), Some(text.len()));
    }

    #[test]
    fn without_room_files_are_read_and_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "1").unwrap();
        let mut files = Files::new(1);
        files.kept_max = 2;
        for cgroup in 0..5 {
            assert_eq!(files.read(cgroup, 0, true, || path.clone()), Some("1"));
        }
        assert_eq!(files.kept.len(), 2);
        assert_eq!(files.read(9, 0, false, || path.clone()), Some("1"));
        assert_eq!(files.read(9, 0, true, || folder.path().join("gone")), None);
    }
}
