//! Which file system met an error, as one finds damage or cannot write? The kernel's log: each kind tells it there in words
//! of its own, on every kernel, while few have a tracepoint for it.

use super::{Finding, Watch, Watcher};
use crate::policies::Rules;
use crate::schema::Kind;
use anyhow::{Context, Result};
use kpulse_common::event::schema_of;
use schemars::JsonSchema;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

const LOG: &str = "/dev/kmsg";
/// Most records of one look; the rest waits for the next.
const RECORDS_MAX: usize = 4_096;
/// The kernel gives no longer one.
const RECORD_BYTES: usize = 8_192;
/// When it looks though nothing comes.
const IDLE: Duration = Duration::from_secs(60);
/// Levels of the log, of which less is worse.
const ALERT: u32 = 1;
const LEVELS: u32 = 8;
/// What XFS logs as an alert to go with an error.
const ADVICE: [&str; 4] =
    ["Unmount and run xfs_repair", "Please unmount the filesystem", "Please umount the filesystem", "First "];

pub const WATCH: Watch = Watch {
    kind: Kind {
        name: "filesystem_error",
        help: "A file system of kind ext4, XFS or Btrfs, or its journal, met an error.",
        body: schema_of::<Body>,
    },
    hook: LOG,
    hook_kind: "file",
    make: |_, _| Ok(Box::new(FilesystemError::open()?)),
};

/// Fields of the event beyond the common ones.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct Body {
    /// Name of the device, as the kernel's log has it.
    device: String,
    /// Kind of file system; `journal` is that of ext4 or OCFS2.
    r#type: &'static str,
    /// What the file system says: the line of the kernel's log.
    message: String,
    /// The kernel function that found it, where the message names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<String>,
    /// The kernel's number of the error, where the message tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
}

struct FilesystemError {
    log: File,
    /// How often the kernel overwrote records that were not read yet.
    overruns: u64,
}

impl FilesystemError {
    /// From the log's end on.
    fn open() -> Result<Self> {
        let mut log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(LOG);
        if let Ok(log) = &mut log {
            log.seek(SeekFrom::End(0))?;
        }
        let log = log.with_context(|| format!("cannot read {LOG}; run as root or grant CAP_SYSLOG"))?;
        Ok(Self { log, overruns: 0 })
    }
}

impl Watcher for FilesystemError {
    fn wakes(&self) -> Option<(RawFd, i16)> {
        Some((self.log.as_raw_fd(), libc::POLLIN))
    }

    fn next(&self) -> Instant {
        Instant::now() + IDLE
    }

