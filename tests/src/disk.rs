//! Block devices and mounts of a test, undone after it.

use crate::until;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const LOOP_SET_FD: libc::c_ulong = 0x4c00;
const LOOP_CLR_FD: libc::c_ulong = 0x4c01;
const LOOP_SET_DIRECT_IO: libc::c_ulong = 0x4c08;
const LOOP_CTL_ADD: libc::c_ulong = 0x4c80;
const LOOP_CTL_REMOVE: libc::c_ulong = 0x4c81;
/// Above whatever a machine's own tools take.
static NEXT: AtomicU32 = AtomicU32::new(1000);

/// A loop device of a number that nobody else uses. It leaves the machine with this value.
pub struct Loop {
    number: u32,
}

impl Loop {
    /// On a file, past the page cache where its file system can do that.
    pub fn attach(file: &Path) -> io::Result<Self> {
        let device = Self { number: add()? };
        let path = device.path();
        until("loop device", || path.exists().then_some(()));
        let node = OpenOptions::new().read(true).write(true).open(&path)?;
        let file = OpenOptions::new().read(true).write(true).open(file)?;
        ioctl(&node, LOOP_SET_FD, file.as_raw_fd().unsigned_abs().into())?;
        // Refused by file systems that have no direct I/O.
        let _ = ioctl(&node, LOOP_SET_DIRECT_IO, 1);
        Ok(device)
    }

    /// On a new sparse file, which is gone when the device is.
    pub fn with_size(bytes: u64) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("kpulse-loop-{}-{}", std::process::id(), unique()));
        File::create(&path)?.set_len(bytes)?;
        let device = Self::attach(&path);
        fs::remove_file(&path)?;
        device
    }

    /// The device's node.
    pub fn path(&self) -> PathBuf {
        format!("/dev/{}", self.name()).into()
    }

    /// The device's name, as metrics have it.
    pub fn name(&self) -> String {
        format!("loop{}", self.number)
    }

    /// Whether it goes past the page cache.
    pub fn is_direct(&self) -> bool {
        let state = fs::read_to_string(format!("/sys/block/{}/loop/dio", self.name()));
        state.is_ok_and(|text| text.trim() == "1")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Ok(node) = File::open(self.path()) {
            let _ = ioctl(&node, LOOP_CLR_FD, 0);
        }
        // The last user may still be leaving: a mount that was just undone, a scanner of new devices.
        let Ok(control) = OpenOptions::new().read(true).write(true).open("/dev/loop-control") else { return };
        for _ in 0..500 {
            match ioctl(&control, LOOP_CTL_REMOVE, self.number.into()) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
        eprintln!("{} stays: it is in use", self.name());
    }
}

fn unique() -> u32 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn add() -> io::Result<u32> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    loop {
        let number = unique();
        match ioctl(&control, LOOP_CTL_ADD, number.into()) {
            Ok(()) => return Ok(number),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(error),
        }
    }
}

fn ioctl(file: &File, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the loop driver's requests take a number or a descriptor, and no memory of ours.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A file system that is mounted as long as this lives.
pub struct Mount {
    target: PathBuf,
    is_own_folder: bool,
}

impl Mount {
    /// `source` of this kind in a new folder.
    pub fn new(source: &Path, kind: &str, options: &str) -> io::Result<Self> {
        let target = std::env::temp_dir().join(format!("kpulse-mount-{}-{}", std::process::id(), unique()));
        fs::create_dir(&target)?;
        let mounted = Self::at(source, &target, kind, options);
        mounted
            .map(|mut mount| {
                mount.is_own_folder = true;
                mount
            })
            .inspect_err(|_| drop(fs::remove_dir(&target)))
    }

    /// `source` at a folder that is there.
    pub fn at(source: &Path, target: &Path, kind: &str, options: &str) -> io::Result<Self> {
        let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other);
        let (from, to) = (text(source.as_os_str().as_bytes())?, text(target.as_os_str().as_bytes())?);
        let (kind, options) = (text(kind.as_bytes())?, text(options.as_bytes())?);
        // SAFETY: all four are C strings that live through the call.
        let outcome =
            unsafe { libc::mount(from.as_ptr(), to.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { target: target.to_owned(), is_own_folder: false })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Ok(target) = CString::new(self.target.as_os_str().as_bytes()) else { return };
        // A test that failed may have left a file open.
        for flags in [0, libc::MNT_DETACH] {
            // SAFETY: a C string that lives through the call.
            if unsafe { libc::umount2(target.as_ptr(), flags) } == 0 {
                break;
            }
        }
        if self.is_own_folder {
            let _ = fs::remove_dir(&self.target);
        }
    }
}
