//! Which code has a process mapped, and from which files?

use super::elf::ReadAt;
use kpulse_symbolize::process::{Files, Processes};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the kernel gives to every process.
const VDSO: &str = "[vdso]";

/// A mapping with code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    pub start: u64,
    pub end: u64,
    /// Its place in the file.
    pub offset: u64,
    /// Empty where there is no file.
    pub path: String,
}

/// What stays the same for as long as a file is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileId {
    /// Device, inode, size, and the times of the last change.
    File([u64; 5], [i64; 2]),
    Vdso,
}

/// Where code can be read.
pub enum Opened {
    File(File),
    /// Memory of a process: its file descriptor and where the code begins.
    Memory(File, u64),
}

impl ReadAt for Opened {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => FileExt::read_exact_at(file, bytes, offset),
            Self::Memory(file, start) => {
                let at = start.checked_add(offset).ok_or(io::ErrorKind::UnexpectedEof)?;
                FileExt::read_exact_at(file, bytes, at)
            }
        }
    }
}

/// The mappings with code in order of address; empty when the process is gone.
pub fn mapped(processes: &Processes, pid: u32) -> Vec<Code> {
    let maps = fs::read(processes.folder(pid).join("maps")).unwrap_or_default();
    maps.split(|byte| *byte == b'\n').filter_map(|line| parse(&String::from_utf8_lossy(line))).collect()
}

/// Finds the file behind a mapping; `None` where there is none that can be read.
pub fn identify(processes: &Processes, pid: u32, files: Files, code: &Code) -> Option<(FileId, PathBuf)> {
    let folder = processes.folder(pid);
    if code.path == VDSO {
        return Some((FileId::Vdso, folder.join("mem")));
    }
    let path = match files {
        _ if !code.path.starts_with('/') => return None,
        Files::Mapped { .. } => folder.join("map_files").join(format!("{:x}-{:x}", code.start, code.end)),
        Files::ByPath => PathBuf::from(&code.path),
        Files::Unreachable => return None,
    };
    let about = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
    let seconds = [about.mtime().cast_unsigned(), about.ctime().cast_unsigned()];
    let numbers = [about.dev(), about.ino(), about.len(), seconds[0], seconds[1]];
    Some((FileId::File(numbers, [about.mtime_nsec(), about.ctime_nsec()]), path))
}

/// Opens what [`identify`] found.
pub fn open(id: &FileId, path: &Path, code: &Code) -> io::Result<Opened> {
    // What the path leads to may have been replaced by something that waits for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    Ok(match id {
        FileId::File(..) => Opened::File(file),
        FileId::Vdso => Opened::Memory(file, code.start),
    })
}

/// Reads a line of `maps`: `start-end perms offset device inode path`.
fn parse(line: &str) -> Option<Code> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()?.contains('x');
    let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
    let (start, end, offset) = (hexadecimal(start)?, hexadecimal(end)?, hexadecimal(fields.next()?)?);
    let path = fields.nth(2).map(str::trim_start).unwrap_or_default();
    // The kernel's own entry, which no program's stack comes by.
    (is_code && path != "[vsyscall]").then(|| Code { start, end, offset, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::elf::Elf;
    use std::path::Path;

    #[test]
    fn only_code_counts_and_a_path_may_have_blanks() {
        let code = |start, end, offset, path: &str| Some(Code { start, end, offset, path: path.into() });
        for (line, expected) in [
            ("1000-2000 r--p 00000000 fe:01 7    /usr/lib/a.so", None),
            (
                "2000-3000 r-xp 00001000 fe:01 7    /usr/lib/my lib.so",
                code(0x2000, 0x3000, 0x1000, "/usr/lib/my lib.so"),
            ),
            ("4000-5000 rwxp 00000000 00:00 0 ", code(0x4000, 0x5000, 0, "")),
            ("5000-6000 r-xp 00000000 00:00 0    [vdso]", code(0x5000, 0x6000, 0, "[vdso]")),
            ("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]", None),
            ("not a mapping", None),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }

    #[test]
    fn this_process_runs_a_file_and_the_vdso() {
        let processes = Processes::new(Path::new("/proc"));
        let pid = std::process::id();
        let read = |code: &Code| {
            let (id, path) = identify(&processes, pid, processes.files(pid), code)?;
            Elf::read(&open(&id, &path, code).ok()?)
        };
        let codes = mapped(&processes, pid);
        let of = |path: &str| codes.iter().find(|code| code.path.contains(path)).and_then(read).unwrap();
        assert!(of(VDSO).eh_frame.len() > 100 && of("profiler").eh_frame.len() > 100_000);
    }
}
