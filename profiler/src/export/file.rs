//! The file that a profile goes to: complete under its name, or not there.

use anyhow::Context;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where a profile goes.
pub enum Output {
    /// Standard output.
    Stdout,
    /// A device or pipe, which cannot be replaced.
    Stream(File, PathBuf),
    /// A regular file, written under another name until it is whole.
    Replace(Temporary),
}

/// A file that removes itself unless it is renamed.
pub struct Temporary {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing to remove, and that is the usual case.
        let _ = fs::remove_file(&self.path);
    }
}

impl Output {
    /// Opens the output before anything is recorded, so that a bad path is known at once. `-` is standard output.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let cannot = || format!("cannot write {}", path.display());
        let known = fs::metadata(path).ok();
        if known.as_ref().is_some_and(fs::Metadata::is_dir) {
            anyhow::bail!("cannot write {}: it is a directory; give the name of a file", path.display());
        }
        if known.as_ref().is_some_and(|known| !known.is_file()) {
            let file = OpenOptions::new().write(true).open(path).with_context(cannot)?;
            return Ok(Self::Stream(file, path.into()));
        }
        // A link keeps pointing where it pointed.
        let target =
            if known.is_some() { fs::canonicalize(path).with_context(cannot)? } else { path.to_path_buf() };
        let name = target.file_name().with_context(|| format!("{}: no file name", cannot()))?;
        let hidden = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        let temporary = target.with_file_name(hidden);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary).with_context(cannot)?;
        Ok(Self::Replace(Temporary { file, path: temporary, target }))
    }

    /// Writes everything, then gives the file its name.
    pub fn finish(self, content: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout
                    .write_all(content)
                    .and_then(|()| stdout.flush())
                    .context("cannot write to standard output")
            }
            Self::Stream(mut file, path) => {
                file.write_all(content).with_context(|| format!("cannot write {}", path.display()))
            }
            Self::Replace(mut temporary) => temporary
                .file
                .write_all(content)
                .and_then(|()| temporary.file.sync_all())
                .and_then(|()| fs::rename(&temporary.path, &temporary.target))
                .with_context(|| format!("cannot write {}", temporary.target.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_whole_or_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.folded");
        fs::write(&path, "old").unwrap();
        drop(Output::open(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(directory.path()), ["out.folded"]);
        Output::open(&path).unwrap().finish(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(directory.path()), ["out.folded"]);
    }

    #[test]
    fn a_link_keeps_pointing_to_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        Output::open(&link).unwrap().finish(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_device_is_written_not_replaced() {
        Output::open(Path::new("/dev/null")).unwrap().finish(b"x").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn a_full_disk_is_an_error_with_the_path() {
        let error = Output::open(Path::new("/dev/full")).unwrap().finish(b"x").unwrap_err();
        assert_eq!(format!("{error:#}"), "cannot write /dev/full: No space left on device (os error 28)");
    }

    #[test]
    fn a_path_that_cannot_be_written_is_known_at_once() {
        assert!(Output::open(Path::new("/no/such/folder/out")).is_err());
        assert!(Output::open(Path::new("/tmp")).is_err());
    }
}
