//! The directory of the files: what lies there that is ours, whole files under their names, the oldest gone.
//!
//! Everything below it is opened from its descriptor, part by part, and no link is followed.

use super::names;
use crate::export::folded::Folded;
use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

/// What has folders of its own.
pub const SCOPES: [&str; 3] = ["host", "container", "process"];
/// Names of functions and programs are nobody's business but the owner's and the group's that collects the files.
const FOLDER_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;
/// Written and removed at the start, to see whether that is possible.
const TRIAL: &str = ".kpulse-profiler.part";

/// The directory, for this process alone.
pub struct Directory {
    path: PathBuf,
    /// Holds the lock.
    folder: OwnedFd,
}

/// A file of ours.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Known {
    pub begin: SystemTime,
    pub scope: &'static str,
    pub name: Rc<str>,
    /// What it takes on the disk.
    pub bytes: u64,
}

impl Directory {
    /// Makes it where there is none, and tries whether files can be written there.
    pub fn open(path: &Path) -> Result<Self> {
        let directory = Self { path: path.to_owned(), folder: locked(opened(path)?)? };
        remove(&directory.folder, TRIAL)?;
        create(&directory.folder, TRIAL)?;
        remove(&directory.folder, TRIAL)?;
        Ok(directory)
    }

    /// Looks whether the path still leads here: the directory may have been replaced, or made anew.
    pub fn follow(&mut self) -> Result<()> {
        let now = opened(&self.path)?;
        let [known, found] = [&self.folder, &now].map(rustix::fs::fstat);
        let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
        if identity(known?) != identity(found?) {
            self.folder = locked(now)?;
        }
        Ok(())
    }

    /// Our files, the oldest first. Files that were never finished and folders without files go.
    pub fn files(&self) -> Result<Vec<Known>> {
        let mut files = Vec::new();
        for scope in SCOPES {
            let Some(above) = below(self.folder.as_fd(), scope)? else { continue };
            for name in entries(&above)?.iter().filter(|name| names::is_folder(name)) {
                let Ok(Some(folder)) = below(above.as_fd(), name) else { continue };
                let before = files.len();
                let name: Rc<str> = name.as_str().into();
                for file in entries(&folder)? {
                    if names::is_unfinished(&file) {
                        // Where it is none of ours, the file that needs its place says so.
                        let _ = remove(&folder, &file);
                    }
                    let Some(begin) = names::begin(&file) else { continue };
                    // It may have been taken away meanwhile.
                    let Ok(stat) = rustix::fs::statat(&folder, file.as_str(), AtFlags::SYMLINK_NOFOLLOW)
                    else {
                        continue;
                    };
                    if FileType::from_raw_mode(stat.st_mode).is_file() {
                        files.push(Known { begin, scope, name: name.clone(), bytes: bytes(&stat) });
                    }
                }
                if files.len() == before {
                    self.remove_empty(&above, &name);
                }
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    /// Takes a file away, and its folder when that was the last.
    pub fn remove(&self, file: &Known) -> Result<()> {
        let Some(above) = below(self.folder.as_fd(), file.scope)? else { return Ok(()) };
        let Some(folder) = below(above.as_fd(), &file.name)? else { return Ok(()) };
        remove(&folder, &names::file(file.begin))?;
        self.remove_empty(&above, &file.name);
        Ok(())
    }

    fn remove_empty(&self, above: &OwnedFd, name: &str) {
        // Refused while there is a file in it, of whoever it may be.
        let _ = rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR);
    }

    /// Writes a file and then gives it its name; says what it takes on the disk.
    pub fn write(&self, scope: &str, name: &str, file: &str, content: &Folded) -> Result<u64> {
        let cannot = || format!("cannot write {}", self.path.join(scope).join(name).join(file).display());
        let folder = made(self.folder.as_fd(), scope).and_then(|above| made(above.as_fd(), name));
        let folder = folder.with_context(cannot)?;
        let unfinished = names::unfinished(file);
        let written = fill(&folder, &unfinished, content).and_then(|bytes| {
            rustix::fs::renameat(&folder, unfinished.as_str(), &folder, file)?;
            Ok(bytes)
        });
        if written.is_err() {
            // What stays is removed with the next files.
            let _ = remove(&folder, &unfinished);
        }
        written.with_context(cannot)
    }
}

fn fill(folder: &OwnedFd, file: &str, content: &Folded) -> Result<u64> {
    // What a killed process left.
    remove(folder, file)?;
    let mut to = BufWriter::new(create(folder, file)?);
    content.write(&mut to)?;
    to.flush()?;
    // Whoever finds the name after a power cut finds the content too.
    to.get_ref().sync_data()?;
    Ok(bytes(&rustix::fs::fstat(to.get_ref())?))
}

fn opened(path: &Path) -> Result<OwnedFd> {
    fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)?;
    Ok(rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Two processes would take each other's unfinished files away.
fn locked(folder: OwnedFd) -> Result<OwnedFd> {
    // Where a file system knows no such locks there is none.
    if rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        bail!("another process writes there");
    }
    Ok(folder)
}

/// A folder, which is no link; `None` where there is none.
fn below(above: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(above, name, flags, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {name}")),
    }
}

fn made(above: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(above, name, Mode::from_raw_mode(FOLDER_MODE)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    below(above, name)?.with_context(|| format!("{name} is something else than a directory"))
}

fn create(folder: &OwnedFd, name: &str) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(FILE_MODE))?))
}

fn remove(folder: &OwnedFd, name: &str) -> Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {name}")),
    }
}

/// Names that are text, as all of ours are.
fn entries(folder: &OwnedFd) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        if let Ok(name) = entry?.file_name().to_str() {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// As `du` counts, or the length where the blocks come later.
fn bytes(stat: &Stat) -> u64 {
    let [blocks, length] = [i128::from(stat.st_blocks) * 512, i128::from(stat.st_size)];
    u64::try_from(blocks.max(length)).unwrap_or(0)
}
