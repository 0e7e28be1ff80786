//! Which of the files that processes run are Go's? Each is looked at once; the tables of those used last stay open.

use super::Table;
use crate::process::{self, Mapping, Processes};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// Files that are known to be Go's or not.
const MAX_KNOWN: usize = 8192;
/// Tables with an open file and 128 KiB of what was read last.
const MAX_OPEN: usize = 32;

/// What stays the same for as long as a file is not written.
type FileId = [i64; 6];

/// The tables of files.
#[derive(Default)]
pub struct Files {
    is_gos: HashMap<FileId, bool>,
    /// The one used last is at the end.
    open: Vec<(FileId, Table<File>)>,
}

impl Files {
    /// Which file a mapping shows; `None` where none can be reached.
    pub fn identify(
        &self,
        source: &Processes,
        pid: u32,
        mapping: &Mapping,
        files: process::Files,
    ) -> Option<FileId> {
        if files == process::Files::Unreachable {
            return None;
        }
        let about = source.metadata(pid, mapping, files).ok()?;
        let numbers = [about.dev(), about.ino(), about.len()].map(u64::cast_signed);
        let [device, inode, size] = numbers;
        Some([device, inode, size, about.mtime(), about.ctime(), about.ctime_nsec()])
    }

    /// The table of a file; `None` where it has none.
    pub fn table(&mut self, id: FileId, open: impl FnOnce() -> Option<File>) -> Option<&mut Table<File>> {
        if self.is_gos.get(&id) == Some(&false) {
            return None;
        }
        let place = self.open.iter().position(|(known, _)| *known == id);
        let entry = place.map(|place| self.open.remove(place)).or_else(|| Some((id, Table::read(open()?)?)));
        if self.is_gos.len() >= MAX_KNOWN {
            self.is_gos.clear();
        }
        self.is_gos.insert(id, entry.is_some());
        if self.open.len() >= MAX_OPEN {
            self.open.remove(0);
        }
        self.open.push(entry?);
        self.open.last_mut().map(|(_, table)| table)
    }
}
