//! What does a program say of the code that it makes itself? `/tmp/perf-PID.map` as the process sees it, by the pid that
//! it knows of itself.
//!
//! Anybody in a container can write there: nothing leads out of the process's root, lines and the file have a bound, and
//! only names that are asked for are kept.

use kpulse_symbolize::{Processes, cut};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;

/// A million lines of 64 bytes.
const MAX_BYTES: u64 = 64 << 20;
const MAX_LINE: u64 = 4096;

/// Names of these addresses; those that the map does not have are left out.
pub fn names(source: &Processes, pid: u32, addresses: &[u64]) -> HashMap<u64, String> {
    open(source, pid).map(|map| find(map.take(MAX_BYTES), addresses)).unwrap_or_default()
}

fn open(source: &Processes, pid: u32) -> Option<File> {
    let folder = source.folder(pid);
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let last = |key: &str| status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().last();
    let own: u32 = last("NSpid:")?.parse().ok()?;
    let root = File::open(folder.join("root")).ok()?;
    let map = open_below(&root, &format!("tmp/perf-{own}.map"))?;
    let about = map.metadata().ok()?;
    // Another user's file says nothing of this process.
    let user = fs::metadata(folder).ok()?.uid();
    (about.is_file() && (about.uid() == user || about.uid() == 0)).then_some(map)
}

/// Opens a path as if the folder were `/`, so that a link cannot lead out of it.
fn open_below(root: &File, path: &str) -> Option<File> {
    let path = CString::new(path).ok()?;
    // SAFETY: the structure is numbers only, for which zero is a value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    // A pipe must not make anybody wait for its writer.
    how.flags = (libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    let (how, size) = (&raw const how, size_of::<libc::open_how>());
    // SAFETY: path and structure live through the call, and the size is the structure's.
    let file = unsafe { libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), how, size) };
    // SAFETY: the call just opened it, and nobody else has it.
    (file >= 0).then(|| unsafe { File::from_raw_fd(file as i32) })
}

/// Reads lines of `start size name`, in hexadecimal; a line that is not one is left out.
fn find(map: impl Read, addresses: &[u64]) -> HashMap<u64, String> {
    let mut wanted = addresses.to_vec();
    wanted.sort_unstable();
    let (mut map, mut names) = (BufReader::new(map), HashMap::new());
    let (mut line, mut is_long) = (Vec::new(), false);
    loop {
        line.clear();
        match map.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return names,
            Ok(_) => {}
        }
        let is_end = line.pop_if(|byte| *byte == b'\n').is_some();
        // A line without an end is too long, or still being written.
        if is_end && !is_long {
            note(&line, &wanted, &mut names);
        }
        is_long = !is_end;
    }
}

/// What was said last of an address holds: its place may have been used again.
fn note(line: &[u8], wanted: &[u64], names: &mut HashMap<u64, String>) -> Option<()> {
    let mut fields = line.splitn(3, |byte| *byte == b' ');
    let mut number = || {
        let text = std::str::from_utf8(fields.next()?).ok()?;
        u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let name = fields.next().filter(|name| !name.is_empty())?;
    let first = wanted.partition_point(|address| *address < start);
    for address in wanted[first..].iter().take_while(|address| **address - start < size) {
        names.insert(*address, cut(&String::from_utf8_lossy(name)).to_owned());
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_bad_line_spoils_nothing_and_the_last_word_counts() {
        let long = format!("5000 10 {}\n", "x".repeat(3 * MAX_LINE as usize));
        let map = format!(
            "1000 10 first\nnonsense\n\n2000 zz bad\n0x3000 0x20 Lx;::with blanks\n1008 8 later\n{long}6000 8 after\n\
             fffffffffffffff0 ffffffffffffffff end\n7000 8 unfinished"
        );
        let wanted = [0x6007, 0x1007, 0x1008, 0x1010, 0x2000, 0x301f, 0x5001, 0x7000, u64::MAX];
        let mut names: Vec<_> = find(map.as_bytes(), &wanted).into_iter().collect();
        names.sort();
        let expected = [
            (0x1007, "first"),
            (0x1008, "later"),
            (0x301f, "Lx;::with blanks"),
            (0x6007, "after"),
            (u64::MAX, "end"),
        ];
        assert_eq!(names, expected.map(|(address, name)| (address, name.to_owned())));
    }

    #[test]
    fn no_link_leads_out_of_the_root_and_no_pipe_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("secret"));
        fs::create_dir_all(root.join("tmp")).unwrap();
        fs::write(&outside, "1000 10 secret\n").unwrap();
        symlink(&outside, root.join("tmp/absolute")).unwrap();
        symlink("../../secret", root.join("tmp/relative")).unwrap();
        fs::write(root.join("inside"), "").unwrap();
        symlink("/inside", root.join("tmp/good")).unwrap();
        let pipe = CString::new(root.join("tmp/pipe").to_str().unwrap()).unwrap();
        // SAFETY: the path ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        let root = File::open(root).unwrap();
        assert!(open_below(&root, "tmp/absolute").is_none() && open_below(&root, "tmp/relative").is_none());
        assert!(open_below(&root, "tmp/good").is_some());
        assert!(open_below(&root, "tmp/pipe").is_none_or(|pipe| !pipe.metadata().unwrap().is_file()));
    }

    proptest! {
        #[test]
        fn any_map_is_survived(map in prop::collection::vec(any::<u8>(), 0..2000), wanted in prop::collection::vec(any::<u64>(), 0..9)) {
            prop_assert!(find(map.as_slice(), &wanted).len() <= wanted.len());
        }
    }
}
