//! Block devices and mounts of a test, undone after it.

use crate::until;
use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const LOOP_SET_FD: libc::c_ulong = 0x4c00;
const LOOP_CLR_FD: libc::c_ulong = 0x4c01;
const LOOP_SET_DIRECT_IO: libc::c_ulong = 0x4c08;
const LOOP_CTL_ADD: libc::c_ulong = 0x4c80;
const LOOP_CTL_REMOVE: libc::c_ulong = 0x4c81;
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;
const XFS_IOC_GOINGDOWN: libc::c_ulong = 0x8004_587d;
/// Above whatever a machine's own tools take.
static NEXT: AtomicU32 = AtomicU32::new(1000);

/// A loop device of a number that nobody else uses. It leaves the machine with this value.
pub struct Loop {
    number: u32,
}

impl Loop {
    /// On a file, past the page cache where its file system can do that.
    pub fn attach(file: &Path) -> io::Result<Self> {
        let device = Self::attach_cached(file)?;
        let node = OpenOptions::new().read(true).write(true).open(device.path())?;
        // Refused by file systems that have no direct I/O.
        let _ = ioctl(&node, LOOP_SET_DIRECT_IO, 1);
        Ok(device)
    }

    /// On a file, through the page cache: only those writes wait on every kernel while its file system is frozen.
    pub fn attach_cached(file: &Path) -> io::Result<Self> {
        let device = Self { number: add()? };
        let path = device.path();
        until("loop device", || path.exists().then_some(()));
        let node = OpenOptions::new().read(true).write(true).open(&path)?;
        let file = OpenOptions::new().read(true).write(true).open(file)?;
        ioctl(&node, LOOP_SET_FD, file.as_raw_fd().unsigned_abs().into())?;
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
    // SAFETY: requests to the loop driver and to freeze take a number or a descriptor, and no memory of ours.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Mounts tracefs where the machine has it not, for as long as the value lives.
pub fn tracefs() -> Option<Mount> {
    let point = Path::new("/sys/kernel/tracing");
    if point.join("events").exists() {
        return None;
    }
    Some(Mount::at(Path::new("tracefs"), point, "tracefs", "").expect("root may mount"))
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

/// Lets nobody write any more to the file system that is mounted there.
pub fn make_readonly(point: &Path) -> io::Result<()> {
    let point = CString::new(point.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
    // SAFETY: the path is a C string that lives through the call; the others may be null for a remount.
    let outcome =
        unsafe { libc::mount(std::ptr::null(), point.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A new file system on a loop device of its own; the mount goes before the device.
pub struct FileSystem {
    pub mount: Mount,
    pub device: Loop,
}

impl FileSystem {
    /// ext4, which turns read-only at an error; why not, in words, where it cannot be had.
    pub fn ext4(bytes: u64) -> Result<Self, String> {
        let device =
            Loop::with_size(bytes).map_err(|error| format!("no loop device can be made: {error}"))?;
        Self::make("ext4", device, &["-q", "-F", "-O", "^fast_commit", "-e", "remount-ro"])
    }

    /// XFS, with more options for mkfs.xfs.
    pub fn xfs(device: io::Result<Loop>, options: &[&str]) -> Result<Self, String> {
        if !Path::new("/proc/fs/xfs").exists() {
            return Err("this kernel has no XFS".into());
        }
        let device = device.map_err(|error| format!("no loop device can be made: {error}"))?;
        // Features that the oldest kernel does not know are off.
        let features = ["-q", "-f", "-m", "crc=1,bigtime=0,inobtcount=0,reflink=0", "-i", "sparse=0"];
        Self::make("xfs", device, &[options, &features].concat())
    }

    fn make(kind: &str, device: Loop, options: &[&str]) -> Result<Self, String> {
        let made = Command::new(format!("mkfs.{kind}"))
            .args(options)
            .arg(device.path())
            .stdout(Stdio::null())
            .status();
        if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return Err(format!("mkfs.{kind}: {made:?}"));
        }
        let mount =
            Mount::new(&device.path(), kind, "").map_err(|error| format!("no {kind} here: {error}"))?;
        Ok(Self { mount, device })
    }

    /// Its number, `major:minor`.
    pub fn number(&self) -> String {
        let number = fs::read_to_string(format!("/sys/block/{}/dev", self.device.name()));
        number.expect("every disk has it").trim().to_owned()
    }

    /// Has XFS give up, as after an error of its log.
    pub fn shut_down(&self) -> io::Result<()> {
        let (folder, without_flush) = (File::open(self.mount.path())?, 2u32);
        // SAFETY: the request reads one number, which lives through the call.
        let outcome = unsafe {
            libc::ioctl(folder.as_raw_fd(), XFS_IOC_GOINGDOWN as _, std::ptr::from_ref(&without_flush))
        };
        if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Lets all writes to it wait for as long as the value lives.
    pub fn freeze(&self) -> io::Result<Frozen> {
        let folder = File::open(self.mount.path())?;
        ioctl(&folder, FIFREEZE, 0)?;
        Ok(Frozen(folder))
    }
}

/// A file system that takes no writes.
pub struct Frozen(File);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = ioctl(&self.0, FITHAW, 0);
    }
}

/// A file system in memory, unmounted with the test.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// One of a megabyte; `None` when it cannot be mounted here.
    pub fn new() -> Option<Self> {
        Self::with_size(c"size=1m")
    }

    /// One of another size, as an option of tmpfs.
    pub fn with_size(option: &CStr) -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        disk.mount(0, option).then_some(disk)
    }

    /// Gives it more room.
    pub fn grow(&self, option: &CStr) {
        assert!(self.mount(libc::MS_REMOUNT, option), "{}", io::Error::last_os_error());
    }

    fn mount(&self, flags: libc::c_ulong, option: &CStr) -> bool {
        let path = CString::new(self.path().to_str().unwrap()).unwrap();
        let (kind, option) = (c"tmpfs".as_ptr(), option.as_ptr().cast());
        // SAFETY: all strings are terminated and live through the call.
        unsafe { libc::mount(c"kpulse".as_ptr(), path.as_ptr(), kind, flags, option) == 0 }
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Lets nobody write to it any more.
    pub fn make_readonly(&self) {
        make_readonly(self.path()).unwrap();
    }

    /// Takes every free byte; removing the file gives them back.
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let path = CString::new(self.path().to_str().unwrap()).unwrap();
        // SAFETY: the string is terminated and lives through the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}