    fn look(&mut self, rules: &Rules, _: Instant, tell: &mut dyn FnMut(Finding)) -> Result<()> {
        let mut record = [0; RECORD_BYTES];
        for _ in 0..RECORDS_MAX {
            match self.log.read(&mut record) {
                Ok(length) => {
                    if let Some(body) = parse(&String::from_utf8_lossy(&record[..length])) {
                        tell(Finding::new(&rules.machine.rate_limit, &body)?);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.overruns += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).with_context(|| format!("cannot read {LOG}")),
            }
        }
        Ok(())
    }

    fn resyncs(&self) -> Option<u64> {
        Some(self.overruns)
    }
}

/// `priority,sequence,microseconds,flags;message`, and lines of what it is about.
fn parse(record: &str) -> Option<Body> {
    let (head, rest) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    let text = rest.lines().next()?;
    // Programs can write to the log too, but not in the kernel's name.
    let (r#type, device, said) = if priority < LEVELS { error(priority, text)? } else { return None };
    let message = text.to_owned();
    Some(Body { device: device.to_owned(), r#type, message, function: function(said), errno: errno(said) })
}

/// Which kind of file system on which device says that it met an error, and what it says.
fn error(level: u32, text: &str) -> Option<(&'static str, &str, &str)> {
    let of = |prefix| text.strip_prefix(prefix)?.split_once(')');
    if let Some((device, said)) = of("EXT4-fs error (device ") {
        return Some(("ext4", device, said));
    }
    let btrfs = ["BTRFS error (device ", "BTRFS critical (device ", "BTRFS: error (device "];
    if let Some((device, said)) = btrfs.into_iter().find_map(of) {
        // Behind the name stands what it has met before: `state EA`.
        return Some(("btrfs", device.split([' ', ':']).next()?, said));
    }
    if let Some((device, said)) = of("XFS (").filter(|_| level <= ALERT) {
        let is_advice = ADVICE.iter().any(|advice| said.trim_start_matches([':', ' ']).starts_with(advice));
        return (!is_advice).then_some(("xfs", device, said));
    }
    let (said, journal) = text.rsplit_once(' ')?;
    let is_error = text.starts_with("Aborting journal on device ")
        || (text.starts_with("JBD2: ") && (said.contains("I/O error") || said.contains("IO error")));
    is_error.then(|| ("journal", device_of_journal(journal.trim_end_matches('.')), said))
}

/// A journal within its file system has its inode's number behind the device's name: ext4's is 8. `dm-8` is a device.
fn device_of_journal(name: &str) -> &str {
    name.strip_suffix("-8").filter(|device| *device != "dm").unwrap_or(name)
}

/// `function:line: …`, or a function with an offset into it.
fn function(said: &str) -> Option<String> {
    let first = said.strip_prefix(" in ").or_else(|| said.strip_prefix(": "))?.split(' ').next()?;
    let place = first.strip_suffix(':').and_then(|place| place.rsplit_once(':'));
    let with_line = place.filter(|(_, line)| line.parse::<u32>().is_ok()).map(|(function, _)| function);
    let with_offset = || said.split([' ', '"']).find_map(|word| Some(word.split_once("+0x")?.0));
    with_line.or_else(with_offset).map(str::to_owned)
}

/// `errno=-5` or `error -5`, with or without the sign.
fn errno(said: &str) -> Option<i32> {
    let after = |key: &str| {
        said.match_indices(key).find_map(|(at, _)| {
            let digits = said[at + key.len()..].trim_start_matches('-');
            digits[..digits.find(|it: char| !it.is_ascii_digit()).unwrap_or(digits.len())].parse().ok()
        })
    };
    after("errno=").or_else(|| after("error "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's log has of each kind of error: type, device, function and number.
    const ERRORS: [(&str, [&str; 3], Option<i32>); 11] = [
        (
            "2,10909,39521666115,-;EXT4-fs error (device loop0): ext4_lookup:1789: inode #2: comm ls: deleted inode referenced: 12",
            ["ext4", "loop0", "ext4_lookup"],
            None,
        ),
        (
            "2,1,1,-;EXT4-fs error (device dm-0) in ext4_reserve_inode_write:5792: Journal has aborted",
            ["ext4", "dm-0", "ext4_reserve_inode_write"],
            None,
        ),
        (
            "2,1,1,-;EXT4-fs error (device sda1) in ext4_evict_inode:255: error 28",
            ["ext4", "sda1", "ext4_evict_inode"],
            Some(28),
        ),
        ("3,10917,39521936702,-;Aborting journal on device loop0-8.", ["journal", "loop0", ""], None),
        ("3,1,1,-;Aborting journal on device dm-8.", ["journal", "dm-8", ""], None),
        (
            "4,1,1,-;JBD2: Detected IO errors while flushing file data on dm-0-8",
            ["journal", "dm-0", ""],
            None,
        ),
        (
            "1,10926,39523778982,-;XFS (loop0): Metadata corruption detected at xfs_dinode_verify.part.0+0x2b8/0x810, inode 0x83 dinode",
            ["xfs", "loop0", "xfs_dinode_verify.part.0"],
            None,
        ),
        (
            "1,1,1,-;XFS (dm-1): metadata I/O error in \"xfs_buf_ioend+0x17e/0x1f0 [xfs]\" at daddr 0x8 len 8 error 5",
            ["xfs", "dm-1", "xfs_buf_ioend"],
            Some(5),
        ),
        ("1,1,1,-;XFS (sdb): log I/O error -5", ["xfs", "sdb", ""], Some(5)),
        (
            "3,1,1,-;BTRFS error (device sda2: state EA): bdev /dev/sda2 errs: wr 1, rd 0, flush 0, corrupt 0, gen 0",
            ["btrfs", "sda2", ""],
            None,
        ),
        (
            "2,1,1,c;BTRFS: error (device sda2 state A) in btrfs_run_delayed_refs:2150: errno=-5 IO failure\n SUBSYSTEM=block",
            ["btrfs", "sda2", "btrfs_run_delayed_refs"],
            Some(5),
        ),
    ];

    #[test]
    fn an_error_is_told_with_its_device_function_and_number() {
        for (record, [kind, device, function], errno) in ERRORS {
            let body = parse(record).unwrap_or_else(|| panic!("{record}"));
            let told = (body.r#type, &*body.device, body.function.as_deref().unwrap_or(""), body.errno);
            assert_eq!(told, (kind, device, function, errno), "{record}");
            assert!(record.contains(&body.message) && !body.message.contains('\n'), "{body:?}");
        }
        let first = serde_json::to_value(parse(ERRORS[0].0)).unwrap();
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("fixtures/filesystem_error.json")).unwrap();
        assert_eq!(first, fixture);
    }

    #[test]
    fn other_lines_are_no_error() {
        for record in [
            "6,1,1,-;EXT4-fs (loop0): mounted filesystem 04e414aa r/w with ordered data mode. Quota mode: none.",
            "4,1,1,-;EXT4-fs (loop0): warning: mounting fs with errors, running e2fsck is recommended",
            "3,1,1,-;EXT4-fs (loop0): VFS: Can't find ext4 filesystem",
            "2,1,1,-;EXT4-fs (loop0): Remounting filesystem read-only",
            "5,1,1,-;XFS (loop0): Unmounting Filesystem bb2bc760-985e-41a8-8f2c-b40c7e5f3121",
            "4,1,1,-;XFS (loop0): Invalid superblock magic number",
            "1,1,1,-;XFS (loop0): Unmount and run xfs_repair",
            "1,1,1,-;XFS (loop0): First 128 bytes of corrupted metadata buffer:",
            "1,1,1,-;00000000: 49 4e 00 00 03 02 00 00 00 00 00 00 00 00 00 00  IN..............",
            "6,1,1,-;BTRFS info (device sda2): using free-space-tree",
            "10,1,1,-;EXT4-fs error (device loop0): ext4_lookup:1789: a program says so",
            "a line of another shape",
            "",
        ] {
            assert_eq!(parse(record), None, "{record}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_taken(text in ".{0,200}", kind in 0usize..ERRORS.len(), at in 0usize..40) {
            let _ = parse(&text);
            let start: String = ERRORS[kind].0.chars().take(at + 20).collect();
            let _ = parse(&(start + &text));
        }
    }
}
