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

/// Scrapes in which a file that was not there is not looked for, at most; a controller may be switched on later.
const ABSENT_FOR_MAX: u8 = 8;

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
    files: Vec<Slot>,
    round: u64,
}

/// A file of a cgroup.
#[derive(Debug)]
enum Slot {
    Closed,
    Open(File),
    /// It was not there; how many scrapes were to leave it alone when it was last looked for, and how many still are.
    Absent(u8, u8),
}

/// The files of one cgroup.
pub struct CgroupFiles<'a> {
    kept: Option<&'a mut [Slot]>,
    buffer: &'a mut Vec<u8>,
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

    /// The files of a cgroup; they stay open until a scrape goes without them if they are to be kept and there is room.
    pub fn of(&mut self, cgroup: u64, is_kept: bool) -> CgroupFiles<'_> {
        let has_room = is_kept && (self.kept.len() < self.kept_max || self.kept.contains_key(&cgroup));
        let kept = has_room.then(|| {
            let empty = || Kept { files: (0..self.width).map(|_| Slot::Closed).collect(), round: 0 };
            let kept = self.kept.entry(cgroup).or_insert_with(empty);
            kept.round = self.round;
            &mut *kept.files
        });
        CgroupFiles { kept, buffer: &mut self.buffer }
    }
}

impl CgroupFiles<'_> {
    /// The text of a file; `None` where it is not there, is gone, or is no text.
    pub fn read(&mut self, index: usize, path: impl FnOnce() -> PathBuf) -> Option<&str> {
        let length = match &mut self.kept {
            Some(slots) => slots[index].fill(path, self.buffer),
            None => fill(&File::open(path()).ok()?, self.buffer),
        };
        std::str::from_utf8(&self.buffer[..length?]).ok()
    }
}

impl Slot {
    fn fill(&mut self, path: impl FnOnce() -> PathBuf, buffer: &mut Vec<u8>) -> Option<usize> {
        if let Self::Absent(_, left) = self
            && *left > 0
        {
            *left -= 1;
            return None;
        }
        if !matches!(self, Self::Open(_)) {
            *self = File::open(path()).map_or_else(|_| self.longer_absent(), Self::Open);
        }
        let Self::Open(file) = self else { return None };
        let length = fill(file, buffer);
        if length.is_none() {
            *self = Self::Closed;
        }
        length
    }

    /// One that has just appeared is looked for again at once, since its files may come one after the other.
    fn longer_absent(&self) -> Self {
        let next = match self {
            Self::Absent(before, _) => (before * 2).clamp(1, ABSENT_FOR_MAX),
            Self::Closed | Self::Open(_) => 0,
        };
        Self::Absent(next, next)
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
            assert_eq!(files.of(7, true).read(0, || path.clone()), Some(text));
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
        let mut files = Files::new(1);
        assert_eq!(files.of(7, false).read(0, || path.clone()).map(str::len), Some(text.len()));
    }

    #[test]
    fn without_room_files_are_read_and_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "1").unwrap();
        let mut files = Files::new(1);
        files.kept_max = 2;
        for cgroup in 0..5 {
            assert_eq!(files.of(cgroup, true).read(0, || path.clone()), Some("1"));
        }
        assert_eq!(files.kept.len(), 2);
        assert_eq!(files.of(9, false).read(0, || path.clone()), Some("1"));
        assert_eq!(files.of(9, true).read(0, || folder.path().join("gone")), None);
    }

    #[test]
    fn a_file_that_is_not_there_is_looked_for_less_and_less_often() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.swap.current");
        let mut files = Files::new(1);
        let mut looked_for = Vec::new();
        for scrape in 0..30 {
            let mut cgroup = files.of(7, true);
            let found = cgroup.read(0, || {
                looked_for.push(scrape);
                path.clone()
            });
            assert_eq!(found, None);
        }
        assert_eq!(looked_for, [0, 1, 3, 6, 11, 20, 29]);
        fs::write(&path, "1").unwrap();
        assert!((0..=ABSENT_FOR_MAX).any(|_| files.of(7, true).read(0, || path.clone()) == Some("1")));
    }
}
